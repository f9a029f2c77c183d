"""The workflows, the forms and `.ci/run`: valid, careful, and speaking of targets that exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]

SECTIONS = ["setup", "lint", "types", "demo", "test", "test-slow"]  # of .ci/run, in its order


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # BaseLoader: `on` stays a word


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_matrix_is_every_python_that_the_package_allows() -> None:
    ci = load(ROOT / ".github/workflows/ci.yml")
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()


def test_ci_runs_the_readmes_first_commands_and_all_checks() -> None:
    commands = {step.get("run") for step in steps(load(ROOT / ".github/workflows/ci.yml"))}
    assert {"make demo", "make test", "make test-slow", "make lint", "make types"} <= commands


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_careful(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "cancel-in-progress" in workflow["concurrency"]
    for name, job in workflow["jobs"].items():
        assert int(job["timeout-minutes"]) <= 90, name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))


def test_weekly_may_fail_and_tries_newest_prerelease_and_oldest() -> None:
    (job,) = load(ROOT / ".github/workflows/weekly.yml")["jobs"].values()
    assert job["continue-on-error"] == "true"
    installs = [entry["install"] for entry in job["strategy"]["matrix"]["include"]]
    assert "pip install" in installs
    assert "pip install --pre" in installs
    assert any("lowest-direct" in install for install in installs)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form_is_valid(path: Path) -> None:
    form = load(path)
    assert form["name"]
    assert form["description"]
    assert all(field["type"] in {"textarea", "input", "dropdown", "checkboxes"} for field in form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))


def test_the_forms_and_dependabot_cover_what_they_should() -> None:
    assert [path.stem for path in FORMS] == ["bug", "feature", "question"]
    updates = load(ROOT / ".github/dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}
    assert {update["schedule"]["interval"] for update in updates} == {"weekly"}


def test_every_make_target_spoken_of_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [
        *WORKFLOWS,
        ROOT / ".ci/run",
        ROOT / "CONTRIBUTING.md",
        ROOT / "README.md",
        ROOT / ".pre-commit-config.yaml",
    ]
    spoken = {
        target
        for path in texts
        if path.exists()
        for line in re.findall(r"(?:^|[`\"] ?|run: )make ([a-z][a-z -]*)", path.read_text(), re.MULTILINE)
        for target in line.split()
    }
    assert {"demo", "test"} <= spoken
    assert spoken <= targets


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """`.ci/run` with a `make` that only says what was asked of it, and fails at X where fail-X exists."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "bin").mkdir()
    for name, body in {"make": 'echo "asked: $1"; [ ! -e "fail-$1" ]', "dpkg": "true"}.items():
        tool = tmp_path / "bin" / name
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    return tmp_path


def ci_run(clone: Path) -> subprocess.CompletedProcess[str]:
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(clone / ".ci/run")],
        cwd="/",
        env={**os.environ, "CI": "true", "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_ci_run_is_green_when_all_is(clone: Path) -> None:
    run = ci_run(clone)
    assert run.returncode == 0, run.stderr
    assert re.findall(r"asked: (\S+)", run.stdout) == SECTIONS


@pytest.mark.parametrize("broken", SECTIONS)
def test_ci_run_goes_on_after_a_failure_and_fails(clone: Path, broken: str) -> None:
    (clone / f"fail-{broken}").touch()
    run = ci_run(clone)
    assert run.returncode == 1
    assert len(re.findall(r"asked: ", run.stdout)) == len(SECTIONS)
    assert run.stdout.count("FAILED") == 1
