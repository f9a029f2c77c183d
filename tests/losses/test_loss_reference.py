"""Values and gradients of the losses are those of the named reference implementations, in float64."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillery.losses import functional

REFERENCE = Path(__file__).parents[1] / "reference"
CASES = json.loads((REFERENCE / "losses.json").read_text())


def test_every_function_of_the_reference_is_there() -> None:
    assert len(CASES) == 44
    assert {case["function"] for case in CASES} <= set(functional.__all__)


def test_values_and_gradients() -> None:
    with np.load(REFERENCE / "losses.npz") as stored:
        arrays = dict(stored)
    for case in CASES:
        check(case, arrays)


def check(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    inputs = {argument: torch.tensor(arrays[name]) for argument, name in case["args"].items()}
    learned = {argument: name for argument, name in case["args"].items() if name in case["grad_norm"]}
    assert learned
    for argument in learned:
        inputs[argument].requires_grad_()

    value = getattr(functional, case["function"])(**inputs, **case["kwargs"])
    value.backward()

    assert value.item() == pytest.approx(case["value"], rel=1e-9)
    for argument, name in learned.items():
        gradient = inputs[argument].grad
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(case["grad_norm"][name], rel=1e-9)
        first = gradient.flatten()[: len(case["grad_first"][name])].tolist()
        assert first == pytest.approx(case["grad_first"][name], rel=1e-9, abs=1e-15)
