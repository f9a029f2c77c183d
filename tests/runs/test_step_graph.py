"""`step_graph=true`, as far as a CPU can show it: `fixtures/replayed_steps.py`. `test_on_a_gpu.py` has the rest."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
import pytest
import torch

from distillery.config import candidates, check_cuda
from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.losses.response.kd import KD
from distillery.results.record import RunRecord
from distillery.runs.run import Result, train
from distillery.runs.write_signals import Settings, write_signals
from fixtures.composing import Compose
from fixtures.replayed_steps import Graph, record
from fixtures.runs import STUDENT, Died, Dies, config

ON = "step_graph=true"
SCALER = "{_target_: torch.amp.GradScaler, device: cpu, init_scale: 1024, growth_interval: 7}"
MIXED = f"{{_target_: lightning.pytorch.plugins.MixedPrecision, precision: 16-mixed, device: cpu, scaler: {SCALER}}}"
FLOAT16 = f"+trainer.plugins=[{MIXED}]"  # trainer.precision=16-mixed is bfloat16 on a CPU
EPOCHS, STEPS, WARM_UP = 3, 10, 3  # of the fixture `run`


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that are recorded, on a machine that has a CUDA device in name."""
    Graph.all = []
    for module in (check_cuda, candidates):
        monkeypatch.setattr(module, "has_cuda", lambda _: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return Graph.all


def test_no_device_is_told_before_anything_is_built(compose_train: Compose) -> None:
    with pytest.raises(UserError, match=r"^step_graph=true .*no CUDA device\. Choose hardware=gpu"):
        check(compose_train("model/teacher=none", ON))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compile=reduce-overhead", "graphs within a graph. Set compile=true"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=1, or step_graph=false"),
        ("trainer.devices=2", "is for one device"),
        ("trainer.strategy=ddp", "is for one device"),
        ("+teachers.main.placement=cpu", "Set placement=null, or step_graph=false"),
    ],
)
def test_what_a_graph_cannot_work_with(setting: str, message: str, graphs: list[Graph], compose_train: Compose) -> None:
    own = ("experiment=digits_demo", "teachers.main.weights=here", ON)
    check(compose_train(*own))
    with pytest.raises(UserError, match=re.escape(message)):
        check(compose_train(*own, setting))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss/feature=[crd]"], "loss.crd draws or decides by the number of batches"),
        (["loss/response=[topk_kd]", "loss.topk_kd.missing=sample"], "loss.topk_kd draws"),
        (["data.labelled_size=20"], "how many samples of a batch have a label differs"),
    ],
)
def test_steps_that_cannot_be_recorded(
    settings: list[str], message: str, graphs: list[Graph], run: Callable[..., Result]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        run(*settings, ON)


def test_a_loss_of_ones_own_that_waits_for_the_device(
    graphs: list[Graph], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KD, "function", staticmethod(lambda student, *_, **__: student.sum(1) * student.max().item()))
    with pytest.raises(UserError, match=r"cannot be recorded as a CUDA graph: operation not permitted[^$]*item\(\)"):
        run(ON)


@pytest.mark.parametrize(
    ("settings", "replays"),
    [
        # all steps but the first ones, in which it is warmed up
        (["loss/feature=[hint]"], EPOCHS * STEPS - WARM_UP),
        # a last batch of another shape, after which it is warmed up again
        (["data.batch_size=15", "trainer.gradient_clip_val=0.1"], EPOCHS * (7 - 1 - WARM_UP)),
        (["loss.kd.weight={schedule: step, values: [1, 2], steps: [15]}"], EPOCHS * STEPS - 2 * WARM_UP),
        pytest.param(
            ["loss.kd.weight={schedule: linear, start: 0, end: 1, epochs: 2}"], STEPS - WARM_UP, marks=pytest.mark.slow
        ),
        (["teachers.main.cache=true", "data.augment=null", "optim=adamw"], EPOCHS * STEPS - WARM_UP),
        (["optim.ema=0.9", "loss/relation=[rkd]", "objective.balance=auto"], EPOCHS * STEPS - 10 - WARM_UP),
        (["loss/relation=[similarity_preserving]", "trainer.precision=bf16-mixed"], EPOCHS * STEPS - WARM_UP),
        pytest.param(
            [FLOAT16, "trainer.precision=null", "optim.optimizer.lr=0.01"],
            EPOCHS * STEPS - WARM_UP,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["task.class_weights=balanced", "loss/response=[]"], EPOCHS * STEPS - WARM_UP, marks=pytest.mark.slow
        ),
        pytest.param(
            ["student.net._target_=fixtures.dropout.DroppingCNN"], EPOCHS * STEPS - WARM_UP, marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_is_bit_equal_to_the_plain_one(
    settings: list[str], replays: int, graphs: list[Graph], run: Callable[..., Result]
) -> None:
    plain, replayed = (run(*settings, each).record for each in ("step_graph=false", ON))
    assert sum(graph.replays for graph in graphs) == replays
    assert replayed.student_sha256 == plain.student_sha256
    assert replayed.metrics == plain.metrics
    assert replayed.config_hash == plain.config_hash


def trained(folder: Path, *settings: str, callbacks: Sequence[L.Callback] = ()) -> RunRecord:
    torch.set_num_threads(1)
    return train(config(folder, *STUDENT, *settings), callbacks=callbacks).record


def test_networks_that_teach_each_other(graphs: list[Graph], tmp_path: Path) -> None:
    """In bfloat16, of which each step casts the weights anew."""
    own = ("model/teacher=peer", "trainer.precision=bf16-mixed")
    plain, replayed = (trained(tmp_path / each, *own, each) for each in ("step_graph=false", ON))
    assert sum(graph.replays for graph in graphs) == EPOCHS * STEPS - WARM_UP
    assert replayed.student_sha256 == plain.student_sha256


class Interferes(L.Callback):
    """Smooths the labels from the second epoch on, and frees the gradients after each step."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        module.zero_grad()

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.task.label_smoothing = 0.2 if trainer.current_epoch else 0.0  # type: ignore[union-attr]


@pytest.mark.slow
def test_what_callbacks_do_between_steps_and_epochs_counts(graphs: list[Graph], run: Callable[..., Result]) -> None:
    plain, replayed = (run(each, callbacks=[Interferes()]).record for each in ("step_graph=false", ON))
    assert replayed.student_sha256 == plain.student_sha256 != run(ON).record.student_sha256


@pytest.mark.slow
def test_likeliest_classes_from_a_cache(graphs: list[Graph], teacher: Path, tmp_path: Path) -> None:
    """And a layer: what is looked up is copied to where the graph reads it."""
    own = (f"teachers.main.weights='{teacher}'", "loss/response=[topk_kd]", "loss/feature=[hint]", "data.augment=null")
    write_signals(config(tmp_path / "run", *STUDENT, *own), Settings(str(tmp_path / "cache"), "topk", k=5))
    own += (f"teachers.main.cache='{tmp_path / 'cache'}'",)
    plain, replayed = (trained(tmp_path / each, *own, each) for each in ("step_graph=false", ON))
    assert sum(graph.replays for graph in graphs) == EPOCHS * STEPS - WARM_UP
    assert replayed.student_sha256 == plain.student_sha256


@pytest.mark.slow
def test_each_stage_has_a_graph_of_its_own(graphs: list[Graph], teacher: Path, tmp_path: Path) -> None:
    """The second one trains fewer layers, with other losses."""
    stages = "{a: {epochs: 2, loss: {hint: {}}}, b: {epochs: 1, loss: {kd: {}}, train: ['head.*']}}"
    own = (f"teachers.main.weights='{teacher}'", "loss/feature=[hint]", f"+stages={stages}")
    plain, replayed = (trained(tmp_path / each, *own, each) for each in ("step_graph=false", ON))
    assert sum(graph.replays for graph in graphs) == EPOCHS * STEPS - 2 * WARM_UP
    assert replayed.student_sha256 == plain.student_sha256


@pytest.mark.slow
def test_a_killed_run_ends_bit_equal(graphs: list[Graph], teacher: Path, tmp_path: Path) -> None:
    own = (f"teachers.main.weights='{teacher}'", "loss/feature=[hint]")
    whole = trained(tmp_path / "whole", *own)
    with pytest.raises(Died):
        trained(tmp_path / "killed", *own, ON, callbacks=[Dies(after=17)])
    assert trained(tmp_path / "killed", *own, ON).student_sha256 == whole.student_sha256
