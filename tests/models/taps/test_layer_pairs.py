"""`layers: auto` and wildcards on real networks, against pairs that a person would write down."""

from typing import Literal

import pytest
import timm
import torch
from torch import Size, nn

from distillery.core.errors import UserError
from distillery.models.adapters import ImageAdapter
from distillery.models.cifar import create
from distillery.models.cnn import SmallCNN
from distillery.models.taps.layer_pairs import auto_layers, blocks, named_layers, stage_ends
from distillery.models.taps.network import Network

Which = Literal["all", "inner", "middle", "last"]


def stages(net: nn.Module, side: int, channels: int = 3) -> dict[str, Size]:
    network = Network(net, ImageAdapter([0.5] * channels, [0.25] * channels))
    return network.stages({"image": torch.zeros(2, channels, side, side)})


def cifar(name: str) -> dict[str, Size]:
    return stages(create(name, num_classes=10), 32)


def of_timm(name: str) -> dict[str, Size]:
    return stages(timm.create_model(name, num_classes=10), 64)


def cnn(*widths: int, side: int = 8) -> dict[str, Size]:
    return stages(SmallCNN(10, 1, widths), side, channels=1)


def vit(depth: int, width: int = 32, patch: int = 7) -> dict[str, Size]:
    kwargs = {"img_size": 28, "patch_size": patch, "in_chans": 1, "embed_dim": width, "depth": depth, "num_heads": 2}
    return stages(timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs), 28, channels=1)


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


WHICH: list[tuple[Which, dict[str, str]]] = [
    ("all", same(0, 1, 2)),
    ("inner", same(0, 1)),
    ("middle", same(1)),
    ("last", same(2)),
]


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
    assert auto_layers(cnn(16), cnn(64, 128), "inner") == same(0)  # there is no other
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


def blocks_of(*indices: int) -> list[str]:
    return [f"blocks.{i}" for i in indices]


def test_blocks_of_transformers() -> None:
    assert blocks(vit(3)) == blocks_of(0, 1, 2)
    assert blocks(cifar("resnet20")) == []
    with_levels = {
        "patches": Size([2, 8, 4, 4]),
        "body.layer.0.parts.0": Size([2, 17, 8]),
        "body.layer.0.parts.1": Size([2, 17, 8]),
        "body.layer.0.parts.2": Size([2, 17, 8]),
        "body.layer.0": Size([2, 17, 8]),
        "body.layer.1": Size([2, 17, 8]),
        "norms.0": Size([2, 17, 8]),
        "head": Size([2, 10]),
    }
    assert blocks(with_levels) == ["body.layer.0", "body.layer.1"]


def test_a_network_that_flattens_its_last_map_is_no_transformer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(4, 8, 3, 2, 1),
        nn.Flatten(2),
        nn.AvgPool1d(4),  # [2, 8, 1]
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    assert auto_layers(stages(net, 8), cifar("resnet20"), "all") == {"0": "stages.0", "1": "stages.1"}


@pytest.mark.parametrize(
    ("student", "teacher", "partners"),
    [(2, 6, (2, 5)), (3, 12, (3, 7, 11)), (4, 12, (2, 5, 8, 11)), (6, 12, (1, 3, 5, 7, 9, 11)), (5, 5, range(5))],
)
def test_transformers_are_paired_by_relative_depth(student: int, teacher: int, partners: tuple[int, ...]) -> None:
    """Every k-th block of the deeper one, up to the last: TinyBERT's map."""
    shallow, deep = blocks_of(*range(student)), blocks_of(*partners)
    ours, theirs = vit(student), vit(teacher, width=48, patch=4)
    assert auto_layers(ours, theirs, "all") == dict(zip(shallow, deep, strict=True))
    assert auto_layers(theirs, ours, "all") == dict(zip(deep, shallow, strict=True))
    assert auto_layers(ours, theirs, "last") == {shallow[-1]: deep[-1]}
    assert auto_layers(ours, theirs, "middle") == {shallow[student // 2]: deep[student // 2]}


def test_convolutional_networks_and_transformers_are_paired_by_relative_depth() -> None:
    network, transformer = cnn(4, 8, 16, side=28), vit(6)
    assert auto_layers(network, transformer, "all") == {f"stages.{i}": f"blocks.{2 * i + 1}" for i in range(3)}
    assert auto_layers(transformer, network, "all") == {f"blocks.{2 * i + 1}": f"stages.{i}" for i in range(3)}
    assert auto_layers(cnn(4, 8, 16), vit(2), "all") == {"stages.1": "blocks.0", "stages.2": "blocks.1"}


PATHS = ["stem", "stages", *(f"stages.{i}{part}" for i in range(11) for part in ("", ".conv", ".act")), "head"]


def test_wildcards_match_within_a_name_and_pair_in_order() -> None:
    assert named_layers({"stages.*": "stages.*"}, PATHS, PATHS) == same(*range(11))
    found = named_layers({"stages.*.conv:input": "s*.*[0]", "stem": "head"}, PATHS, PATHS)
    assert found == {f"stages.{i}.conv:input": f"stages.{i}[0]" for i in range(11)} | {"stem": "head"}


def test_names_without_wildcards_pass() -> None:
    layers = {"embedding": "head", "stages.0[1]": "no.such:input"}
    assert named_layers(layers, PATHS, PATHS) == layers


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (
            {"stages.*": "st*"},
            r"pairs 11 of the student's layers \(stages.0, .*\) with 2 of the teacher's \(stem, stages\)",
        ),
        ({"stages.*": "stem"}, r"with 1 of the teacher's \(stem\)\. Name the pairs one by one"),
        ({"stage.*": "stages.*"}, r"The student network has no layer that 'stage\.\*' matches\. Did you mean 'stages"),
        ({"stages.*": "blocks.*:input"}, r"The teacher network has no layer that 'blocks\.\*:input' matches"),
        ({"st*": "st*", "stem": "head"}, "names the student's layer 'stem' twice"),
    ],
)
def test_wildcards_that_cannot_be_paired(layers: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        named_layers(layers, PATHS, PATHS)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_maps_is_refused(role: str) -> None:
    networks = {"student": cifar("resnet20"), "teacher": cifar("resnet56")}
    networks[role] = stages(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), 8)
    with pytest.raises(UserError, match=rf"the {role} network has none.*layers: \{{student_layer: teacher_layer\}}"):
        auto_layers(**networks, which="all")
