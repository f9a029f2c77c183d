"""The mean over tokens that count, against NumPy, and what takes no part in it."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerBase

from distillery.models.text.sentence_encoder import SentenceEncoder
from distillery.models.text.transformer import transformer


@pytest.mark.parametrize("normalise", [False, True])
def test_mean_of_minilm(normalise: bool, minilm: str, sentences: Mapping[str, Tensor]) -> None:
    encoder = AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        found = SentenceEncoder(encoder, normalise)(**sentences)
        states = encoder(**sentences).last_hidden_state.numpy().astype(np.float64)
    lengths = sentences["attention_mask"].sum(1).tolist()
    expected = np.stack([states[row, :length].mean(0) for row, length in enumerate(lengths)])
    if normalise:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_what_is_alike_lies_near(minilm: str, tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["A wonderful movie.", "I loved this film.", "The train leaves at noon."]
    net = transformer(minilm, "sentence_embedding", pretrained=True).eval()
    with torch.no_grad():
        movie, film, train = net(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert torch.cosine_similarity(movie, film, 0) > 0.6
    assert torch.cosine_similarity(movie, train, 0) < 0.3


def test_padding_changes_nothing(minilm: str, sentences: Mapping[str, Tensor]) -> None:
    net = transformer(minilm, "sentence_embedding", pretrained=True).eval()
    length = int(sentences["attention_mask"][2].sum())
    with torch.no_grad():
        alone = net(**{name: value[2:, :length] for name, value in sentences.items()})
        torch.testing.assert_close(net(**sentences)[2:], alone, atol=1e-5, rtol=1e-5)


def test_pooler_is_kept_and_frozen(tokens: Mapping[str, Tensor]) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = transformer("bert", "sentence_embedding", None, sizes)
    net(**tokens).sum().backward()
    without = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert without == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]
    assert without == [name for name, parameter in net.named_parameters() if not parameter.requires_grad]


def test_second_texts_are_told_apart(tokens: Mapping[str, Tensor]) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = transformer("bert", "sentence_embedding", None, sizes).eval()
    second = {**tokens, "token_type_ids": torch.ones_like(tokens["token_type_ids"])}
    assert not torch.allclose(net(**tokens), net(**second))


class Untyped(nn.Module):
    """An encoder that does not tell two texts apart."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())


def test_token_types_go_to_no_encoder_without_them(tokens: Mapping[str, Tensor]) -> None:
    found = SentenceEncoder(Untyped())(**tokens)  # type: ignore[arg-type]
    expected = [row[row > 0].float().mean() for row in tokens["input_ids"]]
    torch.testing.assert_close(found[:, 0], torch.stack(expected))


def test_nothing_that_counts_is_zero() -> None:
    net = SentenceEncoder(
        BertModel(BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    )
    assert torch.equal(net(torch.ones(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)), torch.zeros(1, 4))
