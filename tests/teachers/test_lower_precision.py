"""A teacher in fewer bits: how its weights are rounded, what it computes with them, and what is said of it."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.adapters import ImageAdapter, TextAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.teachers.frozen import Teacher
from fixtures.documents import tiny_llama

IDS = torch.randint(0, 90, (4, 20), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(20) < torch.tensor([20, 20, 9, 3])[:, None]).long()
BATCH = {"input_ids": IDS, "attention_mask": MASK, "index": torch.arange(4)}


def teacher(**config: Any) -> Teacher:
    net = tiny_llama(90, **{"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2} | config)
    return Teacher(net, TextAdapter(net))


def check_rounding(weight: Tensor, kept: Any, precision: str) -> None:
    """Each row in 256 levels around 0, the largest weight at most one step off; or each 32 of a row in 16, in all."""
    if precision == "int8":
        groups = weight[:, None]
        largest = groups.abs().amax(2, keepdim=True)
        step = 2 * largest / 255
    else:
        groups = weight.unflatten(1, (-1, 32))
        largest = torch.zeros(())
        step = (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / 15
    off = (kept.dequantize().view_as(groups) - groups).abs() / step
    assert off.masked_fill(groups.abs() == largest, 0).max() < 0.501
    assert off.max() < 1.001
    assert 0.2 < off.mean() < 0.3


def test_it_computes_with_rounded_weights() -> None:
    for precision in ("bf16", "int8", "int4"):
        own = teacher()
        before, full = own.sha256, own(BATCH).logits
        expected: Any = copy.deepcopy(own.net)
        own.lower(precision, BATCH)  # type: ignore[arg-type]
        if precision == "bf16":
            expected.bfloat16()
        for (name, layer), kept in zip(expected.named_modules(), own.net.modules(), strict=True):
            if precision != "bf16" and isinstance(layer, nn.Linear) and name != "lm_head":
                check_rounding(layer.weight, kept.weight, precision)
                layer.weight = nn.Parameter(kept.weight.dequantize(), requires_grad=False)
        own.place(torch.device("cpu"), torch.float64)
        given = own(BATCH).logits
        torch.testing.assert_close(given, expected(input_ids=IDS, attention_mask=MASK).logits, rtol=1e-4, atol=2e-3)
        assert not torch.equal(given.float(), full)
        assert len({before, own.sha256, own.fingerprint()}) == 3
        assert own.expected_fingerprint() == own.fingerprint()
        assert not any(parameter.requires_grad for parameter in own.parameters())
        rows, lower = (each.float().double()[MASK > 0] for each in (full, given))
        same = (rows.argmax(-1) == lower.argmax(-1)).double().mean().item()
        divergence = nn.functional.kl_div(lower.log_softmax(-1), rows.log_softmax(-1), log_target=True, reduction="sum")
        said = re.fullmatch(
            rf"its weights are kept as {precision}: on 52 rows of logits, its most likely class is the same in "
            r"(.*)%, KL (.*) nats",
            own.remarks[0],
        )
        assert said is not None
        assert float(said[1]) == pytest.approx(100 * same, abs=0.06)
        assert float(said[2]) == pytest.approx(divergence.item() / 52, rel=0.06)


def test_its_hash_is_that_of_its_weights_and_precision() -> None:
    hashes = []
    for precision in ("int8", "int8", "bf16"):
        own = teacher()
        own.lower(precision)  # type: ignore[arg-type]
        hashes.append((own.sha256, own.fingerprint()))
        with torch.no_grad():
            own.net.lm_head.weight[0, 0] += 1
        assert own.fingerprint() != hashes[-1][1]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 2


def test_another_network_takes_the_precision_of_the_run() -> None:
    network = Network(nn.Linear(2, 2))
    network.place(torch.device("cpu"), torch.float64)
    assert network.net.weight.dtype == torch.float64


def test_a_network_for_images_computes_in_bfloat16_and_is_folded_in_float32() -> None:
    torch.manual_seed(0)
    images = {"image": torch.rand(64, 3, 16, 16), "index": torch.arange(64)}
    net = SmallCNN(10, widths=[8, 16])
    net(images["image"])  # BatchNorm's statistics
    own = Teacher(net, ImageAdapter([0.5] * 3, [0.25] * 3))  # which bfloat16 represents
    lower = copy.deepcopy(own.net).bfloat16()
    expected = lower(((images["image"] - 0.5) / 0.25).bfloat16())
    own.lower("bf16", images)
    assert own.remarks[0].startswith("its weights are kept as bf16: on 64 rows of logits")
    assert torch.equal(own(images).logits, expected)
    before = own.fingerprint()
    own.fold_batchnorms(images)
    folded = own(images).logits
    assert not any(isinstance(module, nn.BatchNorm2d) for module in own.net.modules())
    assert folded.dtype == torch.bfloat16
    exact = lower.float()((images["image"] - 0.5) / 0.25)  # the same weights
    for name, rounded in {"folded": folded, "as it was": expected}.items():
        torch.testing.assert_close(rounded.float(), exact, rtol=2e-2, atol=2e-2, msg=name)
    own.unfold()
    assert own.fingerprint() == before
    assert torch.equal(own(images).logits, expected)


def test_a_network_without_linear_layers_has_nothing_to_quantise() -> None:
    with pytest.raises(UserError, match=r"^precision=int8 is for linear layers, of which this network has none but"):
        Teacher(SmallCNN(10, widths=[8, 16])).lower("int8")


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"^precision=int4: .*down_proj has 24 inputs, not a multiple of 32"):
        teacher(intermediate_size=24).lower("int4")
