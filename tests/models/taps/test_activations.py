"""Where a layer ends in an activation, the tap before it."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.models.adapters import ImageAdapter
from distillery.models.cifar import create
from distillery.models.cnn import SmallCNN
from distillery.models.taps.activations import before_activation
from distillery.models.taps.network import Network

BATCH = {"image": torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))}


def network(net: nn.Module) -> Network:
    return Network(net, ImageAdapter([0.5], [0.5]), name="student")


class Called(nn.Module):
    """Its activation is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "path", "tap"),
    [
        (lambda: SmallCNN(10, 1, (4, 6)), "stages.1", "stages.1.2:input"),
        (lambda: SmallCNN(10, 1, (4, 6), norm="none"), "stages.0", "stages.0.1:input"),
        (lambda: SmallCNN(10, 1, (4, 6)), "stages.1.2", "stages.1.2:input"),  # the activation itself
        (lambda: SmallCNN(10, 1, (4, 6)), "stages.1.1", "stages.1.1"),  # ends in no activation
        (lambda: timm.create_model("test_resnet", num_classes=10, in_chans=1), "layer2", "layer2.0.act2:input"),
        (Called, "conv", "conv"),
    ],
)
def test_tap(net: Callable[[], nn.Module], path: str, tap: str) -> None:
    assert before_activation(network(net()), path, BATCH) == tap


def test_it_is_what_the_activation_is_given() -> None:
    """Through the shortcut of a residual block: its sum, not the last BatchNorm."""
    own = network(create("resnet8x4", num_classes=10, in_chans=1)).eval()
    tap = before_activation(own, "stages.1", BATCH)
    own.tap([tap, "stages.1"], BATCH)
    layers = own(BATCH).layers
    assert layers[tap].min() < 0
    torch.testing.assert_close(layers[tap].relu(), layers["stages.1"], rtol=0, atol=0)
