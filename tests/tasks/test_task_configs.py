"""Every config of a task makes a task; found by walking package and configs."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import distillery.tasks
from distillery.models.text.transformer import HEADS
from distillery.tasks.task import Task

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "task").glob("*.yaml"))
MODULES = {found.name for found in pkgutil.iter_modules(distillery.tasks.__path__)} - {
    "task",
    "tokens",
    "evaluate",
    "windows",
    "fidelity",
    "answers",
    "metrics",
    "calibration",
    "cka",
}
MEMBERS = sorted(name for name in vars(Task) if inspect.isfunction(vars(Task)[name]) and not name.startswith("_"))
PIPELINE_TAGS = set("text-classification token-classification fill-mask sentence-similarity text-generation".split())
PIPELINE_TAGS |= {"question-answering"}
OF_IMAGES = "semantic_segmentation", "image-segmentation"  # head and tag of a task without texts


def test_every_task_has_its_config() -> None:
    assert {path.stem for path in CONFIGS} == MODULES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_holds_every_setting_with_its_default(path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    module, _, name = config.pop("_target_").rpartition(".")
    assert module == f"distillery.tasks.{path.stem}"
    task = getattr(importlib.import_module(module), name)
    defaults = {name: given.default for name, given in inspect.signature(task).parameters.items()}
    assert config == defaults | {"metrics": [*defaults["metrics"]]}
    made = task(**config)
    assert {name: getattr(made, name) for name in config} == config
    members = "chosen_metrics loss measured metric outputs predict probabilities rows score_rows update_metrics"
    assert members.split() == MEMBERS
    assert all(callable(getattr(made, member)) for member in MEMBERS)
    assert (made.head in HEADS and made.pipeline_tag in PIPELINE_TAGS) or (made.head, made.pipeline_tag) == OF_IMAGES
    low, high = made.score_range
    metric = made.metric(3)
    assert metric.higher_is_better in (None, made.higher_is_better)
    assert low < high


def test_tasks_are_told_apart_by_score_or_head() -> None:
    tasks = [importlib.import_module(f"distillery.tasks.{name}") for name in sorted(MODULES)]
    made = [
        (member.score, member.head)
        for module in tasks
        for member in vars(module).values()
        if inspect.isclass(member) and member.__module__ == module.__name__ and hasattr(member, "head")
    ]
    assert len(made) == len(MODULES) == len(set(made))
