"""run.json: what is written is read back, and what cannot be read is refused with the mend."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillery.core.errors import UserError
from distillery.results.environment import environment, git_state
from distillery.results.record import RunRecord, config_hash


def record() -> RunRecord:
    return RunRecord("kd_seed3", "kd", 3, "abc", metrics={"last": {"epoch": 4, "test_score": 0.9}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = record()
    written.write(tmp_path / "run")
    assert RunRecord.read(tmp_path / "run") == written
    assert json.loads((tmp_path / "run/run.json").read_text())["version"] == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]  # no draft stays behind


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Fields that were added since have their defaults."""
    first = (
        "version name method seed config_hash overrides status started git environment data sources teachers".split()
    )
    first += "student_sha256 metrics cost seconds error timeline".split()
    record = RunRecord("digits", "kd", 0, "hash")
    record.write(tmp_path)
    written = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({name: written[name] for name in first}))
    assert RunRecord.read(tmp_path) == record


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path) -> None:
    record().write(tmp_path)
    broken = record()
    broken.error = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        broken.write(tmp_path)
    assert RunRecord.read(tmp_path).error is None


def test_what_is_not_finite_is_null_in_the_file(tmp_path: Path) -> None:
    written = record()
    written.metrics["last"]["val_loss"] = math.nan
    written.cost = {"latency_ms": math.inf}
    written.write(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert content["metrics"]["last"] == {"epoch": 4, "test_score": 0.9, "val_loss": None}
    assert content["cost"] == {"latency_ms": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a run folder"),
        ('{"version": 1, "name": "kd', "torn"),
        ("", "torn"),
        ("[]", "version None"),
        ('{"version": 2, "name": "kd"}', "version 2.*reads version 1"),
        ('{"version": 1, "name": "kd", "colour": "red"}', "colour.*metrics"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        RunRecord.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_hash_is_of_what_is_computed_not_of_where() -> None:
    here = {
        "seed": 0,
        "name": "a",
        "paths": {"run": "/a"},
        "data": {"root": "/a/data", "train_size": 100},
        "callbacks": [{"dirpath": "/a/checkpoints", "monitor": "val/score"}],
        "logger": {"csv": {}},
    }
    there = {
        "callbacks": [{"monitor": "val/score", "dirpath": "/b/checkpoints"}],
        "data": {"train_size": 100, "root": "/b/data"},
        "paths": {"run": "/b"},
        "resume": "/b",
        "seed": 0,
        "name": "b",
    }
    assert config_hash(here) == config_hash(there)
    assert len(config_hash(here)) == 64
    assert config_hash(here) != config_hash({**here, "seed": 1})
    assert config_hash(here) != config_hash({**here, "data": {"root": "/a/data", "train_size": 200}})
    before, null, cpu = ({"teachers": {"main": own}} for own in ({}, {"placement": None}, {"placement": "cpu"}))
    assert config_hash(before) == config_hash(null) != config_hash(cpu)
    # a network's own `name` is not the experiment's
    assert config_hash({"net": {"name": "resnet18"}}) != config_hash({"net": {"name": "resnet34"}})


def test_git_state_tells_commit_and_dirt(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "a.txt").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_the_environment_is_told_and_goes_into_json() -> None:
    found = environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]
    assert json.loads(json.dumps(found)) == found
