"""The declared ranges, the pins and the imports of the package agree."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for lines in PROJECT["optional-dependencies"].values() for line in lines]
PIN_LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
PINS = {canonicalize_name(name): version for name, _, version in (p.partition("==") for p in PIN_LINES)}


def test_constraints_hold_names_and_versions_only() -> None:
    for line in PIN_LINES:  # no address, no file, no local build tag
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9._]*", line), line
    assert len(PINS) == len(PIN_LINES)


def test_every_direct_dependency_is_pinned_inside_its_range() -> None:
    for requirement in CORE + EXTRAS:
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_core_dependencies_have_a_floor_and_a_cap() -> None:
    for requirement in CORE:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators & {">=", "=="}, requirement
        assert operators & {"<", "=="}, requirement


def test_one_platforms_libraries_are_not_pinned() -> None:
    assert not [name for name in PINS if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_compromised_lightning_releases_are_excluded() -> None:
    (lightning,) = [requirement for requirement in CORE if requirement.name == "lightning"]
    assert {v for v in ("2.6.1", "2.6.2", "2.6.3", "2.6.4") if v in lightning.specifier} == {"2.6.1", "2.6.4"}


def test_every_import_of_the_package_is_declared() -> None:
    imported = {
        name.split(".")[0]
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            else []
        )
    } - {*sys.stdlib_module_names, "distillery"}
    # pydantic requires one exact version of pydantic-core.
    other_names = {
        "hydra": "hydra-core",
        "hydra_plugins": "hydra-optuna-sweeper",
        "markdown_it": "markdown-it-py",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
    }
    extras = PROJECT["optional-dependencies"]
    optional = [Requirement(line) for extra in extras.keys() - {"dev", "docs"} for line in extras[extra]]
    declared = {canonicalize_name(requirement.name) for requirement in CORE + optional}
    assert "torch" in imported
    assert {name for name in imported if canonicalize_name(other_names.get(name, name)) not in declared} == set()
