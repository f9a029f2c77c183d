"""The benchmark's plain formulas: the losses equal them, and none is left out."""

import importlib.util
from pathlib import Path

import pytest
import torch

from distillery.losses import functional

SPEC = importlib.util.spec_from_file_location("losses", Path(__file__).parents[2] / "benchmarks" / "losses.py")
assert SPEC is not None
assert SPEC.loader is not None
BENCHMARK = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(BENCHMARK)
CALLS = BENCHMARK.calls()
# Parts of losses, and those whose cost is that of the modules they are given.
WITHOUT = {"mean_score", "mgd", "ofd_batch_margin", "ofd_bn_margin", "semckd"}


def test_every_loss_is_timed() -> None:
    assert set(CALLS) == set(functional.__all__) - WITHOUT


@pytest.mark.parametrize("name", sorted(CALLS))
def test_loss_equals_its_plain_formula(name: str) -> None:
    x = {
        key: value.detach().double() if value.is_floating_point() else value
        for key, value in BENCHMARK.inputs(16).items()
    }
    ours, plain = CALLS[name]
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=0)  # where a formula has an epsilon, it shows
