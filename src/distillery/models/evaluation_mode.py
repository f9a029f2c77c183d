"""Evaluation mode for the length of a `with` block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is back in the mode it had."""
    with in_evaluation_mode(network), torch.no_grad():
        yield


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is back in the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
