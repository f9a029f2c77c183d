"""Transformers that cannot be loaded or built are refused with what is wrong and how to fix it."""

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig

from distillery.core import hub
from distillery.core.errors import UserError
from distillery.models.text.transformer import transformer, transformer_config
from fixtures.small_transformers import SMALL

CLASSIFY = "sequence_classification"


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "head", "classes", "config", "message"),
        [
            ("bert", "sequence", 2, {}, "head=sequence: .* Did you mean 'sequence_classification'"),
            ("bert", CLASSIFY, 2, {"hidden_siz": 8}, r"config.hidden_siz=8: .*. Did you mean 'hidden_size'"),
            ("bert", CLASSIFY, 2, {"dim": 8}, "config.dim=8: 'bert' has no such setting"),
            ("bert", CLASSIFY, 2, {"num_labels": 3}, "config.num_labels=3: the number of classes is net.num_classes"),
            ("bert", CLASSIFY, 2, {"hidden_size": "big"}, "'bert' are invalid: .*'hidden_size'"),
            ("bert", CLASSIFY, 2, {"vocab_size": None}, "config.vocab_size=null: "),
            (
                "bert",
                CLASSIFY,
                2,
                {"hidden_size": 100},
                "=100 is not a multiple of the 12 attention heads: .* 96 or 108",
            ),
            ("bert", CLASSIFY, 2, {"num_hidden_layers": -1}, "config.num_hidden_layers=-1: it must be at least 1"),
            ("bert", "masked_lm", 50, {"vocab_size": 60}, "vocab_size=60, but masked_lm predicts 50 tokens"),
            ("bert", "sentence_embedding", 5, {}, "have the width 768, not 5"),
            ("vit", CLASSIFY, 2, {}, "no sequence_classification for the model type 'vit'"),
            ("bert", CLASSIFY, 2, {**SMALL, "pad_token_id": 70}, "cannot be built with these settings: Padding_idx"),
        ],
    )
    def test_settings(self, model: str, head: str, classes: int, config: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            transformer(model, head, classes, config)

    def test_type_without_weights(self) -> None:
        with pytest.raises(UserError, match="'bert' is a model type, which has no weights"):
            transformer("bert", CLASSIFY, 2, pretrained=True)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("clasifier", None, "There is no folder .*clasifier. Did you mean 'classifier'"),
            ("no/such/folder", None, "There is no folder .* Nor is there a folder"),
            ("empty", None, r"empty holds no config.json"),
            ("classifier/config.json", None, "is a file: name the folder"),
            ("classifier", "{", "config.json cannot be read from the folder"),
            ("classifier", "[]", "no model type 'none'"),
            ("classifier", '{"model_type": "brt"}', "no model type 'brt'. Did you mean .*'bert'"),
        ],
    )
    def test_folder(self, name: str, content: str | None, message: str, classifier: Path) -> None:
        (classifier.parent / "empty").mkdir()
        if content:
            (classifier / "config.json").write_text(content)
        with pytest.raises(UserError, match=message):
            transformer_config(str(classifier.parent / name), CLASSIFY, 2)

    def test_gguf_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "small.gguf").write_bytes(b"GGUF")
        with pytest.raises(UserError, match=r"There is no file .*smal\.gguf\. Did you mean 'small\.gguf'"):
            transformer_config(str(tmp_path / "smal.gguf"), "causal_lm")
        monkeypatch.setattr(hub, "find_spec", lambda _: None)
        with pytest.raises(UserError, match=r"a package that is not installed: pip install gguf"):
            transformer_config(str(tmp_path / "small.gguf"), "causal_lm")


class TestHub:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The hub's cache, and no asking the hub."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    def test_name_that_is_not_in_the_cache(self, offline: Path) -> None:
        with pytest.raises(UserError, match=rf"'user/net': not in .*{offline}.*HF_HUB_OFFLINE=1 forbids.*set HF_HOME"):
            transformer_config("user/net", CLASSIFY, 2)

    def test_misspelt_type_or_folder(self, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(classifier.parent)
        for name, meant in (("brt", "bert"), ("clasifier", "classifier")):
            with pytest.raises(UserError, match=rf"'{name}'.* no folder here and no model type.* '{meant}'"):
                transformer_config(name, CLASSIFY, 2)

    def test_cached_config_without_weights(self, offline: Path) -> None:
        snapshot = offline / "models--user--net" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (offline / "models--user--net" / "refs").mkdir()
        (offline / "models--user--net" / "refs" / "main").write_text("abc")
        (snapshot / "config.json").write_text(json.dumps({"model_type": "bert", **SMALL}))
        assert size(transformer("user/net", CLASSIFY, 4)) == size(transformer("bert", CLASSIFY, 4, SMALL))
        with pytest.raises(UserError, match=rf"The weights of 'user/net': not in .*{offline}"):
            transformer("user/net", CLASSIFY, 4, pretrained=True)
        BertModel(BertConfig(**SMALL)).save_pretrained(snapshot)
        assert transformer("user/net", CLASSIFY, 4, pretrained=True).new_weights == [
            "classifier.weight",
            "classifier.bias",
        ]

    @pytest.mark.parametrize(
        ("cause", "message"),
        [
            (LocalEntryNotFoundError("no entry"), "the hub cannot be reached"),
            (RepositoryNotFoundError.__new__(RepositoryNotFoundError), "The hub has no model 'user/net'"),
            (ValueError("odd"), "config.json of 'user/net' cannot be loaded: it failed"),
        ],
    )
    def test_online(self, cause: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError("it failed") from cause

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("distillery.core.offline.get_session", Mock())
        monkeypatch.setattr(PreTrainedConfig, "get_config_dict", fail)
        with pytest.raises(UserError, match=message):
            transformer_config("user/net", CLASSIFY, 2)

    def test_unreachable_is_found_out_at_once(self, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Instead of after six attempts, which take half a minute."""
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        start = time.perf_counter()
        with pytest.raises(UserError, match=r"'user/net': not in .*the hub cannot be reached \(.*\)\. Run once"):
            transformer_config("user/net", CLASSIFY, 2)
        assert time.perf_counter() - start < 5
        assert huggingface_hub.constants.HF_HUB_OFFLINE
