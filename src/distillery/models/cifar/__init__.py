"""The networks for 32x32 images on which the distillation literature compares its methods.

Structure, parameter counts and initialisation are those of the CIFAR-100 benchmark of Tian et al. 2020 (CRD),
which most later papers use; where they differ from the networks' own papers each file says so.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from distillery.core.errors import UserError, did_you_mean
from distillery.models.cifar.mobilenet import MobileNetV2
from distillery.models.cifar.resnet import ResNet
from distillery.models.cifar.shufflenet import ShuffleNetV1, ShuffleNetV2
from distillery.models.cifar.vgg import VGG
from distillery.models.cifar.wrn import WideResNet

NAMES: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": partial(ResNet, depth=20),
    "resnet32": partial(ResNet, depth=32),
    "resnet44": partial(ResNet, depth=44),
    "resnet56": partial(ResNet, depth=56),
    "resnet110": partial(ResNet, depth=110),
    "resnet8x4": partial(ResNet, depth=8, stem=32, widths=(64, 128, 256)),
    "resnet32x4": partial(ResNet, depth=32, stem=32, widths=(64, 128, 256)),
    "wrn_16_2": partial(WideResNet, depth=16, widen=2),
    "wrn_40_1": partial(WideResNet, depth=40, widen=1),
    "wrn_40_2": partial(WideResNet, depth=40, widen=2),
    "vgg8": partial(VGG, convs=1),
    "vgg13": partial(VGG, convs=2),
    "shufflenet_v1": ShuffleNetV1,
    "shufflenet_v2": ShuffleNetV2,
    "mobilenet_v2": MobileNetV2,
}


def create(name: str, num_classes: int, in_chans: int = 3) -> nn.Module:
    """The network called `name` in `NAMES`, newly initialised, for images [B,in_chans,32,32].

    Raises:
        UserError: no such name.
    """
    if name not in NAMES:
        raise UserError(f"name={name}: there is no such CIFAR network." + did_you_mean(name, NAMES))
    return NAMES[name](num_classes, in_chans)
