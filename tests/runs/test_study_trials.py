"""Trials of a study: which are run, what is chosen, and what the students then have."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.study import run_study
from distillery.runs.study_jobs import StudyJobs, candidates
from distillery.runs.study_trials import Trials

METHODS = {
    "baseline": ["model/teacher=none", "task.weight=1.0"],
    "kd": ["loss/response=[kd]"],
    "hint": ["loss/response=[]", "loss/feature=[hint]"],
}
TRIALS = {"kd": ["loss.kd.weight=0.5,2", "loss.kd.temperature=1,4"], "baseline": ["optim.optimizer.lr=0.00001,0.01"]}


@pytest.fixture(scope="module", autouse=True)
def configs() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        yield


def study(out: Path, trials: dict[str, list[str]]) -> DictConfig:
    """Seed 0 of three methods on digits, for two epochs."""
    tiny = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2", "min_teacher_score=0"]
    cfg = compose(
        "study", overrides=["study=digits_demo", f"out='{out}'", "seeds=[0]", f"overrides={json.dumps(tiny)}"]
    )
    cfg.methods, cfg.trials = METHODS, trials
    return cfg


def test_candidates_are_every_combination_and_the_baseline_comes_first(tmp_path: Path) -> None:
    pairs = [(weight, temperature) for weight in ("0.5", "2") for temperature in ("1", "4")]
    found = candidates(study(tmp_path, TRIALS))
    assert [*found] == ["baseline", "kd"]
    assert found["baseline"] == [["optim.optimizer.lr=1e-05"], ["optim.optimizer.lr=0.01"]]
    assert found["kd"] == [[f"loss.kd.weight={w}", f"loss.kd.temperature={t}"] for w, t in pairs]


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ({"dk": ["loss.kd.weight=1,2"]}, r"trials\.dk: the study has no method 'dk'\. Did you mean 'kd'"),
        ({"kd": ["loss.kd.weight=interval(1,2)"]}, r"trials\.kd: loss.kd.weight=interval\(1,2\) is an interval"),
        ({"kd": ["loss.kd.temperature=1,-1"]}, "temperature"),
        ({"hint": ["loss.hint.wieght=1,2"]}, "loss.hint.wieght"),
    ],
)
def test_trials_that_cannot_be_run_are_refused_at_once(
    trials: dict[str, list[str]], message: str, tmp_path: Path
) -> None:
    cfg = study(tmp_path / "out", trials)
    with pytest.raises(Exception, match=message):
        Trials(cfg, StudyJobs(cfg))
    assert not (tmp_path / "out").exists()


def test_a_study_without_a_baseline_has_trials_too(tmp_path: Path) -> None:
    cfg = study(tmp_path, {"kd": TRIALS["kd"]})
    cfg.methods = {"kd": METHODS["kd"]}
    assert len(Trials(cfg, StudyJobs(cfg))) == 4


def test_a_seed_of_the_study_is_none_for_trials(tmp_path: Path) -> None:
    cfg = study(tmp_path, TRIALS)
    cfg.trial_seed = 0
    with pytest.raises(UserError, match=r"trial_seed=0 is also one of seeds"):
        Trials(cfg, StudyJobs(cfg))


@pytest.mark.parametrize(
    ("monitor", "figure", "best"),
    [("val/score", "score", 0), ("val/macro_f1", "macro_f1", 1), ("val/mse", "mse", 2), ("val/loss", "loss", 1)],
)
def test_what_is_monitored_chooses(monitor: str, figure: str, best: int, tmp_path: Path) -> None:
    """Each figure has a best trial of its own; of mse and loss the lowest value is the best. One trial failed."""
    values = {"score": (0.9, 0.8, 0.7), "macro_f1": (0.4, 0.6, 0.5), "mse": (0.3, 0.2, 0.1), "loss": (2.0, 1.0, 3.0)}
    metrics = {"macro_f1": {"higher_is_better": True}, "mse": {"higher_is_better": False}}
    data = {"metrics": metrics, "monitor": monitor, "higher_is_better": True}
    lasts = [{f"val_{name}": own[place] for name, own in values.items()} for place in range(3)]
    tried = iter([None, *(RunRecord("x", "kd", 100, "", data=data, metrics={"last": last}) for last in lasts)])
    cfg = study(tmp_path, {"kd": ["loss.kd.temperature=1,2,4,8"]})
    chosen = Trials(cfg, StudyJobs(cfg)).choose(lambda _: next(tried))
    assert chosen["kd"] == [f"loss.kd.temperature={(2, 4, 8)[best]}"]
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert [*rows["validation"].dropna()] == [*values[figure]]
    assert rows["chosen"].tolist() == [place == best + 1 for place in range(4)]


@pytest.mark.slow
def test_the_best_on_validation_is_what_the_students_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run_study(study(out, TRIALS))
    scores: dict[str, dict[str, float | None]] = {"baseline": {}, "kd": {}}
    for path in (out / "trials").rglob(RECORD):
        record = RunRecord.read(path.parent)
        assert record.seed == 100
        scores[record.method][path.parent.name] = record.metrics["last"]["val_score"]
    assert scores["baseline"].keys() == {"optim.optimizer.lr=1e-05", "optim.optimizer.lr=0.01"}
    assert len(scores["kd"]) == 4
    assert scores["baseline"]["optim.optimizer.lr=0.01"] > scores["baseline"]["optim.optimizer.lr=1e-05"]  # type: ignore[operator]

    best = max(scores["kd"], key=lambda name: scores["kd"][name])  # type: ignore[arg-type,return-value]
    configs = {name: OmegaConf.load(out / name / "seed0" / "config.yaml") for name in METHODS}
    assert [config.optim.optimizer.lr for config in configs.values()] == [1e-2] * 3, "the baseline's holds for all"
    assert f"loss.kd.weight={configs['kd'].loss.kd.weight:g}" in best
    assert f"loss.kd.temperature={configs['kd'].loss.kd.temperature:g}" in best

    with (out / "trials.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert [row["method"] for row in rows] == ["baseline"] * 2 + ["kd"] * 4
    kept = {row["method"]: row["settings"].replace(" ", ",") for row in rows if row["chosen"] == "True"}
    assert kept == {"baseline": "optim.optimizer.lr=0.01", "kd": best}
    for row in rows:
        assert float(row["validation"]) == scores[row["method"]][row["settings"].replace(" ", ",")]

    assert list(pd.read_csv(out / "report.csv")["method"]) == ["teacher", *METHODS], "no trial is a row"
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "| kd | weight 0.5, 2; temperature 1, 4 | weight=" in page
    assert "| baseline | lr 1e-05, 0.01 | lr=0.01 | 2 |" in page

    before = {path: path.read_bytes() for path in out.rglob(RECORD)}
    capsys.readouterr()
    run_study(study(out, TRIALS))
    assert {path: path.read_bytes() for path in out.rglob(RECORD)} == before
    assert capsys.readouterr().out.count(": kept") == 1 + 6 + 3
