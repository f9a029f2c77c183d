"""A search with Optuna: which way is better, and which parameters mattered."""

import io
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.config.stages import RunSpec
from distillery.core.paths import CONFIGS
from distillery.results.record import RunRecord
from distillery.results.report.score import Score
from distillery.results.report.search import Search, trials_table
from distillery.results.report.terminal import search_table
from distillery.runs import sweep
from distillery.runs.run import Result
from distillery.runs.trials import importances, search_of, trials_of

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
SPACE = {"loss.kd.temperature": "interval(1, 8)", "optim.optimizer.lr": "tag(log, interval(0.003, 0.1))", "a": "x,y"}
SWEEPER = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "params": SPACE}
HYDRA = {"sweeper": SWEEPER, "sweep": {"dir": "sweep"}, "overrides": {"task": ["seed=[0,1]"]}}
CONFIG = OmegaConf.create({"name": "search", "hydra": HYDRA})


def notes(number: int, **scores: Any) -> list[dict[str, Any]]:
    """Of trials whose score is that of the learning rate alone, as `scores` says by trial if it does."""
    return [
        {
            "job": trial,
            "swept": {
                "loss.kd.temperature": repr(1 + 7 * ((trial * 0.618) % 1)),
                "optim.optimizer.lr": repr(0.003 + 0.09 * ((trial * 0.414) % 1)),
                "a": "xy"[trial % 2],
            },
            "score": (score := scores.get(f"s{trial}", ((trial * 0.414) % 1) / 2) if seed else 0.0),
            "outcome": "failed" if score is None else "run",
            "folder": str(Path(f"sweep/{trial}/seed{seed}").resolve()),
            "seed": seed,
            "target": None,
        }
        for trial in range(number)
        for seed in (0, 1)
    ]


def shown(of: list[dict[str, Any]], **data: Any) -> str:
    console, score = Console(file=io.StringIO(), width=100), Score.of_monitored(RunRecord("x", "kd", 0, "", data=data))
    console.print(search_table(search_of(trials_of(of), score, CONFIG), score, "Search"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_parameter_that_matters_is_found() -> None:
    found = importances(trials_of(notes(12)), CONFIG)
    assert next(iter(found)) == "optim.optimizer.lr"
    assert found["optim.optimizer.lr"] > 0.6
    assert sum(found.values()) == pytest.approx(1)


def test_of_few_trials_nothing_is_said() -> None:
    assert importances(trials_of(notes(9)), CONFIG) == {}
    assert importances(trials_of(notes(12, **{f"s{trial}": 0.5 for trial in range(12)})), CONFIG) == {}


def test_what_is_kept_is_a_row_for_each_job(tmp_path: Path) -> None:
    """With all digits of its values, the reason where there is no score, and the importance of each parameter."""
    of = notes(12, s3=None)
    search_of(trials_of(of), Score(), CONFIG).write(tmp_path)
    jobs = pd.read_csv(tmp_path / "trials.csv", dtype=str, keep_default_na=False)
    for row, each in zip(jobs.itertuples(), of, strict=True):
        assert (row.trial, row.seed, row.outcome) == (str(each["job"]), str(each["seed"]), each["outcome"])
        assert row.settings.split() == [f"{key}={value}" for key, value in each["swept"].items()]
        assert row.folder == f"{each['job']}/seed{each['seed']}"
        assert row.validation == ("" if each["score"] is None else repr(each["score"]))
    means = {trial: sum(each["score"] for each in of if each["job"] == trial) for trial in range(12) if trial != 3}
    assert {*jobs.loc[jobs["chosen"] == "True", "trial"]} == {str(max(means, key=lambda trial: means[trial]))}
    importance = pd.read_csv(tmp_path / "importance.csv")
    assert importance["parameter"][0] == "optim.optimizer.lr"
    assert importance["importance"].sum() == pytest.approx(1)
    again = Search.read([tmp_path, tmp_path / "other"])
    assert again is not None
    assert again.importance == dict(importance.itertuples(index=False))


def test_trials_may_differ_in_nothing(tmp_path: Path) -> None:
    """A grid within a budget has trials, whatever it varies."""
    search_of(trials_of([each | {"swept": {}} for each in notes(1)]), Score(), CONFIG).write(tmp_path)
    again = Search.read([tmp_path])
    assert again is not None
    assert trials_table(again, Score()) == (
        ["trial", "seeds", "validation %"],
        [["0", "2", "0.00 ± 0.00"]],
        0,
    )


@pytest.mark.parametrize(("data", "best"), [({}, 2), ({"score_name": "bits", "higher_is_better": False}, 0)])
def test_the_best_trial_is_the_tasks(data: dict[str, Any], best: int) -> None:
    said = shown(notes(4, s0=0.1, s1=0.2, s2=0.4, s3=None), **data)
    assert f"Best on the validation split: trial {best}, temperature=" in said
    assert "failed" in next(line for line in said.splitlines() if line.startswith("     3 "))
    assert ("20.00 ± 28.28" if not data else "0.2000 ± 0.2828") in said, "0 and 0.4"


@pytest.mark.parametrize(
    ("choices", "direction", "worst"),
    [
        (["experiment=digits_demo"], "maximize", -math.inf),
        (["task=causal_lm"], "minimize", math.inf),
        (["task=regression", "task.metrics=[mse]", "task.monitor=val/mse"], "minimize", math.inf),
        (["experiment=digits_demo", "task.metrics=[macro_f1]", "task.monitor=val/macro_f1"], "maximize", -math.inf),
    ],
)
def test_the_direction_is_that_of_what_is_monitored(
    choices: list[str], direction: str, worst: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that failed would be the best one, were its score −∞ where lower is better."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        cfg = compose("train", ["sweep=optuna", *choices], return_hydra_config=True)
    assert cfg.hydra.sweeper.direction == direction

    def broken(cfg: DictConfig, overrides: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(sweep, "check", broken)
    monkeypatch.setattr(sweep, "note", lambda *_: None)
    monkeypatch.setattr(sweep.Job, "record_failure", lambda *_: None)
    assert sweep.sweep_job(job(monitor=cfg.task.get("monitor", "val/score"), _target_=cfg.task._target_), []) == worst


@pytest.mark.parametrize(("monitor", "value"), [("val/score", 0.75), ("val/macro_f1", 0.375), ("val/loss", 3.0)])
def test_the_value_of_a_job_is_what_is_monitored(
    monitor: str, value: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The mean over two seeds, of which each figure says another thing."""
    figures = iter([{"score": 0.5, "macro_f1": 0.5, "loss": 4.0}, {"score": 1.0, "macro_f1": 0.25, "loss": 2.0}])

    def finished(_: object) -> Result:
        last = {f"val_{name}": value for name, value in next(figures).items()} | {"test_score": 0.0}
        return Result(RunRecord("x", "kd", 0, "", data={"monitor": monitor}, metrics={"last": last}), tmp_path)

    monkeypatch.setattr(sweep, "check", lambda cfg, _: RunSpec(cfg, []))
    monkeypatch.setattr(sweep, "run_job", finished)
    monkeypatch.setattr(sweep, "sweep_folder", lambda: tmp_path)
    monkeypatch.setattr(sweep, "note", lambda *_: None)
    own = job(monitor=monitor, _target_="distillery.tasks.classification.Classification")
    assert sweep.sweep_job(own, []) == value


def job(**task: str) -> DictConfig:
    """A job of two seeds."""
    return OmegaConf.create({"seed": [0, 1], "paths": {"run": "run"}, "task": task})
