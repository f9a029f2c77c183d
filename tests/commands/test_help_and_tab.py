"""What is answered at once, in a process of its own: --help, --cfg and TAB; and what begins soon."""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from distillery.commands.entry import heavy_imports
from distillery.core.paths import CONFIGS

HEAVY = ("torch", "torchvision", "lightning", "timm", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "numpy")
# Run in a process of its own: what a command answers, and on the last line what it imported for that.
LIGHT = f"""
import importlib, json, sys
sys.argv = sys.argv[1:]
try:
    importlib.import_module(f"distillery.commands.{{sys.argv[0].removeprefix('distill-')}}").main()
except SystemExit as exit:
    assert not exit.code, exit.code
print()
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


def light(*command_line: str, **environment: str) -> str:
    """What a command answers in a process of its own, in which it imports nothing heavy."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *command_line], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    answer, _, heavy = done.stdout.rstrip("\n").rpartition("\n")
    assert json.loads(heavy) == []
    return answer


def completed(line: str) -> list[str]:
    """What TAB offers after `line`."""
    return light(line.split()[0], "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).split()


def test_a_study_begins_without_what_few_runs_need() -> None:
    few = "{'timm', 'wandb', 'torchao', 'transformers.modeling_utils'}"
    code = f"import sys, distillery.runs.study; print({few} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_the_second_job_of_a_sweep_keeps_nothing_of_the_first() -> None:
    """The collector must be on afterwards, and reach what has become garbage since the first imports."""
    try:
        with heavy_imports():
            assert not gc.isenabled()
        former_job = Path("network")
        with heavy_imports():
            pass
        assert gc.isenabled()
        assert any(each is former_job for each in gc.get_objects())
    finally:
        gc.unfreeze()


def test_help_lists_every_option_of_every_group() -> None:
    shown = light("distill-train", "--help")
    choices, _, settings = shown.partition("== Config")
    groups = dict(re.findall(r"^([\w/]+): (.+)$", choices, re.MULTILINE))
    for path in CONFIGS.glob("*/**/*.yaml"):
        group = path.parent.relative_to(CONFIGS).as_posix()
        if group not in ("hydra", "study"):
            assert path.stem in groups[group].split(", "), path
    assert "temperature: 4.0" in settings


@pytest.mark.parametrize(
    ("name", "setting"),
    [("evaluate", "run"), ("predict", "top"), ("export", "out"), ("report", "runs"), ("study", "replace")],
)
def test_the_other_commands_help_with_what_is_theirs(name: str, setting: str) -> None:
    shown = light(f"distill-{name}", "--help")
    assert f"distill-{name}" in shown
    assert re.search(rf"^{setting}:", shown, re.MULTILINE)
    assert not re.search(r"^(experiment|loss/\w+):", shown, re.MULTILINE), "an option of distill-train"


def test_the_config_is_shown() -> None:
    shown = yaml.safe_load(light("distill-train", "--cfg", "job", "experiment=digits_demo", "seed=3"))
    assert (shown["seed"], shown["name"], shown["loss"]["kd"]["temperature"]) == (3, "digits_demo", 4.0)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("distill-train loss/response=lo", ["loss/response=logit_mse", "loss/response=logit_standardized_kd"]),
        ("distill-train experiment=digits_", ["experiment=digits_demo", "experiment=digits_teacher"]),
        ("distill-train loss.kd.temp", ["loss.kd.temperature="]),
        ("distill-evaluate sp", ["split="]),
    ],
)
def test_tab_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_a_reader_that_has_seen_enough() -> None:
    """As `distill-train --help | head -1`."""
    code = "from distillery.commands.train import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0
