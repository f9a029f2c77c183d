"""The CIFAR-100 pairs as they would really run: composed without overrides, compared with the published recipe."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from distillery.config.check import check
from distillery.config.instantiate import make_term
from distillery.config.names import losses_of, teachers_of
from distillery.core.paths import CONFIGS
from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData, Split
from distillery.data.vision import VisionData
from distillery.models.adapters import ImageAdapter
from distillery.models.taps.network import Network
from distillery.training.distiller import Distiller
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from distillery.training.schedules import Progress
from fixtures.composing import Compose
from fixtures.published import PARAMETERS

PAIRS = {
    "resnet110_resnet20": ("resnet110", "resnet20"),
    "resnet110_resnet32": ("resnet110", "resnet32"),
    "resnet32x4_resnet8x4": ("resnet32x4", "resnet8x4"),
    "resnet56_resnet20": ("resnet56", "resnet20"),
    "vgg13_vgg8": ("vgg13", "vgg8"),
    "wrn_40_2_wrn_16_2": ("wrn_40_2", "wrn_16_2"),
    "wrn_40_2_wrn_40_1": ("wrn_40_2", "wrn_40_1"),
}
# The rate with which each epoch, counted from 0, is trained.
LEARNING_RATE = {0: 0.05, 149: 0.05, 150: 5e-3, 179: 5e-3, 180: 5e-4, 209: 5e-4, 210: 5e-5, 239: 5e-5}


def parameters(net: DictConfig) -> int:
    with torch.device("meta"):
        built = instantiate(net, num_classes=100, in_chans=3)
    return sum(parameter.numel() for parameter in built.parameters())


def fifty_thousand(root: str) -> RawData:
    """As many images as CIFAR-100 has, of one pixel: nothing is read from `root`."""

    def split(size: int) -> Split:
        return Split.whole(TensorImages(torch.zeros(size, 3, 1, 1, dtype=torch.uint8)), torch.arange(size) % 100)

    return RawData("cifar100", tuple(map(str, range(100))), train=split(50_000), test=split(10_000))


def learnt_by(cfg: DictConfig) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer and the scheduler that Lightning is given, and that they are stepped as it is told."""
    student = Network(nn.Linear(1, 100), ImageAdapter(cfg.data.mean, cfg.data.std))
    task = instantiate(cfg.task)
    given = instantiate(cfg.optim)
    optim = Optim(given.optimizer, given.scheduler, given.interval, given.decay_biases_and_norms)
    module = Distiller(student, {}, task, Objective(task, {}), optim, 100)
    made = module.configure_optimizers()
    assert made["lr_scheduler"]["interval"] == "epoch"
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def assert_schedule(cfg: DictConfig) -> None:
    """Data, optimizer and epochs: what pairs and teachers share."""
    assert cfg.trainer.max_epochs == 240
    assert cfg.trainer.max_steps == -1
    assert cfg.trainer.accumulate_grad_batches == 1
    assert cfg.trainer.gradient_clip_val is None
    assert cfg.trainer.limit_train_batches is None
    assert cfg.callbacks.checkpoint_best is None  # nothing is selected: there is no validation split

    assert cfg.data.augment == {"crop": 4, "flip": True}
    data = instantiate(cfg.data, source=fifty_thousand)
    assert isinstance(data, VisionData)
    assert data.sizes == {"train": 50_000, "val": 0, "test": 10_000}
    served = [len(key.positions) for key in data.train_dataloader().sampler]
    assert served == [64] * 781 + [16]

    optimizer, scheduler = learnt_by(cfg)
    assert type(optimizer) is torch.optim.SGD
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in ("momentum", "weight_decay", "nesterov", "dampening")} == {
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "nesterov": False,
        "dampening": 0,
    }
    rates = {}
    for epoch in range(cfg.trainer.max_epochs):
        rates[epoch] = group["lr"]
        optimizer.step()
        scheduler.step()
    assert {epoch: rates[epoch] for epoch in LEARNING_RATE} == pytest.approx(LEARNING_RATE, rel=1e-12)


def test_exactly_the_seven_pairs_exist() -> None:
    names = {path.stem for path in (CONFIGS / "experiment" / "cifar100").glob("*.yaml")}
    assert names == {*PAIRS, "recipe", "teacher"}


@pytest.mark.parametrize("pair", PAIRS)
def test_pair_is_the_published_recipe(compose_train: Compose, pair: str) -> None:
    cfg = compose_train(f"experiment=cifar100/{pair}")
    teacher, student = PAIRS[pair]
    assert cfg.name == f"cifar100_{pair}"
    assert list(teachers_of(cfg)) == ["main"]
    assert parameters(cfg.teachers.main.net) == PARAMETERS[teacher]
    assert parameters(cfg.student.net) == PARAMETERS[student]
    assert cfg.student.weights is None
    assert cfg.teachers.main.bn_mode == "eval"

    assert cfg.task.weight == 0.1
    assert cfg.task.label_smoothing == 0
    assert list(losses_of(cfg)) == ["kd"]
    kd = instantiate(cfg.loss.kd)
    assert (kd.weight, kd.temperature, kd.t_squared) == (0.9, 4.0, True)
    assert_schedule(cfg)


def test_teacher_is_trained_by_the_same_schedule_on_labels_alone(compose_train: Compose) -> None:
    cfg = compose_train("experiment=cifar100/teacher", "student.net.name=resnet110")
    assert parameters(cfg.student.net) == PARAMETERS["resnet110"]
    assert teachers_of(cfg) == losses_of(cfg) == {}
    assert cfg.task.weight == 1.0
    assert_schedule(cfg)


def test_dkd_is_warmed_up_over_twenty_epochs(compose_train: Compose) -> None:
    overrides = ("loss/response=[dkd]", "task.weight=1", "teachers.main.weights=there")
    cfg = compose_train("experiment=cifar100/resnet56_resnet20", *overrides)
    (stage,) = check(cfg).stages
    schedules = stage.schedules["loss.dkd"]
    term = make_term("loss.dkd", stage.cfg.loss.dkd, stage.per_teacher["dkd"], schedules, cfg.seed)
    objective = Objective(instantiate(cfg.task), {"dkd": term}, {"dkd.weight": schedules["weight"]})
    weights = []
    for epoch in (0, 5, 20, 239):
        objective.follow(Progress(step=782 * epoch, steps_per_epoch=782))
        weights.append(term.weight)
    assert weights == [0.0, 0.25, 1.0, 1.0]
