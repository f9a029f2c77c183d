"""Runs, sweeps and studies on two processes compute what one process computes, each job by its own config."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.results.layout import report_files
from distillery.results.record import RunRecord
from distillery.runs.ranks import VARIABLES
from distillery.runs.run import train
from distillery.runs.study import run_study
from fixtures.rank_jobs import (
    FILES,
    JOB,
    LR,
    MODULE,
    PRECISION,
    SHARDED,
    TWO,
    ZERO,
    assert_same_weights,
    ended,
    figures,
    files,
    needs_deepspeed,
    started,
)
from fixtures.runs import STUDENT, config
from fixtures.two_ranks import Notes, alive, note


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
