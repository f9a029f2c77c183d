"""Layers and attention of transformers are found where the losses look for them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from distillery.models.adapters import TextAdapter
from distillery.models.taps.layer_pairs import blocks
from distillery.models.taps.network import Network
from distillery.models.text.transformer import transformer

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
DISTIL = {"vocab_size": 50, "dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 12}


@pytest.mark.parametrize(
    ("kind", "head", "config", "layer", "attention"),
    [
        ("bert", "sequence_classification", SIZES, "bert.encoder.layer.", ".attention.self"),
        ("electra", "masked_lm", {**SIZES, "embedding_size": 4}, "electra.encoder.layer.", ".attention.self"),
        ("distilbert", "token_classification", DISTIL, "distilbert.transformer.layer.", ".attention"),
        ("bert", "sentence_embedding", SIZES, "encoder.encoder.layer.", ".attention.self"),
    ],
)
def test_layers_and_attention(
    kind: str, head: str, config: dict[str, Any], layer: str, attention: str, tokens: Mapping[str, Tensor]
) -> None:
    classes = {"masked_lm": 50, "sentence_embedding": None}.get(head, 3)
    net = transformer(kind, head, classes, config).eval()
    network = Network(net, TextAdapter(net), name="student")
    assert blocks(network.layers(tokens)) == [f"{layer}{number}" for number in range(3)]
    modules = network.attention_modules(tokens)
    assert modules == [f"{layer}{number}{attention}" for number in range(3)]
    network.tap([f"{layer}1"], tokens)
    network.tap_attention([modules[2]], tokens)
    signals = network(tokens)

    eager = transformer(kind, head, classes, config).eval()
    eager.load_state_dict(net.state_dict())
    inner = getattr(eager, "encoder", eager)
    inner.set_attn_implementation("eager")
    inputs = {
        name: tokens[name] for name in TextAdapter(eager).taken if kind != "distilbert" or name != "token_type_ids"
    }
    outputs = inner(**inputs, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(signals.layers[f"{layer}1"], outputs.hidden_states[2])
    found = signals.attention[modules[2]].masked_scores().softmax(-1)
    torch.testing.assert_close(found, outputs.attentions[2])
