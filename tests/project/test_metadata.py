"""Version, licence, citation and changelog agree; the console scripts start fast."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_changelog_has_the_version_below_unreleased() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert heads[1] == f"[{PROJECT['version']}] - {CITATION['date-released']}"


def test_console_scripts_lead_to_functions_and_import_nothing_heavy() -> None:
    """`--help` and tab completion must not wait for torch."""
    code = (
        "import sys\n"
        "from importlib import import_module\n"
        "for target in sys.argv[1:]:\n"
        "    module, function = target.split(':')\n"
        "    assert callable(getattr(import_module(module), function)), target\n"
        "    print(target, *{'torch', 'lightning', 'timm', 'pandas', 'matplotlib'} & {*sys.modules})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *PROJECT["scripts"].values()],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    )
    assert run.stdout.splitlines() == [*PROJECT["scripts"].values()]
