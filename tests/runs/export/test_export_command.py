"""`distill-export`: a student that transformers loads by itself, and a card that says what its run has recorded."""

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from distillery.commands import export
from distillery.config.networks import run_config
from distillery.core.errors import UserError
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.export import save_pretrained_folder
from distillery.models.text.sentence_encoder import SentenceEncoder
from distillery.models.weights import save_weights, weights_hash
from distillery.results.layout import PREDICTIONS, RECORD
from distillery.results.record import RunRecord
from distillery.runs.export.loading_snippet import loading_snippet
from distillery.runs.export.model_card import transformers_card
from distillery.runs.export.transformers_folder import export_for_transformers as exported
from distillery.runs.run import train
from distillery.runs.verify_run import student_of
from distillery.tasks.classification import Classification
from distillery.tasks.embedding import Embedding
from distillery.tasks.masked_lm import MaskedLM
from distillery.tasks.task import Task
from distillery.tasks.token_classification import TokenClassification
from fixtures.runs import Once, config
from fixtures.texts import sentences, tiny_bert, write_csv, write_tokenizer

SHORT = (
    "trainer.max_epochs=5",
    "data.batch_size=8",
    "logger=none",
    "callbacks.checkpoint_last=null",
    "callbacks.checkpoint_best=null",
)
SIZES = ("hidden_size=16", "embedding_size=8", "num_attention_heads=2", "intermediate_size=24")
NAMES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
EMBEDDINGS = "{electra.embeddings: electra.embeddings}"


@pytest.fixture(scope="module")
def runs(once: Once) -> Path:
    """A folder with texts.csv, a tokenizer `tok`, and the runs `teacher` and `student`. Tests must not write to it."""
    return once("text_runs", write_runs)


def write_runs(folder: Path) -> None:
    tokenizer = write_tokenizer(folder / "tok")
    write_csv(folder / "texts.csv", [(text, ("kind", "cruel")[label]) for text, label in sentences(160)])
    data = ("data=text_csv", f"data.source.path='{folder / 'texts.csv'}'", f"data.tokenizer='{tokenizer}'")
    given = [*data, *SHORT, "optim=adamw_linear", "optim.optimizer.lr=0.01", "model/student=encoder"]
    given += [f"student.net.config.{size}" for size in SIZES]
    given += ["student.net.config.max_position_embeddings=48", "data.max_length=20"]
    own = [*given, "model/teacher=none", "student.net.config.num_hidden_layers=2", "name=tiny_teacher"]
    teacher = train(config(folder / "teacher", *own), own).folder
    own = [*given, f"teachers.main.weights='{teacher}'", "student.net.config.num_hidden_layers=1", "name=tiny"]
    own += [f"student.initialise={{source: '{teacher}', layers: last}}", "task.weight=0.3", "loss.kd.weight=0.7"]
    own += ["loss/feature=[hidden_mse]", f"loss.hidden_mse.layers={EMBEDDINGS}", "loss.hidden_mse.weight=0.1"]
    train(config(folder / "student", *own), own)


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the student's run."""
    return Path(shutil.copytree(runs / "student", tmp_path / "student"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """`command("run=…")`: what `distill-export` prints, or with exit code 2 says of a mistake."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def answered(*arguments: str, code: int | None = None) -> str:
        monkeypatch.setattr(sys, "argv", ["distill-export", *arguments])
        try:
            export.main()
            left = None
        except SystemExit as stopped:
            left = stopped.code
        shown = capsys.readouterr()
        assert left == code, shown.err
        return shown.out if code is None else shown.err

    yield answered
    HydraConfig.instance().cfg = None


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# What is written.


def test_it_predicts_what_the_run_recorded(runs: Path, run: Path, command: Callable[..., str]) -> None:
    """By transformers alone, from the texts as they stand in the file."""
    said = command(f"run={run}")
    assert said == f"Written: {run / 'export'}. Its README.md says how to load it.\n"
    assert {path.name for path in (run / "export").iterdir()} == NAMES
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    model = AutoModelForSequenceClassification.from_pretrained(run / "export").eval()
    with (runs / "texts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    recorded = np.load(run / PREDICTIONS)
    texts = [rows[index] for index in recorded["index"]]
    inputs = tokenizer([row["text"] for row in texts], return_tensors="pt", padding=True)
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(1).tolist()
    assert predicted == recorded["student"].tolist()
    assert set(predicted) == {0, 1}
    assert [model.config.id2label[target] for target in recorded["target"]] == [row["label"] for row in texts]


def test_its_logits_are_the_students(runs: Path, tmp_path: Path) -> None:
    out = exported(runs / "student", tmp_path / "out")
    student = student_of(runs / "student", run_config(str(runs / "student"), ""), RunRecord.read(runs / "student"))
    texts = [text for text, _ in sentences(9, seed=1)]
    inputs = AutoTokenizer.from_pretrained(out)(texts, return_tensors="pt", padding=True)
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    with torch.no_grad():
        logits = student.net.eval()(**inputs).logits
        assert torch.equal(model.eval()(**inputs).logits, logits)
        states = AutoModel.from_pretrained(out).eval()(**inputs).last_hidden_state
        assert torch.equal(model.classifier(states), logits)
    assert len({tuple(row) for row in logits.tolist()}) == len(texts), "a constant would equal itself"


def test_an_earlier_export_is_replaced_and_nothing_else(run: Path, command: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenizer = AutoTokenizer.from_pretrained(run_config(str(run), "").student.input.tokenizer)
    save_pretrained_folder(tiny_bert(), tokenizer, out, "# A model of somebody's\n")
    (out / "vectors.bin").write_text("precious")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = command(f"run={run}", f"out={out}", code=2)
    assert "holds something other than an earlier export and is not replaced" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "is not replaced" in command(f"run={run}", f"out={run}", code=2)

    command(f"run={run}")
    card = card_of(run / "export")
    (run / "export" / "README.md").write_text(card.replace("seed 0", "seed 9"))
    command(f"run={run}", f"out={run / 'export'}")
    assert card_of(run / "export") == card
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


# The card.


def test_the_card_says_what_the_run_recorded(runs: Path, tmp_path: Path) -> None:
    record = RunRecord.read(runs / "student")
    card = card_of(exported(runs / "student", tmp_path / "out"))
    _, head, text = card.split("---\n", 2)
    teacher, last = record.teachers["main"], record.metrics["last"]
    metadata = yaml.safe_load(head)
    (model,) = metadata.pop("model-index")
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["knowledge-distillation"],
    }
    assert model["name"] == "tiny"
    assert model["results"] == [
        {
            "task": {"type": "text-classification"},
            "dataset": {"name": "texts", "type": "texts", "split": "test"},
            "metrics": [{"type": "accuracy", "value": last["test_score"], "name": "accuracy"}],
        }
    ]
    assert text.startswith("\n# tiny: kd+hid_mse, seed 0\n\nElectraForSequenceClassification (sequence classification)")
    assert f"It was distilled from `main` ({runs / 'teacher'}). Written by `distill-export`.\n\n## Use\n\n```" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[0][1:5] == ["test accuracy %", "validation accuracy %", "params", "of which embeddings"]
    student, taught = rows[2:]
    assert student[:3] == ["student", f"{100 * last['test_score']:.2f}", f"{100 * last['val_score']:.2f}"]
    assert taught[:3] == ["teacher `main`", f"{100 * teacher['score']:.2f}", "–"]
    assert float(student[6]) == pytest.approx(record.cost["latency_ms"], rel=0.01)
    assert f"on one thread. Both on an input of {record.cost['latency']['input'][0]} tokens." in text
    kept = 100 * last["test_score"] / teacher["score"]
    fewer = record.cost["params"] / teacher["params"]
    inner = [entry["params"] - entry["embedding_params"] for entry in (record.cost, teacher)]
    assert (
        f"Compared with its teacher `main`, the student keeps {kept:.1f} % of the score (retention) with "
        f"{100 * fewer:.0f} % of the parameters ({100 * inner[0] / inner[1]:.0f} % without the embeddings)" in text
    )
    assert "- labels (`Classification`), weight 0.3;" in text
    assert "- `kd`, weight 0.7: [Knowledge distillation from softened logits (Hinton, Vinyals and Dean, 2015)]" in text
    assert re.search(r"- `hidden_mse`, weight 0\.1: \[.*\]\(https://arxiv\.org/abs/1909\.10351\); .*embeddings", text)
    assert f"initial weights: those of another network; `source={runs / 'teacher'}`, `layers=last`" in text
    data = record.data
    assert f"- texts: {data['train']} train, {data['val']} val, {data['test']} test samples, in 2 classes\n" in text
    assert data["fingerprint"] in text
    assert data["remarks"][0] in text
    assert "None is stated here" in text
    made = text.split("## How it was made")[1]
    assert shlex.split(re.findall(r"```bash\n(.*?)```", made, re.DOTALL)[0].replace("\\\n", "")) == [
        "distill-train",
        *record.overrides,
    ]
    assert re.search(r"Seed 0\. Distillery \d.*torch 2\.", made)


@pytest.fixture
def described(runs: Path, tmp_path: Path) -> Callable[..., str]:
    """`described(config={…}, **changes of the record)`: the card of a run that is the student's but for these."""

    def made(net: Any = None, config: dict[str, Any] | None = None, **changes: Any) -> str:
        cfg = run_config(str(runs / "student"), "")
        for section, settings in (config or {}).items():
            OmegaConf.update(cfg, section, settings, merge=bool(settings), force_add=True)  # {} leaves nothing of it
        record = replace(RunRecord.read(runs / "student"), **changes)
        return transformers_card(record, cfg, net or tiny_bert(), AutoTokenizer.from_pretrained(runs / "tok"), tmp_path)

    return made


def test_a_card_without_a_teacher(described: Callable[..., str]) -> None:
    card = described(teachers={}, config={"teachers": {}, "loss": {}})  # what the run of a baseline leaves
    assert "It was trained on labels alone." in card
    assert "knowledge-distillation" not in card
    assert "`kd`" not in card
    assert "retention" not in card


def test_a_card_with_teachers_of_other_roles_and_unknown_figures(described: Callable[..., str]) -> None:
    teachers = {
        "a": {"role": "frozen", "source": "somewhere", "sha256": "x", "score": 0.5, "params": 10, "latency_ms": None},
        "b": {"role": "peer", "source": None, "sha256": "y", "score": 0.25, "params": 10},
        "self": {"role": "self"},
    }
    last = {"epoch": 3, "test_score": 0.4, "val_score": None}
    card = described(teachers=teachers, metrics={"last": last}, cost={"params": 5}, overrides=[])
    assert "It was distilled from `a` (somewhere) and `b` (peer) and `self` (self)." in card
    assert "| student | 40.00 | – | 5 | – | – | – |" in card
    assert "| teacher `b` | 25.00 | – | 10 | – | – | – |" in card
    assert card.count("(retention)") == 1
    assert "Compared with its teacher `a`, the student keeps 80.0 % of the score (retention) with 50 % of the" in card
    assert "at – times the speed" in card
    elsewhere = {"a": {**teachers["a"], "params": None}}  # run elsewhere
    card = described(teachers=elsewhere, metrics={"last": last}, cost={"params": 5}, overrides=[])
    assert "the student keeps 80.0 % of the score (retention).\n" in card
    assert "```bash\ndistill-train\n```" in card


def test_balanced_weights_are_those_that_were_found(described: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "balance.json").write_text(json.dumps({"loss.kd.weight": 0.0123}))
    assert "`kd`, weight 0.0123: " in described()
    assert "`hidden_mse`, weight 0.1: " in described()


def test_a_number_has_no_class_to_name(described: Callable[..., str]) -> None:
    task = {"task": {"_target_": "distillery.tasks.regression.Regression"}}
    card = described(net=tiny_bert(classes=1), config=task)
    assert "test Spearman correlation %" in card
    assert "id2label" not in card
    assert "id2label[logits[0].argmax().item()]" in described()


@pytest.mark.parametrize("words", ["a'b", "a b", "it's $HOME", "a\"b'c", "don't!", "plain=1"])
def test_the_command_is_one_that_a_shell_reads(described: Callable[..., str], words: str) -> None:
    command = re.findall(r"```bash\n(.*?)```", described(overrides=[f"name={words}"]), re.DOTALL)[0]
    assert shlex.split(command.replace("\\\n", "")) == ["distill-train", f"name={words}"]


@pytest.mark.parametrize("task", [Classification, TokenClassification, MaskedLM, Embedding])
@pytest.mark.parametrize("normalise", [False, True])
def test_the_snippet_gives_what_the_student_gives(
    runs: Path, tmp_path: Path, task: type[Task], normalise: bool
) -> None:
    head = task.head
    net = tiny_bert(head, classes=None if head in ("masked_lm", "sentence_embedding") else 3)
    if isinstance(net, SentenceEncoder):
        net.normalise = normalise
    tokenizer = AutoTokenizer.from_pretrained(runs / "tok")
    snippet = loading_snippet(task, head, net, tokenizer, 6)
    save_pretrained_folder(net, tokenizer, tmp_path / "net", "")
    said: dict[str, Any] = {}
    code = snippet.removeprefix("```python\n").removesuffix("```").replace("path/to/this/folder", str(tmp_path / "net"))
    exec(code, said)
    assert 3 < said["inputs"]["input_ids"].shape[1] <= 6, "cut at the length that it was trained on"
    with torch.no_grad():
        given = net(**said["inputs"])
    found, expected = ("embedding", given) if head == "sentence_embedding" else ("logits", given.logits)
    torch.testing.assert_close(said[found].detach(), expected)
    if head == "masked_lm":
        assert (said["inputs"]["input_ids"] == tokenizer.mask_token_id).any()


# What is refused.


def test_a_run_has_to_be_named_and_to_be_finished(run: Path, command: Callable[..., str], tmp_path: Path) -> None:
    assert "Which run? Name a run folder: distill-export run=" in command(code=2)
    assert "is not a run folder" in command(f"run={tmp_path / 'nowhere'}", code=2)
    record = RunRecord.read(run)
    for status, error, said in [("running", None, "is running, not finished"), ("failed", "NaN", "not finished: NaN")]:
        replace(record, status=status, error=error).write(run)
        assert said in command(f"run={run}", code=2)
    assert not (run / "export").exists()


def test_other_weights_than_the_runs(run: Path, command: Callable[..., str]) -> None:
    weights = load_file(run / "student.safetensors")
    weights["classifier.out_proj.bias"] += 1e-3
    save_file(weights, run / "student.safetensors")
    assert "does not hold the weights that the run exported" in command(f"run={run}", code=2)
    assert not (run / "export").exists()


def test_a_tokenizer_that_has_gone(run: Path, tmp_path: Path) -> None:
    cfg = run_config(str(run), "")
    cfg.student.input.tokenizer = str(tmp_path / "gone")
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(UserError, match=r"student\.input\.tokenizer=\S*/gone"):
        exported(run, run / "export")
    assert not (run / "export").exists()


def test_a_network_that_transformers_cannot_load(run: Path, tmp_path: Path) -> None:
    cfg = run_config(str(run), "")
    net = BiLSTM(40, 2, embedding_width=4, hidden=3)
    target = {"_target_": "distillery.models.text.bilstm.BiLSTM", "vocab_size": 40, "num_classes": 2}
    cfg.student.net = {**target, "embedding_width": 4, "hidden": 3}
    OmegaConf.save(cfg, run / "config.yaml")
    save_weights(net, run / "student.safetensors")
    replace(RunRecord.read(run), student_sha256=weights_hash(net)).write(run)
    with pytest.raises(UserError, match=r"A BiLSTM is not a Hugging Face network.*from its run folder"):
        exported(run, tmp_path / "out")
    cfg.student.input = {"mean": [0.5], "std": [0.5], "size": None}
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(UserError, match=r"reads images.*to=\[safetensors,onnx\]"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (run / RECORD).exists()
