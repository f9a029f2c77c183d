"""Taps on a real transformer, MiniLM-L6, against its unfused self and against its own matrices in NumPy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModel

from distillery.losses.attention.minilmv2 import minilmv2
from distillery.losses.signals import Attention
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network, probe
from distillery.models.text.transformer import transformer

HEADS, WIDTH, TAPPED = 12, 32, (1, 5)
Batch = Mapping[str, Tensor]


def self_attention(layer: int) -> str:
    return f"bert.encoder.layer.{layer}.attention.self"


@pytest.fixture(scope="module")
def network(minilm: str, sentences: Batch) -> Network:
    """Tapped at two of its six layers of attention, and at everything between layers."""
    net = transformer(minilm, "sequence_classification", 2, pretrained=True).eval()
    network = Network(net, TextAdapter(net), name="teacher")
    network.tap_attention([self_attention(layer) for layer in TAPPED], sentences)
    network.tap(["bert.embeddings", *(f"bert.encoder.layer.{layer}" for layer in range(6))], sentences)
    return network


@pytest.fixture(scope="module")
def eager(minilm: str, sentences: Batch) -> Any:
    """What transformers itself gives where it computes its attention step by step."""
    net = AutoModel.from_pretrained(minilm, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return net(**sentences, output_attentions=True, output_hidden_states=True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_attention_is_that_of_the_unfused_network(network: Network, eager: Any, sentences: Batch) -> None:
    counts = sentences["attention_mask"].bool()
    assert not counts.all()
    found = probe(network, sentences).attention
    assert list(found) == [self_attention(layer) for layer in TAPPED]
    for layer in TAPPED:
        probabilities = found[self_attention(layer)].masked_scores().softmax(-1)
        close(probabilities.transpose(1, 2)[counts], eager.attentions[layer].transpose(1, 2)[counts])
        assert not probabilities.masked_select(~counts[:, None, None]).any()
    assert (eager.attentions[1] - eager.attentions[5]).abs().max() > 0.5


def test_the_network_stays_as_it_was(network: Network, minilm: str, sentences: Batch) -> None:
    assert network.net.config._attn_implementation == "sdpa"
    assert not network.net.config.output_attentions
    plain = transformer(minilm, "sequence_classification", 2, pretrained=True).eval()
    plain.load_state_dict(network.net.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(**sentences).logits, probe(network, sentences).logits)


def test_hidden_states_are_its_own(network: Network, eager: Any, sentences: Batch) -> None:
    counts = sentences["attention_mask"].bool()
    layers = probe(network, sentences).layers
    assert len(layers) == len(eager.hidden_states) == 7
    for found, expected in zip(layers.values(), eager.hidden_states, strict=True):
        close(found[counts], expected[counts])


@pytest.fixture(scope="module")
def projected(minilm: str, eager: Any) -> dict[int, dict[str, NDArray[np.float64]]]:
    """h · Wᵀ + b of each tapped layer, [B, L, heads · width]; h is what the layer before gives."""
    weights = {name: value.astype(np.float64) for name, value in load_file(f"{minilm}/model.safetensors").items()}
    found = {}
    for layer in TAPPED:
        hidden = eager.hidden_states[layer].double().numpy()
        path = f"encoder.layer.{layer}.attention.self"
        found[layer] = {
            part: hidden @ weights[f"{path}.{part}.weight"].T + weights[f"{path}.{part}.bias"]
            for part in ("query", "key", "value")
        }
    return found


class TestByHand:
    """Queries, keys, values and their relations, from the matrices in the file."""

    @pytest.mark.parametrize("layer", TAPPED)
    @pytest.mark.parametrize("part", ["query", "key", "value"])
    def test_projections(
        self, layer: int, part: str, network: Network, projected: Any, eager: Any, sentences: Batch
    ) -> None:
        attention = probe(network, sentences).attention[self_attention(layer)]
        found = getattr(attention, part)
        assert found.shape == (3, HEADS, 17, WIDTH)
        assert attention.scale == pytest.approx(WIDTH**-0.5)
        for sample, length in enumerate(sentences["attention_mask"].sum(1).tolist()):
            for head in range(HEADS):
                own = projected[layer][part][sample, :length, head * WIDTH : (head + 1) * WIDTH]
                np.testing.assert_allclose(found[sample, head, :length].numpy(), own, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("heads", [HEADS, 48])
    @pytest.mark.parametrize("name", ["qq", "kk", "vv", "qk"])
    def test_relations(self, name: str, heads: int, network: Network, projected: Any, sentences: Batch) -> None:
        """MiniLMv2's loss between the two layers, of relations that are computed text by text and head by head."""
        parts = [{"q": "query", "k": "key", "v": "value"}[letter] for letter in name]
        width = HEADS * WIDTH // heads
        samples = []
        for sample, length in enumerate(sentences["attention_mask"].sum(1).tolist()):
            divergences = []
            for head in range(heads):
                own = slice(head * width, (head + 1) * width)
                student, teacher = (
                    softmax(first[sample, :length, own] @ second[sample, :length, own].T / np.sqrt(width))
                    for first, second in ([projected[layer][part] for part in parts] for layer in TAPPED)
                )
                divergences.append((teacher * np.log(teacher / student)).sum(1))
            samples.append(np.mean(divergences))
        attention = probe(network, sentences).attention
        ours, theirs = (operands(attention[self_attention(layer)]) for layer in TAPPED)
        found = minilmv2(ours, theirs, heads, [name], sentences["attention_mask"])
        assert found.item() == pytest.approx(np.mean(samples), rel=1e-4)
        assert found > 0.05


def operands(attention: Attention) -> tuple[Tensor, Tensor, Tensor]:
    return attention.query, attention.key, attention.value


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
