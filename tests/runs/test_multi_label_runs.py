"""Whole runs on samples with any number of labels: texts and images, a teacher, and figures against scikit-learn."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification

from distillery.core.errors import UserError
from distillery.results.record import RunRecord
from distillery.results.report.collect import collect
from distillery.runs.export.transformers_folder import export_for_transformers as export
from distillery.runs.predict import predict_files
from distillery.runs.run import train
from distillery.runs.score_other_data import score_other_data
from distillery.runs.verify_run import verify_run
from fixtures.runs import Once, config
from fixtures.texts import KIND, bert_overrides, write_tokenizer

SMALL = ("data.batch_size=16", "optim=adamw", "optim.optimizer.lr=1e-2", "logger=none", "callbacks.scale_report=null")
TASK = (
    "task=multi_label",
    "task.metrics=[micro_f1,auroc]",
    "task.monitor=val/micro_f1",
    "loss/response=[bernoulli_kd]",
)
COLOURS = ("red", "green", "blue")
pytestmark = pytest.mark.filterwarnings("ignore:Teacher 'main' scores")


def write_pictures(root: Path) -> None:
    """A picture of noise in which any of the three channels may be bright: these are its labels."""
    draw = np.random.default_rng(0)
    rows = [("file", "labels")]
    for number in range(160):
        bright = draw.random(3) < (0.5, 0.3, 0.2)
        pixels = draw.integers(0, 120, (8, 8, 3)) + 120 * bright
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:03}.png")
        rows.append((f"{number:03}.png", json.dumps([name for name, one in zip(COLOURS, bright, strict=True) if one])))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def pictures(once: Once) -> Path:
    """The runs `teacher` and `student` on the pictures in `root`."""

    def make(folder: Path) -> None:
        (folder / "root").mkdir(parents=True)
        write_pictures(folder / "root")
        data = ("data=image_labels", f"data.root='{folder / 'root'}'", "data.source.size=8", "data.num_workers=0")
        own = (*data, "data.augment=null", *SMALL, *TASK, "trainer.max_epochs=6", "threads=1")
        teacher = train(config(folder / "teacher", *own, "model/teacher=none", "student.net.widths=[8,8]"))
        given = (f"teachers.main.weights='{teacher.folder}'", "student.net.widths=[4,4]")
        train(config(folder / "student", *own, *given, "min_teacher_score=0.5"))

    return once("multi_label_pictures", make)


def test_the_figures_are_those_of_scikit_learn(pictures: Path) -> None:
    record = RunRecord.read(pictures / "student")
    with np.load(pictures / "student" / "predictions.npz") as saved:
        arrays = dict(saved)
    target = arrays["target"]
    assert record.data["classes"] == ["blue", "green", "red"]
    assert (record.method, record.data["score_name"]) == ("bernoulli_kd", "mAP")
    assert target.shape == (32, 3)
    last = record.metrics["last"]
    for name, entry, prefix in (("student", last, "test_"), ("main", record.teachers["main"], "")):
        p = arrays[f"{name}_probabilities"]
        assert p.dtype == np.float32
        assert entry[f"{prefix}score"] == pytest.approx(sk.average_precision_score(target, p), abs=1e-5)
        assert entry[f"{prefix}auroc"] == pytest.approx(sk.roc_auc_score(target, p), abs=1e-5)
        assert entry[f"{prefix}micro_f1"] == pytest.approx(sk.f1_score(target, p > 0.5, average="micro"), abs=1e-6)
        assert ((p > 0.5) == arrays[name]).all()
    loss = -np.mean(np.log(np.where(target == 1, arrays["student_probabilities"], 1 - arrays["student_probabilities"])))
    assert last["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert record.teachers["main"]["score"] > 0.95
    assert last["test_score"] > 0.6, "by chance it is near 1/3"


def test_agreement_is_of_all_labels_of_a_sample(pictures: Path) -> None:
    (run,) = collect([pictures / "student"])
    with np.load(pictures / "student" / "predictions.npz") as saved:
        same = saved["student"] == saved["main"]
    assert run.agreement == same.all(1).mean()


def test_the_exported_student_gives_its_score_and_predicts(pictures: Path, tmp_path: Path) -> None:
    verify_run(pictures / "student")
    assert predict_files(pictures / "student", [str(pictures / "root")], tmp_path / "found.csv") == []
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 160
    for row in rows:
        likely = [name for name in ("blue", "green", "red") if float(row[f"p({name})"]) > 0.5]
        assert row["prediction"] == "|".join(likely)


def test_other_data_may_lack_labels(pictures: Path, tmp_path: Path) -> None:
    """Green and red are the first two labels of the data, and the last two of the run."""
    run = Path(shutil.copytree(pictures / "student", tmp_path / "run"))
    root = Path(shutil.copytree(pictures / "root", tmp_path / "other"))
    with (root / "labels.csv").open(newline="") as file:
        rows = {row["file"]: sorted({*json.loads(row["labels"])} - {"blue"}) for row in csv.DictReader(file)}
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "labels"), *((name, json.dumps(own)) for name, own in rows.items())])
    found = score_other_data(run, {"root": str(root)}, "all")
    predict_files(run, [str(root)], tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as saved:
        names, p = [Path(path).name for path in saved["path"]], saved["probabilities"][:, 1:]
    target = np.array([[label in rows[name] for label in ("green", "red")] for name in names])
    assert len(found.target) == len(names) == 160
    assert found.score == pytest.approx(sk.average_precision_score(target, p), abs=1e-5)
    (written,) = (run / "evaluations").iterdir()
    assert json.loads(written.read_text())["absent_classes"] == ["blue"]


def test_a_softmax_loss_is_refused_before_training(pictures: Path, tmp_path: Path) -> None:
    given = ("data=image_labels", f"data.root='{pictures / 'root'}'", "data.source.size=8", "data.num_workers=0")
    with pytest.raises(UserError, match=r"loss\.kd compares distributions over classes, .*\[bernoulli_kd\]"):
        train(config(tmp_path / "run", *given, "task=multi_label", f"teachers.main.weights='{pictures / 'teacher'}'"))


@pytest.mark.slow
def test_texts_with_any_number_of_labels(tmp_path: Path, once: Callable[..., Path]) -> None:
    """A label for each of three words that a text has or not; the export is a model of transformers for this."""
    words, others, draw = KIND["good"][:3], KIND["bad"], np.random.default_rng(0)
    rows = []
    for _ in range(160):
        own = [word for word in words if draw.random() < 0.4]
        text = " ".join(draw.permutation([*own, *draw.choice(others, 3)]))
        rows.append({"text": text, "label": own})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tokenizer(tmp_path / "tokenizer")
    data = ("data=jsonl", f"data.source.path='{tmp_path / 'own.jsonl'}'", f"data.tokenizer='{tmp_path / 'tokenizer'}'")
    own = (*data, "data.source.multi_label=true", *SMALL, *TASK, "trainer.max_epochs=8", "model/teacher=none")
    own += ("model/student=transformer", *bert_overrides("student", num_hidden_layers=1), "data.max_length=12")
    result = train(config(tmp_path / "run", *own))
    with np.load(result.folder / "predictions.npz") as saved:
        target, p = saved["target"], saved["student_probabilities"]
    assert result.record.metrics["last"]["test_score"] == pytest.approx(sk.average_precision_score(target, p), abs=1e-5)
    assert result.record.metrics["last"]["test_score"] > 0.6
    folder = export(result.folder, tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == dict(enumerate(sorted(words)))
    assert "if p > 0.5]" in (folder / "README.md").read_text()
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids, labels=torch.ones(1, 3)).loss.isfinite()
