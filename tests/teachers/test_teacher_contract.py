"""The teacher's contract: frozen in every mode, unchanged by a fit, in nothing that is trained or saved."""

import warnings
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.losses.signals import Signals
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights, weights_hash
from distillery.runs.run import Result, train
from distillery.teachers.frozen import BatchNorm, Teacher
from distillery.training.callbacks.teacher_guard import TeacherGuard
from fixtures.building import build
from fixtures.runs import config

# Dropout before its head; BatchNorm and in-place ReLU throughout.
RESNET = {"model_name": "test_resnet", "drop_rate": 0.5}
BATCH = {"image": torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
FIT = [
    "experiment=digits_demo",
    "min_teacher_score=0",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "callbacks.checkpoint_last.every_n_epochs=1",
    "logger=none",
]
SMALL = ["model/teacher=cnn", "teachers.main.net.widths=[16, 32]"]


def configured(folder: Path, *overrides: str) -> DictConfig:
    return config(folder, *FIT, *overrides)


@dataclass
class Watch(L.Callback):
    """Notes, in each training step, what a teacher gives, and the modes of student and teacher."""

    student_modes: list[tuple[int, set[bool]]] = field(default_factory=list)  # epoch, modes of its modules
    teacher_modes: set[bool] = field(default_factory=set)
    signals: list[Signals] = field(default_factory=list)
    grad_enabled: set[bool] = field(default_factory=set)
    trained: list[nn.Parameter] = field(default_factory=list)
    validations: int = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        def steps(student: nn.Module, *_: Any) -> None:
            if not trainer.validating:
                self.student_modes.append((trainer.current_epoch, {m.training for m in student.modules()}))

        def gives(teacher: nn.Module, _: Any, signals: Signals) -> None:
            self.teacher_modes |= {m.training for m in teacher.modules()}
            self.grad_enabled.add(torch.is_grad_enabled())
            self.signals.append(signals)

        self.trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        self.hooks = [module.student.register_forward_hook(steps)]
        self.hooks += [teacher.register_forward_hook(gives) for teacher in module.teachers.values()]

    def on_validation_end(self, *_: Any) -> None:
        self.validations += 1

    def on_train_end(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()


@dataclass
class Fitted:
    """A finished fit, what was watched of it, and the teacher's state dict from before."""

    result: Result
    watch: Watch
    before: dict[str, Tensor]

    @property
    def teacher(self) -> Teacher:
        return self.result.parts.distiller.teachers["main"]


def resnet(seed: int = 0) -> nn.Module:
    """A teacher with running statistics that are not those of its first batch, nor the initial ones."""
    torch.manual_seed(seed)
    net = timm.create_model(**RESNET, num_classes=10, in_chans=1)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
    return net


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Two epochs of KD and hints from a teacher with BatchNorm and dropout."""
    folder = tmp_path_factory.mktemp("fit")
    before = {name: tensor.clone() for name, tensor in resnet().state_dict().items()}
    torch.save(before, folder / "teacher.pth")
    cfg = configured(
        folder / "run",
        "model/teacher=timm",
        "teachers.main.net.model_name=test_resnet",
        "+teachers.main.net.drop_rate=0.5",
        f"teachers.main.weights='{folder / 'teacher.pth'}'",
        "teachers.main.input.size=32",
        "loss/feature=[hint]",
        "loss.hint.layers={stages.1: layer2}",
    )
    watch = Watch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it was never trained: it scores near chance
        return Fitted(train(cfg, callbacks=[watch]), watch, before)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a teacher that knows the digits."""
    cfg = configured(
        tmp_path_factory.mktemp("good") / "run",
        *("experiment=digits_teacher", "student.net.widths=[16, 32]", "trainer.max_epochs=6"),
    )
    result = train(cfg)
    assert result.record.metrics["last"]["val_score"] > 0.8
    return {name: tensor.clone() for name, tensor in result.parts.distiller.student.net.state_dict().items()}


def saved(state: Mapping[str, Tensor], folder: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "teacher.safetensors")
    return f"teachers.main.weights='{folder / 'teacher.safetensors'}'"


def small(folder: Path, *overrides: str, classes: int = 10) -> DictConfig:
    """The config of a fit from a small teacher that was never trained."""
    torch.manual_seed(0)
    save_weights(SmallCNN(classes, 1), folder / "teacher.safetensors")
    return configured(folder / "run", *SMALL, f"teachers.main.weights='{folder / 'teacher.safetensors'}'", *overrides)


def teacher_of(net: nn.Module, size: int | None = None, **options: Any) -> Teacher:
    return Teacher(net, ImageAdapter([0.3], [0.4], size), **options)


def modes(module: nn.Module) -> set[bool]:
    return {m.training for m in module.modules()}


# --- modes


def test_a_teacher_stays_in_evaluation_mode_through_every_train() -> None:
    teacher = teacher_of(resnet().train())
    assert modes(teacher) == {False}
    assert teacher.train() is teacher
    assert modes(teacher) == {False}
    nn.ModuleDict({"a": nn.ModuleList([teacher])}).train()  # a part of something that is trained
    assert modes(teacher) == {False}


def test_dropout_is_off_and_the_running_statistics_are_used() -> None:
    teacher = teacher_of(resnet(), size=32)
    teacher.train()
    first, one = teacher(BATCH, training=True).logits, teacher({"image": BATCH["image"][:1]}, training=True).logits
    torch.testing.assert_close(teacher(BATCH, training=True).logits, first, rtol=0, atol=0)
    torch.testing.assert_close(one, first[:1], rtol=1e-4, atol=1e-5)


def test_the_student_trains_in_train_mode_in_every_step_though_validation_runs_each_epoch(fitted: Fitted) -> None:
    steps = fitted.watch.student_modes
    assert fitted.watch.validations == 2
    assert [epoch for epoch, _ in steps] == 4 * [0] + 4 * [1]  # 100 images, 25 a batch
    assert all(found == {True} for _, found in steps)


def test_the_teacher_is_in_evaluation_mode_in_every_step(fitted: Fitted) -> None:
    assert len(fitted.watch.signals) == 8
    assert fitted.watch.teacher_modes == {False}


# --- unchanged


def test_a_fit_changes_no_parameter_and_no_buffer(fitted: Fitted) -> None:
    after = fitted.teacher.net.state_dict()
    assert after.keys() == fitted.before.keys()
    assert [name for name, tensor in after.items() if not torch.equal(tensor, fitted.before[name])] == []
    assert fitted.teacher.fingerprint() == weights_hash(resnet()) == fitted.result.record.teachers["main"]["sha256"]


def test_the_fingerprint_sees_buffers_and_parameters() -> None:
    teacher = teacher_of(resnet())
    first = teacher.fingerprint()
    teacher.net.bn1.num_batches_tracked += 1
    second = teacher.fingerprint()
    teacher.net.fc.bias.data[0] += 1
    assert len({first, second, teacher.fingerprint()}) == 3


def test_a_teacher_takes_no_gradient(fitted: Fitted) -> None:
    assert not any(parameter.requires_grad for parameter in fitted.teacher.parameters())
    assert all(parameter.grad is None for parameter in fitted.teacher.parameters())


def test_the_optimizer_holds_the_student_and_the_projectors_and_nothing_else(fitted: Fitted) -> None:
    distiller = fitted.result.parts.distiller
    projectors = list(distiller.objective.parameters())
    assert projectors, "the hint has a projector: without one the test would prove less"
    wanted = {id(parameter) for parameter in (*distiller.student.parameters(), *projectors)}
    assert {id(parameter) for parameter in fitted.watch.trained} == wanted
    assert len(fitted.watch.trained) == len(wanted)
    assert not wanted & {id(parameter) for parameter in fitted.teacher.parameters()}


def test_the_checkpoint_holds_no_teacher(fitted: Fitted) -> None:
    checkpoint = torch.load(fitted.result.folder / "checkpoints" / "last.ckpt", weights_only=True)
    student = {f"student.net.{name}" for name in fitted.result.parts.distiller.student.net.state_dict()}
    projectors = {f"objective.{name}" for name in fitted.result.parts.distiller.objective.state_dict()}
    assert set(checkpoint["state_dict"]) == student | projectors


class Alters(L.Callback):
    """Changes one buffer, or one parameter, of the teacher in the midst of the fit."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        with torch.no_grad():
            module.teachers["main"].net.state_dict(keep_vars=True)[self.name].add_(1)


@pytest.mark.parametrize("name", ["stages.1.1.num_batches_tracked", "head.bias"])
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_the_guard_stops_a_run_whose_teacher_changed(name: str, tmp_path: Path) -> None:
    cfg = small(tmp_path, "trainer.limit_train_batches=1", "trainer.max_epochs=1")
    with pytest.raises(RuntimeError, match="Teacher 'main' changed during training"):
        train(cfg, callbacks=[Alters(name)])


@pytest.mark.filterwarnings("ignore:.*max_epochs")
def test_a_fit_of_no_epoch_ends_well(tmp_path: Path) -> None:
    result = train(small(tmp_path, "trainer.max_epochs=0"))
    assert result.record.status == "finished"


# --- signals


def test_teachers_look_on_without_grad_but_their_tensors_can_be_saved_for_backward(fitted: Fitted) -> None:
    assert fitted.watch.grad_enabled == {True}, "outside of the teacher gradients are wanted"
    for signals in fitted.watch.signals:
        for tensor in (signals.logits, signals.layers["layer2"]):
            assert not tensor.requires_grad
            assert not tensor.is_inference()


def test_no_graph_is_built_in_a_teacher_even_where_its_input_has_one() -> None:
    image = BATCH["image"].clone().requires_grad_()
    assert not teacher_of(SmallCNN(10, 1))({"image": image}, training=True).logits.requires_grad


def test_an_mse_through_a_trainable_projector_on_teacher_features_backpropagates() -> None:
    teacher = teacher_of(resnet(), size=32)
    teacher.tap(["embedding", "layer1"], BATCH)
    signals = teacher(BATCH, training=True)
    vector, maps = nn.Linear(96, 3), nn.Conv2d(32, 3, 1)
    loss = vector(signals.layers["embedding"]).square().mean() + maps(signals.layers["layer1"]).square().mean()
    loss.backward()
    assert vector.weight.grad.abs().sum() > 0
    assert maps.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --- BatchNorm by the batch's statistics


def test_bn_mode_train_normalises_by_the_batch_in_training_only_and_keeps_the_running_statistics() -> None:
    reference, teacher = resnet().train(), teacher_of(resnet(), size=32, bn_mode="train")
    reference.drop_rate = 0.0
    before = teacher.fingerprint()
    images = teacher.adapter(BATCH)[0][0]
    with torch.no_grad():
        per_batch, running = reference(images), resnet().eval()(images)
    assert not torch.allclose(per_batch, running, atol=0.1)
    for _ in range(2):
        torch.testing.assert_close(teacher(BATCH, training=True).logits, per_batch)
        torch.testing.assert_close(teacher(BATCH).logits, running)
    assert teacher.fingerprint() == before


def test_an_unknown_bn_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"bn_mode 'trian'.*Did you mean 'train'"):
        teacher_of(SmallCNN(10, 1), bn_mode="trian")


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_bn_mode_train_reaches_the_fit(tmp_path: Path) -> None:
    watch = Watch()
    result = train(small(tmp_path, "teachers.main.bn_mode=train", "trainer.max_epochs=1"), callbacks=[watch])
    assert watch.teacher_modes == {True, False}  # its BatchNorm layers, and all others
    torch.manual_seed(0)
    assert result.record.teachers["main"]["sha256"] == weights_hash(SmallCNN(10, 1))


# --- precision


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
def test_the_teacher_follows_the_precision(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    watch = Watch()
    cfg = small(tmp_path, f"trainer.precision={precision}", "trainer.max_epochs=1", "loss/feature=[hint]")
    result = train(cfg, callbacks=[watch])
    assert {signals.logits.dtype for signals in watch.signals} == {dtype}
    assert {p.dtype for p in result.parts.distiller.teachers["main"].parameters()} == {dtype}


# --- fit to teach?


def test_a_teacher_without_weights_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teachers\.main\.weights is null.*'pretrained'.*folder of a run"):
        train(configured(tmp_path, *SMALL, "teachers.main.weights=null"))


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    cfg = small(tmp_path, "+teachers.main.net.num_classes=7", classes=7)
    with pytest.raises(UserError, match=r"main network gives logits \(8, 7\) where the task has 10 classes"):
        train(cfg)


def warned(cfg: DictConfig) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(cfg)
    return [str(w.message) for w in caught if "Teacher" in str(w.message)]


ONE_STEP = ["trainer.max_epochs=1", "trainer.limit_train_batches=1"]


def test_a_good_teacher_is_not_warned_of(good: dict[str, Tensor], tmp_path: Path) -> None:
    assert warned(configured(tmp_path / "run", *SMALL, saved(good, tmp_path), "min_teacher_score=0.8", *ONE_STEP)) == []


def test_labels_in_another_order_are_called_so(good: dict[str, Tensor], tmp_path: Path) -> None:
    permuted = {**good, "head.weight": good["head.weight"].roll(1, 0), "head.bias": good["head.bias"].roll(1, 0)}
    (message,) = warned(configured(tmp_path / "run", *SMALL, saved(permuted, tmp_path), *ONE_STEP))
    assert "Teacher 'main'" in message
    assert "Likely the labels" in message
    assert "normalisation" not in message


def test_inputs_of_other_statistics_are_called_so(good: dict[str, Tensor], tmp_path: Path) -> None:
    wrong = "teachers.main.input={mean: [120], std: [60], size: null}"  # of images in [0, 255]
    (message,) = warned(configured(tmp_path / "run", *SMALL, saved(good, tmp_path), wrong, *ONE_STEP))
    assert "Teacher 'main'" in message
    assert "normalisation" in message
    assert "Likely the labels" not in message


def test_a_teacher_below_min_teacher_score_is_refused_before_the_first_step(
    good: dict[str, Tensor], tmp_path: Path
) -> None:
    permuted = {**good, "head.weight": good["head.weight"].roll(1, 0), "head.bias": good["head.bias"].roll(1, 0)}
    watch = Watch()
    cfg = configured(tmp_path / "run", *SMALL, saved(permuted, tmp_path), "min_teacher_score=0.5")
    with pytest.raises(UserError, match=r"Teacher 'main' scores 0\.\d+.*worse than min_teacher_score=0.5.*labels"):
        train(cfg, callbacks=[watch])
    assert watch.student_modes == []


def test_the_guard_scores_the_teacher_on_the_validation_split(good: dict[str, Tensor], tmp_path: Path) -> None:
    """Its threshold is met by the very score that the teacher has there, and missed by a thousandth more."""
    parts = build(configured(tmp_path / "run", *SMALL, saved(good, tmp_path)))
    teacher = parts.distiller.teachers["main"]
    right = [teacher(batch).logits.argmax(1) == batch["target"] for batch in parts.data.val_dataloader()]
    score = torch.cat(right).double().mean().item()

    def start(min_score: float) -> None:
        trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)
        trainer.datamodule = parts.data
        TeacherGuard(min_score).on_train_start(trainer, parts.distiller)

    start(score - 1e-3)
    with pytest.raises(UserError, match=f"scores {score:.3f}"):
        start(score + 1e-3)


def test_without_a_validation_split_the_labelled_training_samples_are_scored(
    good: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each once, not augmented; where no training sample has a label, this is said."""
    few = ["data.train_size=null", "data.labelled_size=30", "data.labelled_share=0.5"]
    parts = build(configured(tmp_path / "run", *SMALL, saved(good, tmp_path), *few, "data.augment={crop: 3}"))
    parts.data.splits = {**parts.data.splits, "val": replace(parts.data.splits["val"], indices=torch.tensor([]))}
    trainer = L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)

    def started(data: Data) -> str:
        trainer.datamodule = data
        Context().run(TeacherGuard(0.5).on_train_start, trainer, parts.distiller)
        return capsys.readouterr().out

    train, teacher = parts.data.splits["train"], parts.distiller.teachers["main"]
    known = train.labelled_indices
    right = teacher({"image": train.inputs.batch(known, None, 0, 0)}).logits.argmax(1) == train.targets[known]
    assert f"accuracy {right.double().mean():.4f} on the 30 labelled training samples" in started(parts.data)
    none = parts.data.narrowed(train.unlabelled_indices)
    assert "not scored before training, and min_teacher_score=0.5 is not checked: only the test" in started(none)
