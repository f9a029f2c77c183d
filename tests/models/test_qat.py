"""Linear layers that round as their integer versions: against NumPy, and after conversion."""

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from distillery.core.errors import UserError
from distillery.models.cnn import SmallCNN
from distillery.models.qat import SCHEMES, Scheme, convert, simulate
from distillery.models.weights import weights_hash
from fixtures.documents import tiny_llama

BITS = {"int8_dynamic": 8, "8da4w": 4, "int4_weight_only": 4, "int2_weight_only": 2}
Array = NDArray[np.float32]


def rounded_weights(w: Array, bits: int) -> Array:
    """Of each row in 8 bits, else of each 32 weights: integers from -2^(b-1) to 2^(b-1) - 1 times one scale."""
    groups = w.reshape(len(w), -1, w.shape[1] if bits == 8 else 32)
    scale = np.abs(groups).max(2, keepdims=True) / np.float32((2**bits - 1) / 2)
    return (np.clip(np.round(groups * (1 / scale)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).reshape(w.shape)


def rounded_inputs(x: Array) -> Array:
    """Of each token 256 levels from its lowest to its highest value, of which one is 0."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = (high - low) / np.float32(255)
    zero = np.clip(-128 - np.round(low / scale), -128, 127)
    return ((np.clip(np.round(x * (1 / scale)) + zero, -128, 127) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_rounds_as_numpy_does(scheme: Scheme) -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(64, 24), nn.Linear(24, 3))
    x = torch.randn(2, 5, 64) + torch.tensor([0.0, 4.0])[:, None, None]
    w, b = (each.detach().numpy().copy() for each in net[0].parameters())
    state = {name: each.clone() for name, each in net.state_dict().items()}
    simulate(net, scheme)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(net.state_dict()[name], each) for name, each in state.items())
    given = x.numpy() if scheme.endswith("weight_only") else rounded_inputs(x.numpy())
    expected = given @ rounded_weights(w, BITS[scheme]).T + b
    np.testing.assert_allclose(net[0](x).detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert type(net[1]) is nn.Linear, "the classifier stays as it is"
    assert np.abs(expected - (x.numpy() @ w.T + b)).max() > 0.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_converted_networks_compute_the_same(scheme: Scheme) -> None:
    torch.manual_seed(0)
    image = torch.randn(3, 1, 28, 28)
    vit: Any = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=7, embed_dim=32, depth=2, num_heads=2, num_classes=5, in_chans=1
    )
    llama: Any = tiny_llama(90, hidden_size=32, intermediate_size=64)
    ids = torch.randint(0, 90, (3, 9))
    for net, out in ((vit, lambda each: each(image)), (llama, lambda each: each(input_ids=ids).logits)):
        plain, before = copy.deepcopy(net).eval(), weights_hash(net)
        assert "linear layers are trained as" in simulate(net, scheme)
        assert weights_hash(net) != before == weights_hash(plain)
        net.train()
        out(net).logsumexp(-1).sum().backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in net.parameters())
        net.eval()
        with torch.no_grad():
            trained_for, converted = out(net), copy.deepcopy(net)
            convert(converted, scheme)
            torch.testing.assert_close(out(converted), trained_for, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(out(plain), trained_for, atol=1e-3)
        kept = [each.weight.qdata for each in converted.modules() if hasattr(getattr(each, "weight", None), "qdata")]
        assert len(kept) == sum(type(each) is nn.Linear for each in plain.modules()) - 1
        assert all(each.dtype == torch.int8 and each.int().abs().max() <= 2 ** (BITS[scheme] - 1) for each in kept)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"student\.qat=8da4w rounds linear layers, and the SmallCNN has none but"):
        simulate(SmallCNN(10, 1, (4, 6)), "8da4w")
    with pytest.raises(UserError, match=r"int4_weight_only: 0 has 48 inputs, not a multiple of 32\. Use int8_dynamic"):
        simulate(nn.Sequential(nn.Linear(48, 4), nn.Linear(4, 2)), "int4_weight_only")
