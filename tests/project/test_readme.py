"""The README's commands run, its tables are those of the committed reports, its links lead somewhere."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distillery.runs.stages.sequence import StageSequence
from fixtures.datasets import write_fashion_mnist
from fixtures.runs import config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(distill-.*?)(?:\s+#.*)?$", README, re.MULTILINE)


def test_the_tables_are_those_of_the_reports_and_of_the_losses() -> None:
    filled = runpy.run_path(str(ROOT / "scripts/readme.py"))["filled"]
    assert filled(README) == README, "make docs"
    assert README.count("<!-- losses -->\n| config | loss |") == 1
    assert README.count("<!-- results:") == 10
    for name in re.findall(r"<!-- results: (\w+) -->\n\| method", README):
        assert f"docs/results/{name}" in README


def test_links_within_the_repository_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_stages_are_what_is_said_of_them(teacher: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n# distill-train (.*?) \+stages=.*?\n(stages:\n.*?)```", README, re.DOTALL)
    cfg = config(tmp_path / "run", *block[0].split(), f"teachers.main.weights='{teacher}'")
    cfg.stages = OmegaConf.create(block[1]).stages
    sequence = StageSequence(cfg)
    sequence.rehearse(show=False)
    hint, assistant, student = sequence.stages
    assert (hint.cfg.task.weight, assistant.cfg.task.weight) == (0, cfg.task.weight)
    assert [*student.cfg.loss] == ["kd"]


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(tmp_path: Path) -> None:
    """Each as it stands, cut short: few epochs, one seed; Fashion-MNIST's files replaced by small ones."""
    write_fashion_mnist(tmp_path / "fashion", train=200, test=50)
    small = ["trainer.max_epochs=1", "min_teacher_score=0", "data.val_size=50", "data.train_size=100"]
    small.append(f"data.root={tmp_path / 'fashion'}")
    short = {
        "distill-train": ["trainer.max_epochs=1", "min_teacher_score=0", "callbacks.checkpoint_last.every_n_epochs=1"],
        "distill-study": ["seeds=[0]", "overrides=" + json.dumps(small)],
    }
    environment = {**os.environ, "DISTILLERY_OUTPUTS": "outputs", "OMP_NUM_THREADS": "1"}
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        name, *arguments = shlex.split(command)
        script = Path(sys.executable).parent / name
        done = subprocess.run(
            [script, *arguments, *short.get(name, [])], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "outputs/digits_demo/report.png").is_file()
