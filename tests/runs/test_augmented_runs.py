"""Runs with each recipe of `data/augment`: teacher and student see the same mixed images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.runs.run import Result
from fixtures.building import build
from fixtures.composing import Compose

RECIPES = ("rsb", pytest.param("patient", marks=pytest.mark.slow), pytest.param("deit", marks=pytest.mark.slow))
MIXED = ("+data.augment.mixup=0.5", "+data.augment.cutmix=1")


class Views(L.Callback):
    """What both networks are given in the training steps, and the batches themselves."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        self.batches: list[dict[str, Tensor]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        networks = {"student": module.student, "teacher": module.teachers["main"]}
        self._hooks = [
            network.net.register_forward_pre_hook(lambda _, given, name=name: self.seen[name].append(given[0].clone()))
            for name, network in networks.items()
        ]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize("recipe", RECIPES)
def test_teacher_and_student_see_the_same_views(recipe: str, run: Callable[..., Result]) -> None:
    views = Views()
    result = run(f"data/augment={recipe}", "trainer.max_epochs=1", "logger=none", callbacks=[views])
    (mean,), (std,) = result.parts.data.mean, result.parts.data.std  # type: ignore[attr-defined]
    assert len(views.batches) == len(views.seen["student"]) == len(views.seen["teacher"]) == 10
    for batch, student, teacher in zip(views.batches, views.seen["student"], views.seen["teacher"], strict=True):
        assert torch.equal(student, teacher)
        assert torch.allclose(student, (batch["image"] - mean) / std, atol=1e-5)
        assert batch["target"].shape == (10, 10)
        assert torch.allclose(batch["target"].sum(1), torch.ones(10))
    assert any(((batch["target"] > 0).sum(1) > 1).any() for batch in views.batches)
    assert all(0 < loss < 100 for loss in views.losses)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.slow
def test_precisions(precision: str, run: Callable[..., Result]) -> None:
    run(*MIXED, f"trainer.precision={precision}", "trainer.max_epochs=1", "logger=none")


@pytest.mark.slow
def test_unlabelled_images_are_mixed_too(run: Callable[..., Result]) -> None:
    views = Views()
    run(*MIXED, "data.labelled_size=30", "trainer.max_epochs=2", "logger=none", callbacks=[views])
    assert any(batch["target"].isnan().any() for batch in views.batches)
    assert all(0 < loss < 100 for loss in views.losses)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss/response=[dkd]"], r"loss\.dkd needs one class for each image, .* Set data\.augment\.mixup=0"),
        (["teachers.main.cache=true"], r"Set data\.views=8 .*, data\.augment=null, or the teacher's cache=false"),
        (["model/teacher=stored"], r"teachers\.main: its stored targets are of single images"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    overrides: list[str], message: str, teacher: Path, compose_train: Compose
) -> None:
    given = [] if "model/teacher=stored" in overrides else [f"teachers.main.weights='{teacher}'"]
    with pytest.raises(UserError, match=message):
        build(compose_train("experiment=digits_demo", "min_teacher_score=0", *MIXED, *given, *overrides))


@pytest.mark.slow
def test_no_teacher_judges_how_easy_a_mixed_image_is(run: Callable[..., Result]) -> None:
    with pytest.raises(
        UserError, match=r"Leave out easiest, or set data\.augment\.mixup=0 and data\.augment\.cutmix=0"
    ):
        run("stages=curriculum", *MIXED)
