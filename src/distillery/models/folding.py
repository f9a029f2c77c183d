"""Folds BatchNorms in evaluation mode into the convolutions before them: the same outputs for less work."""

from collections.abc import Mapping
from typing import Any

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from distillery.models.taps.network import Network, watch

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def foldable(network: Network, batch: Mapping[str, Tensor]) -> dict[str, str]:
    """The path of each BatchNorm that reads what a convolution gives, and the path of that convolution.

    Layers are left out that run more than once in a forward, are tapped, or have no running statistics. Whether
    something else reads the convolution's output too does not show here.
    """
    runs: dict[str, int] = {}
    given: dict[int, tuple[str, Tensor]] = {}  # by identity of the output, which is kept so that no other takes its id
    pairs: dict[str, str] = {}

    def note(path: str, inputs: Any, output: Tensor) -> None:
        runs[path] = runs.get(path, 0) + 1
        module = network.net.get_submodule(path)
        if type(module) in CONVOLUTIONS:
            given[id(output)] = path, output
        elif type(module) in NORMS and id(inputs[0]) in given:
            pairs[path] = given[id(inputs[0])][0]

    tapped = {path for path, module in network.net.named_modules() if _is_hooked(module)}
    tapped |= network.tapped_parameters
    watch(network, batch, note)
    return {
        norm: convolution
        for norm, convolution in pairs.items()
        if not {norm, convolution} & tapped
        and runs[norm] == runs[convolution] == 1
        and network.net.get_submodule(norm).running_mean is not None
    }


def fold(convolution: nn.Module, norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What takes the place of both: a new convolution, and what is left of the BatchNorm, the activation of timm's."""
    assert isinstance(convolution, CONVOLUTIONS)
    assert isinstance(norm, NORMS)
    rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
    return fuse_conv_bn_eval(convolution, norm).requires_grad_(False), rest.eval()


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
