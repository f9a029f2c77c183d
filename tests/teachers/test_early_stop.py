"""A teacher whose logits no loss reads ends its forward in training at the last layer that one reads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from distillery.losses.attention.attention_transfer import AttentionTransfer
from distillery.losses.feature.hint import Hint
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.kd import KD
from distillery.losses.term import Term
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.runs.run import train
from distillery.teachers.frozen import Teacher
from distillery.training.wiring import wire
from fixtures.building import build
from fixtures.composing import Compose

BATCH = {
    "image": torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    "target": torch.arange(4),
    "index": torch.arange(4),
}
WIDTHS = (4, 6, 8)


class Twice(nn.Module):
    """Its layer `again` runs twice, then `after` and `head` once; an in-place ReLU overwrites what `after` gave."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Conv2d(3, 3, 3, padding=1)
        self.after = nn.Conv2d(3, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 10)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.relu(self.after(self.again(self.again(image))))
        return self.head(maps.mean((2, 3)))


def cnn() -> nn.Module:
    return SmallCNN(10, 3, WIDTHS)


def teacher_of(make: Callable[[], nn.Module], **options: Any) -> Teacher:
    torch.manual_seed(1)
    return Teacher(make(), ImageAdapter([0.5] * 3, [0.25] * 3), name="main", **options)


def student() -> Network:
    torch.manual_seed(2)
    return Network(cnn(), ImageAdapter([0.5] * 3, [0.25] * 3), name="student")


def ran(network: Network, forward: Callable[[], object]) -> set[str]:
    """The paths of the modules without children that finish their forward."""
    seen = set[str]()
    leaves = [(path, module) for path, module in network.net.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(lambda *_, path=path: seen.add(path)) for path, module in leaves]
    forward()
    for hook in hooks:
        hook.remove()
    return seen


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


CASES: list[tuple[Callable[[], nn.Module], Sequence[str], set[str]]] = [
    (cnn, ["stages.0"], {"stages.1", "stages.2", "pool", "head"}),
    (cnn, ["stages.1", "stages.0"], {"stages.2", "pool", "head"}),
    (cnn, ["stages.1:input"], {"stages.1", "stages.2", "pool", "head"}),
    (cnn, ["embedding"], {"head"}),
    (cnn, ["stages.0", "head:weight"], {"stages.1", "stages.2", "pool", "head"}),
    (Twice, ["again"], {"after", "relu", "head"}),
    (Twice, ["after"], {"relu", "head"}),
    (lambda: timm.create_model("test_resnet", num_classes=10), ["layer2"], {"layer3", "layer4", "global_pool", "fc"}),
]


@pytest.mark.parametrize(("make", "taps", "silent"), CASES)
def test_nothing_runs_after_the_last_tap_and_the_values_are_the_same(
    make: Callable[[], nn.Module], taps: Sequence[str], silent: set[str]
) -> None:
    whole, stopping = teacher_of(make), teacher_of(make)
    for teacher in (whole, stopping):
        teacher.tap(taps, BATCH)
    stopping.stop_early(BATCH)
    expected = whole(BATCH, training=True)
    for _ in range(2):  # it starts anew each time
        found = stopping(BATCH, training=True)
        assert found.layers.keys() == expected.layers.keys() == set(taps)
        assert all(torch.equal(found.layers[tap], expected.layers[tap]) for tap in taps)
        assert found.logits.shape == (4, 0)
    seen = ran(stopping, lambda: stopping(BATCH, training=True))
    assert seen
    assert not [path for path in seen if any(path == stop or path.startswith(f"{stop}.") for stop in silent)]
    everything = ran(whole, lambda: whole(BATCH, training=True))
    assert {path for path in everything if any(f"{path}.".startswith(f"{stop}.") for stop in silent)}
    assert torch.equal(stopping(BATCH).logits, expected.logits)  # in evaluation it runs to its end
    assert ran(stopping, lambda: stopping(BATCH)) == everything


def test_the_attention_of_a_layer_is_a_tap_too() -> None:
    def vit() -> nn.Module:
        return timm.create_model("test_vit", num_classes=10, img_size=32)

    whole, stopping = teacher_of(vit), teacher_of(vit)
    paths = whole.attention_modules(BATCH)
    assert len(paths) > 1
    for teacher in (whole, stopping):
        teacher.tap(["patch_embed"], BATCH)
        teacher.tap_attention(paths[:1], BATCH)
    stopping.stop_early(BATCH)
    found, expected = stopping(BATCH, training=True), whole(BATCH, training=True)
    assert torch.equal(found.layers["patch_embed"], expected.layers["patch_embed"])
    for part in ("query", "key", "value"):
        assert torch.equal(getattr(found.attention[paths[0]], part), getattr(expected.attention[paths[0]], part))
    assert not [path for path in ran(stopping, lambda: stopping(BATCH, training=True)) if path.startswith("blocks.1")]
    assert torch.equal(stopping(BATCH).logits, expected.logits)


def wired(terms: Mapping[str, Term], stop: bool = True) -> tuple[Network, Teacher]:
    own, teacher = student(), teacher_of(cnn)
    wire(terms, own, {"main": teacher}, BATCH, stop)
    return own, teacher


STOPS: list[tuple[dict[str, Term], str | None]] = [
    (
        {"hint": Hint(layers={"stages.1": "stages.0"}), "at": AttentionTransfer(layers={"stages.2": "stages.1"})},
        "stages.1",
    ),
    ({"rkd": RKD()}, "embedding"),
    ({}, None),
]


@pytest.mark.parametrize(("terms", "place"), STOPS)
def test_the_losses_decide_where_it_stops(terms: dict[str, Term], place: str | None) -> None:
    teacher = wired(terms)[1]
    assert teacher.stops
    assert teacher.stops_at == place
    assert bool(ran(teacher, lambda: teacher(BATCH, training=True))) is (place is not None)


@pytest.mark.parametrize(
    ("terms", "stop"),
    [({"kd": KD()}, True), ({"kd": KD(), "hint": Hint()}, True), ({"hint": Hint()}, False)],
)
def test_it_runs_to_its_end_where_a_loss_reads_its_logits_or_it_is_compiled(terms: dict[str, Term], stop: bool) -> None:
    teacher = wired(terms, stop)[1]
    assert not teacher.stops
    assert teacher(BATCH, training=True).logits.shape == (4, 10)


def test_no_hook_without_a_loss_that_asks_for_a_layer() -> None:
    assert [hooks_of(network) for network in wired({"kd": KD()})] == [0, 0]
    assert [hooks_of(network) for network in wired({"kd": KD(), "hint": Hint()})] == [1, 1]


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Callable[..., DictConfig]:
    torch.manual_seed(0)
    save_weights(SmallCNN(10, 1, WIDTHS), tmp_path / "teacher.safetensors")
    given = ["model/teacher=cnn", "teachers.main.net.widths=[4,6,8]", "data.train_size=100", "data.batch_size=25"]
    given += [f"teachers.main.weights={tmp_path / 'teacher.safetensors'}", "logger=none", "trainer.max_epochs=1"]
    return lambda *more, run="run": compose_train(*given, *more, run=run)


HINT = ["loss/response=[]", "loss/feature=[hint]"]


@pytest.mark.parametrize("more", [["compile=true"], ["teachers.main.cache=true", "data.augment=null"]])
def test_a_compiled_teacher_and_a_cached_one_do_not_stop(more: list[str], composed: Callable[..., DictConfig]) -> None:
    teacher = build(composed(*HINT, *more)).distiller.frozen["main"]
    assert teacher.stops is ("compile=true" not in more)
    if teacher.training_signals is not None:
        assert teacher(
            dict(BATCH, index=teacher.training_signals._data.splits["train"].indices[:4]), True
        ).logits.shape == (
            4,
            10,
        )


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores", "ignore:Some losses hardly reach")
def test_a_run_is_the_same_and_its_teacher_is_scored(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = train(composed(*HINT))
    assert stopped.parts.distiller.frozen["main"].stops_at == "stages.1"
    monkeypatch.setattr(Teacher, "stop_early", lambda *_: None)
    whole = train(composed(*HINT, run="whole"))
    assert not whole.parts.distiller.frozen["main"].stops
    assert stopped.record.student_sha256 == whole.record.student_sha256
    assert stopped.record.teachers["main"]["score"] == whole.record.teachers["main"]["score"]
