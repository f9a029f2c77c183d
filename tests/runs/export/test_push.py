"""`push_to_hub`: what is uploaded where, against a fake of the hub's client."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import LocalTokenNotFoundError

from distillery.core.errors import UserError
from distillery.results.exports import read_exports, write_exports
from distillery.results.record import RunRecord
from distillery.runs.export import push as module
from distillery.runs.export.push import push, refuse_name
from results.test_exports import ONNX


class FakeHub:
    """Keeps what is committed, by its path in the repository."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.repositories: dict[str, dict[str, bytes]] = {}

    def create_repo(self, repo: str, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        assert exist_ok
        self.repositories.setdefault(repo, {})

    def create_commit(self, repo: str, operations: list[CommitOperationAdd], commit_message: str) -> Any:
        for each in operations:
            content = each.path_or_fileobj
            self.repositories[repo][each.path_in_repo] = (
                content if isinstance(content, bytes) else Path(str(content)).read_bytes()
            )
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    RunRecord("kd_seed3", "kd", 3, "abc", status="finished", student_sha256="a").write(tmp_path)
    for name, file in (("onnx", "model.onnx"), ("safetensors", "model.safetensors"), ("stray", "notes.txt")):
        (tmp_path / "export" / name).mkdir(parents=True)
        (tmp_path / "export" / name / file).write_text(name)
    write_exports(tmp_path, [ONNX, type(ONNX)(**{**vars(ONNX), "format": "safetensors", "path": "safetensors"})])
    return tmp_path


def test_the_weights_are_at_the_top_and_the_card_with_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(module, "HfApi", lambda: hub)
    assert push(run / "export", read_exports(run), "me/digits", "# Card") == "https://hub/me/digits/commit/1"
    found = hub.repositories["me/digits"]
    assert set(found) == {"onnx/model.onnx", "model.safetensors", "export.json", "README.md"}
    assert found["model.safetensors"] == b"safetensors"
    assert found["README.md"] == b"# Card"


def test_what_the_hub_refuses_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HfApi", lambda: FakeHub(LocalTokenNotFoundError("no token")))
    with pytest.raises(UserError, match="hf auth login"):
        push(run / "export", read_exports(run), "me/digits", "")
    monkeypatch.setattr(module, "HfApi", lambda: FakeHub(ConnectionError("unreachable")))
    with pytest.raises(UserError, match="unreachable\\nThe exports are in"):
        push(run / "export", read_exports(run), "me/digits", "")
    with pytest.raises(UserError, match="push_to_hub=a/b/c"):
        refuse_name("a/b/c")
