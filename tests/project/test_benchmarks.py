"""The benchmarks run and write what they measured. Their times are not tested."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.core.paths import CONFIGS

ROOT = CONFIGS.parent


def test_every_benchmark_is_on_the_page() -> None:
    """With options that it takes, and what it printed."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- benchmark: (\w+\.py)(.*?) -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert {name for name, _, _ in blocks} == {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    for name, options, shown in blocks:
        assert f"`python benchmarks/{name}{options}`" in shown
        assert "| " in shown
        content = (ROOT / "benchmarks" / name).read_text(encoding="utf-8")
        assert all(f'"{option}"' in content for option in re.findall(r"--\w+", options))


def test_numbers_below_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from parts.options import positive

    assert positive("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1, and not 0"):
        positive("0")


@pytest.mark.long
def test_training_steps_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/training.py", "--pairs", "2", "--steps", "2", "--json", str(file)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr  # 1: the machine was busy
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {"by hand", "alone", "plain", "tuned", "cached", "timm"} <= found["ratios"].keys()
    assert found["ratios"]["by hand"] == 1
    assert all({"alone", "plain", "cached"} <= found[pair]["ratios"].keys() for pair in ("vit", "text", "causal_lm"))
    assert {"plain", "lightning"} <= found["demo"]["ratios"].keys()
    for form, (low, high) in found["ranges"].items():
        assert 0 < low <= found["ratios"][form] <= high
        assert f" {form} " in ended.stdout


@pytest.mark.long
def test_pictures_are_read_and_runs_on_them_started(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    size = ["--pairs", "1", "--pictures", "64", "--workers", "1", "--files", "2000"]
    command = [sys.executable, "benchmarks/data.py", *size, "--json", str(file)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr  # 1: the machine was busy
    found = json.loads(file.read_text(encoding="utf-8"))
    for name in ("crop and flip", "and RandAugment"):
        assert found[name]["images_a_second"].keys() == {"this project", "torchvision"}
        assert found[name]["ratio"] > 0
    assert {"this project", "torchvision.io.decode_image"} <= found["decoding_ms"].keys()
    assert found["starts"]["second start"]["seconds"] < found["starts"]["first start"]["seconds"]
