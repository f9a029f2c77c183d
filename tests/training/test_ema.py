"""`optim.ema`: the average of the student is validated, chosen, scored and exported; against averages made by hand."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.weight_files import find_state, read_weights
from distillery.runs.job import resumed
from distillery.runs.run import Result, train
from distillery.runs.verify_run import verify_run
from distillery.training.distiller import Distiller
from fixtures.composing import Compose
from fixtures.runs import Died, Dies, sha256

SMALL = (
    "model/teacher=none",
    "student.net.widths=[4,6]",
    "data.train_size=100",
    "data.batch_size=25",
    "trainer.max_epochs=3",
    "optim.optimizer.lr=0.3",
)
State = dict[str, Tensor]


class Watch(L.Callback):
    """The student's state before the first update and after each, and the metrics of each validation."""

    def __init__(self) -> None:
        self.students: list[State] = []
        self.validated: list[tuple[float, float]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.on_train_batch_end(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        self.students.append(copy.deepcopy(module.student.net.state_dict()))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated.append(tuple(float(trainer.callback_metrics[f"val/{key}"]) for key in ("score", "loss")))


def average(students: list[State], decay: float) -> State:
    """By the definition: mean ← d · mean + (1 - d) · student, with d = min(decay, (1 + t) / (10 + t)) in update t."""
    mean = copy.deepcopy(students[0])
    for t, student in enumerate(students[1:]):
        d = min(decay, (1 + t) / (10 + t))
        mean = {
            name: d * value + (1 - d) * student[name] if value.is_floating_point() else student[name]
            for name, value in mean.items()
        }
    return mean


def judged(state: State, result: Result, split: str) -> tuple[float, float]:
    """Accuracy and cross-entropy on a split, by torch alone."""
    net = SmallCNN(10, 1, (4, 6)).eval()
    net.load_state_dict(state)
    cfg, loader = result.parts.cfg, getattr(result.parts.data, f"{split}_dataloader")()
    batches = [(batch["image"], batch["target"]) for batch in loader]
    image, target = (torch.cat(part) for part in zip(*batches, strict=True))
    with torch.no_grad():
        logits = net((image - cfg.student.input.mean[0]) / cfg.student.input.std[0])
    return (logits.argmax(1) == target).double().mean().item(), nn.functional.cross_entropy(logits, target).item()


def test_the_average_is_validated_chosen_scored_and_exported(compose_train: Compose) -> None:
    watch, plain = Watch(), Watch()
    result = train(compose_train(*SMALL, "optim.ema=0.6"), callbacks=[watch])
    train(compose_train(*SMALL, run="plain"), callbacks=[plain])
    for ours, theirs in zip(watch.students, plain.students, strict=True):  # the student learns as it does without
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    means = [average(watch.students[: 4 * epoch + 1], 0.6) for epoch in (1, 2, 3)]
    for found, mean in zip(watch.validated, means, strict=True):
        assert found == pytest.approx(judged(mean, result, "val"), rel=1e-4)
    metrics, ended = result.record.metrics, watch.students[-1]
    for kind, state in (("last", means[-1]), ("unaveraged", ended)):
        expected = [*judged(state, result, "val"), *judged(state, result, "test")]
        found = [metrics[kind][key] for key in ("val_score", "val_loss", "test_score", "test_loss")]
        assert found == pytest.approx(expected, rel=1e-4), kind
    assert metrics["last"]["test_loss"] != pytest.approx(metrics["unaveraged"]["test_loss"], rel=1e-3)
    exported = read_weights(result.folder / "student.safetensors")
    assert all(torch.allclose(exported[name], value, atol=1e-6) for name, value in means[-1].items())
    scores = [score for score, _ in watch.validated]
    best = scores.index(max(scores))
    checkpoint = torch.load(result.folder / "checkpoints" / "best.ckpt", weights_only=True)
    chosen = find_state(checkpoint, [*ended]).tensors  # also what it is as a teacher
    assert all(torch.allclose(chosen[name], value, atol=1e-6) for name, value in means[best].items())
    assert metrics["best"]["epoch"] == best + 1
    assert metrics["best"]["test_score"] == pytest.approx(judged(means[best], result, "test")[0])
    assert any("scored and exported is an average of the student, decay 0.6" in text for text in result.record.remarks)
    verify_run(result.folder)


@pytest.mark.parametrize("stages", [[], ["+stages={a: {epochs: 1}, b: {epochs: 2}}"]])
def test_a_resumed_run_goes_on_with_its_average(stages: list[str], compose_train: Compose) -> None:
    own = [*SMALL, *stages, "optim.ema=0.6", "callbacks.checkpoint_last.every_n_epochs=1"]
    whole = train(compose_train(*own, run="whole"))
    with pytest.raises(Died):
        train(compose_train(*own, run="stopped"), callbacks=[Dies(9)])
    result = train(resumed(whole.folder.parent / "stopped", []))
    assert sha256(result.folder / "student.safetensors") == sha256(whole.folder / "student.safetensors")
    assert result.record.metrics == whole.record.metrics
    average = result.parts.distiller.averaged_student
    assert average is not None
    assert average.updates.item() == 12  # in all stages
    if stages:  # what the first stage leaves is the average, too
        left, ended = (
            read_weights(whole.folder / path) for path in ("stages/a/student.safetensors", "checkpoints/last.ckpt")
        )
        assert not torch.equal(left["head.weight"], ended["state_dict"]["averaged_student.net.head.weight"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.ema=1"], r"^optim\.ema=1: it must be a number of at least 0 and less than 1"),
        (["optim.ema=0.9", "trainer.precision=bf16-true"], r"^optim\.ema: an average of the student would stand still"),
        (
            ["+callbacks.mean={_target_: lightning.pytorch.callbacks.EMAWeightAveraging}"],
            r"^callbacks\.mean averages teachers and losses .*optim\.ema=0\.999",
        ),
        (["optim.ema=0.9", "hardware=fsdp2"], r"^optim\.ema: hardware=fsdp2 shards the student, but not its average"),
    ],
)
def test_where_there_can_be_no_average(overrides: list[str], message: str, compose_train: Compose) -> None:
    with pytest.raises(UserError, match=message):
        check(compose_train(*SMALL, *overrides))
