"""A student out of a larger network: equal where nothing is left out, known parts where something is."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.initialise import initialise
from distillery.models.text.transformer import transformer
from fixtures.small_transformers import MINILM, made


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class TestWhole:
    """All layers and the same widths: the student is the source."""

    @pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "distilbert"])
    @pytest.mark.parametrize("head", ["sequence_classification", "token_classification", "masked_lm"])
    def test_same_family(self, kind: str, head: str, tokens: Mapping[str, Tensor]) -> None:
        classes = 50 if head == "masked_lm" else 3
        source, student = made(kind, 3, head, classes), made(kind, 3, head, classes)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        assert not torch.equal(student(**inputs).logits, source(**inputs).logits)
        assert initialise(student, source).names == [name for name, _ in student.named_parameters()]
        assert torch.equal(student(**inputs).logits, source(**inputs).logits)

    def test_bert_to_electra(self, tokens: Mapping[str, Tensor]) -> None:
        source, student = made(layers=3), made("electra", 3, embedding_size=8)
        head = {name: value.clone() for name, value in student.classifier.named_parameters()}
        filled = initialise(student, source).names
        assert filled == [name for name, _ in student.named_parameters() if name.startswith("electra.")]
        ours, theirs = student.electra(**tokens), source.bert(**tokens)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert all(torch.equal(value, head[name]) for name, value in student.classifier.named_parameters())

    def test_minilm_into_a_sentence_encoder(self, minilm: str, sentences: Mapping[str, Tensor]) -> None:
        source = transformer(minilm, "sentence_embedding", pretrained=True).eval()
        student = transformer("bert", "sentence_embedding", None, {**MINILM, "num_hidden_layers": 6}).eval()
        assert len(initialise(student, source).names) == 103  # of the file's 103 tensors
        assert torch.equal(student(**sentences), source(**sentences))

    def test_factorised_source_to_factorised_student(self, tokens: Mapping[str, Tensor]) -> None:
        source, student = (made("electra", 2, embedding_size=4) for _ in range(2))
        initialise(student, source)
        assert torch.equal(student(**tokens).logits, source(**tokens).logits)


class TestLayers:
    @pytest.mark.parametrize(
        ("layers", "expected"),
        [("even", [0, 3, 5]), ("first", [0, 1, 2]), ("last", [3, 4, 5]), ([4, 1, 1], [4, 1, 1])],
    )
    def test_chosen_layers_arrive(self, layers: Any, expected: list[int]) -> None:
        source, student = made(layers=6), made(layers=3)
        for number, layer in enumerate(source.bert.encoder.layer):
            for parameter in layer.parameters():
                nn.init.constant_(parameter, number)
        initialise(student, source, layers=layers)
        found = [[value.unique().tolist() for value in layer.parameters()] for layer in student.bert.encoder.layer]
        assert found == [[[number]] * 16 for number in expected]

    def test_minilm_by_halves(self, minilm: str) -> None:
        source = transformer(minilm, "sequence_classification", 2, pretrained=True)
        student = transformer("bert", "sequence_classification", 2, {**MINILM, "num_hidden_layers": 3})
        initialise(student, source)
        for ours, theirs in enumerate([0, 3, 5]):
            expected = source.bert.encoder.layer[theirs].state_dict()
            assert all(torch.equal(v, expected[n]) for n, v in student.bert.encoder.layer[ours].state_dict().items())


class TestHead:
    def test_other_classes_leave_it(self) -> None:
        source, student = made(classes=3), made(classes=4)
        before = student.classifier.weight.clone()
        assert not any(name.startswith("classifier") for name in initialise(student, source).names)
        assert torch.equal(student.classifier.weight, before)

    def test_no_half_of_it(self) -> None:
        """A narrower student's classifier has a bias of the source's shape, but no weight."""
        source, student = made(), made(hidden_size=4)
        before = student.classifier.bias.clone()
        assert "classifier.bias" not in initialise(student, source).names
        assert torch.equal(student.classifier.bias, before)


class TestRefusals:
    @pytest.mark.parametrize(
        ("student", "source", "settings", "message"),
        [
            (
                {"vocab_size": 40},
                {},
                {},
                "vocabulary has 40 tokens, the source's 50. Give the student the source's tokenizer",
            ),
            ({"layers": 8}, {}, {}, "the student has 8 layers, the source 6"),
            ({}, {}, {"layers": [0, 9]}, "2 layers are listed, but the student has 6"),
            ({"layers": 2}, {}, {"layers": [0, 9]}, "no layer 9"),
            ({"num_attention_heads": 2}, {}, {}, "2 attention heads of width 4, the source 4 of width 2"),
            ({"max_position_embeddings": 20}, {}, {}, "position_embeddings has 20 rows in the student, 16 in"),
            ({"intermediate_size": 20}, {}, {}, r"intermediate.dense.weight is \[20, 8\] in the student and \[12, 8\]"),
            ({"kind": "distilbert"}, {}, {}, "DistilBertModel and BertModel differ.*student.net.model=bert"),
            ({"kind": "roberta"}, {}, {}, "count positions differently .*padding_idx 1 and None"),
            ({"kind": "electra", "embedding_size": 4}, {}, {}, "4 wide, the source's 8. Use embeddings=factorise"),
            ({"kind": "electra", "embedding_size": 8}, {}, {"embeddings": "factorise"}, "there is no projection"),
            ({}, {}, {"embeddings": "factorise"}, "8 wide, its hidden states 8, and there is no projection"),
            (
                {"kind": "electra", "embedding_size": 2},
                {"kind": "electra", "embedding_size": 4},
                {"embeddings": "factorise"},
                "the source's embeddings are already factorised, 4 wide",
            ),
            ({}, {}, {"embeddings": "factorize"}, "embeddings=factorize. Did you mean 'factorise'"),
            ({"kind": "albert", "embedding_size": 8}, {}, {}, r"student \(AlbertModel\) has 0 lists of layers"),
        ],
    )
    def test_networks_that_do_not_fit(
        self, student: dict[str, Any], source: dict[str, Any], settings: dict[str, Any], message: str
    ) -> None:
        ours, theirs = made(**student), made(**source)
        before = {name: value.clone() for name, value in ours.state_dict().items()}
        with pytest.raises(UserError, match=message):
            initialise(ours, theirs, **settings)
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())

    @pytest.mark.parametrize("which", ["student", "source"])
    def test_networks_of_other_kinds(self, which: str) -> None:
        other = BiLSTM(50, 3, 4, 4)
        with pytest.raises(UserError, match=f"the {which} is a BiLSTM, but student and source must be"):
            initialise(*((other, made()) if which == "student" else (made(), other)))

    def test_fused_attention_of_another_width(self) -> None:
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        source = made("modernbert", 2, **special)
        same, narrower = made("modernbert", 2, **special), made("modernbert", 2, hidden_size=4, **special)
        assert initialise(same, source).names
        with pytest.raises(UserError, match="single attention heads in the layers of ModernBertModel"):
            initialise(narrower, source)
