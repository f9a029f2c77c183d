"""Jobs on two processes: they compute what one computes, each on the job's own config, and end together."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from omegaconf import OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.core.process import NUMBERS, is_main, processes
from distillery.models.weights import read_weights
from distillery.results.layout import report_files
from distillery.results.record import RunRecord, config_hash
from distillery.runs import ranks as module
from distillery.runs.ranks import VARIABLES, Child, Ranks, SameJob, ranks
from distillery.runs.run import train
from distillery.runs.study import run_study
from fixtures.runs import STUDENT, Once, config, train_teacher
from fixtures.two_ranks import Notes, alive

IMPORTABLE = os.pathsep.join(sys.path)  # our modules and fixtures, for other processes
# In float32 the last bits decide which way Adam takes a gradient near 0, and the curves of one process and two part.
PRECISION = "trainer.precision=64-true"
TWO = ("hardware=ddp", "trainer.accelerator=cpu", "trainer.devices=2", PRECISION)
SHARDED = ("hardware=fsdp2", *TWO[1:3], "trainer.precision=32-true")
ZERO = ("hardware=deepspeed", *SHARDED[1:])
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install -e '.[deepspeed]'")
SCRIPT = (str(Path(sys.executable).parent / "distill-train"),)
MODULE = (sys.executable, "-m", "distillery.commands.train")
LR = 0.01
# No batch statistics; 30 batches of 25 images, 13 and 12 a rank, and a last one of 21, 11 and 10 a rank.
JOB = (
    *STUDENT,
    "student.net.norm=group",
    "data.train_size=771",
    "data.batch_size=25",
    "data.eval_batch_size=61",
    "loss/feature=[hint]",
    "loss/attention=[attention_transfer]",
    "loss.hint.weight=1",
    "loss/relation=[rkd,correlation_congruence]",  # the second depends on the order of the batch
    "loss.rkd.gather=true",
    "loss.correlation_congruence.gather=true",
    "task.weight=1",
    f"optim.optimizer.lr={LR}",
    "trainer.enable_progress_bar=false",
    PRECISION,
    "task.metrics=[macro_f1,auroc]",
    "callbacks.checkpoint_best.mode=min",  # so that the best student is not the last
)
FILES = "checkpoints/best.ckpt checkpoints/last.before.ckpt checkpoints/last.ckpt config.yaml \
metrics/version_0/hparams.yaml metrics/version_0/metrics.csv predictions.npz run.json student.safetensors".split()


def started(cwd: Path, command: Sequence[str], *overrides: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *overrides],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": IMPORTABLE, "TMPDIR": str(cwd), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 90) -> tuple[int, str]:
    """Exit code and all that was printed."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def figures(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics" / "version_0" / "metrics.csv")


def note(folder: Path, stamp: str = "") -> str:
    return f"+callbacks.notes={{_target_: fixtures.two_ranks.Notes, folder: '{folder}', stamp: '{stamp}'}}"


def assert_same_weights(folder: Path, other: Path) -> None:
    found, expected = (read_weights(place / "student.safetensors") for place in (folder, other))
    assert found.keys() == expected.keys()
    for key in found:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the ranks that a run in this process starts."""
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)


@pytest.fixture(scope="module")
def teacher(once: Once) -> str:
    return f"teachers.main.weights='{once('teacher', train_teacher)}'"


@pytest.fixture(scope="module")
def alone(teacher: str, once: Once) -> Callable[[float], Path]:
    """`alone(lr)`: the folder of the job on one process."""
    return lambda lr=LR: once(
        f"one rank, lr={lr}", lambda folder: train(config(folder, *JOB, teacher, f"optim.optimizer.lr={lr}"))
    )


@pytest.fixture(scope="module")
def together(teacher: str, once: Once) -> tuple[Path, str]:
    """The same on two: its folder, in a path that needs quotes, and all that it printed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        code, output = ended(started(folder, SCRIPT, *JOB, *TWO, teacher, f"paths.run='{folder / name}'"))
        assert code == 0, output
        (folder / "printed.txt").write_text(output, encoding="utf-8")

    name = "two ranks, x=1"
    folder = once("two_ranks", make)
    return folder / name, (folder / "printed.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_curves_are_those_of_one_process(alone: Callable[[float], Path], together: tuple[Path, str]) -> None:
    found, expected = figures(together[0]), figures(alone(LR))
    assert list(found) == list(expected)
    assert expected["train/loss"].count() == 3 * 31
    assert expected["val/score"].nunique() == 3
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_the_student_is_that_of_one_process(alone: Callable[[float], Path], together: tuple[Path, str]) -> None:
    assert_same_weights(together[0], alone(LR))
    with np.load(together[0] / "predictions.npz") as found, np.load(alone(LR) / "predictions.npz") as expected:
        assert set(found) == set(expected) > {"index", "target", "student", "main", "student_probabilities"}
        assert len(set(found["index"])) == len(found["index"]) == 797
        for name in found:
            if name.endswith("_probabilities"):
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)
            else:
                assert np.array_equal(found[name], expected[name]), name
    record, other = RunRecord.read(together[0]), RunRecord.read(alone(LR))
    assert record.metrics["best"]["epoch"] < record.metrics["last"]["epoch"] == 3
    for which in ("best", "last"):
        assert record.metrics[which] == pytest.approx(other.metrics[which], rel=1e-5)


@pytest.mark.slow
def test_balanced_weights_are_those_of_one_process(teacher: str, tmp_path: Path) -> None:
    """The norms are those of the global batch's gradient, and every rank has the same weights."""
    job = (*JOB, teacher, "objective.balance=auto", "trainer.max_epochs=1")
    for name, hardware in (("one", ()), ("two", TWO)):
        train(config(tmp_path / name, *job, *hardware))
    found, expected = (json.loads((tmp_path / name / "balance.json").read_text()) for name in ("two", "one"))
    assert len(expected) == 5
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_weights(tmp_path / "two", tmp_path / "one")


STAGES = (
    "hint: {epochs: 1, task: {weight: 0}, loss: {hint: {}}}",  # the head is frozen, and thawed again
    "assistant: {epochs: 1, student: {net: {widths: [12, 24]}}, task: {weight: 1}, loss: {rkd: {}, kd: {}}}",
    "head: {epochs: 1, student: {}, teacher: 'stage:assistant', train: ['head.*'], loss: {kd: {}}}",
    "all: {epochs: 1, train: null, loss: {kd: {}, hint: {}}}",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hardware",
    [
        pytest.param(TWO, id="ddp"),
        pytest.param(SHARDED, id="fsdp2", marks=pytest.mark.long),
        pytest.param(ZERO, id="deepspeed", marks=[pytest.mark.long, needs_deepspeed]),
    ],
)
def test_stages_are_those_of_one_process(hardware: tuple[str, ...], teacher: str, tmp_path: Path) -> None:
    """With FSDP2 and DeepSpeed, those of DDP: they have 32 bits alone, in which other batches round otherwise."""
    job = (*JOB, teacher, f"+stages={{{', '.join(STAGES)}}}")
    reference: tuple[str, ...] = ()
    if hardware != TWO:
        job, reference = (*job, "optim=sgd"), (*TWO[:3], SHARDED[-1])
    hashes = f"+callbacks.hashes={{_target_: fixtures.two_ranks.Hashes, folder: '{tmp_path / 'hashes'}'}}"
    train(config(tmp_path / "two", *job, *hardware, hashes))
    train(config(tmp_path / "one", *job, *reference))
    for place in (".", "stages/hint", "stages/assistant", "stages/head"):
        assert_same_weights(tmp_path / "two" / place, tmp_path / "one" / place)
    found, expected = (RunRecord.read(tmp_path / name) for name in ("two", "one"))
    assert found.metrics["last"] == pytest.approx(expected.metrics["last"], rel=1e-5)
    assert [epoch["stage"] for epoch in found.timeline] == ["hint", "assistant", "head", "all"]
    for epoch, stage in enumerate(("hint", "assistant", "head", "all")):
        one, other = ((tmp_path / "hashes" / f"epoch{epoch}_rank{rank}").read_text() for rank in (0, 1))
        assert one == other  # to the bit
        assert one.startswith(f"{stage} ")


@pytest.mark.long
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_with_deepspeed_a_run_and_its_checkpoints_are_those_of_one_process(
    stage: int, teacher: str, tmp_path: Path
) -> None:
    """Also with updates of several batches, clipped gradients, two groups of parameters and averaged weights."""
    update = ("trainer.accumulate_grad_batches=4", "trainer.gradient_clip_val=0.5", "optim=sgd", "optim.ema=0.9")
    job = (*JOB, teacher, *update, SHARDED[-1], "optim.decay_biases_and_norms=false")
    counts = f"+callbacks.states={{_target_: fixtures.two_ranks.States, folder: '{tmp_path / 'states'}'}}"
    train(config(tmp_path / "two", *job, *ZERO, f"trainer.strategy.stage={stage}", counts))
    train(config(tmp_path / "one", *job))
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    found, expected = (figures(tmp_path / name) for name in ("two", "one"))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name in ("last", "best"):
        files = (tmp_path / folder / "checkpoints" / f"{name}.ckpt" for folder in ("two", "one"))
        states = [torch.load(file, weights_only=True) for file in files]
        for key in ("optimizer_states", "state_dict", "lr_schedulers"):
            torch.testing.assert_close(*(state[key] for state in states), rtol=1e-4, atol=1e-5)
    whole = sum(each["momentum_buffer"].numel() for each in states[1]["optimizer_states"][0]["state"].values())
    assert [int((tmp_path / "states" / rank).read_text()) for rank in "01"] == pytest.approx([whole / 2] * 2, abs=8)


@pytest.mark.slow
@pytest.mark.long
def test_a_teacher_that_is_divided_teaches_as_the_whole_one(teacher: str, tmp_path: Path) -> None:
    """In two stages, between which it is whole again, and after which one process scores it."""
    stages = "+stages={hint: {epochs: 1, loss: {hint: {}}}, all: {epochs: 1, loss: {kd: {}, hint: {}}}}"
    for placement in ("null", "shard"):
        kept = f"+callbacks.kept={{_target_: fixtures.two_ranks.Kept, folder: '{tmp_path / placement / 'kept'}'}}"
        own = (f"teachers.main.placement={placement}", "callbacks.checkpoint_best=null", kept)
        train(config(tmp_path / placement, *JOB, teacher, stages, *SHARDED, *own))
    found, expected = (RunRecord.read(tmp_path / placement) for placement in ("shard", "null"))
    assert found.student_sha256 == expected.student_sha256
    assert found.metrics == expected.metrics
    for figure in ("sha256", "score", "params", "flops"):
        assert found.teachers["main"][figure] == expected.teachers["main"][figure]
    size = expected.teachers["main"]["params"]
    for path in (tmp_path / "null" / "kept").iterdir():
        assert int(path.read_text()) == size
        assert size / 2 <= int((tmp_path / "shard" / "kept" / path.name).read_text()) < size / 2 + 2000  # padding


@pytest.mark.slow
def test_only_the_first_rank_writes_and_prints(alone: Callable[[float], Path], together: tuple[Path, str]) -> None:
    folder, output = together
    assert files(folder) == files(alone(LR)) == FILES
    assert files(folder.parent) == ["printed.txt", *(f"{folder.name}/{file}" for file in FILES)]
    for once in (
        "digits: 10 classes",
        "Networks",
        "Teacher 'main': accuracy",
        "Scale of the losses",
        "seed 0: test score",
    ):
        assert output.count(once) == 1, output
    assert output.splitlines()[-1] == f"distill-evaluate \"run='{folder}'\""
    assert "deprecated" not in output


@pytest.mark.slow
def test_each_job_of_a_sweep_has_two_ranks_of_its_own_config(
    alone: Callable[[float], Path], teacher: str, tmp_path: Path
) -> None:
    """Repeating the command line, each rank would go through the whole sweep, and in folders of its own; and where
    a value is drawn (here from the clock), each would draw another."""
    sweep = (f"optim.optimizer.lr={LR},0.02", note(tmp_path / "notes", stamp="${now:%f}"))
    code, output = ended(started(tmp_path, MODULE, "-m", *JOB, *TWO, teacher, *sweep), 120)
    assert code == 0, output

    notes = Notes.read(tmp_path / "notes")
    for lr in (LR, 0.02):
        job = sorted((each for each in notes if each["lr"] == lr), key=lambda each: each["rank"])
        assert [(each["rank"], each["world"]) for each in job] == [(0, 2), (1, 2)]
        assert job[0]["stamp"] == job[1]["stamp"]
    assert len(notes) == 4
    assert not any(alive(each["pid"]) for each in notes)

    folders = sorted(path.parent for path in (tmp_path / "outputs").rglob("run.json"))
    assert [files(folder) for folder in folders] == [FILES, FILES]
    (sweep,) = {folder.parent for folder in folders}
    assert len(files(tmp_path / "outputs")) == 2 * len(FILES) + len(["multirun.yaml", *report_files(sweep)])
    for folder, lr in zip(folders, (LR, 0.02), strict=True):
        assert f"optim.optimizer.lr={lr}" in RunRecord.read(folder).overrides
        assert_same_weights(folder, alone(lr))


@pytest.mark.long
def test_each_trial_of_a_search_has_two_ranks_of_its_own_config(teacher: str, tmp_path: Path) -> None:
    """The values that Optuna draws are those of both ranks, and the score it is told is that of the run."""
    search = ("sweep=optuna", "hydra.sweeper.n_trials=3", "trainer.max_epochs=1", note(tmp_path / "notes"))
    job = [override for override in JOB if not override.startswith("optim.optimizer.lr=")]
    code, output = ended(started(tmp_path, MODULE, "-m", *job, *TWO, teacher, *search), 240)
    assert code == 0, output
    notes = Notes.read(tmp_path / "notes")
    by_rank = [sorted(each["lr"] for each in notes if each["rank"] == rank) for rank in (0, 1)]
    assert by_rank[0] == by_rank[1]
    assert len(set(by_rank[0])) == 3
    records = [RunRecord.read(path.parent) for path in (tmp_path / "outputs").rglob("run.json")]
    (best,) = (tmp_path / "outputs").rglob("optimization_results.yaml")
    found = OmegaConf.load(best)
    key = "optim.optimizer.lr"
    drawn = [dict(override.split("=", 1) for override in each.overrides if "=" in override)[key] for each in records]
    scores = {float(lr): each.val_monitored or 0 for lr, each in zip(drawn, records, strict=True)}
    assert scores[found.best_params[key]] == found.best_value == max(scores.values())


@pytest.mark.slow
def test_a_study_runs_on_two_ranks(tmp_path: Path) -> None:
    register_resolvers()
    small = ["trainer.max_epochs=1", "min_teacher_score=0", *TWO, note(tmp_path / "notes")]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        given = [f"out='{tmp_path / 'study'}'", "seeds=[0]", f"overrides={json.dumps(small)}"]
        cfg = compose("study", overrides=["study=digits_demo", *given])
        cfg.methods = {"kd": ["optim.optimizer.lr=0.02"]}
        run_study(cfg)
    for run in ("teacher", "kd/seed0"):
        record = RunRecord.read(tmp_path / "study" / run)
        assert (record.status, record.error) == ("finished", None)
    notes = Notes.read(tmp_path / "notes")
    assert sorted((each["lr"], each["rank"], each["world"]) for each in notes) == [
        (0.01, 0, 2),
        (0.01, 1, 2),
        (0.02, 0, 2),
        (0.02, 1, 2),
    ]
    assert not any(name in os.environ for name in VARIABLES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("{_target_: fixtures.two_ranks.Raises, rank: 1}", "Rank 1 ended with exit code 1, and so the job:"),
        pytest.param(
            "{_target_: fixtures.two_ranks.Killed, rank: 1}",
            "Rank 1 ended with exit code -9, and so the job:",
            marks=pytest.mark.long,
        ),
        ("{_target_: fixtures.two_ranks.Raises, rank: 0}", "OSError: rank 0 has lost its disk"),
    ],
)
def test_a_rank_that_fails_ends_the_job(callback: str, said: str, teacher: str, tmp_path: Path) -> None:
    """Also where the other waits for it in a collective operation, which no exception reaches."""
    run, notes = tmp_path / "run", tmp_path / "notes"
    process = started(
        tmp_path, SCRIPT, *JOB, *TWO, teacher, f"paths.run='{run}'", note(notes), f"+callbacks.fails={callback}"
    )
    code, output = ended(process)
    assert code != 0
    assert output.count(said) == 1
    if "Raises" in callback:
        assert "OSError: rank" in output
        assert {each["rank"] for each in Notes.read(notes)} == {0, 1}
    record = RunRecord.read(run)
    assert record.status == "failed"
    assert said in str(record.error)
    assert not list(tmp_path.glob("distillery-*"))
    assert not any(alive(each["pid"]) for each in Notes.read(notes))


@pytest.mark.slow
def test_an_error_of_the_user_is_shown_once(teacher: str, tmp_path: Path) -> None:
    run, notes = tmp_path / "run", tmp_path / "notes"
    broken = ("optim.optimizer.lr=1e30", f"paths.run='{run}'", note(notes))
    code, output = ended(started(tmp_path, SCRIPT, *JOB, *TWO, teacher, *broken))
    assert code == 2
    assert output.count("Training stopped in epoch 1") == 1
    assert "Traceback" not in output
    assert "Rank 1" not in output
    assert str(RunRecord.read(run).error).startswith("UserError: Training stopped in epoch 1")
    assert not any(alive(each["pid"]) for each in Notes.read(notes))


@pytest.mark.slow
def test_no_rank_outlives_the_first(teacher: str, tmp_path: Path) -> None:
    endless = ("trainer.max_epochs=100000", f"paths.run='{tmp_path / 'run'}'", note(tmp_path / "notes"))
    process = started(tmp_path, SCRIPT, *JOB, *TWO, teacher, *endless)
    deadline = time.monotonic() + 60
    while len(Notes.read(tmp_path / "notes")) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    ended(process)
    others = [each["pid"] for each in Notes.read(tmp_path / "notes") if each["pid"] != process.pid]
    assert len(others) == 1
    deadline = time.monotonic() + 15
    while alive(others[0]):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def launched(cwd: Path, *jobs: Sequence[str]) -> list[tuple[int, str]]:
    """As torchrun does: a process a rank, each told its rank."""
    port = str(find_free_network_port())
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        started(cwd, MODULE, *JOB, *TWO, *job, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank, job in enumerate(jobs)
    ]
    return [ended(process) for process in running]


@pytest.mark.long  # CI runs those of a Slurm job
def test_ranks_that_a_launcher_has_started(alone: Callable[[float], Path], teacher: str, tmp_path: Path) -> None:
    job = (teacher, f"paths.run='{tmp_path / 'run'}'", note(tmp_path / "notes"))
    ends = launched(tmp_path, job, job)
    assert [code for code, _ in ends] == [0, 0], ends
    assert sorted((each["rank"], each["world"]) for each in Notes.read(tmp_path / "notes")) == [(0, 2), (1, 2)]
    assert files(tmp_path / "run") == FILES
    assert_same_weights(tmp_path / "run", alone(LR))


@pytest.mark.slow
def test_a_launcher_s_ranks_with_different_configs_are_refused(teacher: str, tmp_path: Path) -> None:
    job = (teacher, f"paths.run='{tmp_path / 'run'}'")
    ends = launched(tmp_path, job, (*job, "optim.optimizer.lr=0.02"))
    assert [code != 0 for code, _ in ends] == [True, True]
    assert "Rank 1 was started with another config than rank 0." in ends[1][1]


SRUN = """#!/usr/bin/env bash
for rank in 0 1; do SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_LOCALID=0 "$@" & done
wait %1 && wait %2
"""


@pytest.mark.slow
def test_two_nodes_of_a_slurm_job(alone: Callable[[float], Path], teacher: str, tmp_path: Path) -> None:
    """The script is run with an `srun` that starts its tasks here, as those of two nodes with a device each."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    slurm = {"JOB_ID": "7", "JOB_NAME": "distillery", "JOB_NUM_NODES": "2", "NTASKS": "2", "NTASKS_PER_NODE": "1"}
    variables = {f"SLURM_{name}": value for name, value in {**slurm, "NODELIST": "127.0.0.1"}.items()}
    variables |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    job = (*JOB, "trainer.accelerator=cpu", teacher, note(tmp_path / "notes"))
    script = ("bash", str(CONFIGS.parent / "scripts" / "slurm.sh"))
    code, said = ended(started(tmp_path, script, *job, MASTER_PORT=str(find_free_network_port()), **variables))
    assert code == 0, said
    assert sorted((each["rank"], each["world"]) for each in Notes.read(tmp_path / "notes")) == [(0, 2), (1, 2)]
    assert_same_weights(tmp_path / "outputs" / "slurm" / "7", alone(LR))


class Started:
    """In place of a process: keeps the command, the variables and the config file it would have read."""

    all: list["Started"]

    def __init__(self, command: list[str], env: dict[str, str], **_: Any) -> None:
        place, name = (command[command.index(option) + 1] for option in ("--config-path", "--config-name"))
        self.command = command
        self.env = env
        with initialize_config_dir(place, **HYDRA_VERSION):
            self.cfg = compose(name)
        self.all.append(self)

    def poll(self) -> int:
        return 0

    def wait(self, timeout: float) -> int:
        return 0

    def terminate(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    for name in (*VARIABLES, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    Started.all = []
    monkeypatch.setattr(module.subprocess, "Popen", Started)
    return Started.all


def no_failure(error: str) -> None:
    raise AssertionError(error)


def test_each_rank_reads_the_config_that_was_composed(recorded: list[Started], tmp_path: Path) -> None:
    cfg = config(
        tmp_path / "a folder, lr=1 [x]",
        *("experiment=digits_demo", "loss/response=[kd,dkd]", "loss/relation=[rkd]", "model/student=timm"),
        *("student.net.model_name=resnet18", "trainer.devices=3", "trainer.accelerator=cpu", "seed='${now:%f}'"),
        *("data.augment=null", "optim.optimizer.lr=1e-05"),
    )
    cfg.logger.csv.name = "a=b, 'c' \"d\" {e} [f] #g: h"
    with ranks(cfg, no_failure):
        inside = {name: os.environ[name] for name in VARIABLES}
    assert [each.env["LOCAL_RANK"] for each in recorded] == ["1", "2"]
    assert inside == {**{name: recorded[0].env[name] for name in VARIABLES}, "LOCAL_RANK": "0", "WORLD_SIZE": "3"}
    expected = OmegaConf.to_container(cfg, resolve=True) | {"replace": True}  # rank 0 has seen to the folder
    for each in recorded:
        assert each.command[:3] == [sys.executable, "-m", "distillery.commands.train"]
        assert OmegaConf.to_container(each.cfg) == expected
    assert config_hash(OmegaConf.to_container(recorded[0].cfg)) == config_hash(expected)  # type: ignore[arg-type]


def test_the_next_job_finds_the_environment_as_it_was(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = config(tmp_path, "model/teacher=none", *TWO)
    monkeypatch.setenv("MASTER_PORT", "12345")
    before = dict(os.environ)
    with ranks(cfg, no_failure):
        del os.environ["WORLD_SIZE"]  # as Lightning does
    assert dict(os.environ) == before
    assert recorded[0].env["MASTER_PORT"] == "12345"


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_NTASKS"])
def test_nothing_is_started_where_a_launcher_was(
    variable: str, recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "0")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        pass
    assert recorded == []


def test_in_an_interactive_slurm_session_the_ranks_are_started(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        pass
    assert len(recorded) == 1


Shell = Callable[..., Child]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """`shell(script, rank)`: another rank, for which a shell runs."""
    running: list[Child] = []

    def made(script: str, rank: int = 1) -> Child:
        output = tmp_path / "ranks" / f"rank{rank}.txt"
        output.parent.mkdir(exist_ok=True)
        with output.open("wb") as file:
            process = subprocess.Popen(["sh", "-c", script], stdout=file, stderr=subprocess.STDOUT)
        running.append(Child(rank, process, output))
        return running[-1]

    yield made
    for child in running:
        child.process.kill()
        child.process.wait()


FAILS = "echo it has lost its disk; exit 3"
FAILURE = "Rank 1 ended with exit code 3, and so the job:\nit has lost its disk"


def test_the_end_of_the_other_ranks_is_waited_for(shell: Shell) -> None:
    well = Ranks([shell("sleep 0.2"), shell("true", 2)], no_failure)
    well.join()
    assert [child.process.poll() for child in well._children] == [0, 0]
    badly = Ranks([shell(FAILS), shell("exec sleep 60", 2)], no_failure)
    with pytest.raises(UserError) as found:
        badly.join()
    badly.end()
    assert str(found.value) == FAILURE
    assert badly._children[1].process.poll() == -signal.SIGTERM


def test_a_rank_that_does_not_end_is_killed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    child = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    while not child.output.read_text():
        time.sleep(0.01)
    Ranks([child], no_failure).end()
    assert child.process.poll() == -signal.SIGKILL


def test_the_first_rank_names_the_one_that_made_it_fail(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    cfg, lost = config(tmp_path, "model/teacher=none", *TWO), OSError("connection closed by peer")
    for script, expected in ((FAILS, FAILURE), ("exec sleep 60", "connection closed by peer")):
        children = [shell(script)]
        monkeypatch.setattr(module, "_start", lambda *_, children=children: children)
        with pytest.raises((UserError, OSError)) as found, ranks(cfg, no_failure):
            raise lost
        assert str(found.value) == expected
        assert lost in (found.value, found.value.__cause__)


def test_a_rank_that_waits_for_one_that_failed_is_ended(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """This process may hang in a collective operation, which no exception reaches."""
    ended, failures = threading.Event(), list[str]()
    monkeypatch.setattr(module, "GRACE", 0.1)
    monkeypatch.setattr(module.os, "_exit", lambda code: ended.set() if code == 1 else None)
    other = shell("exec sleep 60", 2)
    group = Ranks([shell(FAILS), other], failures.append)
    assert ended.wait(10)
    group._ended.set()
    assert failures[0] == FAILURE
    assert f"error {FAILURE}" in capfd.readouterr().err
    assert other.process.wait(10) == -signal.SIGKILL
    assert not other.output.parent.exists()


def test_a_rank_ends_with_the_process_that_started_it(
    recorded: list[Started], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    watched: list[int] = []
    monkeypatch.setenv(module.PARENT, "123")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_end_with", watched.append)
        with ranks(config(tmp_path, "model/teacher=none", "trainer.devices=1"), no_failure):
            assert module.PARENT not in os.environ  # a rank of this job's is not one of the next
    assert watched == [123]

    parents = iter([123, 123, 1])  # then init has taken over
    codes: list[int] = []
    monkeypatch.setattr(module.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    monkeypatch.setattr(module.os, "_exit", codes.append)
    module._end_with(123)
    assert codes == [1]
    assert list(parents) == []


def test_no_process_group_is_left(recorded: list[Started], tmp_path: Path) -> None:
    with ranks(config(tmp_path, "model/teacher=none", *TWO), no_failure):
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    assert not torch.distributed.is_initialized()


def test_ranks_with_another_config_are_refused(tmp_path: Path) -> None:
    first, other = (SameJob(config(tmp_path, "model/teacher=none", f"seed={seed}")) for seed in (0, 1))
    sent = SimpleNamespace(broadcast=lambda _: first._identity)
    trainer: Any = SimpleNamespace(strategy=sent, global_rank=1)
    first.on_fit_start(trainer, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Rank 1 was started with another config than rank 0"):
        other.on_fit_start(trainer, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "GROUP_RANK": "1", "RANK": "2"}, False),  # torchrun, the second machine's first
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_one_process_of_all_is_the_main_one(
    variables: dict[str, str], main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main() is main


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    [
        (1, "cpu", 1),
        (3, "cpu", 3),
        ("2", "gpu", 2),
        ("auto", "cpu", 1),
        ("auto", "gpu", 4),
        (-1, "gpu", 4),
        (None, "auto", 4),
        ([0, 2], "gpu", 2),
        ("0,2,3", "gpu", 3),
        ("3,", "gpu", 1),  # the GPU number 3
    ],
)
def test_a_process_a_device(devices: Any, accelerator: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes(OmegaConf.create({"devices": devices, "accelerator": accelerator})) == count


@pytest.mark.parametrize(
    ("setting", "mend"),
    [("trainer.strategy=ddp_spawn", "Choose ddp"), ("trainer.sync_batchnorm=true", r"student\.net\.norm=group")],
)
def test_what_does_not_work_on_several_processes_is_refused(
    setting: str, mend: str, recorded: list[Started], tmp_path: Path
) -> None:
    cfg = config(tmp_path, "model/teacher=none", *TWO, setting)
    with pytest.raises(UserError, match=f"{setting} .* {mend}"), ranks(cfg, no_failure):
        pass
    assert recorded == []


@pytest.mark.slow
def test_partly_labelled_data_are_those_of_one_process(teacher: str, tmp_path: Path) -> None:
    """15 of 200 samples have a label: at times none on one rank, or on both."""
    job = [*STUDENT, "student.net.norm=group", "data.train_size=200", "data.labelled_size=15", "data.batch_size=25"]
    job += ["loss/response=[kd,dkd]", "loss/relation=[rkd]", "loss.rkd.gather=true", "task.weight=1", teacher]
    job += ["loss/feature=[crd]", "loss.crd.num_negatives=20", "loss.crd.weight=1", "trainer.max_epochs=2", PRECISION]
    job += [f"optim.optimizer.lr={LR}", "trainer.enable_progress_bar=false"]
    for name, hardware in (("one", ()), ("two", TWO)):
        train(config(tmp_path / name, *job, *hardware))
    assert_same_weights(tmp_path / "two", tmp_path / "one")
    found, expected = figures(tmp_path / "two"), figures(tmp_path / "one")
    assert {"train/crd", "train/dkd", "train/rkd"} < set(expected)
    assert (expected["train/task"] == 0).any()  # a batch without a label
    assert expected["train/accuracy"].count() == expected["train/agreement"].count() == expected["epoch"].nunique()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["ema", pytest.param("peer", marks=pytest.mark.long)])
def test_a_teacher_that_moves_is_that_of_one_process(role: str, tmp_path: Path) -> None:
    """Each rank teaches its own share of the samples: with other weights on one of them the student would differ.

    So would its average, which is what is left of it.
    """
    job = [
        *STUDENT,
        "student.net.norm=group",
        "data.train_size=771",
        "data.batch_size=25",
        f"model/teacher={role}",
        "optim.ema=0.9",
        PRECISION,
    ]
    job += [f"optim.optimizer.lr={LR}", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none"]
    alone = train(config(tmp_path / "alone", *job)).folder
    together = train(config(tmp_path / "together", *job, *TWO)).folder
    assert_same_weights(together, alone)
    states = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (together, alone)
    ]
    moving = {key for key in states[0] if key.startswith(("moving.main.", "averaged_student.", "student."))}
    assert {key.partition(".")[0] for key in moving} == {"moving", "averaged_student", "student"}
    for key in moving:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-5, atol=1e-5)
