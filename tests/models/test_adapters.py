"""Input adapters: images are normalised, texts are passed by name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.models.adapters import ImageAdapter, TextAdapter
from distillery.models.taps.network import Network
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.transformer import transformer
from fixtures.texts import TINY, tiny_bert

BATCH = {
    "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]),
    "target": torch.tensor([0, 1]),
    "index": torch.tensor([4, 2]),
}
DISTIL = {"vocab_size": TINY["vocab_size"], "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_normalised_by_each_channels_statistics(channels: int) -> None:
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.3, 0.5]
    image = torch.rand(2, channels, 4, 4)
    (found,), named = ImageAdapter(mean, std)({"image": image})
    expected = (image.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not named


class Plain(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (input_ids * attention_mask).float()


class WithLabels(nn.Module):
    """As most networks of transformers: what it could take besides is none of the adapter's business."""

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, target: Any = None, **others: Any
    ) -> Tensor:
        assert target is None
        assert not others
        return input_ids.float()


def lstm() -> nn.Module:
    return BiLSTM(TINY["vocab_size"], 2, embedding_width=4, hidden=3)


def distilbert() -> nn.Module:
    return transformer("distilbert", "sequence_classification", 2, DISTIL)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (tiny_bert, ["input_ids", "attention_mask", "token_type_ids"]),
        (distilbert, ["input_ids", "attention_mask"]),
        (lstm, ["input_ids", "attention_mask"]),
        (Plain, ["input_ids", "attention_mask"]),
        (WithLabels, ["input_ids", "token_type_ids"]),
    ],
)
def test_a_network_is_given_what_its_forward_names(make: Any, names: list[str]) -> None:
    net = make()
    args, named = TextAdapter(net)(BATCH)
    assert args == ()
    assert list(named) == names
    assert all(named[name] is BATCH[name] for name in names)
    net(**named)


def test_what_the_tokenizer_does_not_give_is_left_out() -> None:
    batch = {name: values for name, values in BATCH.items() if name != "token_type_ids"}
    assert list(TextAdapter(tiny_bert())(batch)[1]) == ["input_ids", "attention_mask"]


def test_the_mask_is_that_of_the_batch() -> None:
    net = distilbert().eval()
    signals = Network(net, TextAdapter(net))(BATCH)
    assert signals.mask is BATCH["attention_mask"]
    shown = net(input_ids=BATCH["input_ids"], attention_mask=BATCH["attention_mask"]).logits
    assert torch.equal(signals.logits, shown)


def test_types_of_tokens_reach_the_network() -> None:
    net = tiny_bert()
    network = Network(net, TextAdapter(net))
    others = BATCH | {"token_type_ids": 1 - BATCH["token_type_ids"]}
    assert not torch.allclose(network(BATCH).logits, network(others).logits)


def test_it_has_no_parameters() -> None:
    adapter = TextAdapter(tiny_bert())
    assert not [*adapter.state_dict()]
    assert not [*adapter.parameters()]
    assert not [*adapter.children()]
