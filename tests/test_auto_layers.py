"""`layers: auto` on real networks, against pairs that a person would write down."""

from typing import Literal

import pytest
import timm
import torch
from torch import Size, nn

from distillery.errors import UserError
from distillery.layers import auto_layers, stage_ends
from distillery.models.cifar import create
from distillery.models.cnn import SmallCNN
from distillery.signals import Network

Which = Literal["all", "middle", "last"]


def stages(net: nn.Module, side: int, channels: int = 3) -> dict[str, Size]:
    network = Network(net, [0.5] * channels, [0.25] * channels)
    return network.stages({"image": torch.zeros(2, channels, side, side)})


def cifar(name: str) -> dict[str, Size]:
    return stages(create(name, num_classes=10), 32)


def of_timm(name: str) -> dict[str, Size]:
    return stages(timm.create_model(name, num_classes=10), 64)


def cnn(*widths: int, side: int = 8) -> dict[str, Size]:
    return stages(SmallCNN(10, 1, widths), side, channels=1)


def same(*indices: int) -> dict[str, str]:
    return {f"stages.{i}": f"stages.{i}" for i in indices}


def sides(found: dict[str, tuple[int, int]]) -> dict[str, int]:
    assert all(height == width for height, width in found.values())
    return {path: height for path, (height, _) in found.items()}


def test_stages_of_the_cifar_networks() -> None:
    assert sides(stage_ends(cifar("resnet20"))) == {"stages.0": 32, "stages.1": 16, "stages.2": 8}
    assert sides(stage_ends(cifar("wrn_16_2"))) == {"stages.0": 32, "stages.1": 16, "stages.2": 8}
    # vgg's stages 3 and 4 are both of 4×4
    assert sides(stage_ends(cifar("vgg8"))) == {"stages.0": 32, "stages.1": 16, "stages.2": 8, "stages.4": 4}
    assert sides(stage_ends(cifar("mobilenet_v2"))) == {f"stages.{i}": 16 >> i for i in range(4)}
    assert sides(stage_ends(cifar("shufflenet_v2"))) == {f"stages.{i}": 16 >> i for i in range(3)}


def test_stages_of_timm_networks() -> None:
    assert sides(stage_ends(of_timm("resnet18"))) == {"act1": 32, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2}
    lite = {"blocks.0": 32, "blocks.1": 16, "blocks.2": 8, "blocks.4": 4, "blocks.6": 2}
    assert sides(stage_ends(of_timm("tf_efficientnet_lite0"))) == lite


def test_a_stage_that_is_one_pixel_is_no_map() -> None:
    assert sides(stage_ends(cnn(4, 4, 4, 4))) == {"stages.0": 8, "stages.1": 4, "stages.2": 2}


def test_without_a_network_s_own_list_the_shallowest_level_that_has_every_resolution_counts() -> None:
    """An inverted bottleneck widens at the old resolution: `down.0.expand` is no end of a stage."""
    shapes = {
        "stem": Size([2, 8, 16, 16]),
        "body.0.expand": Size([2, 32, 16, 16]),
        "body.0.project": Size([2, 8, 16, 16]),
        "body.0": Size([2, 8, 16, 16]),
        "body.1.expand": Size([2, 32, 16, 16]),
        "body.1.project": Size([2, 12, 8, 8]),
        "body.1": Size([2, 12, 8, 8]),
        "body.2": Size([2, 12, 8, 8]),
        "body": Size([2, 12, 8, 8]),
        "pool": Size([2, 12, 1, 1]),
        "head": Size([2, 10]),
    }
    assert stage_ends(shapes) == {"stem": (16, 16), "body": (8, 8)}
    del shapes["body"], shapes["stem"]
    assert stage_ends(shapes) == {"body.0": (16, 16), "body.2": (8, 8)}


class Plain(nn.Module):
    """A network that does not describe its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.high(self.low(x)).mean((2, 3)))


def test_a_network_that_does_not_describe_its_stages() -> None:
    assert sides(stage_ends(stages(Plain(), 8))) == {"low": 8, "high": 4}


WHICH: list[tuple[Which, dict[str, str]]] = [("all", same(0, 1, 2)), ("middle", same(1)), ("last", same(2))]


@pytest.mark.parametrize(("which", "expected"), WHICH)
def test_networks_of_one_family_are_paired_stage_by_stage(which: Which, expected: dict[str, str]) -> None:
    student = cifar("resnet20")
    for teacher in ("resnet56", "resnet32x4", "wrn_40_2"):
        assert auto_layers(student, cifar(teacher), which) == expected
    assert auto_layers(cifar("wrn_16_2"), cifar("wrn_40_2"), which) == expected
    assert auto_layers(cnn(4, 8, 16), cnn(8, 16, 32), which) == expected


def test_networks_of_different_depth() -> None:
    assert auto_layers(cifar("vgg8"), cifar("vgg13"), "all") == same(0, 1, 2, 4)
    assert auto_layers(cifar("vgg8"), cifar("vgg13"), "middle") == same(2)
    # the stage that the teacher has no resolution for goes to its last one
    assert auto_layers(cifar("vgg8"), cifar("resnet56"), "all") == {**same(0, 1, 2), "stages.4": "stages.2"}
    assert auto_layers(cifar("vgg8"), cifar("resnet56"), "last") == {"stages.4": "stages.2"}
    # of a deeper teacher the stages at the same number of halvings, whatever the images' own size
    assert auto_layers(cnn(16, 32), cnn(64, 128, 256), "all") == same(0, 1)
    assert auto_layers(cnn(16, 32, side=28), cnn(64, 128, 256, side=14), "all") == same(0, 1)


def test_mobile_networks() -> None:
    assert auto_layers(cifar("shufflenet_v2"), cifar("resnet32x4"), "all") == same(0, 1, 2)
    assert auto_layers(cifar("mobilenet_v2"), cifar("vgg13"), "all") == {**same(0, 1, 2), "stages.3": "stages.4"}
    assert auto_layers(cifar("mobilenet_v2"), cifar("vgg13"), "middle") == same(2)


def test_timm_networks() -> None:
    resnet, lite = of_timm("resnet18"), of_timm("tf_efficientnet_lite0")
    pairs = {"act1": "blocks.0", "layer1": "blocks.1", "layer2": "blocks.2", "layer3": "blocks.4", "layer4": "blocks.6"}
    assert auto_layers(resnet, lite, "all") == pairs
    assert auto_layers(lite, resnet, "all") == {theirs: ours for ours, theirs in pairs.items()}
    assert auto_layers(resnet, lite, "middle") == {"layer2": "blocks.2"}
    assert auto_layers(resnet, lite, "last") == {"layer4": "blocks.6"}


def test_of_equally_near_resolutions_the_one_at_the_nearest_depth() -> None:
    """A spectrogram's network, which halves the time axis first."""
    teacher = {"a": (16, 16), "b": (16, 8), "c": (16, 4), "d": (8, 4)}
    student = {"early": (16, 12), "late": (16, 6)}

    def shapes(sizes: dict[str, tuple[int, int]]) -> dict[str, Size]:
        return {path: Size([2, 4, *size]) for path, size in sizes.items()}

    assert auto_layers(shapes(student), shapes(teacher), "all") == {"early": "b", "late": "c"}


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_maps_is_refused(role: str) -> None:
    networks = {"student": cifar("resnet20"), "teacher": cifar("resnet56")}
    networks[role] = stages(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 8)
    with pytest.raises(UserError, match=rf"the {role} network has none.*layers: \{{student_layer: teacher_layer\}}"):
        auto_layers(**networks, which="all")
