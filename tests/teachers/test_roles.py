"""Teachers that move with the student: an average of it, a peer, itself; against loops written by hand."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.core.roles import SELF
from distillery.losses.signals import Attention, Signals
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.results.record import RunRecord
from distillery.results.report.collect import collect
from distillery.results.report.write import write_report
from distillery.runs.job import resumed
from distillery.runs.plan import network_table, term_table
from distillery.runs.run import Result, train
from distillery.runs.verify_run import verify_run
from distillery.teachers.ema import EMATeacher
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.runs import Died, Dies, sha256

pytestmark = pytest.mark.filterwarnings("ignore:Some losses hardly reach", "ignore:Teacher 'main' scores")
SMALL = [
    "student.net.widths=[4,6]",
    "data.train_size=100",
    "data.batch_size=25",
    "trainer.max_epochs=2",
    "callbacks.checkpoint_last.every_n_epochs=1",
    "logger=none",
]
ROLES = {
    "ema": ["model/teacher=ema"],
    "peer": ["model/teacher=peer"],
    "self": ["model/teacher=self", "loss/response=[]", "loss/feature=[hint]", "loss.hint.weight=1"],
}
PLAIN = ["optim.scheduler=null", "optim.optimizer.lr=0.05", "task.weight=0.3", "loss.kd.temperature=2"]


class Watch(L.Callback):
    """The batches, and the networks as they are before the first step and after each."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []
        self.student: list[nn.Module] = []
        self.teacher: list[nn.Module] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._keep(module)
        self.optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        self.batches.append({key: value.clone() for key, value in batch.items()})

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._keep(module)

    def _keep(self, module: L.LightningModule) -> None:
        assert isinstance(module.teachers["main"], Network)
        self.student.append(_plain(module.student.net))
        self.teacher.append(_plain(module.teachers["main"].net))


def _plain(net: nn.Module) -> nn.Module:
    """A copy that is in no way the run's."""
    twin = SmallCNN(10, 1, [stage[0].out_channels for stage in net.stages])
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    return twin


def watched(cfg: DictConfig) -> tuple[Result, Watch]:
    watch = Watch()
    return train(cfg, callbacks=[watch]), watch


def images(cfg: DictConfig, batch: dict[str, Tensor]) -> Tensor:
    return (batch["image"] - cfg.student.input.mean[0]) / cfg.student.input.std[0]


def sgd(net: nn.Module, cfg: DictConfig) -> torch.optim.Optimizer:
    given = OmegaConf.to_container(cfg.optim.optimizer)
    assert given.pop("_target_") == "torch.optim.SGD"
    assert given.pop("_partial_") is True
    return torch.optim.SGD(net.parameters(), **given)


def task_loss(logits: Tensor, target: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(len(target)), target].mean()


def divergence(learns: Tensor, teaches: Tensor) -> Tensor:
    log_q, p = (learns / 2).log_softmax(1), (teaches.detach() / 2).softmax(1)
    return 4 * (p * (p.log() - log_q)).sum(1).mean()


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    for (name, ours), theirs in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def difference(net: nn.Module, other: nn.Module) -> float:
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    return max((ours - theirs).abs().max().item() for ours, theirs in pairs)


# --- an average of the student


def test_an_ema_teacher_is_the_average_of_a_loop_written_by_hand(compose_train: Compose) -> None:
    result, watch = watched(compose_train(*SMALL, *ROLES["ema"], *PLAIN, "teachers.main.decay=0.3"))
    cfg = result.parts.cfg
    student, mean = _plain(watch.student[0]), _plain(watch.student[0])
    optimizer = sgd(student, cfg)
    assert len(watch.batches) == 8
    for step, batch in enumerate(watch.batches):
        image = images(cfg, batch)
        logits = student.train()(image)
        loss = 0.3 * task_loss(logits, batch["target"]) + 0.9 * divergence(logits, mean.eval()(image))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(0.3, (1 + step) / (10 + step))  # 0.1, 2 / 11, 3 / 12, 0.3, ...
        own, averaged = student.state_dict(), mean.state_dict()
        for key, value in averaged.items():
            keeps = decay if value.is_floating_point() else 0
            averaged[key] = (keeps * value + (1 - keeps) * own[key]).to(value.dtype)
        mean.load_state_dict(averaged)
        assert_close(watch.student[step + 1], student)
        assert_close(watch.teacher[step + 1], mean)
    assert difference(student, mean) > 1e-3
    assert difference(mean, watch.student[0]) > 1e-3


def test_an_ema_teacher_starts_as_the_student_and_takes_no_gradient(compose_train: Compose) -> None:
    parts = build(compose_train(*SMALL, *ROLES["ema"], "student.input.size=12"))
    teacher, student = parts.distiller.teachers["main"], parts.distiller.student.eval()
    assert torch.equal(teacher(parts.example).logits, student(parts.example).logits)
    assert not [parameter for parameter in teacher.parameters() if parameter.requires_grad]
    parts.distiller.train()
    assert {module.training for module in teacher.modules()} == {False}
    shared = {parameter.data_ptr() for parameter in student.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in teacher.parameters()}


def test_the_average_of_accumulated_batches_takes_one_step(compose_train: Compose) -> None:
    result, _ = watched(compose_train(*SMALL, *ROLES["ema"], "trainer.accumulate_grad_batches=2"))
    teacher = result.parts.distiller.teachers["main"]
    assert isinstance(teacher, EMATeacher)
    assert teacher.updates.item() == 4


def test_an_ema_teacher_may_stop_early(compose_train: Compose) -> None:
    hint = ["loss/response=[]", "loss/feature=[hint]", "loss.hint.layers={stages.0: stages.0}"]
    teacher = build(compose_train(*SMALL, *ROLES["ema"], *hint)).distiller.teachers["main"]
    assert isinstance(teacher, EMATeacher)
    assert teacher.stops_at == "stages.0"


# --- a peer


def test_two_peers_learn_as_in_a_loop_written_by_hand(compose_train: Compose) -> None:
    other = ["teachers.main.net={_target_: distillery.models.cnn.SmallCNN, widths: [3, 5]}"]
    result, watch = watched(compose_train(*SMALL, *ROLES["peer"], *PLAIN, *other))
    cfg = result.parts.cfg
    student, peer = _plain(watch.student[0]).train(), _plain(watch.teacher[0]).train()
    optimizers = [sgd(net, cfg) for net in (student, peer)]
    for step, batch in enumerate(watch.batches):
        logits = [net(images(cfg, batch)) for net in (student, peer)]
        for own, (ours, theirs) in enumerate((logits, logits[::-1])):
            loss = 0.3 * task_loss(ours, batch["target"]) + 0.9 * divergence(ours, theirs)
            optimizers[own].zero_grad()
            loss.backward()  # each its own graph: no gradient crosses
        for optimizer in optimizers:
            optimizer.step()
        assert_close(watch.student[step + 1], student)
        assert_close(watch.teacher[step + 1], peer)
    assert difference(student, watch.student[0]) > 1e-2
    assert difference(peer, watch.teacher[0]) > 1e-2
    both = [*result.parts.distiller.student.parameters(), *result.parts.distiller.teachers["main"].parameters()]
    assert {id(parameter) for parameter in watch.optimized} == {id(parameter) for parameter in both}


def test_a_peer_has_losses_of_its_own_beside_the_students(compose_train: Compose) -> None:
    parts = build(compose_train(*SMALL, *ROLES["peer"], *PLAIN, "+loss/response@loss.kd_b=kd"))
    distiller = parts.distiller
    terms = distiller.training_step(parts.example, 0)["terms"]
    ours, theirs = (
        network.net(images(parts.cfg, parts.example)) for network in (distiller.student, distiller.teachers["main"])
    )
    expected = {
        "task": task_loss(ours, parts.example["target"]),
        "main/task": task_loss(theirs, parts.example["target"]),
    }
    expected |= {"kd": divergence(ours, theirs), "main/kd": divergence(theirs, ours)}
    assert {name: terms[name].item() for name in expected} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-4
    )
    assert set(terms) == {"loss", *expected, "kd_b", "main/kd_b"}
    weighted = {"task": 0.3, "kd": 0.9, "kd_b": 0.9}
    total = sum(weight * (terms[name] + terms[f"main/{name}"]) for name, weight in weighted.items())
    assert terms["loss"].item() == pytest.approx(total.item())


def test_a_peer_starts_otherwise_than_the_student(compose_train: Compose) -> None:
    distiller = build(compose_train(*SMALL, *ROLES["peer"])).distiller
    assert difference(distiller.student.net, distiller.teachers["main"].net) > 0.01
    alone = build(compose_train(*SMALL, "model/teacher=none")).distiller
    assert difference(distiller.student.net, alone.student.net) == 0


def test_another_network_of_the_teachers_is_a_peer(compose_train: Compose) -> None:
    given = ["model/teacher=cnn", "teachers.main.net.widths=[3,3,3]", "teachers.main.weights=null"]
    cfg = compose_train(*SMALL, *given, "+teachers.main.role=peer")
    check(cfg, ["teachers.main.weights=null", "+teachers.main.role=peer"])
    teacher = build(cfg).distiller.teachers["main"]
    assert teacher.role == "peer"
    assert [stage[0].out_channels for stage in teacher.net.stages] == [3, 3, 3]


# --- the student itself


def test_the_student_is_its_own_teacher_without_gradient(compose_train: Compose) -> None:
    parts = build(compose_train(*SMALL, *ROLES["self"]))
    distiller = parts.distiller
    hint = distiller.objective.terms["hint"]
    assert hint.taps == {"stages.0": "stages.1"}
    distiller.training_step(parts.example, 0)
    assert distiller.losses is not None
    distiller.losses.raw["hint"].backward()
    moved = {name for name, parameter in distiller.student.net.named_parameters() if parameter.grad is not None}
    assert moved
    assert all(name.startswith("stages.0") for name in moved), "the later layer teaches, and does not learn"
    signals = distiller.student(parts.example).layers
    projected = hint.projectors[0](nn.functional.adaptive_avg_pool2d(signals["stages.0"], 4))
    expected = (projected - signals["stages.1"]).square().mean()
    assert distiller.losses.raw["hint"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_detached_signals_are_the_same_without_gradient() -> None:
    def grown(*shape: int) -> Tensor:
        return torch.randn(shape, requires_grad=True)

    attention = Attention(grown(2, 1, 3, 4), grown(2, 1, 3, 4), grown(2, 1, 3, 4), None, 0.5)
    signals = Signals(grown(2, 5), {"a": grown(2, 6)}, {"b": attention}, torch.ones(2, 3))
    found = signals.detach()
    pairs = [(found.logits, signals.logits), (found.layers["a"], signals.layers["a"])]
    pairs += [(getattr(found.attention["b"], part), getattr(attention, part)) for part in ("query", "key", "value")]
    assert all(torch.equal(one, other) and not one.requires_grad and other.requires_grad for one, other in pairs)
    assert torch.equal(found.mask, signals.mask)
    assert found.attention["b"].scale == 0.5


def test_the_student_teaches_itself_beside_another_teacher(compose_train: Compose, tmp_path: Path) -> None:
    save_weights(SmallCNN(10, 1, (4, 6)), tmp_path / "teacher.safetensors")
    given = [
        "model/teacher=cnn",
        "teachers.main.net.widths=[4,6]",
        f"teachers.main.weights={tmp_path}/teacher.safetensors",
    ]
    cfg = compose_train(
        *SMALL, *given, "loss/response=[kd,deep_supervision]", "loss/feature=[hint]", "loss.hint.teacher=self"
    )
    check(cfg)
    parts = build(cfg)
    distiller = parts.distiller
    assert distiller.teachers[SELF] is distiller.student
    assert distiller.objective.terms["hint"].taps == {"stages.0": "stages.1"}
    assert [*distiller.objective.terms["deep_supervision"].taps] == ["stages.0"]
    terms = distiller.training_step(parts.example, 0)["terms"]
    assert all(value.isfinite() and value > 0 for value in terms.values())
    columns = [list(column.cells) for column in term_table(parts).columns]
    assert columns[3][-1] == "self: stages.1 6×4×4"


# --- state, records, reports


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("after", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_bit_equal(role: str, after: int, compose_train: Compose) -> None:
    whole = train(compose_train(*SMALL, *ROLES[role], run="whole"))
    with pytest.raises(Died):
        train(compose_train(*SMALL, *ROLES[role], run="stopped"), callbacks=[Dies(after)])
    torch.manual_seed(99)
    result = train(resumed(whole.folder.parent / "stopped", []))
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(result.folder / file) == sha256(whole.folder / file)
    assert result.record.teachers["main"].get("sha256") == whole.record.teachers["main"].get("sha256")
    assert result.record.teachers["main"].get("score") == whole.record.teachers["main"].get("score")


def test_the_record_tells_the_roles(compose_train: Compose) -> None:
    expected = {"ema": {"index", "target", "student", "main"}, "self": {"index", "target", "student"}}
    expected["peer"] = expected["ema"]
    for role, arrays in expected.items():
        result = train(compose_train(*SMALL, *ROLES[role], run=role))
        entry = RunRecord.read(result.folder).teachers["main"]
        assert entry["role"] == role
        assert result.record.frozen_teachers == {}
        with np.load(result.folder / "predictions.npz") as saved:
            own = arrays - {"index", "target"}
            assert set(saved) == arrays | {f"{name}_probabilities" for name in own}
            if role != "self":
                assert entry["score"] == pytest.approx((saved["main"] == saved["target"]).mean())
                assert entry["params"] == result.record.cost["params"]
        state = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        moving = {key for key in state if key.startswith("moving.main.net.")}
        assert bool(moving) is (role != "self")
        assert result.record.method == ("hint" if role == "self" else "kd")
        verify_run(result.folder)


@pytest.mark.slow
def test_a_report_has_no_teacher_row_of_them(compose_train: Compose, teacher: Path, tmp_path: Path) -> None:
    """Its teacher is the frozen one; every student's agreement is with that one, also where it learnt from another."""
    runs = {role: ["method=" + role, *given] for role, given in ROLES.items()}
    runs |= {"baseline": ["model/teacher=none"], "kd": ["model/teacher=run", f"teachers.main.weights='{teacher}'"]}
    for name, given in runs.items():
        train(compose_train(*SMALL, *given, run=f"runs/{name}"))
    table = write_report([tmp_path / "runs"], tmp_path / "report", "roles").table.set_index("method")
    assert set(table.index) == {"teacher", *runs}
    record = RunRecord.read(tmp_path / "runs" / "kd")
    assert table.loc["teacher", "score_mean"] == record.teachers["main"]["score"]
    assert table.loc["teacher", "n_seeds"] == 1
    with np.load(tmp_path / "runs" / "kd" / "predictions.npz") as saved:
        taught = saved["main"]
    for run in collect([tmp_path / "runs"]):
        with np.load(run.folder / "predictions.npz") as saved:
            assert run.agreement == (saved["student"] == taught).mean()


def test_the_plan_shows_them(compose_train: Compose) -> None:
    cells = {}
    for role in ROLES:
        columns = network_table(build(compose_train(*SMALL, *ROLES[role]))).columns
        cells[role] = [list(column.cells) for column in columns]
    assert cells["ema"][0] == ["student", "teacher main (ema)"]
    assert cells["ema"][2][1] == "average of the student, decay 0.999"
    assert cells["ema"][4][1] == "0"
    assert cells["peer"][0] == ["student", "teacher main (peer)"]
    assert cells["peer"][4][1] == cells["peer"][3][1] != "0"
    assert cells["self"][0] == ["student"]


# --- what cannot be


def test_what_an_experiment_says_of_its_frozen_teacher_is_left_behind(compose_train: Compose) -> None:
    """`min_teacher_score=0.9` is not for them, nor the weights of a folder that is not there."""
    for role in ROLES:
        given = ("experiment=digits_demo", *ROLES[role], "+teachers.main.cache=true", "trainer.max_epochs=1")
        cfg = compose_train(*given, run=role)
        assert cfg.teachers.main.weights is not None
        check(cfg, ROLES[role])
        parts = train(cfg).parts
        assert set(parts.cfg.teachers.main) <= {"role", "decay", "net", "input", "weights"}
        assert parts.cfg.teachers.main.get("weights") is None


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("setting", ["+teachers.main.weights=teacher.pth", "+teachers.main.bn_mode=train"])
def test_weights_are_refused(role: str, setting: str, compose_train: Compose) -> None:
    given = [*ROLES[role], setting]
    with pytest.raises(
        UserError, match=r"^\+teachers\.main\.(weights|bn_mode)=.*: it takes no (weights|bn_mode)\. Leave"
    ):
        check(compose_train(*given), given)


REFUSED: list[tuple[list[str], str]] = [
    (
        ["model/teacher=self"],
        r"^loss\.kd: its teacher 'main' is the student itself.*deep_supervision.*model/teacher=ema",
    ),
    (
        [*ROLES["self"], "loss.hint.layers={stages.0: stages.0}"],
        r"^loss\.hint\.layers: its teacher 'main' is the student itself, and 'stages\.0' would be compared with itself",
    ),
    ([*ROLES["peer"], "loss/feature=[hint]"], r"^loss\.hint compares layers, and its teacher 'main' is a peer"),
    (["model/teacher=ema", "+teachers.main.role=emma"], r"teachers\.main\.role=emma.*Did you mean 'ema'"),
    (
        [*ROLES["ema"], "teachers.main.decay=1"],
        r"^teachers\.main\.decay=1: it must be a number of at least 0 and",
    ),
    ([*ROLES["ema"], "teachers.main.decay=high"], r"^teachers\.main\.decay=high: it must be a number"),
    ([*ROLES["ema"], "+teachers.main.decai=1"], r"^Unknown setting 'teachers\.main\.decai'\. Did you mean .*'decay'"),
    (
        [*ROLES["ema"], "trainer.precision=bf16-true"],
        r"^teachers\.main: .*an average of the student would stand still with trainer\.precision=bf16-true",
    ),
    (
        ["+model/teacher@teachers.self=ema", "model/teacher=ema"],
        r"^teachers\.self: a loss with teacher=self learns from",
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSED)
def test_a_wrong_role_is_refused(given: list[str], message: str, compose_train: Compose) -> None:
    def checked() -> None:
        cfg = compose_train(*SMALL, *[each for each in given if "role=emma" not in each])
        if any("role=emma" in each for each in given):
            cfg.teachers.main.role = "emma"
        check(cfg, given)
        build(cfg)

    with pytest.raises(UserError, match=message):
        checked()
