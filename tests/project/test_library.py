"""The package as a library: the code of the guide, and what importing the package costs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import distillery
from distillery.training.distiller import Distiller

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "library.md"


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_guide_trains_a_student(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.partition("\ndef fit")[2].splitlines() if line.strip()]) <= 15
    torch.manual_seed(0)
    found: dict[str, Any] = {"__name__": "notebook"}
    exec(code, found)
    assert float(capsys.readouterr().out.split()[-1]) > 0.8
    images = torch.stack([sample["image"] for sample in found["samples"]])
    with torch.no_grad():
        student, teacher = (net(images).argmax(1) for net in (found["student"].net, found["teacher"]))
    assert (student == teacher).float().mean() > 0.8


def test_the_package_imports_nothing_heavy_before_it_is_used() -> None:
    code = "import sys, distillery; print('torch' in sys.modules, dir(distillery).count('Distiller'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False", "1"]
    assert distillery.Distiller is Distiller
    with pytest.raises(AttributeError, match="has no attribute 'Distill'"):
        distillery.Distill  # noqa: B018
