"""The recurrent student: an LSTM step by step, and padding that changes nothing."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from distillery.models.text.bilstm import BiLSTM


@pytest.fixture
def net() -> BiLSTM:
    torch.manual_seed(0)
    return BiLSTM(vocab_size=50, num_classes=3, embedding_width=6, hidden=4).eval()


def test_parameters(net: BiLSTM) -> None:
    direction = 4 * (4 * 6 + 4 * 4 + 2 * 4)  # four gates, two biases each
    dense, head = 8 * 4 + 4, 4 * 3 + 3
    assert sum(parameter.numel() for parameter in net.parameters()) == 50 * 6 + 2 * direction + dense + head


def step_by_step(net: BiLSTM, words: Tensor, suffix: str) -> Tensor:
    """The last state of one direction, by the gates' formulas."""
    weight = {
        name: getattr(net.lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    state = cell = torch.zeros(4)
    for word in words:
        gates = weight["weight_ih"] @ word + weight["bias_ih"] + weight["weight_hh"] @ state + weight["bias_hh"]
        enter, forget, new, out = gates.split(4)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        state = out.sigmoid() * cell.tanh()
    return state


def test_against_the_formulas(net: BiLSTM, tokens: Mapping[str, Tensor]) -> None:
    for row, length in enumerate([7, 4]):
        words = net.embedding.weight[tokens["input_ids"][row, :length]]
        ends = torch.cat([step_by_step(net, words, ""), step_by_step(net, words.flip(0), "_reverse")])
        hidden = (net.dense.weight @ ends + net.dense.bias).clamp(min=0)
        expected = net.classifier.weight @ hidden + net.classifier.bias
        torch.testing.assert_close(net(**tokens)[row], expected)


@pytest.mark.parametrize("left", [0, 3])
def test_padding_changes_nothing(net: BiLSTM, tokens: Mapping[str, Tensor], left: int) -> None:
    ids, mask = tokens["input_ids"][1:, :4], tokens["attention_mask"][1:, :4]
    padded = torch.full((1, 9), 17)
    padded[:, left : left + 4] = ids
    where = torch.zeros(1, 9, dtype=torch.long)
    where[:, left : left + 4] = 1
    torch.testing.assert_close(net(input_ids=padded, attention_mask=where), net(input_ids=ids, attention_mask=mask))
    assert not torch.allclose(net(input_ids=padded, attention_mask=torch.ones_like(where)), net(ids, mask))


def test_every_parameter_learns(net: BiLSTM, tokens: Mapping[str, Tensor]) -> None:
    net(**tokens).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


def test_dropout_in_training_only(net: BiLSTM, tokens: Mapping[str, Tensor]) -> None:
    assert torch.equal(net(**tokens), net(**tokens))
    net.train()
    assert not torch.equal(net(**tokens), net(**tokens))
