"""What is refused before anything is built, what is not, and what a run is called."""

import re

import pytest
from omegaconf import open_dict

from distillery.config.check import check
from distillery.config.names import losses_of, method_name, teachers_of
from distillery.core.errors import UserError
from fixtures.building import build
from fixtures.composing import Compose

TAUGHT = "teachers.main.weights=teacher.safetensors"

# The override, the refused key, what the message proposes.
UNKNOWN = [
    ("+sede=1", "sede", "seed"),
    ("+min_teacher_scor=0.5", "min_teacher_scor", "min_teacher_score"),
    ("+loss.kd.temprature=2", "loss.kd.temprature", "temperature"),
    ("+loss.kd.wieght=2", "loss.kd.wieght", "weight"),
    ("+loss.kdd.weight=1", "loss.kdd", "kd"),
    ("+loss.hnt.weight=1", "loss.hnt", "hint"),
    ("+optim.schedular=null", "optim.schedular", "scheduler"),
    ("+optim.optimizer.momentun=0.5", "optim.optimizer.momentun", "momentum"),
    ("+optim.scheduler.Tmax=5", "optim.scheduler.Tmax", "T_max"),
    ("+trainer.max_epoch=5", "trainer.max_epoch", "max_epochs"),
    ("+callbacks.checkpoint_best.save_topk=2", "callbacks.checkpoint_best.save_topk", "save_top_k"),
    ("+callbacks.term_monitor.every_n_step=2", "callbacks.term_monitor.every_n_step", "every_n_steps"),
    ("+logger.csv.save_directory=x", "logger.csv.save_directory", "save_dir"),
    ("+data.batchsize=5", "data.batchsize", "batch_size"),
    ("+task.label_smooth=0.1", "task.label_smooth", "label_smoothing"),
    ("+student.wieghts=x", "student.wieghts", "weights"),
    ("+student.net.width=[4]", "student.net.width", "widths"),
    ("+student.input.sizes=32", "student.input.sizes", "size"),
    ("+teachers.main.bnmode=eval", "teachers.main.bnmode", "bn_mode"),
    ("+teachers.main.input.means=[1]", "teachers.main.input.means", "mean"),
]


@pytest.mark.parametrize(("override", "key", "nearest"), UNKNOWN)
def test_unknown_key_is_refused_with_the_nearest(override: str, key: str, nearest: str, compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, override)
    with pytest.raises(UserError, match=rf"^Unknown setting '{re.escape(key)}'\. Did you mean .*'{nearest}'"):
        check(cfg)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["loss/feature=[hint]", "loss/relation=[rkd]", "loss/attention=[attention_transfer]"],
        ["model/student=cifar", "model/teacher=cifar", "optim=sgd_steps", "data=cifar100"],
        ["model/student=timm", "student.net.model_name=resnet18", "data=image_folder", "data.root=images"],
        ["debug=overfit", "logger=none", "hardware=gpu"],
        ["callbacks.checkpoint_best=null", "optim.scheduler=null"],
        ["optim.optimizer._target_=torch.optim.RMSprop", "~optim.optimizer.nesterov", "+optim.optimizer.alpha=0.9"],
    ],
)
def test_what_is_right_passes(overrides: list[str], compose_train: Compose) -> None:
    check(compose_train(TAUGHT, *overrides), overrides)


def test_settings_of_a_deselected_loss_are_accepted_and_make_no_loss(compose_train: Compose) -> None:
    cfg = compose_train("experiment=digits_demo", "loss/response=[]", "loss/relation=[rkd]")
    assert cfg.loss.kd.weight == 0.9  # what the experiment says of it
    check(cfg)
    assert list(losses_of(cfg)) == ["rkd"]
    assert cfg.method == "rkd"


def test_a_wrong_network_of_timm(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "model/student=timm", "student.net.model_name=resnet18d")
    check(cfg)
    cfg.student.net.model_name = "resnet_18"
    with pytest.raises(UserError, match=r"timm has no network 'resnet_18'\. Did you mean .*'resnet18'"):
        check(cfg)
    cfg.student.net.model_name = "resnet18.a1_in1"
    with pytest.raises(UserError, match=r"resnet18 has no weights 'a1_in1'\. Did you mean .*'a1_in1k'"):
        check(cfg)


def test_a_misspelt_teacher(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"teachers\.mian has no network\. Did you mean 'teachers\.main'\?"):
        check(compose_train(TAUGHT, "+teachers.mian.bn_mode=train"))


def test_a_second_teacher_is_checked_as_the_first(compose_train: Compose) -> None:
    second = ["+model/teacher@teachers.second=cnn", "teachers.second.weights=b.pth"]
    check(compose_train(TAUGHT, *second))
    with pytest.raises(UserError, match=r"'teachers\.second\.net\.width'\. Did you mean .*'widths'"):
        check(compose_train(TAUGHT, *second, "+teachers.second.net.width=[4]"))


@pytest.mark.parametrize("key", ["callbacks", "logger", "default_root_dir"])
def test_what_the_run_itself_gives_the_trainer(key: str, compose_train: Compose) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{key} is set by the run"):
        check(compose_train(TAUGHT, f"+trainer.{key}=null"))


def test_settings_without_a_value_are_all_named(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"no value yet: student\.net\.model_name=…, teachers\.main\.weights=…"):
        check(compose_train("model/student=timm"))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("distillery.models.cnn.SmalCNN", "SmalCNN"),
        ("distillery.model.cnn.SmallCNN", "distillery.model"),
        ("nowhere.Net", "nowhere"),
    ],
)
def test_a_target_that_cannot_be_imported(target: str, said: str, compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, f"student.net._target_={target}")
    with pytest.raises(UserError, match=rf"student\.net\._target_: cannot import '{target}': .*{said}"):
        check(cfg)


@pytest.mark.parametrize("options", ["[kd,kd]", "[kd, dkd, dkd, kd]"])
def test_a_loss_named_twice(options: str, compose_train: Compose) -> None:
    override = f"loss/response={options}"
    cfg = compose_train(TAUGHT)  # Hydra itself would compose it, and count the loss once
    with pytest.raises(UserError, match=r"'kd' is named twice.*\+loss/response@loss\.kd_b=kd"):
        check(cfg, [override])
    check(cfg, ["loss/response=[kd,dkd]", "data.mean=[0.5,0.5]"])


def test_the_proposed_second_instance_is_one(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "+loss/response@loss.kd_b=kd", "loss.kd_b.temperature=2")
    check(cfg)
    assert (cfg.loss.kd.temperature, cfg.loss.kd_b.temperature) == (4, 2)
    assert cfg.method == "kd+kd_b"


def test_without_a_teacher_an_experiment_is_the_baseline(compose_train: Compose) -> None:
    cfg = compose_train("experiment=digits_demo", "model/teacher=none", "loss/feature=[hint]")
    assert "weights" in cfg.teachers.main  # what the experiment says of it
    check(cfg)
    assert not teachers_of(cfg)
    assert cfg.method == method_name(cfg) == "baseline"
    parts = build(cfg)
    assert not parts.distiller.teachers
    assert not parts.distiller.objective.terms
    assert parts.cfg.loss == parts.cfg.teachers == {}


METHODS = [
    ([TAUGHT], "kd"),
    ([TAUGHT, "loss/response=[]"], "baseline"),
    ([TAUGHT, "loss/feature=[hint]"], "kd+hint"),
    ([TAUGHT, "loss/response=[]", "loss/relation=[rkd]"], "rkd"),
    ([TAUGHT, "loss/response=[dkd]"], "dkd"),
    ([TAUGHT, "loss/response=[kd,dkd]", "loss/attention=[attention_transfer]"], "kd+dkd+at"),
    ([TAUGHT, "+loss/response@loss.kd_b=kd"], "kd+kd_b"),
    (["model/teacher=none"], "baseline"),
    (["model/teacher=none", "loss/response=[]"], "baseline"),
]


@pytest.mark.parametrize(("overrides", "method"), METHODS)
def test_a_run_is_called_by_its_losses(overrides: list[str], method: str, compose_train: Compose) -> None:
    cfg = compose_train(*overrides)
    check(cfg)
    assert cfg.method == method
    assert re.fullmatch(r"[A-Za-z0-9._+-]+", f"{cfg.method}_seed{cfg.seed}")


def test_a_setting_that_some_target_takes_by_any_name_is_let_through(compose_train: Compose) -> None:
    cfg = compose_train(TAUGHT, "model/student=timm", "student.net.model_name=resnet18")
    with open_dict(cfg):
        cfg.student.net.drop_path_rate = 0.1
    check(cfg)
