"""Where some samples have no label: which losses see them, what is refused, and what a run says of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distillery.config.build import Parts
from distillery.core.errors import UserError
from distillery.losses.attention.attention_transfer import AttentionTransfer
from distillery.losses.feature.crd import CRD
from distillery.losses.feature.hint import Hint
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.deep_supervision import DeepSupervision
from distillery.losses.response.dist import DIST
from distillery.losses.response.dkd import DKD
from distillery.losses.response.kd import KD
from distillery.losses.response.ofa import OFA
from distillery.losses.response.teacher_free import TeacherFree
from distillery.losses.response.wsld import WSLD
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.results.record import RunRecord
from distillery.runs.plan import data_table
from distillery.runs.run import Result
from distillery.tasks.classification import Classification
from distillery.teachers.curriculum import confidences
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer
from distillery.training.objective import Losses, Objective
from distillery.training.wiring import wire
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.runs import train_student

CLASSES, KNOWN = 5, torch.tensor([True, False, True, True, False, False, True])
POINTS = {"embedding": "embedding"}


def batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(7, 1, 8, 8, generator=draw),
        "target": torch.tensor([0, 1, 2, 3, 4, 0, 1]),
        "index": torch.arange(7),
    }


def by_label() -> dict[str, Term]:
    several = [Hint(teacher=name, layers=POINTS) for name in ("main", "second")]
    return {
        "dkd": DKD(),
        "wsld": WSLD(),
        "ofa": OFA(layers={"stages.0": "head"}),
        "teacher_free": TeacherFree(),
        "deep_supervision": DeepSupervision(teacher="self", layers={"stages.0": "stages.1"}),
        "crd": CRD(samples=7, num_negatives=3, gather=False),
        "kd": Several([KD(teacher=name) for name in ("main", "second")], "confidence"),
        "hint": Several(several, "best"),
    }


def of_all() -> dict[str, Term]:
    return {
        "kd": KD(),
        "dist": DIST(),
        "rkd": RKD(layers=POINTS),
        "at": AttentionTransfer(layers={"stages.1": "stages.1"}),
        "crd": CRD(samples=7, variant="in_batch", gather=False),
    }


def computed(terms: Mapping[str, Term], given: Mapping[str, Tensor], peers: tuple[str, ...] = ()) -> Losses:
    """The losses of a new objective, with the same networks each time."""
    torch.manual_seed(1)
    student = Network(SmallCNN(CLASSES, 1, (4, 6)), ImageAdapter([0.5], [0.25]), "student").eval()
    teachers: dict[str, Any] = {"self": student}
    for name in ("main", "second"):
        kind = Peer if name in peers else Teacher
        teachers[name] = kind(SmallCNN(CLASSES, 1, (8, 10)), ImageAdapter([0.4], [0.2]), name).eval()
    torch.manual_seed(2)
    wire(terms, student, teachers, batch())
    made = Objective(Classification(0.4), terms, peers=peers)
    signals = {name: teacher(given) for name, teacher in teachers.items()}
    return made(student(given), signals, given)


def with_unknown(placeholder: int) -> dict[str, Tensor]:
    whole = batch()
    return whole | {"target": whole["target"].where(KNOWN, placeholder), "labelled": KNOWN}


def test_losses_that_read_labels_are_those_of_the_labelled_samples_alone() -> None:
    found = computed(by_label(), with_unknown(-1)).terms
    expected = computed(by_label(), {key: value[KNOWN] for key, value in batch().items()}).terms
    assert min(value.item() for value in expected.values()) > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_all_other_losses_are_those_of_all_samples() -> None:
    found, expected = (computed(of_all(), given).terms for given in (with_unknown(-1), batch()))
    for name in of_all():
        torch.testing.assert_close(found[name], expected[name], msg=name)
    assert found["task"] != expected["task"]


def test_a_batch_without_a_label_gives_no_gradient_but_reaches_everything() -> None:
    """DDP waits for the gradient of every parameter."""
    terms = by_label()
    losses = computed(terms, with_unknown(-1) | {"target": torch.full((7,), -1), "labelled": torch.zeros_like(KNOWN)})
    assert {value.item() for value in losses.terms.values()} == {0.0}
    losses.total.backward()
    for term in terms.values():
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in term.parameters())


def test_peers_learn_labels_from_the_labelled_samples() -> None:
    labelled = {key: value[KNOWN] for key, value in batch().items()}
    found = computed({"kd": KD(), "dkd": DKD()}, with_unknown(-1), peers=("main",)).terms
    whole = computed({"kd": KD(), "dkd": DKD()}, batch(), peers=("main",)).terms
    part = computed({"kd": KD(), "dkd": DKD()}, labelled, peers=("main",)).terms
    for name in ("task", "main/task", "dkd", "main/dkd"):
        torch.testing.assert_close(found[name], part[name])
    for name in ("kd", "main/kd"):
        torch.testing.assert_close(found[name], whole[name])


@pytest.fixture
def parts(compose_train: Compose, teacher: Path) -> Callable[..., Parts]:
    def made(*overrides: str) -> Parts:
        own = ["experiment=digits_demo", f"teachers.main.weights='{teacher}'", "data.train_size=null", *overrides]
        return build(compose_train(*own))

    return made


def test_the_samples_that_no_loss_reads_are_left_out(parts: Callable[..., Parts]) -> None:
    every = parts("data.labelled_size=40")
    assert (every.data.labelled, every.data.unlabelled) == (40, 760)
    steps = every.data.batches(1)
    for given in (
        ["model/teacher=none", "task.weight=1"],
        ["loss/response=[dkd]"],
        ["loss/response=[]", "loss/feature=[crd]", "loss.crd.weight=1"],
    ):
        alone = parts("data.labelled_size=40", *given).data
        assert (alone.sizes["train"], alone.unlabelled, alone.batches(1)) == (40, 0, steps)
        assert alone.fingerprint == every.data.fingerprint
        assert "train: 760 unlabelled samples left out (no loss of this method reads them)" in alone.remarks
    assert parts("data.labelled_size=40", "loss/response=[dkd,kd]").data.unlabelled == 760
    crd = ["loss/response=[]", "loss/feature=[crd]", "loss.crd.weight=1", "loss.crd.variant=in_batch"]
    assert parts("data.labelled_size=40", *crd).data.unlabelled == 760
    assert "40 labelled and 760 unlabelled" in str(data_table(every).caption)


def test_unlabelled_data_alone(parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch) -> None:
    from distillery.data.module import Data

    monkeypatch.setattr(Data, "_with_labels", lambda data, train: train.keeping_labels(train.indices[:0]))
    assert parts("task.weight=0").data.labelled == 0
    for given, message in (
        (["task.weight=0.1"], r"task\.weight: the task loss reads labels, but none of the 800 .* Set task\.weight=0"),
        (
            ["task.weight=0", "loss/response=[nkd]"],
            r"loss\.nkd reads labels, but none of the 800 .*loss/response=\[kd\]",
        ),
        (["model/teacher=none", "task.weight=1"], "Choose a teacher, or add labelled samples"),
    ):
        with pytest.raises(UserError, match=message):
            parts(*given)


def test_a_curriculum_takes_the_predicted_class_of_unlabelled_samples(parts: Callable[..., Parts]) -> None:
    made = parts("data.labelled_size=40")
    teacher = made.distiller.teachers["main"]
    index, confidence, classes = confidences(teacher, made.data, made.distiller.task)
    place = {int(position): number for number, position in enumerate(index)}
    batch = made.data.dataset("train")[made.data.plain(100)[0][0]]
    logits = teacher(batch).logits
    for row, position in enumerate(batch["index"].tolist()):
        expected = int(batch["target"][row]) if batch["labelled"][row] else int(logits[row].argmax())
        assert classes[place[position]] == expected
        assert confidence[place[position]].item() == pytest.approx(logits[row].softmax(0)[expected].item(), rel=1e-4)


def test_a_run_says_how_many_samples_it_saw(tmp_path: Path, teacher: Path) -> None:
    """Also with a cached teacher, and the task loss is finite in every step."""
    given = ["data.train_size=200", "data.labelled_size=20", "data.labelled_share=0.5", "trainer.max_epochs=1"]
    result: Result = train_student(
        tmp_path / "run", teacher, *given, "data.augment=null", "teachers.main.cache=true", "logger=csv"
    )
    data = RunRecord.read(result.folder).data
    assert (data["train"], data["labelled"], data["unlabelled"]) == (200, 20, 180)
    assert data["remarks"][0] == "train: 20 labelled and 180 unlabelled samples"
    assert json.loads((result.folder / "run.json").read_text())["metrics"]["last"]["epoch"] == 1
    assert result.parts.data.batches(1) == 180 // 5
