"""A cached teacher: each training image is seen once, and the losses are given what the teacher would have given."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.module import Stage
from distillery.data.sources.digits import digits
from distillery.data.vision import VisionData
from distillery.losses.signals import Attention, Signals
from distillery.models.adapters import ImageAdapter
from distillery.runs.run import train
from distillery.tasks.classification import Classification
from distillery.tasks.evaluate import Evaluation
from distillery.teachers import cache
from distillery.teachers.cache import TeacherCache
from distillery.teachers.frozen import Teacher
from fixtures.building import build
from fixtures.composing import Compose, with_hint

BATCH = 500  # samples of one forward of the teacher
TASK = Classification()


def digits_data(**given: Any) -> VisionData:
    settings: dict[str, Any] = {"mean": [0.3], "std": [0.4], "batch_size": 32, "eval_batch_size": BATCH, "seed": 0}
    return VisionData(digits, **settings | given)


class Seen:
    """Stands for a teacher: functions of the image, and a list of the images it was given."""

    def __init__(self, taps: Mapping[str, float]) -> None:
        self.taps = taps
        self.index: list[int] = []
        self.largest = 0

    def __call__(self, batch: Mapping[str, Tensor]) -> Signals:
        self.index += batch["index"].tolist()
        image = batch["image"]
        self.largest = max(self.largest, len(image))
        layers = {tap: factor * image for tap, factor in self.taps.items()}
        operands = Attention(image, 2 * image, 3 * image, mask=None, scale=0.5)
        return Signals(image.flatten(1), {"head:weight": torch.ones(2, 3), **layers}, {"blocks.0": operands})


def test_signals_are_those_of_the_samples_asked_for() -> None:
    data, teacher = digits_data(), Seen({"block": 2.0})
    recalled = TeacherCache(teacher, "a teacher", data)
    for batch in data.train_dataloader():
        found, expected = recalled.signals(batch), Seen({"block": 2.0})(batch)
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.layers["block"], expected.layers["block"])
        assert torch.equal(found.layers["head:weight"], torch.ones(2, 3))  # a parameter has no row a sample
        assert torch.equal(found.attention["blocks.0"].value, expected.attention["blocks.0"].value)
        assert found.attention["blocks.0"].scale == 0.5
    assert sorted(teacher.index) == sorted(data.splits["train"].indices.tolist())  # each once


def test_the_next_run_computes_only_what_none_has_asked_for() -> None:
    data = digits_data()
    index = data.splits["train"].indices[:3]
    TeacherCache(Seen({"block": 2.0}), "one", data).signals({"index": index})

    again = Seen({"block": 2.0})
    TeacherCache(again, "one", digits_data()).signals({"index": index})
    assert len(again.index) == BATCH  # a look at which signals there are

    more = Seen({"block": 2.0, "stage": 3.0})
    found = TeacherCache(more, "one", data).signals({"index": index})
    assert len(more.index) == len(data.splits["train"].indices)
    assert torch.equal(found.layers["stage"], 1.5 * found.layers["block"])


def test_the_teacher_is_given_batches_of_the_size_that_evaluation_has() -> None:
    """A value may depend, in its last bits, on the size of the batch: values of another size are not reused."""
    index = digits_data().splits["train"].indices[:3]
    for size in (100, 37):
        teacher = Seen({"block": 2.0})
        TeacherCache(teacher, "of this size", digits_data(eval_batch_size=size)).signals({"index": index})
        assert teacher.largest == size
        assert len(teacher.index) == len(digits_data().splits["train"].indices)


@pytest.mark.parametrize(("fingerprint", "given"), [("other", {}), ("one", {"train_size": 600})])
def test_another_teacher_or_other_images_share_nothing(fingerprint: str, given: dict[str, Any]) -> None:
    data, other = digits_data(), digits_data(**given)
    TeacherCache(Seen({"block": 2.0}), "one", data).signals({"index": data.splits["train"].indices[:3]})
    teacher = Seen({"block": 5.0})
    index = other.splits["train"].indices[:3]
    found = TeacherCache(teacher, fingerprint, other).signals({"index": index})
    assert sorted(teacher.index) == sorted(other.splits["train"].indices.tolist())
    assert torch.equal(found.layers["block"], 5 * found.logits.view_as(found.layers["block"]))


def test_a_cached_teacher_is_scored_once_for_each_name() -> None:
    data, calls = digits_data(), []
    names: tuple[Stage, ...] = ("val", "test")

    def judge(name: str) -> Evaluation:
        calls.append(name)
        return Evaluation(0.5, 1.0, torch.tensor([0]), torch.tensor([1]), torch.tensor([1]))

    for _ in range(2):  # two runs of a study
        for name in names:
            cached = TeacherCache(Seen({}), "scored", data)
            assert cached.evaluated(data, name, TASK, partial(judge, name)).score == 0.5
    assert calls == ["val", "test"]
    TeacherCache(Seen({}), "another", data).evaluated(data, "val", TASK, partial(judge, "another teacher's"))
    assert calls[2:] == ["another teacher's"]


def test_augmented_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.augment=null, or the teacher's cache=false"):
        TeacherCache(Seen({}), "one", digits_data(augment={"crop": 1}))


def test_more_than_the_memory_is_refused_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.os, "sysconf", lambda _: 2**9)  # 256 KiB
    teacher = Seen({"block": 2.0})
    with pytest.raises(UserError, match=r"would take .* GiB.*cache=false"):
        TeacherCache(teacher, "a large one", digits_data()).signals({"index": torch.tensor([0])})
    assert len(teacher.index) == BATCH


def with_cache(compose_train: Compose, folder: Path) -> Callable[..., Any]:
    composed = with_hint(compose_train, folder, epochs=2)
    return lambda *overrides, run="run": composed("data.augment=null", *overrides, run=run)


def test_a_run_with_a_cached_teacher_learns_the_same(compose_train: Compose, tmp_path: Path) -> None:
    composed = with_cache(compose_train, tmp_path)
    plain = train(composed(run="plain")).parts.distiller.student.state_dict()
    cached = train(composed("teachers.main.cache=true", run="cached")).parts.distiller.student.state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor, rtol=1e-3, atol=1e-4)  # other batches round otherwise


def test_the_teachers_layers_do_not_run_in_training(compose_train: Compose, tmp_path: Path) -> None:
    parts = build(with_cache(compose_train, tmp_path)("teachers.main.cache=true"))
    teacher = parts.distiller.teachers["main"]
    batch = {"image": torch.zeros(4, 1, 8, 8), "index": parts.data.splits["train"].indices[:4]}
    teacher(batch, training=True)

    calls: list[str] = []
    teacher.net.register_forward_hook(lambda *_: calls.append("ran"))
    teacher(batch, training=True)
    assert calls == []
    teacher(batch)
    assert calls == ["ran"]


def test_batch_statistics_are_refused(compose_train: Compose, tmp_path: Path) -> None:
    cfg = with_cache(compose_train, tmp_path)("teachers.main.cache=true", "teachers.main.bn_mode=train")
    with pytest.raises(UserError, match=r"teachers\.main: with bn_mode=train.*cache=false"):
        build(cfg)


class Server:
    """A source of signals of its own: it answers with the positions of the samples."""

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        return Signals(batch["index"][:, None].float())


def test_a_teacher_takes_its_training_signals_from_any_source() -> None:
    teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), ImageAdapter([0.3], [0.4]))
    batch = digits_data().example()
    own = teacher(batch)
    assert torch.equal(teacher(batch, training=True).logits, own.logits)
    teacher.training_signals = Server()
    assert torch.equal(teacher(batch, training=True).logits, batch["index"][:, None].float())
    assert torch.equal(teacher(batch).logits, own.logits), "it is scored by its network"
