"""The small CNN: sizes, stages, and independence of the batch without batch statistics."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN


def test_parameters_of_the_demo_student() -> None:
    net = SmallCNN(num_classes=10, in_chans=1, widths=(16, 32))
    convolutions, norms, head = 16 * 1 * 9 + 32 * 16 * 9, 2 * 16 + 2 * 32, 32 * 10 + 10
    assert sum(parameter.numel() for parameter in net.parameters()) == convolutions + norms + head == 5178


def test_stages_are_the_maps_before_pooling() -> None:
    net = SmallCNN(num_classes=3, in_chans=2, widths=(4, 6, 8)).eval()
    found: dict[str, Tensor] = {}
    for stage in net.feature_info:
        name = str(stage["module"])
        net.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: found.__setitem__(name, output))
    logits = net(torch.rand(2, 2, 16, 12))
    assert {name: tuple(output.shape) for name, output in found.items()} == {
        "stages.0": (2, 4, 16, 12),
        "stages.1": (2, 6, 8, 6),
        "stages.2": (2, 8, 4, 3),
    }
    pooled = found["stages.2"].flatten(2).mean(2)
    torch.testing.assert_close(logits, functional.linear(pooled, net.head.weight, net.head.bias))


@pytest.mark.parametrize(
    ("norm", "layer", "per_sample"),
    [("batch", nn.BatchNorm2d, False), ("group", nn.GroupNorm, True), ("none", nn.Identity, True)],
)
def test_norms(norm: str, layer: type[nn.Module], per_sample: bool) -> None:
    torch.manual_seed(0)
    net = SmallCNN(num_classes=4, in_chans=1, widths=(12, 20), norm=norm).train()  # type: ignore[arg-type]
    assert any(isinstance(module, layer) for module in net.modules()) == (norm != "none")
    images = torch.rand(6, 1, 8, 8)
    alone = torch.cat([net(images[:2]), net(images[2:])])
    assert torch.allclose(net(images), alone, atol=1e-6) == per_sample
    assert bool(list(net.buffers())) == (not per_sample)
    net(images).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"^norm=bach: .*Did you mean 'batch'"):
        SmallCNN(num_classes=2, norm="bach")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^widths=\[\]: .*positive widths, one per stage"):
        SmallCNN(num_classes=2, widths=())
    with pytest.raises(UserError, match=r"^widths=\[16, 0\]"):
        SmallCNN(num_classes=2, widths=(16, 0))
