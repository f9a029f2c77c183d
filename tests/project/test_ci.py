"""The workflows and issue forms are valid and careful, and `.ci/run` and all texts name targets that exist."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
SECTIONS = ["setup", "lint", "types", "docs", "demo", "test", "test-slow"]  # of .ci/run, in order


def load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # BaseLoader: `on` stays a string


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_ci_covers_every_python_allowed_and_every_check() -> None:
    ci = load(ROOT / ".github/workflows/ci.yml")
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
    commands = {step.get("run") for step in steps(ci)}
    assert {f"make {target}" for target in SECTIONS if target != "setup"} <= commands


def test_workflows_have_least_permissions_time_limits_and_pinned_actions() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "weekly"]
    for path in WORKFLOWS:
        workflow = load(path)
        assert workflow["permissions"] == {"contents": "read"}
        assert "cancel-in-progress" in workflow["concurrency"]
        for name, job in workflow["jobs"].items():
            assert int(job["timeout-minutes"]) <= 90, name
        for step in steps(workflow):
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v1"))


def test_weekly_may_fail_and_tries_the_newest_pre_releases_and_the_oldest() -> None:
    (job,) = load(ROOT / ".github/workflows/weekly.yml")["jobs"].values()
    assert job["continue-on-error"] == "true"
    installs = {entry["install"] for entry in job["strategy"]["matrix"]["include"]}
    assert {"pip install", "pip install --pre"} < installs
    assert any("lowest-direct" in install for install in installs)


def test_issue_forms_are_valid() -> None:
    forms = {path.stem: load(path) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert forms.pop("config")["blank_issues_enabled"] == "false"
    assert forms.keys() == {"bug", "feature", "question"}
    for form in forms.values():
        assert form["name"]
        assert form["description"]
        assert all(field["type"] in {"textarea", "input", "dropdown", "checkboxes"} for field in form["body"])
        assert all(field["attributes"]["label"] for field in form["body"])
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))


def test_every_make_target_mentioned_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [
        *WORKFLOWS,
        ROOT / ".ci/run",
        ROOT / "CONTRIBUTING.md",
        ROOT / "README.md",
        ROOT / ".pre-commit-config.yaml",
        *(ROOT / "docs").glob("*.md"),
    ]
    mentioned = {
        target
        for path in texts
        for line in re.findall(r"(?:^|[`\"] ?|run: )make ([a-z][a-z -]*)", path.read_text(), re.MULTILINE)
        for target in line.split()
    }
    assert {"demo", "test"} <= mentioned
    assert mentioned <= targets


def test_ci_run_runs_every_section_and_fails_if_one_fails(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "bin").mkdir()
    for name, body in {"make": 'echo "asked: $1"; [ "$1" != "$BROKEN" ]', "dpkg": "true"}.items():
        tool = tmp_path / "bin" / name
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    for broken in ("", *SECTIONS):
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        run = subprocess.run(
            ["bash", str(tmp_path / ".ci/run")],
            cwd="/",
            env={**os.environ, "BROKEN": broken, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert run.returncode == bool(broken), run.stderr
        assert re.findall(r"asked: (\S+)", run.stdout) == SECTIONS
        assert run.stdout.count("FAILED") == bool(broken)
