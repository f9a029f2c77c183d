"""A sweep over a folder: what is finished is kept, what was stopped goes on, and what fails stops nothing else."""

import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distillery.results.layout import RECORD, REPORT
from distillery.results.record import RunRecord
from distillery.runs import sweep
from distillery.training.distiller import Distiller
from fixtures.command_line import Cli
from fixtures.runs import STEPS, STUDENT, contents, sha256

NAN = "optim.optimizer.lr=1e30"
SWEEP = "hydra.sweep.dir=sweep"


@pytest.fixture
def jobs(teacher: Path) -> Sequence[str]:
    given = ("trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none")
    return ("-m", *STUDENT, f"teachers.main.weights='{teacher}'", *given, SWEEP)


def statuses() -> dict[str, str]:
    """Of the sweep's records, by the job's folder."""
    return {path.parent.name: RunRecord.read(path.parent).status for path in sorted(Path("sweep").rglob(RECORD))}


def test_what_is_finished_is_kept_and_the_rest_is_run(
    cli: Cli, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float | None] = []
    run = sweep.sweep_job

    def noted(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
        scores.append(run(cfg, overrides))
        return scores[-1]

    monkeypatch.setattr(sweep, "sweep_job", noted)
    code, said = cli("train", *jobs, "seed=0")
    assert code == 0
    assert said.splitlines()[-1] == "0 kept, 1 run, 0 failed: sweep"
    first = Path("sweep/0_kd_seed0")
    before = contents(first)

    code, said = cli("train", *jobs, "seed=0,1")
    assert code == 0
    assert "0_kd_seed0: kept\n" in said
    assert re.findall(r"seed (\d): test score", said) == ["1"]
    assert said.splitlines()[-1] == "1 kept, 1 run, 0 failed: sweep"
    assert statuses() == {"0_kd_seed0": "finished", "1_kd_seed1": "finished"}
    assert contents(first) == before
    report = {"multirun.yaml", *REPORT, "classes.csv", "confusion.png", "calibration.png"}
    assert {path.name for path in Path("sweep").iterdir()} == {"0_kd_seed0", "1_kd_seed1", *report}
    validation = [RunRecord.read(path).metrics["last"]["val_score"] for path in (first, Path("sweep/1_kd_seed1"))]
    assert scores == [validation[0], *validation], "a sampler is told of the kept ones, too"


@pytest.mark.slow
def test_a_sweep_ends_in_its_table(cli: Cli, jobs: Sequence[str]) -> None:
    """Its validation scores are those of its jobs, and `distill-report` tells the same of the folder."""
    code, said = cli("train", *jobs, "loss.kd.temperature=1,4", "seed=0,1")
    assert code == 0
    records = [RunRecord.read(folder.parent) for folder in Path("sweep").rglob(RECORD)]
    means = {
        temperature: 100 * statistics.mean(r.val_score or 0 for r in records if f"temperature={temperature}" in str(r))
        for temperature in (1, 4)
    }
    rows = {float(t): float(mean) for t, mean in re.findall(r"^ kd temperature=(\d) +2 +(\S+) ±", said, re.MULTILINE)}
    assert rows == pytest.approx(means, abs=0.005)
    best = max(means, key=lambda temperature: means[temperature])
    assert f"Best on the validation split: kd temperature={best}.\n" in said
    files = "  ".join(f"sweep/{name}" for name in REPORT)
    assert f"Report: {files}" in said

    written = {name: Path("sweep", name).read_bytes() for name in REPORT}
    code, again = cli("report", "runs=[sweep]")
    assert code == 0
    assert again.splitlines() == said[said.index("Sweep of digits_demo") :].splitlines()[:-1]
    assert {name: Path("sweep", name).read_bytes() for name in REPORT} == written


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        pytest.param("joblib", ["hydra.launcher.n_jobs=2"], marks=pytest.mark.slow),
        pytest.param("submitit_local", [], marks=pytest.mark.long),  # as on a cluster, in processes of this machine
        pytest.param("ray", [], marks=pytest.mark.long),
    ],
)
def test_jobs_at_a_time_leave_the_same_runs_and_table(
    launcher: str, settings: Sequence[str], cli: Cli, jobs: Sequence[str]
) -> None:
    if launcher == "ray":  # no extra installs it: its versions are not ours
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    in_turn = cli("train", *jobs, "loss.kd.temperature=1,4")[1]
    others = [f"{SWEEP}_other", f"hydra/launcher={launcher}", *settings, "loss.kd.temperature=1,4"]
    code, at_a_time = cli("train", *jobs, *others)
    assert code == 0, at_a_time
    for number, temperature in ((0, 1), (1, 4)):
        job = Path(f"{number}_kd_temperature-{temperature}_seed0") / "student.safetensors"
        assert sha256(Path("sweep") / job) == sha256(Path("sweep_other") / job)
    # Rows are in the order in which the jobs began, and of two at a time either may be first.
    rows = [sorted(re.findall(r"^ kd temperature=.*$|^Best on.*$", said, re.M)) for said in (in_turn, at_a_time)]
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 3
    assert "0 kept, 2 run, 0 failed: sweep_other" in at_a_time.splitlines()


@pytest.mark.slow
def test_a_search_ends_in_its_trials(cli: Cli, jobs: Sequence[str]) -> None:
    """The value of a trial is the mean over its seeds, each of which has a folder of its own."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    code, said = cli("train", *jobs, "sweep=optuna", "hydra.sweeper.n_trials=2", "seed=[0,1]")
    assert code == 0, said
    of_trials = [
        [RunRecord.read(*Path("sweep").glob(f"{trial}_kd_*_seed0-1/seed{seed}")).val_score or 0 for seed in (0, 1)]
        for trial in (0, 1)
    ]
    assert [RunRecord.read(*Path("sweep").glob("1_*/seed1")).overrides[-1]] == ["seed=1"]
    values = [statistics.mean(scores) for scores in of_trials]
    found = re.findall(r"^ +(\d) .* 2 +(\S+) ± (\S+)", said, re.MULTILINE)
    assert [int(trial) for trial, _, _ in found] == [0, 1]
    assert [float(mean) for _, mean, _ in found] == pytest.approx([100 * value for value in values], abs=0.005)
    best = OmegaConf.load("sweep/optimization_results.yaml")
    assert best.best_value == pytest.approx(max(values))
    named = f"Best on the validation split: trial {values.index(max(values))}, temperature="
    assert named + f"{best.best_params['loss.kd.temperature']:g}, weight=" in said
    assert "0 kept, 4 run, 0 failed: sweep" in said.splitlines()  # Optuna writes its log after it

    jobs = pd.read_csv("sweep/trials.csv")
    assert [*jobs["validation"]] == [score for scores in of_trials for score in scores]
    assert {*jobs.loc[jobs["chosen"], "trial"]} == {values.index(max(values))}
    files = (*REPORT, "trials.csv")
    written = {name: Path("sweep", name).read_bytes() for name in files}
    code, again = cli("report", "runs=[sweep]")
    assert code == 0
    assert again in said
    assert {name: Path("sweep", name).read_bytes() for name in files} == written


@pytest.mark.slow
def test_a_job_that_fails_is_recorded_and_the_others_go_on(cli: Cli, jobs: Sequence[str]) -> None:
    """The first two are refused before training, the third ends in NaN."""
    sweep = (*jobs, "data.train_size=7,100", f"{NAN},0.01")
    code, said = cli("train", *sweep)
    assert code == 1
    lrs = ("1e+30", "0.01") * 2
    sizes = (7, 7, 100, 100)
    names = [f"{n}_kd_train_size-{size}_lr-{lr}_seed0" for n, (size, lr) in enumerate(zip(sizes, lrs, strict=True))]
    folders = [Path("sweep", name).resolve() for name in names]
    assert [*statuses().values()] == ["failed", "failed", "failed", "finished"]
    assert "\n".join(["0 kept, 1 run, 3 failed: sweep", *(f"failed: {each}" for each in folders[:3]), ""]) in said
    errors = [RunRecord.read(folder).error or "" for folder in folders[:3]]
    for error, reason in zip(errors, ["Cannot draw 7 of 800", "Cannot draw 7 of 800", "nan|inf"], strict=True):
        assert re.search(rf"^UserError: .*({reason})", error)
    for folder, error in zip(folders, errors, strict=False):
        assert f"error {folder.name}: {error.removeprefix('UserError: ')}" in said
    assert "Traceback" not in said
    refused = RunRecord.read(folders[0])
    assert (refused.name, refused.method, refused.seed) == ("digits_demo", "kd", 0)
    assert "data.train_size=7" in refused.overrides

    assert cli("report", "runs=[sweep]", "out=report")[0] == 0
    page = Path("report/report.md").read_text(encoding="utf-8")
    left_out = page[page.index("## Not in the table") :]
    assert len(re.findall(r"\(kd, seed 0\): failed: UserError: .*Cannot draw 7", left_out)) == 2
    assert len(re.findall(r"\(kd, seed 0\): failed: ", left_out)) == 3

    code, said = cli("train", *sweep)
    assert code == 1
    assert "1 kept, 0 run, 3 failed: sweep" in said


@pytest.mark.slow
def test_what_is_mended_is_run(cli: Cli, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not the user's is told with its traceback."""
    step = Distiller.training_step

    def exhausted(self: Distiller, batch: dict[str, Tensor], index: int) -> Tensor | None:
        if statuses() == {"0_kd_seed0": "running"}:
            raise RuntimeError("out of memory")
        return step(self, batch, index)

    monkeypatch.setattr(Distiller, "training_step", exhausted)
    code, said = cli("train", *jobs, "seed=0,1")
    assert code == 1
    assert "error 0_kd_seed0: Traceback" in said
    assert "RuntimeError: out of memory" in said
    assert statuses() == {"0_kd_seed0": "failed", "1_kd_seed1": "finished"}

    monkeypatch.setattr(Distiller, "training_step", step)
    code, said = cli("train", *jobs, "seed=0,1")
    assert (code, said.splitlines()[-1]) == (0, "1 kept, 1 run, 0 failed: sweep")
    assert RunRecord.read(Path("sweep/0_kd_seed0")).error is None


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "exit_code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_sweep_that_is_stopped_goes_on(
    stop: signal.Signals, exit_code: int, cli: Cli, jobs: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Distiller.training_step, 0

    def counted(self: Distiller, batch: dict[str, Tensor], index: int) -> Tensor | None:
        nonlocal steps
        steps += 1
        if steps == STEPS + 3:
            signal.raise_signal(stop)
        return step(self, batch, index)

    monkeypatch.setattr(Distiller, "training_step", counted)
    sweep = (*jobs, "trainer.max_epochs=2", "seed=0,1")
    assert cli("train", *sweep)[0] == exit_code
    assert statuses() == {"0_kd_seed0": "failed"}, "no other job was begun"

    steps = STEPS + 3
    code, said = cli("train", *sweep)
    assert (code, said.splitlines()[-1]) == (0, "0 kept, 2 run, 0 failed: sweep")
    assert steps - (STEPS + 3) == STEPS + 2 * STEPS, "the first goes on after its first epoch"
    assert statuses() == {"0_kd_seed0": "finished", "1_kd_seed1": "finished"}


def test_a_folder_of_another_job_stays_as_it_is(cli: Cli, jobs: Sequence[str]) -> None:
    other, torn = Path("sweep/0_kd_seed0"), Path("sweep/1_kd_seed1")
    RunRecord("digits_demo", "kd", 0, "the hash of another config", status="finished").write(other)
    torn.mkdir()
    (torn / RECORD).write_text('{"version": 1,')
    before = contents(Path("sweep"))
    code, said = cli("train", *jobs, "seed=0,1")
    assert code == 1
    assert re.search(r"error 0_kd_seed0: \S+ holds a finished run of another job .*replace=true.*sweep\.dir=", said)
    assert re.search(r"error 1_kd_seed1: \S+ is torn", said)
    assert "0 kept, 0 run, 2 failed: sweep" in said
    assert contents(Path("sweep")).items() >= before.items()


def test_a_sweep_of_plans_leaves_and_counts_nothing(cli: Cli, jobs: Sequence[str]) -> None:
    code, said = cli("train", *jobs, "plan=true", "seed=0,1")
    assert code == 0
    assert "kept" not in said
    assert [path.name for path in Path("sweep").rglob("*")] == ["multirun.yaml"]


@pytest.mark.long
def test_with_two_processes_the_first_one_tells(jobs: Sequence[str], tmp_path: Path) -> None:
    two = ("hardware=ddp", "trainer.accelerator=cpu", "trainer.devices=2", f"{NAN},0.01")
    done = subprocess.run(
        [sys.executable, "-m", "distillery.commands.train", *jobs, *two], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    failed, finished = (tmp_path / "sweep" / f"{job}_seed0" for job in ("0_kd_lr-1e+30", "1_kd_lr-0.01"))
    assert (RunRecord.read(failed).status, RunRecord.read(finished).status) == ("failed", "finished")
    assert done.stdout.splitlines()[-2:] == ["0 kept, 1 run, 1 failed: sweep", f"failed: {failed}"]
    assert (done.stdout + done.stderr).count("failed: ") == 2
    assert done.stderr.count(f"error {failed.name}: ") == 1
