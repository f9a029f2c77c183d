"""A saved folder loads through transformers alone, with the same outputs; it is written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from distillery.core.errors import UserError
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.export import save_pretrained_folder
from distillery.models.text.sentence_encoder import SentenceEncoder
from distillery.models.text.transformer import transformer

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
NARROW = {**SIZES, "embedding_size": 4}


class Broken:
    """A tokenizer that cannot be saved."""

    def save_pretrained(self, folder: Path) -> None:
        assert any(folder.iterdir())
        raise OSError("disk full")


@pytest.mark.parametrize(
    ("kind", "head", "auto"),
    [
        ("bert", "sequence_classification", AutoModelForSequenceClassification),
        ("electra", "sequence_classification", AutoModelForSequenceClassification),
        ("electra", "token_classification", AutoModelForTokenClassification),
        ("electra", "masked_lm", AutoModelForMaskedLM),
        ("bert", "masked_lm", AutoModelForMaskedLM),
    ],
)
def test_same_logits(
    kind: str, head: str, auto: Any, tokenizer: PreTrainedTokenizerBase, tokens: Mapping[str, Tensor], tmp_path: Path
) -> None:
    net = transformer(kind, head, 50 if head == "masked_lm" else 3, NARROW if kind == "electra" else SIZES).eval()
    save_pretrained_folder(net, tokenizer, tmp_path / "net", "# A card\n")
    loaded, info = auto.from_pretrained(tmp_path / "net", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded(**tokens).logits, net(**tokens).logits)
    base, info = AutoModel.from_pretrained(tmp_path / "net", output_loading_info=True)
    assert {name for name in info["missing_keys"] if not name.startswith("pooler.")} == set()
    assert bool(info["missing_keys"]) == (kind == "bert" and head == "masked_lm")  # the one that has no pooler to save
    assert torch.equal(base(**tokens).last_hidden_state, net.base_model(**tokens).last_hidden_state)


def test_what_is_in_the_folder(minilm: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    net = transformer(minilm, "sequence_classification", 3, {"num_hidden_layers": 1}, pretrained=True)
    save_pretrained_folder(net, tokenizer, tmp_path / "runs" / "net", "# A card\n\nOf é.\n")
    folder = tmp_path / "runs" / "net"
    assert [path.name for path in tmp_path.joinpath("runs").iterdir()] == ["net"]
    names = {"config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "README.md").read_text(encoding="utf-8") == "# A card\n\nOf é.\n"
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # the weights are readable to whom the rest is
    assert not any(minilm in path.read_text(encoding="utf-8") for path in folder.glob("*.json"))
    again = AutoTokenizer.from_pretrained(folder)
    assert again("An odd, triumphant filmography").input_ids == tokenizer("An odd, triumphant filmography").input_ids


def test_sentence_encoder(
    minilm: str, tokenizer: PreTrainedTokenizerBase, sentences: Mapping[str, Tensor], tmp_path: Path
) -> None:
    net = transformer(minilm, "sentence_embedding", pretrained=True).eval()
    save_pretrained_folder(net, tokenizer, tmp_path / "net", "")
    encoder, info = AutoModel.from_pretrained(tmp_path / "net", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert torch.equal(SentenceEncoder(encoder)(**sentences), net(**sentences))


class TestFolder:
    def net(self, classes: int = 3) -> Any:
        return transformer("bert", "sequence_classification", classes, SIZES)

    def test_earlier_export_is_replaced(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        (tmp_path / "net").mkdir()
        for classes in (3, 4):
            save_pretrained_folder(self.net(classes), tokenizer, tmp_path / "net", f"{classes}")
            loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "net")
            assert loaded.config.num_labels == classes
            assert (tmp_path / "net" / "README.md").read_text() == f"{classes}"
        assert [path.name for path in tmp_path.iterdir()] == ["net"]

    def test_failure_leaves_what_was_there(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        for before in ([], ["net"]):
            with pytest.raises(OSError, match="disk full"):
                save_pretrained_folder(self.net(), Broken(), tmp_path / "net", "new")  # type: ignore[arg-type]
            assert [path.name for path in tmp_path.iterdir()] == before
            save_pretrained_folder(self.net(), tokenizer, tmp_path / "net", "old")
        assert (tmp_path / "net" / "README.md").read_text() == "old"

    def test_interrupted_between_old_and_new(
        self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The old one is aside then, and the next export goes through."""
        save_pretrained_folder(self.net(), tokenizer, tmp_path / "net", "old")
        rename = Path.replace

        def fails_on_the_new_one(path: Path, to: Path) -> Path:
            if path.name.endswith("unfinished"):
                raise KeyboardInterrupt
            return rename(path, to)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", fails_on_the_new_one)
            with pytest.raises(KeyboardInterrupt):
                save_pretrained_folder(self.net(), tokenizer, tmp_path / "net", "new")
        assert [(path.name, (path / "README.md").read_text()) for path in tmp_path.iterdir()] == [
            (".net.replaced", "old")
        ]
        for card in ("new", "newer"):
            save_pretrained_folder(self.net(), tokenizer, tmp_path / "net", card)
        assert [(path.name, (path / "README.md").read_text()) for path in tmp_path.iterdir()] == [("net", "newer")]

    @pytest.mark.parametrize("name", ["notes", "notes/mine.txt"])
    def test_what_is_no_export_is_not_replaced(
        self, name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "mine.txt").write_text("mine")
        with pytest.raises(UserError, match=f"{name} exists and is not an earlier export"):
            save_pretrained_folder(self.net(), tokenizer, tmp_path / name, "")
        assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"

    def test_other_networks_are_refused(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"A BiLSTM is not a Hugging Face network.*from its run folder"):
            save_pretrained_folder(BiLSTM(50, 3, 4, 4), tokenizer, tmp_path / "net", "")
        assert not list(tmp_path.iterdir())
