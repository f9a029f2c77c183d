"""A study's teacher is known by its weights as they were saved, whatever precision its students are trained in."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.runs.study import run_study

SHORT = ("trainer.max_epochs=1", "min_teacher_score=0")


@pytest.mark.filterwarnings("ignore:Teacher 'main' scores")
@pytest.mark.parametrize(
    ("all_runs", "student"),
    [
        pytest.param(["trainer.precision=bf16-true"], [], marks=pytest.mark.slow),
        ([], ["trainer.precision=bf16-true"]),
        pytest.param(["trainer.precision=64-true"], [], marks=pytest.mark.slow),
    ],
    ids=["all-bf16", "student-bf16", "all-64"],
)
def test_a_study_in_any_precision_is_kept(all_runs: list[str], student: list[str], tmp_path: Path) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        given = [f"out='{tmp_path}'", "seeds=[0]", f"overrides={json.dumps([*SHORT, *all_runs])}"]
        cfg = compose("study", overrides=["study=digits_demo", *given])
        cfg.methods = {"kd": student}
        run_study(cfg)
        before = {path: path.read_bytes() for path in tmp_path.rglob(RECORD)}
        run_study(cfg)
    assert {path: path.read_bytes() for path in tmp_path.rglob(RECORD)} == before
    used = RunRecord.read(tmp_path / "kd" / "seed0").teachers["main"]
    assert used["sha256"] == RunRecord.read(tmp_path / "teacher").student_sha256
    assert list(pd.read_csv(tmp_path / "report.csv")["method"]) == ["teacher", "kd"]
