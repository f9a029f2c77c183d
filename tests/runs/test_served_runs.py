"""Students of a teacher behind a server on loopback, beside those of the same network in this process."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from distillery.config.check import check
from distillery.config.served import served_teachers
from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.runs.job import Job, resumed
from distillery.runs.run import Result, train
from distillery.runs.verify_run import verify_run
from distillery.runs.write_signals import Settings, write_signals
from distillery.tasks.classification import Classification
from distillery.teachers.served_client import ServerError
from fixtures.building import build
from fixtures.documents import documents, run_on_texts, tiny_llama, write_bpe, write_texts
from fixtures.fake_server import FakeServer, fake_server
from fixtures.runs import config, sha256

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Teacher 'main' scores")]
TAIL = ["loss/response=[topk_kd]", "loss.topk_kd.missing=tail", "loss.topk_kd.k=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_bpe(folder / "teacher")
    tiny_llama(320).save_pretrained(folder / "teacher")  # type: ignore[operator]
    write_texts(folder / "texts", documents(30, longest=40))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[FakeServer]:
    with fake_server(tiny_llama(320), AutoTokenizer.from_pretrained(folder / "teacher")) as server:
        yield server


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[str]:
    return [*run_on_texts(folder / "texts", folder / "teacher"), "+student.net.config.attention_dropout=0.1"]


@pytest.fixture(scope="module")
def served(server: FakeServer, texts: list[str]) -> list[str]:
    teacher = ["model/teacher=served", f"teachers.main.url={server.url}", "teachers.main.model=tiny"]
    return [*texts, *teacher, "teachers.main.k=8", "teachers.main.client.patience=0.1"]


@pytest.fixture(scope="module")
def student(folder: Path, served: list[str]) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", "s3cret")
        own = [*served, *TAIL, "teachers.main.client.api_key_env=TEACHER_KEY"]
        return train(config(folder / "student", *own), own)


@pytest.fixture(scope="module")
def local(folder: Path, texts: list[str]) -> list[str]:
    return [*texts, "model/teacher=causal_lm", f"teachers.main.net.model='{folder / 'teacher'}'"]


def same_student(one: Result, other: Result) -> None:
    mine, theirs = (dict(each.parts.distiller.student.named_parameters()) for each in (one, other))
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-4, atol=1e-4)


def test_the_student_is_that_of_the_network(
    student: Result, folder: Path, local: list[str], server: FakeServer
) -> None:
    local_student = train(config(folder / "local", *local, *TAIL))
    same_student(student, local_student)
    ours, other = (RunRecord.read(each.folder).teachers["main"] for each in (student, local_student))
    assert ours["score"] == pytest.approx(other["score"], rel=1e-5)
    assert ours["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)
    assert server.headers["Authorization"] == "Bearer s3cret"
    assert verify_run(student.folder).score == student.record.metrics["last"]["test_score"]


def test_it_scores_what_the_student_writes(
    folder: Path, served: list[str], local: list[str], server: FakeServer
) -> None:
    rollouts = ["rollouts=on_policy", "rollouts.new_tokens=8", "rollouts.prompt_tokens=6", "data.pack=false"]
    none = "++student.net.config.attention_dropout=0"
    own = [*rollouts, none, "loss/response=[sampled_kl]", "trainer.max_epochs=1"]
    same_student(*(train(config(folder / name, *given, *own)) for name, given in (("s", served), ("l", local))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(server.card, "max_model_len", 15)
        with pytest.raises(UserError, match=r"prompt, of 6 tokens, this exceeds the 14 tokens .* Set it to 8 at most"):
            train(config(folder / "long", *served, *own, "rollouts.new_tokens=9", "data.max_length=12"))


def test_its_signals_on_disk_train_the_same_student_without_the_server(
    student: Result, served: list[str], server: FakeServer, tmp_path: Path
) -> None:
    cache = tmp_path / "signals"
    write_signals(config(tmp_path / "run", *served, *TAIL), Settings(str(cache), "topk", 8, "float32"))
    asked = len(server.asked)
    read = train(config(tmp_path / "run", *served, *TAIL, f"teachers.main.cache='{cache}'"))
    assert len(server.asked) == asked
    same_student(student, read)
    score = student.record.teachers["main"]["score"]
    assert read.record.teachers["main"]["score"] == pytest.approx(score, rel=1e-5)
    for kind, k in (("topk", 9), ("topk", "auto"), ("hidden", 8)):
        with pytest.raises(UserError, match=rf"signals={kind} k={k}: .* Set signals=topk, and k to 8 at most"):
            write_signals(config(tmp_path / "run", *served, *TAIL), Settings(str(cache), kind, k))  # type: ignore[arg-type]


def test_the_record_says_who_the_teacher_was_and_never_the_key(student: Result, served: list[str]) -> None:
    record = json.loads((student.folder / "run.json").read_text())
    assert record["sources"][":teachers.main"].startswith("served ")
    assert any("logprobs_mode=raw_logprobs" in remark for remark in record["remarks"])
    assert any("tokens/s when it was tried" in remark for remark in record["remarks"])
    for file in student.folder.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes(), file
    same, other, fewer = (
        Job(check(config(student.folder, *served, *TAIL, *changes))).identity()
        for changes in (
            ["teachers.main.url=http://elsewhere:1", "teachers.main.client.concurrent=1"],
            ["teachers.main.model=another"],
            ["teachers.main.k=9"],
        )
    )
    assert same == record["config_hash"]
    assert len({same, other, fewer}) == 3


def test_a_run_whose_server_dies_is_resumed_where_it_was(
    student: Result, served: list[str], server: FakeServer
) -> None:
    """In the middle of an epoch, whose end was to write the first checkpoint; bit for bit."""
    folder = student.folder.with_name("died")
    server.asked.clear()
    server.faults.extend([""] * 10 + ["500"] * 3)
    with pytest.raises(ServerError, match=r"has not answered for \d s: HTTP 500.*resume the run"):
        train(config(folder, *served, *TAIL))
    server.faults.clear()
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < steps < len(student.parts.data.train_dataloader())
    assert RunRecord.read(folder).status == "failed"

    server.net, right = tiny_llama(320, seed=5), server.net
    with pytest.raises(UserError, match=r"teachers\.main is not the teacher that it was started with"):
        train(resumed(folder, []))
    server.net = right
    assert train(resumed(folder, [])).record.status == "finished"
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(folder / file) == sha256(student.folder / file), file


def test_what_cannot_work_is_refused_before_training(
    served: list[str], server: FakeServer, folder: Path, tmp_path: Path
) -> None:
    def refused(message: str, *given: str) -> None:
        with pytest.raises(UserError, match=message):
            build(config(tmp_path / "run", *served, *given))

    refused(r"loss\.kd needs its teacher's logits.*sampled_kl.*loss\.topk_kd\.missing=tail", "loss/response=[kd]")
    refused(r"loss\.topk_kd.*temperature", *TAIL, "loss.topk_kd.temperature=2")
    refused(r"teachers\.main\.client\.api_key_env=NO_KEY: .* not set", "teachers.main.client.api_key_env=NO_KEY")
    refused(r"teachers\.main\.url=nowhere: it must be", "teachers.main.url=nowhere")
    refused(r"teachers\.main\.client\.patiense", "+teachers.main.client.patiense=3")
    refused(r"teachers\.main: .*Is the server running", "teachers.main.url=http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"teachers\.main: .*Set task=causal_lm"):
        served_teachers(config(tmp_path / "run", *served), None, Classification(), {})  # type: ignore[arg-type]
    server.faults.append("400")
    refused(r"teachers\.main: .*HTTP 400: prompt_logprobs=5 exceeds max_logprobs=4", *TAIL)
    assert not (tmp_path / "run").exists()
