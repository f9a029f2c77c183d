"""Adding a loss takes one source file, one config and one test; everything that lists losses finds it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''\
"""Squared error of probabilities (Brier, 1950)."""

from torch import Tensor

from distillery.core.numerics import Reduction, log_softmax, reduce_rows, require_same_shape
from distillery.losses.logit_term import LogitTerm
from distillery.losses.settings import Positive
from distillery.losses.term import OF_CLASSES, Contract


def brier(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, reduction: Reduction = "mean"
) -> Tensor:
    """Squared distance of the softened probabilities."""
    require_same_shape(student_logits, teacher_logits)
    gap = log_softmax(teacher_logits, temperature).exp() - log_softmax(student_logits, temperature).exp()
    return reduce_rows(gap.square().sum(-1), reduction)


class Brier(LogitTerm, function=brier):
    """`brier` on the rows of logits that count."""

    contract = Contract(
        short_name="brier",
        scale="at most 2",
        properties=OF_CLASSES | {"symmetric"},
        paper="https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2",
        formula=r"\\sum_c (p_t^c - p_s^c)^2",
        values_of="the paper",
    )

    temperature: Positive = 2.0
'''
CONFIG = """\
# @package loss.brier
# The Brier score between the two networks.
_target_: distillery.losses.response.brier.Brier
weight: 1.0        # ours
teacher: main
temperature: 2.0   # ours
"""
TEST = """\
from torch import Tensor

from fixtures import formulas


@formulas.plain("brier", "s_logits", "t_logits")
def plain_brier(x: formulas.Inputs) -> Tensor:
    return (formulas.p(x["s_logits"], 2.0) - formulas.p(x["t_logits"], 2.0)).square().sum(1).mean()
"""
SEEN = """\
import sys

sys.path.insert(0, "scripts")
import losses_page
from distillery.config.loss_catalogue import losses
from distillery.losses import functional

assert "`brier`" in losses_page.index()
assert "## brier" in losses_page.page("response")
assert [(s.name, s.default) for s in dict((loss.name, loss) for loss in losses())["brier"].settings][-1] == (
    "temperature", "2.0",
)
assert "brier" in functional.__all__ and callable(functional.brier)
"""


@pytest.mark.slow
def test_a_new_loss_is_found_everywhere(tmp_path: Path) -> None:
    for part in ("src", "configs", "tests", "benchmarks", "scripts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src/distillery/losses/response/brier.py").write_text(SOURCE)
    (tmp_path / "configs/loss/response/brier.yaml").write_text(CONFIG)
    (tmp_path / "tests/losses/test_brier.py").write_text(TEST)

    def run(*command: str, codes: tuple[int, ...] = (0,)) -> str:
        variables = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "120"}
        ended = subprocess.run([sys.executable, *command], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert ended.returncode in codes, ended.stdout + ended.stderr
        return ended.stdout

    run("-c", SEEN)
    assert " brier " in run("-m", "distillery.commands.losses", "--family", "response")
    assert " brier " in run("benchmarks/losses.py", "--only", "brier", codes=(0, 1))  # 1: the machine was busy
    tests = run("-m", "pytest", "-q", "-k", "brier or TestFiles or plain_formula", "tests/losses")
    assert re.search(r"^8 passed", tests, re.MULTILINE)  # 2 of the term, 5 of the files, 1 of the formulas
    assert "temperature: 2.0" in run("-m", "distillery.commands.train", "loss/response=[brier]", "--cfg", "job")
