"""Folded BatchNorms: which are, that nothing else changes, and that they come back."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from distillery.models.cifar import create
from distillery.models.folding import foldable
from distillery.models.taps.network import Network
from distillery.models.weights import weights_hash
from distillery.teachers.frozen import Teacher

BATCH = {"image": torch.rand(4, 3, 32, 32), "index": torch.arange(4)}


def trained(net: nn.Module) -> nn.Module:
    """With statistics and scales as training leaves them, far from those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return net


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


class Branching(nn.Module):
    """The output of its convolution is read by a BatchNorm and by a shortcut around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((self.bn(x) + x).mean((2, 3)))


class Twice(Branching):
    """Its convolution runs twice, once without the BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.bn(self.conv(x)) + self.conv(2 * x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: create("resnet20", num_classes=10, in_chans=3), 0),
        (lambda: create("vgg8", num_classes=10, in_chans=3), 0),
        (lambda: timm.create_model("resnet18", num_classes=10), 0),
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=10), 0),  # activations inside of its BatchNorms
        (Branching, 1),
        (Twice, 1),
    ],
    ids="resnet vgg timm_resnet timm_mobilenet branching twice".split(),
)
def test_outputs_and_hash_stay_the_same_until_it_is_unfolded(make: Callable[[], nn.Module], left: int) -> None:
    teacher = Teacher(trained(make()))
    before, sha256, all_norms = teacher(BATCH).logits, weights_hash(teacher.net), norms(teacher.net)
    assert teacher.sha256 == sha256
    teacher.fold_batchnorms(BATCH)
    assert norms(teacher.net) == left
    torch.testing.assert_close(teacher(BATCH).logits, before, rtol=1e-3, atol=1e-3)
    assert teacher.remarks == [f"{all_norms - left} of its BatchNorms are folded into convolutions"]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert (teacher.sha256, teacher.expected_fingerprint()) == (sha256, teacher.fingerprint())
    teacher.unfold()
    assert (norms(teacher.net), teacher.fingerprint()) == (all_norms, sha256)
    assert torch.equal(teacher(BATCH).logits, before)


def test_a_tapped_layer_is_not_folded() -> None:
    teacher = Teacher(trained(create("resnet20", num_classes=10, in_chans=3)))
    pairs = foldable(teacher, BATCH)
    norm, convolution = next(iter(pairs.items()))
    others = [name for name in pairs if name != norm]
    for tap in (norm, convolution, f"{norm}:input", f"{convolution}:weight"):
        teacher.tap([tap], BATCH)
        before = teacher(BATCH).layers
        assert [*foldable(teacher, BATCH)] == others
        teacher.fold_batchnorms(BATCH)
        for name, value in teacher(BATCH).layers.items():
            torch.testing.assert_close(value, before[name], rtol=1e-3, atol=1e-3)
        teacher.unfold()


def test_batch_statistics_cannot_be_folded() -> None:
    teacher = Teacher(trained(create("resnet20", num_classes=10, in_chans=3)), bn_mode="train")
    teacher.fold_batchnorms(BATCH)
    assert norms(teacher.net) == 21
    assert not teacher.remarks


def test_a_new_network_without_running_statistics_is_left() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(3600, 2)
    )
    assert foldable(Network(net), BATCH) == {}
