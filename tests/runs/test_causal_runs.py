"""Whole runs of causal language models: teacher, student, record, resume, proof and report."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.results.report.write import write_report
from distillery.runs.compare_baselines import compare_baselines
from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.job import resumed
from distillery.runs.run import Result, train
from distillery.runs.strided_score import strided_score
from distillery.runs.verify_run import verify_run
from fixtures.building import build
from fixtures.command_line import Cli
from fixtures.documents import TINY_STUDENT, documents, run_on_texts, tiny_llama, write_bpe, write_texts
from fixtures.runs import Died, Dies, config, contents, sha256
from fixtures.texts import write_jsonl

TEXTS = documents(30, longest=40)
pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_bpe(folder / "bpe")
    write_texts(folder / "texts", TEXTS)
    return folder


@pytest.fixture(scope="module")
def texts(folder: Path) -> list[str]:
    return run_on_texts(folder / "texts", folder / "bpe")


@pytest.fixture(scope="module")
def teacher(folder: Path, texts: list[str]) -> Result:
    own = [*texts, "model/teacher=none", "student.net.config.hidden_size=32"]
    return train(config(folder / "teacher", *own), own)


@pytest.fixture(scope="module")
def distilled(teacher: Result, texts: list[str]) -> list[str]:
    return [*texts, "model/teacher=run", f"teachers.main.weights='{teacher.folder}'", "seed=1"]


@pytest.fixture(scope="module")
def student(folder: Path, distilled: list[str]) -> Result:
    return train(config(folder / "student", *distilled), distilled)


def bits_per_byte(net: torch.nn.Module, tokenizer: object, held_out: Sequence[str], length: int) -> tuple[float, float]:
    """And the loss per token: of each document by itself, with transformers alone."""
    nats = lost = 0.0
    sizes = tokens = 0
    for text in held_out:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]  # type: ignore[operator, attr-defined]
        for start in range(0, len(ids) - 1, length - 1):
            piece = torch.tensor([ids[start : start + length]])
            with torch.no_grad():
                chances = net(input_ids=piece).logits[0, :-1].double().log_softmax(-1)
            own = -chances.gather(1, piece[0, 1:, None]).squeeze(1)
            lost, tokens = lost + own.sum().item(), tokens + len(own)
            nats += own[: len(own) - (start + length >= len(ids))].sum().item()
        sizes += len(text.encode()) - len(tokenizer.convert_ids_to_tokens(ids[0]))  # type: ignore[attr-defined]
    return nats / math.log(2) / sizes, lost / tokens


def test_the_record_has_the_score_that_transformers_gives(
    folder: Path, teacher: Result, student: Result, tmp_path: Path
) -> None:
    """Of the exported folders, in a plain loop; the teacher's as well."""
    data = student.parts.data
    split = data.raw.test
    held_out = [split.inputs.first[position] for position in split.indices.tolist()]
    assert len(held_out) == 6
    record = RunRecord.read(student.folder)
    for run, given in ((teacher, record.teachers["main"]), (student, record.metrics["last"])):
        out = export(run.folder, tmp_path / run.folder.name)
        net, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        score, loss = bits_per_byte(net.eval(), tokenizer, held_out, 32)
        assert given.get("score", given.get("test_score")) == pytest.approx(score, rel=1e-5)
        assert given["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert (out / "README.md").read_text().count("bits per byte") >= 2
    keys = ("score_name", "higher_is_better", "score_range")
    assert [record.data[key] for key in keys] == ["bits per byte", False, [0.0, None]]
    assert record.data["measured"] == "windows of 32 tokens, stride 31, prefix token none"
    with np.load(student.folder / "predictions.npz") as saved:
        assert len(saved["student"]) == len(saved["main"]) == len(saved["target"])


@pytest.mark.slow
def test_chunks_of_logits_train_the_same_student(student: Result, distilled: list[str], folder: Path) -> None:
    """To 1e-5 after two epochs, also from cached hidden rows; and what needs all logits has them."""
    expected = student.parts.distiller.student
    assert expected.known_head
    for number, given in enumerate(
        (["task.rows_per_chunk=null"], ["task.rows_per_chunk=7", "teachers.main.cache=true"])
    ):
        own = [*distilled, *given]
        found = train(config(folder / f"chunks{number}", *own), own)
        pairs = zip(found.parts.distiller.student.parameters(), expected.parameters(), strict=True)
        assert max((one - other).abs().max().item() for one, other in pairs) < 1e-5
        scores = [run.record.metrics["last"]["test_score"] for run in (found, student)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    own = [*distilled, "loss/response=[dist]"]
    whole = train(config(folder / "dist", *own), own)
    assert "loss.dist compares rows" in " ".join(whole.record.remarks)


def test_it_learns_and_the_best_checkpoint_is_the_lowest(student: Result, teacher: Result) -> None:
    for result in (student, teacher):
        scores = [entry["score"] for entry in result.record.timeline]
        assert scores[-1] < scores[0] < 8
        best = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)
        assert scores[best["epoch"]] == min(scores)
    assert (student.record.method, student.record.status) == ("kd", "finished")
    saved = OmegaConf.load(student.folder / "config.yaml").student
    assert (saved.net.head, saved.net.num_classes) == ("causal_lm", student.parts.data.vocab_size)


def test_a_resumed_run_ends_bit_equal(distilled: list[str], student: Result, tmp_path: Path) -> None:
    """In the middle of an epoch of packed blocks."""
    often = ["callbacks.checkpoint_last.every_n_epochs=null", "+callbacks.checkpoint_last.every_n_train_steps=3"]
    with pytest.raises(Died):
        train(config(tmp_path / "run", *distilled, *often), callbacks=[Dies(14)])
    steps = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    epoch = len(student.parts.data.train_dataloader())
    assert steps == 12
    assert steps % epoch
    torch.manual_seed(99)
    assert train(resumed(tmp_path / "run", [])).record.status == "finished"
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(tmp_path / "run" / file) == sha256(student.folder / file), file


def test_a_cached_teacher_gives_the_same_run(distilled: list[str], student: Result, tmp_path: Path) -> None:
    """Its logits of each token are kept by block; other batches round otherwise."""
    result = train(config(tmp_path / "run", *distilled, "teachers.main.cache=true"))
    mine, theirs = (dict(each.parts.distiller.student.named_parameters()) for each in (result, student))
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-3, atol=1e-3)


def test_a_teacher_with_another_tokenizer(teacher: Result, distilled: list[str], folder: Path, tmp_path: Path) -> None:
    """It is scored in its own tokens, and what was compared is logged; the student can be proven and resumed."""
    small = write_bpe(tmp_path / "small", size=290)
    data = [f"data.tokenizer='{small}'", "loss/response=[cross_tokenizer]", "trainer.max_epochs=1", "logger=csv"]
    result = train(config(tmp_path / "run", *[each for each in distilled if each not in ("logger=none",)], *data))
    entry = result.record.teachers["main"]
    assert entry["score"] == pytest.approx(teacher.record.metrics["last"]["test_score"], rel=0.05)
    assert entry["tokenizer"] == str(folder / "bpe")
    with np.load(result.folder / "predictions.npz") as saved:
        assert "main" not in saved  # its rows are not those of the student
    assert result.record.fidelity["main"] == {"not_compared": f"it reads the tokens of {folder / 'bpe'}"}
    assert result.record.samples[0].keys() == {"prompt", "data", "student"}
    said = "\n".join(result.record.data["remarks"])
    assert "of its 320 tokens are also in the data's tokenizer" in said
    assert re.search(r"train: \d+\.\d% of the bytes are in one token of each, \d+\.\d% in groups", said)
    (metrics,) = result.folder.rglob("metrics.csv")
    columns = metrics.read_text().splitlines()[0]
    assert all(f"train/cross_tokenizer.{name}" in columns for name in ("one_to_one", "aligned", "shared_mass"))
    assert verify_run(result.folder).score == pytest.approx(result.record.metrics["last"]["test_score"], rel=1e-9)
    table = write_report([result.folder], tmp_path / "out", "Documents").table
    assert table["method"].tolist() == ["teacher", "xtok"]
    for message, *given in (
        (r"teachers\.main: cache=true keeps what a teacher says of the data's tokens", "teachers.main.cache=true"),
        (r"rollouts: the student generates texts in its own tokens", "rollouts=on_policy", "data.pack=false"),
    ):
        with pytest.raises(UserError, match=message):
            build(config(tmp_path / "refused", *distilled, *data, *given))


def test_rows_of_a_file_of_texts_are_documents(folder: Path, texts: list[str], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text, "label": "a"} for text in TEXTS])
    own = [f"data.source.path='{path}'", "data.source.label=null", "data.pack=false", "data.too_long=truncate"]
    rest = [each for each in texts if not each.startswith(("data=", "data.source"))]
    parts = build(config(tmp_path / "run", "data=jsonl", *own, *rest, "model/teacher=none"))
    assert parts.data.sizes == {"train": 22, "val": 2, "test": 6}
    assert "truncated, by" in "".join(parts.data.remarks)


def test_it_is_verified_and_reported(
    student: Result, distilled: list[str], texts: list[str], folder: Path, tmp_path: Path
) -> None:
    recorded = student.record.metrics["last"]["test_score"]
    assert verify_run(student.folder).score == pytest.approx(recorded, rel=1e-9)
    assert strided_score(student.folder, 31).score == pytest.approx(recorded, rel=1e-6), "the pieces of the data"
    own = [*texts, "model/teacher=none", "seed=1"]
    baseline = train(config(tmp_path / "baseline", *own), own)
    assert list(baseline.record.fidelity) == ["student"]
    compare_baselines([student.folder, tmp_path])
    ours, theirs = (RunRecord.read(each.folder) for each in (baseline, student))
    assert ours.fidelity["main"]["sha256"] == theirs.teachers["main"]["sha256"]
    assert ours.fidelity["student"]["entropy"] == pytest.approx(baseline.record.fidelity["student"]["entropy"])
    assert ours.fidelity["main"]["entropy"] == pytest.approx(theirs.fidelity["main"]["entropy"]), "one teacher"
    assert ours.fidelity["main"]["kl"] > 1.01 * theirs.fidelity["main"]["kl"]
    before = contents(tmp_path)
    compare_baselines([student.folder, tmp_path])
    assert contents(tmp_path) == before, "once"
    cached = replace(theirs, fidelity={**theirs.fidelity, "main": {"not_compared": "it is no network here"}})
    cached.write(student.folder)
    compare_baselines([student.folder])
    again = RunRecord.read(student.folder)
    assert again.fidelity["main"].pop("sha256") == theirs.teachers["main"]["sha256"]
    assert (again.fidelity["main"], again.samples) == (theirs.fidelity["main"], theirs.samples), "the teacher is loaded"
    table = write_report([student.folder, baseline.folder], tmp_path / "out", "Documents").table.set_index("method")
    assert table.loc["kd", "bits_per_byte_mean"] == student.record.metrics["last"]["test_score"]
    difference = student.record.metrics["last"]["test_score"] - baseline.record.metrics["last"]["test_score"]
    assert table.loc["kd", "bits_per_byte_diff_mean"] == pytest.approx(difference)
    assert table.loc["baseline", "kl"] == ours.fidelity["main"]["kl"]
    assert table.loc["kd", "kl_own_text"] == theirs.fidelity["main"]["own_text"]["kl"]
    with np.load(student.folder / "predictions.npz") as saved:
        assert table.loc["kd", "agreement"] == (saved["student"] == saved["main"]).mean()


def test_a_pretrained_teacher_with_a_padded_vocabulary(folder: Path, texts: list[str], tmp_path: Path) -> None:
    """From a folder, as a name on the hub would be; its own tokenizer lies beside it."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    net = tiny_llama(len(tokenizer) + 11)
    with torch.no_grad():
        net.get_output_embeddings().weight[len(tokenizer) :] = 9.0  # would take all probability
    net.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    given = ["model/teacher=causal_lm", f"teachers.main.net.model='{tmp_path / 'teacher'}'", "trainer.max_epochs=1"]
    result = train(config(tmp_path / "run", *texts, *given))
    score = result.record.teachers["main"]["score"]
    assert any("logits the first" in remark for remark in result.record.remarks)
    held_out = [result.parts.data.raw.test.inputs.first[p] for p in result.parts.data.raw.test.indices.tolist()]
    net.get_output_embeddings().weight.data = net.get_output_embeddings().weight.data[: len(tokenizer)]
    assert score == pytest.approx(bits_per_byte(net, tokenizer, held_out, 32)[0], rel=1e-5)


def test_what_does_not_fit_is_refused(folder: Path, texts: list[str], tmp_path: Path) -> None:
    write_bpe(tmp_path / "other", size=310)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bpe")
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "teacher")
    teacher = ["model/teacher=causal_lm", f"teachers.main.net.model='{tmp_path / 'teacher'}'"]

    def refused(message: str, *given: str) -> None:
        with pytest.raises(UserError, match=message):
            build(config(tmp_path / "run", *texts, *given))

    other = [*teacher, f"teachers.main.input.tokenizer='{tmp_path / 'other'}'"]
    aligned = r"loss\.kd compares the predictions of both token by token\. Use loss/response=\[cross_tokenizer\]"
    refused(rf"(?s)made for the tokenizer .*other.*texts become other tokens.*{aligned}", *other)
    # the same tokens for the same texts, but one more that none of them has
    tokenizer.save_pretrained(tmp_path / "teacher")
    changed = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    changed.add_tokens(["<tool>"])
    changed.save_pretrained(tmp_path / "data_tokenizer")
    more = [f"data.tokenizer='{tmp_path / 'data_tokenizer'}'"]
    refused(r"1 of 321 ids stand for other tokens: 320 is '<tool>' and None", *teacher, *more)
    refused(r"'texts' is set up for another task", "data.pack=null", "data.too_long=truncate", "model/teacher=none")
    refused(r"data\.max_length=65: the student network has only 64", "data.max_length=65", "model/teacher=none")
    with pytest.raises(UserError, match=r"min_teacher_score=2: it must be a score between 0 and 1"):
        check(config(tmp_path / "run", "min_teacher_score=2", "model/teacher=none"))
    check(config(tmp_path / "run", *texts, "min_teacher_score=2", "model/teacher=none"))


def test_the_commands(cli: Cli, folder: Path, tmp_path: Path) -> None:
    """A tokenizer of the documents, a run on it, and its proof."""
    source = ["data=plain_text", f"data.source.path='{folder / 'texts'}'"]
    code, said = cli("tokenizer", *source, "size=300", "out=made")
    assert code == 0
    assert "made: a tokenizer of 300 tokens, trained on 24 texts" in said.replace("\n", " ")
    own = ["task=causal_lm", "model/student=causal_lm", "model/teacher=none", *TINY_STUDENT, "data.max_length=32"]
    small = ["trainer.max_epochs=1", "optim=adamw", "logger=none", "data.tokenizer=made", "hydra.run.dir=run"]
    code, said = cli("train", *source, *own, *small)
    assert code == 0, said
    assert "test bits per byte" in said
    assert "perplexity" in said
    code, said = cli("evaluate", "run=run")
    assert code == 0, said
    code, said = cli("evaluate", "run=run", "stride=8", "split=val")
    assert "with windows of 32 tokens, stride 8, prefix token none\nrecorded: " in said
    assert "stride 31" in said


@pytest.mark.slow
def test_the_harness_scores_the_exported_student(student: Result, cli: Cli, tmp_path: Path) -> None:
    """On a task of a local file, as the likelihoods that transformers alone gives say."""
    rows = [
        {"question": f"{i} the people of", "choices": ["war", "the states under great laws", "peace"], "answer": i % 3}
        for i in range(7)
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs:\n  data_files:\n    test: {data}\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\ntarget_delimiter: " "\n'
        "metric_list:\n- metric: acc\n- metric: acc_norm\n"
    )
    code, said = cli("evaluate", f"run='{student.folder}'", f"lm_eval=['{tmp_path / 'own.yaml'}']")
    assert code == 0, said
    out = export(student.folder, tmp_path / "export")
    net, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for row in rows:
        sums = []
        for choice in row["choices"]:
            begin, ids = (tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
            with torch.no_grad():
                chances = net(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(chances[place - 1, ids[place]].item() for place in range(len(begin), len(ids))))
        lengths = [len(choice) for choice in row["choices"]]
        right["acc"].append(int(np.argmax(sums)) == row["answer"])
        right["acc_norm"].append(int(np.argmax(np.array(sums) / lengths)) == row["answer"])
    found = {each["metric"]: each for each in json.loads((student.folder / "lm_eval.json").read_text())}
    for metric, own in right.items():
        mean = sum(own) / len(own)
        assert found[metric]["value"] == pytest.approx(mean)
        assert found[metric]["stderr"] == pytest.approx((mean * (1 - mean) / 6) ** 0.5)
        assert (found[metric]["task"], found[metric]["samples"], found[metric]["shots"]) == ("own", 7, 0)
        assert f"{metric} " in said
