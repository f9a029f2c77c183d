"""Version, licence, citation, change log and console scripts agree."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_citation_has_what_the_format_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= CITATION.keys()
    assert all("name" in author or "family-names" in author for author in CITATION["authors"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", CITATION["date-released"])


def test_version_and_licence_agree_everywhere() -> None:
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_changelog_tells_of_the_version_and_keeps_a_place_for_the_next() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert heads[1] == f"[{PROJECT['version']}] - {CITATION['date-released']}"


@pytest.mark.parametrize("target", PROJECT["scripts"].values(), ids=PROJECT["scripts"])
def test_console_script_leads_to_a_function(target: str) -> None:
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("target", PROJECT["scripts"].values(), ids=PROJECT["scripts"])
def test_console_script_imports_nothing_heavy(target: str) -> None:
    code = (
        f"import sys, {target.split(':')[0]}; "
        "print(*{'torch', 'lightning', 'timm', 'pandas', 'matplotlib'} & {*sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    assert run.stdout.split() == []
