"""The map that a network's head averages is found by its values."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.adapters import ImageAdapter
from distillery.models.cifar import create
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network, probe
from distillery.models.taps.pooled_map import pooled_map


def network(net: nn.Module) -> Network:
    return Network(net, ImageAdapter([0.5] * 3, [0.5] * 3), name="student")


def batch(size: int) -> dict[str, Tensor]:
    return {"image": torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    ("make", "size", "path"),
    [
        (lambda: SmallCNN(10), 8, "stages.1"),
        (lambda: create("resnet20", num_classes=10, in_chans=3), 32, "stages.2"),
        (lambda: create("wrn_16_2", num_classes=10, in_chans=3), 32, "act"),  # not the sum that ends its last stage
        (lambda: create("mobilenet_v2", num_classes=10, in_chans=3), 32, "last"),
        (lambda: timm.create_model("resnet18", num_classes=10), 64, "layer4"),
        (lambda: timm.create_model("mobilenetv3_small_100", num_classes=10), 64, "act2"),  # after its pooling: 1×1
    ],
)
def test_found(make: Callable[[], nn.Module], size: int, path: str) -> None:
    torch.manual_seed(0)
    given = network(make())
    assert pooled_map(given, batch(size)) == path
    given.tap([path, "embedding"], batch(size))
    layers = probe(given, batch(size)).layers
    torch.testing.assert_close(layers[path].mean((2, 3)), layers["embedding"])


def test_taps_and_modes_are_left_as_they_were() -> None:
    given = network(SmallCNN(10))
    given.tap(["stages.0"], batch(8))
    pooled_map(given, batch(8))
    assert given.training
    assert [*given(batch(8)).layers] == ["stages.0"]


def test_head_that_averages_no_map_is_refused() -> None:
    with pytest.raises(UserError, match="student network's head does not take the mean of a map"):
        pooled_map(network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10))), batch(8))
