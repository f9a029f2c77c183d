"""Transformers by name, folder and type: weights where they belong, quiet loading, and what is refused."""

from collections.abc import Mapping
from logging import Handler, LogRecord
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification
from transformers.utils import logging

from distillery.core.errors import UserError
from distillery.models.text.transformer import HEADS, transformer
from fixtures.small_transformers import SMALL

CLASSIFY = "sequence_classification"


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


class Told(Handler):
    """What transformers has logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: LogRecord) -> None:
        self.records.append(record.getMessage())


class TestPretrained:
    def test_weights_are_those_of_the_file(self, minilm: str) -> None:
        net = transformer(minilm, CLASSIFY, 3, pretrained=True)
        stored = load_file(Path(minilm) / "model.safetensors")
        found = {name.removeprefix("bert."): value for name, value in net.named_parameters()}
        assert net.new_weights == ["classifier.weight", "classifier.bias"]
        assert found.keys() - stored.keys() == set(net.new_weights)
        assert all(torch.equal(value, stored[name]) for name, value in found.items() if name in stored)
        assert found["classifier.weight"].shape == (3, 384)

    def test_fewer_layers_are_the_first(self, minilm: str) -> None:
        net = transformer(minilm, "token_classification", 5, {"num_hidden_layers": 2}, pretrained=True)
        stored = load_file(Path(minilm) / "model.safetensors")
        assert len(net.bert.encoder.layer) == 2
        assert torch.equal(net.bert.encoder.layer[1].output.dense.weight, stored["encoder.layer.1.output.dense.weight"])
        assert net.new_weights == ["classifier.weight", "classifier.bias"]

    def test_more_layers_are_new(self, classifier: Path) -> None:
        net = transformer(str(classifier), CLASSIFY, 3, {"num_hidden_layers": 3}, pretrained=True)
        assert len(net.new_weights) == 16
        assert all(name.startswith("bert.encoder.layer.2.") for name in net.new_weights)

    def test_trained_head_is_kept_in_float32(self, classifier: Path, tokens: Mapping[str, Tensor]) -> None:
        net = transformer(str(classifier), CLASSIFY, 3, pretrained=True)
        assert net.new_weights == []
        assert net.config.id2label == {0: "bad", 1: "middling", 2: "good"}
        assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
        theirs = BertForSequenceClassification.from_pretrained(
            classifier, dtype=torch.float32, attn_implementation="eager"
        )
        torch.testing.assert_close(net.eval()(**tokens).logits, theirs(**tokens).logits)
        assert torch.equal(
            transformer(str(classifier), CLASSIFY, pretrained=True).classifier.weight, net.classifier.weight
        )

    def test_head_for_other_classes_is_new(self, classifier: Path) -> None:
        net = transformer(str(classifier), CLASSIFY, 5, pretrained=True)
        assert net.new_weights == ["classifier.weight", "classifier.bias"]
        assert len(net.config.id2label) == 5

    def test_sentence_encoder_has_no_new_weight(self, minilm: str) -> None:
        assert transformer(minilm, "sentence_embedding", pretrained=True).new_weights == []
        assert transformer(minilm, "sentence_embedding", 384).new_weights == []

    def test_sentence_encoder_names_its_new_weights(self, minilm: str) -> None:
        net = transformer(minilm, "sentence_embedding", None, {"num_hidden_layers": 7}, pretrained=True)
        assert len(net.new_weights) == 16
        assert set(net.new_weights) < dict(net.named_parameters()).keys()

    def test_nothing_is_told(self, minilm: str, capfd: pytest.CaptureFixture[str]) -> None:
        told = Told()
        logging.add_handler(told)
        try:
            transformer(minilm, CLASSIFY, 3, pretrained=True)
            assert told.records == []
            assert capfd.readouterr() == ("", "")
            assert logging.get_verbosity() == logging.WARNING
        finally:
            logging.remove_handler(told)

    @pytest.mark.parametrize("bars", [True, False])
    @pytest.mark.parametrize("downloads", [True, False])
    def test_progress_bars_are_as_before(self, bars: bool, downloads: bool) -> None:
        try:
            (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
            (enable_progress_bars if downloads else disable_progress_bars)()
            transformer("bert", CLASSIFY, 3, SMALL)
            assert (logging.is_progress_bar_enabled(), not are_progress_bars_disabled()) == (bars, downloads)
        finally:
            logging.enable_progress_bar()

    def test_weights_of_another_width(self, minilm: str) -> None:
        with pytest.raises(UserError, match=r"word_embeddings.weight is \[30522, 384\] there, \[30522, 96\] here"):
            transformer(minilm, CLASSIFY, 3, {"hidden_size": 96}, pretrained=True)

    def test_weights_of_another_network(self, classifier: Path) -> None:
        save_file({"conv.weight": torch.ones(2)}, classifier / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="belong to another network: none fits a BertForSequenceClassification"):
            transformer(str(classifier), CLASSIFY, 3, pretrained=True)

    @pytest.mark.parametrize(("content", "what"), [(None, "no file named model.safetensors"), (b"xx", "Safetensor")])
    def test_no_weights_that_can_be_read(self, content: bytes | None, what: str, classifier: Path) -> None:
        (classifier / "model.safetensors").unlink()
        if content:
            (classifier / "model.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=f"weights cannot be read from the folder.*{what}"):
            transformer(str(classifier), CLASSIFY, 3, pretrained=True)


class TestNew:
    def test_sizes(self) -> None:
        """BERT's own formula: embeddings, layers, pooler, classifier."""
        net = transformer("bert", CLASSIFY, 4, SMALL)
        norm = 2 * 12
        layer = 4 * (12 * 12 + 12) + norm + (12 * 20 + 20) + (20 * 12 + 12) + norm
        assert size(net) == (50 + 16 + 2) * 12 + norm + 2 * layer + (12 * 12 + 12) + 4 * 12 + 4
        assert net.new_weights == []

    def test_narrow_embeddings(self) -> None:
        net = transformer("electra", CLASSIFY, 4, {**SMALL, "embedding_size": 6})
        assert net.electra.embeddings.word_embeddings.weight.shape == (50, 6)
        assert net.electra.embeddings_project.weight.shape == (12, 6)

    def test_every_name_of_a_setting(self) -> None:
        """DistilBERT calls the width `dim`; transformers knows it as hidden_size too."""
        names = {"vocab_size": 50, "dim": 12, "num_hidden_layers": 2, "n_heads": 3, "hidden_dim": 20}
        others = {"vocab_size": 50, "hidden_size": 12, "n_layers": 2, "num_attention_heads": 3, "hidden_dim": 20}
        assert size(transformer("distilbert", CLASSIFY, 2, names)) == size(
            transformer("distilbert", CLASSIFY, 2, others)
        )

    @pytest.mark.parametrize("head", HEADS)
    def test_heads(self, head: str, tokens: Mapping[str, Tensor]) -> None:
        classes = {"masked_lm": 50, "causal_lm": 50, "sentence_embedding": 12, "question_answering": 2}.get(head, 3)
        output = transformer("bert", head, classes, SMALL)(**tokens)
        if head == "question_answering":
            assert output.start_logits.shape == output.end_logits.shape == (2, 7)
            return
        logits = output if isinstance(output, Tensor) else output.logits
        of_tokens = dict.fromkeys(("masked_lm", "causal_lm"), (2, 7, 50))
        expected = {CLASSIFY: (2, 3), "token_classification": (2, 7, 3), **of_tokens}
        assert logits.shape == expected.get(head, (2, 12))

    def test_answers_have_a_start_and_an_end_whatever_the_classes_of_the_model(self, tmp_path: Path) -> None:
        transformer("bert", CLASSIFY, 3, SMALL).save_pretrained(tmp_path)
        assert transformer(str(tmp_path), "question_answering").qa_outputs.out_features == 2
        with pytest.raises(
            UserError, match=r"num_classes=3: the answers of question_answering have a start and an end"
        ):
            transformer("bert", "question_answering", 3, SMALL)

    def test_settings_of_a_folder_and_what_differs(self, classifier: Path) -> None:
        net = transformer(str(classifier), CLASSIFY, 2, {"num_hidden_layers": 1})
        assert (net.config.hidden_size, net.config.num_hidden_layers, net.config.num_labels) == (12, 1, 2)

    def test_same_seed_same_weights(self) -> None:
        nets = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            nets.append(transformer("bert", CLASSIFY, 2, SMALL))
        first, same, other = (net.classifier.weight for net in nets)
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
