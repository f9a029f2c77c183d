"""How W&B groups and names the runs of sweeps and studies, read back from what it wrote."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.results.layout import REPORT
from distillery.results.record import RunRecord
from distillery.runs import loggers
from distillery.runs.study import run_study
from fixtures.command_line import Cli
from fixtures.runs import STUDENT
from fixtures.wandb_runs import OFFLINE, md5, media, models, runs

pytestmark = pytest.mark.usefixtures("wandb_here")
TEACHER = ["experiment=digits_teacher", "logger=wandb"]


def test_a_sweep_is_a_group(compose_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert compose_train(*TEACHER).logger.wandb.group == "digits_teacher"
    sweep = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir='{tmp_path / 'sweep_12-30'}'"]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        HydraConfig.instance().set_config(compose("train", [*TEACHER, *sweep], return_hydra_config=True))
    assert compose_train(*TEACHER).logger.wandb.group == "digits_teacher_sweep_12-30"


def test_a_search_may_draw_some_values_twice(compose_train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    own = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep", "hydra/sweeper=optuna"]
    monkeypatch.setenv("DISTILLERY_SWEPT", '["loss.kd.temperature", "loss/response", "optim.optimizer.lr"]')
    names = []
    for trial in (0, 1):
        job = ["loss.kd.temperature=2.12345678", "loss/response=[kd]", "optim.optimizer.lr=0.01"]
        with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
            hydra = compose("train", [*own, *job, f"hydra.job.num={trial}"], return_hydra_config=True)
            HydraConfig.instance().set_config(hydra)
        names.append(compose_train(*STUDENT, *job, "logger=wandb").logger.wandb.name)
    assert names == [f"kd trial={trial} temperature=2.12346 lr=0.01 seed=0" for trial in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swept", "jobs"),
    [
        pytest.param(["loss.kd.temperature=1,4", "seed=0,1"], [[f"temperature={t}"] for t in (1, 1, 4, 4)], id="grid"),
        pytest.param(["sweep=optuna", "hydra.sweeper.n_trials=2", "seed=[0,1]"], [], id="search"),
        pytest.param(
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "loss.kd.temperature=1,4"],
            [["temperature=1"], ["temperature=4"]],
            id="joblib",
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_jobs_of_a_sweep_are_told_apart(
    swept: list[str], jobs: list[list[str]], cli: Cli, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, tags, group, artifacts and summary of each, and the report as a run of its own; nothing is printed."""
    if search := not jobs:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.delenv("WANDB_SILENT")
    given = [*STUDENT, *OFFLINE, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=2"]
    code, said = cli("train", "-m", *given, *swept, "hydra.sweep.dir=sweep")
    assert code == 0, said
    lightnings_own = "The anonymous setting has no effect"  # for an argument that Lightning passes
    assert not [line for line in said.splitlines() if line.startswith("wandb:") and lightnings_own not in line]
    found = [*runs(Path("sweep"))]
    (report,) = (run for run in found if run.name == "report")
    found.remove(report)
    told = []
    for run in sorted(found, key=lambda run: str(run.file)):
        folder = run.file.parents[2]
        record, config = RunRecord.read(folder), OmegaConf.load(folder / "config.yaml")
        words = [f"temperature={config.loss.kd.temperature:g}"]
        if search:
            number = folder.parent.name.split("_")[0]
            others = [f"weight={config.loss.kd.weight:g}", f"lr={config.optim.optimizer.lr:g}"]
            words = [f"trial={number}", *words, *others]
        told.append(words)
        assert run.name == " ".join(["kd", *words, f"seed={record.seed}"])
        assert run.tags == ["digits_demo", "kd", *words, f"seed={record.seed}"]
        assert (run.group, run.job_type, run.exit_code) == ("digits_demo_sweep", "kd", 0)
        assert run.summary["best/val_score"] == record.metrics["best"]["val_score"]
        assert run.summary["best/epoch"] == record.metrics["best"]["epoch"]
        (artifact,) = models(run)
        assert artifact.name.endswith(record.config_hash[:8])
        kept = {entry.path: entry.digest for entry in artifact.manifest.contents}
        assert kept["student.safetensors"] == md5(folder / "student.safetensors")
    assert len({run.name for run in found}) == len({models(run)[0].name for run in found}) == len(told)
    assert told == jobs or (search and [words[0] for words in told] == ["trial=0"] * 2 + ["trial=1"] * 2)

    assert (report.group, report.job_type) == ("digits_demo_sweep", "report")
    (shown,) = (row for row in report.history if "report._type" in row)
    assert ("trials._type" in shown) == search
    kept = {e.path: e.digest for a in report.artifacts if a.type == "report" for e in a.manifest.contents}
    assert {*REPORT, "classes.csv", *(["trials.csv"] if search else [])} <= kept.keys()
    assert kept == {name: md5(Path("sweep", name)) for name in kept}


@pytest.mark.slow
def test_a_study_is_a_group_with_its_report(tmp_path: Path) -> None:
    every = ["logger=wandb", "logger.wandb.offline=true", "trainer.max_epochs=1", "min_teacher_score=0"]
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        cfg = compose("study", ["study=digits_demo", f"out='{tmp_path / 'study'}'", "seeds=[0]"])
        cfg.overrides = every
        cfg.methods = {"baseline": ["model/teacher=none"], "kd": []}
        run_study(cfg)
    found = {run.name: run for run in runs(tmp_path / "study")}
    assert {name: run.job_type for name, run in found.items()} == {
        "teacher": "teacher",
        "baseline seed=0": "baseline",
        "kd seed=0": "kd",
        "report": "report",
    }
    assert {run.group for run in found.values()} == {"demo"}

    report = found["report"]
    (shown,) = (row for row in report.history if "report._type" in row)
    assert shown["report._type"] == "table-file"
    table = json.loads((media(report) / shown["report.path"]).read_text())
    with (tmp_path / "study" / "report.csv").open() as file:
        expected = list(csv.reader(file))
    assert table["columns"] == expected[0]
    assert [row[0] for row in table["data"]] == [row[0] for row in expected[1:]] == ["teacher", "baseline", "kd"]
    assert [row[2] for row in table["data"]] == pytest.approx([float(row[2]) for row in expected[1:]])
    by_class = json.loads((media(report) / shown["classes.path"]).read_text())
    assert [row[:2] for row in by_class["data"][:2]] == [["teacher", 0], ["teacher", 1]]
    (drawn,) = (row for row in report.history if "report_plot._type" in row)
    for name in ("report", "confusion", "calibration"):
        image = media(report) / drawn[f"{name}_plot.path"]
        assert image.read_bytes() == (tmp_path / "study" / f"{name}.png").read_bytes()
    kept = {e.path: e.digest for a in report.artifacts if a.type == "report" for e in a.manifest.contents}
    files = "report.md report.html report.csv report.png classes.csv confusion.png calibration.png".split()
    assert kept == {file: md5(tmp_path / "study" / file) for file in files}


def test_a_group_of_the_users_own_stays_in_a_study(compose_train: Any) -> None:
    cfg = compose_train(*TEACHER, "logger.wandb.group=paper")
    loggers.join_study(cfg, "demo", "kd seed 0")
    assert cfg.logger.wandb.group == "paper"
