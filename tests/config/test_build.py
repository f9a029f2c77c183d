"""What a built run is refused for, on its first real batch: layers, names and sizes that cannot work."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.losses.response.kd import KD
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.tasks.classification import Classification
from distillery.training.logged_metrics import refuse_unlogged
from distillery.training.objective import Objective
from distillery.training.schedules import parse
from fixtures.building import build
from fixtures.composing import Compose, train_config

Composed = Callable[..., DictConfig]


@pytest.fixture
def composed(compose_train: Compose, tmp_path: Path) -> Composed:
    """A student and an untrained teacher of two stages on the digits."""
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.safetensors"
    save_weights(SmallCNN(10, 1, (4, 6)), teacher)
    given = ["model/teacher=cnn", "teachers.main.net.widths=[4,6]", f"teachers.main.weights={teacher}"]
    return lambda *overrides: compose_train(*given, *overrides)


def test_the_tests_compose_as_hydra_does() -> None:
    """Groups, lists of them, a deletion, new keys, quotes, and an error."""
    given = ["experiment=digits_demo", "loss/feature=[hint]", "logger=csv", "~callbacks.checkpoint_best"]
    given += ["+stages={a: {epochs: 1}}", "++data.root=elsewhere", "paths.run='a b'", "seed=3", "loss.hint.weight=2"]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        expected = compose("train", given)
    for _ in range(2):  # what is kept for the next one is not changed
        cfg = train_config(*given)
        assert OmegaConf.to_yaml(cfg) == OmegaConf.to_yaml(expected)
        cfg.trainer.max_epochs = 77
    with pytest.raises(HydraException, match=r"Could not override 'lose\.kd'"):
        train_config("lose.kd=1")


@pytest.mark.parametrize("layers", ["null", "[stages.0]"])
@pytest.mark.parametrize(
    ("group", "loss"), [("feature", "hint"), ("attention", "attention_transfer"), ("relation", "rkd")]
)
def test_a_loss_on_layers_needs_pairs_of_them(group: str, loss: str, layers: str, composed: Composed) -> None:
    cfg = composed(f"loss/{group}=[{loss}]", f"loss.{loss}.layers={layers}")
    if (loss, layers) == ("rkd", "null"):  # its own default: the embeddings
        assert build(cfg).distiller.objective.terms["rkd"].taps == {"embedding": "embedding"}
        return
    wrong = "this loss compares layers; give {student layer" if layers == "null" else "it must be a mapping"
    with pytest.raises(UserError, match=rf"^loss\.{loss}\.layers=.*: {re.escape(wrong)}"):
        build(cfg)


def test_a_network_that_asserts_another_image_size(composed: Composed) -> None:
    cfg = composed("model/student=timm", "student.net.model_name=test_vit")
    with pytest.raises(
        UserError, match=r"student network cannot read a batch of images \(8, 1, 8, 8\): Input.*\n.*size"
    ):
        build(cfg)


@pytest.mark.parametrize("name", ["task", "loss", "pop"])
def test_a_loss_is_not_called_as_what_is_logged_beside_it(name: str, composed: Composed) -> None:
    """`task` and `loss` would be logged in place of the task's loss and of the sum."""
    with pytest.raises(UserError, match=rf"^loss\.{name}: a loss cannot have the name '{name}'"):
        build(composed(f"+loss/response@loss.{name}=kd"))
    Objective(Classification(), {"kd": KD(), "kd_b": KD()})


@pytest.mark.parametrize("losses", [[], ["loss/feature=[hint]", "loss/attention=[attention_transfer]"]])
def test_looking_for_layers_does_not_move_the_student(losses: list[str], composed: Composed) -> None:
    """It starts as the seed has it, whatever is built and probed beside it; and in train mode."""
    student = build(composed("seed=3", *losses)).distiller.student
    torch.manual_seed(3)
    expected = SmallCNN(10, 1, (16, 32)).state_dict()
    torch.testing.assert_close(dict(student.net.state_dict()), dict(expected), rtol=0, atol=0)
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.optimizer.momentum=-1", r"^optim\.optimizer: these settings are refused: .*momentum"),
        ("optim.scheduler.T_max=0", r"^optim\.scheduler: these settings are refused: .*zero"),
    ],
)
def test_what_torch_says_of_an_optimizer_is_said_before_training(
    override: str, message: str, composed: Composed
) -> None:
    with pytest.raises(UserError, match=message):
        build(composed(override))


MONITORS = [
    ("callbacks.checkpoint_best.monitor=val/scor", r"monitor=val/scor: nothing logs such a metric\. .*'val/score'"),
    ("+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val_loss}", r"^callbacks\.stop\."),
    ("+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: step}", r"^callbacks\.stop\."),
]


@pytest.mark.parametrize(("override", "message"), MONITORS)
def test_a_monitor_that_nothing_logs(override: str, message: str, composed: Composed) -> None:
    with pytest.raises(UserError, match=message):
        build(composed(override))


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.checkpoint_best.monitor=val/loss"],
        ["callbacks.checkpoint_best.monitor=loss"],
        ["callbacks.checkpoint_best.monitor=step"],  # which Lightning gives a ModelCheckpoint alone
        ["callbacks.checkpoint_best=null"],
        # a callback of the user's own may log anything
        [MONITORS[0][0], "+callbacks.own={_target_: fixtures.two_ranks.Notes, folder: x}"],
    ],
)
def test_a_monitor_that_may_be_there(overrides: list[str], composed: Composed) -> None:
    build(composed(*overrides))


def test_the_loss_is_waited_for_only_where_it_is_logged(composed: Composed) -> None:
    with pytest.raises(UserError, match=r"^callbacks\.checkpoint_best\.monitor=loss: nothing logs such a metric"):
        build(composed("callbacks.checkpoint_best.monitor=loss", "callbacks.term_monitor=null"))


def test_without_a_validation_split_no_score_is_waited_for() -> None:
    saved = {"best": {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "monitor": "val/score"}, "other": None}
    latch = parse("x", {"schedule": "on", "when": "val/loss", "below": 1, "value": 1})
    refuse_unlogged(saved, {"kd.weight": latch}, ("val/score", "val/loss"))
    with pytest.raises(UserError, match=r"^callbacks\.best\.monitor=val/score: .* callbacks\.best=null does"):
        refuse_unlogged(saved, {}, ())
    with pytest.raises(UserError, match=r"^loss\.kd\.weight: when=val/loss: there is no such metric without"):
        refuse_unlogged({}, {"kd.weight": latch}, ())
