"""Transformers that are unlike BERT: without SDPA, without a padding token, with a decoder."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from distillery.core.errors import UserError
from distillery.models.taps.network import probe
from fixtures.building import build
from fixtures.composing import Compose
from fixtures.texts import TINY, sentences, write_csv, write_tokenizer

SIZES = {
    "gpt2": "n_embd: 16, n_layer: 2, n_head: 2, n_positions: 48",
    "llama": "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24",
    "bloom": "hidden_size: 16, n_layer: 2, n_head: 2",  # without SDPA, too
    "deberta-v2": "hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24",
    "t5": "d_model: 16, num_layers: 2, num_heads: 2, d_ff: 24, d_kv: 8",
}


def overrides(tmp_path: Path, tokenizer: str, kind: str) -> list[str]:
    path = write_csv(tmp_path / "own.csv", sentences(60))
    return [
        "data=text_csv",
        f"data.source.path={path}",
        f"data.tokenizer={tokenizer}",
        "optim=adamw",
        "model/teacher=none",
        "task.weight=1",
        "loss/response=[]",
        "model/student=transformer",
        f"student.net.model={kind}",
        f"+student.net.config={{vocab_size: {TINY['vocab_size']}, {SIZES[kind]}}}",
    ]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bloom", "deberta-v2"])
def test_padding_changes_no_logits(kind: str, tmp_path: Path, compose_train: Compose) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    parts = build(compose_train(*overrides(tmp_path, tokenizer, kind)))
    batch = parts.data.example()
    assert batch["attention_mask"].sum(1).unique().numel() > 1
    together = probe(parts.distiller.student, batch).logits
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = {name: values[row : row + 1, :length] for name, values in batch.items() if values.ndim == 2}
        torch.testing.assert_close(probe(parts.distiller.student, alone).logits[0], together[row])


def test_a_tokenizer_without_padding_is_said(tmp_path: Path, compose_train: Compose) -> None:
    """Texts are padded with its end of text, and the network is told so."""
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder)
    backend = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]").save_pretrained(folder)
    parts = build(compose_train(*overrides(tmp_path, str(folder), "gpt2")))
    assert parts.cfg.student.net.config.pad_token_id == 3
    assert "the tokenizer has no padding token: texts are padded with token 3" in parts.data.remarks
    batch = parts.data.example()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 3).all()


def test_what_cannot_classify_is_refused(tmp_path: Path, compose_train: Compose) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"student network cannot read a batch of texts(.|\n)*decoder_start_token_id"):
        build(compose_train(*overrides(tmp_path, tokenizer, "t5")))
    without_head = ["model/student=timm", "student.net.model_name=resnet10t", "+student.net.features_only=true"]
    data = ["data=digits", "model/teacher=none", "task.weight=1", "loss/response=[]", "student.input.size=32"]
    with pytest.raises(UserError, match=r"gives a list, and no logits.*features_only"):
        build(compose_train(*data, *without_head))
