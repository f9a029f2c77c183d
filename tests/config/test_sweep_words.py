"""The folder of a sweep's job says what the sweep varies."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from fixtures.runs import STUDENT


def folder(monkeypatch: pytest.MonkeyPatch, number: int, *swept: str) -> str:
    """That of the job with this number in its sweep, and these settings in which the jobs differ."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setenv("DISTILLERY_SWEPT", json.dumps([setting.partition("=")[0] for setting in swept]))
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        job = ["hydra.mode=MULTIRUN", f"hydra.job.num={number}", *STUDENT, *swept]
        cfg = compose("train", job, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return str(cfg.hydra.sweep.subdir)


@pytest.mark.parametrize(
    ("swept", "name"),
    [
        (["loss.kd.temperature=4", "seed=1"], "3_kd_temperature-4_seed1"),
        (["optim.optimizer.lr=0.02483457822", "loss.kd.weight=1e-05"], "3_kd_lr-0.0248346_weight-1e-05_seed0"),
        (["student.net.widths=[8,16]", "seed=[0,1]"], "3_kd_widths-8-16_seed0-1"),
        (["model/student=cifar", "paths.data='/my pictures/ä'"], "3_kd_student-cifar_data-my-pictures_seed0"),
        (["loss/response=[kd,dkd]", "seed=0"], "3_kd+dkd_seed0"),
        (["method=mine", "seed=0"], "3_mine_seed0"),
        ([], "3_kd_seed0"),
    ],
)
def test_it_has_the_words_of_the_tables(swept: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = folder(monkeypatch, 3, *swept)
    assert found == name
    parsed = OverridesParser.create().parse_override(f"run=sweep/{found}")
    assert parsed.value() == f"sweep/{found}", "without quotes"


def test_long_words_are_cut_off_and_the_folders_are_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [folder(monkeypatch, number, f"paths.data={'a' * 300}{number}") for number in (0, 1)]
    assert names[0] != names[1]
    for name in names:
        (tmp_path / name).mkdir()
