"""A student out of a larger network: equal where nothing is left out, known parts where something is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.models.text.bilstm import BiLSTM
from distillery.models.text.initialise import initialise
from distillery.models.text.transformer import transformer

SIZES = {"vocab_size": 50, "hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 12}
POSITIONS = {"max_position_embeddings": 16}
DISTIL = {"vocab_size": 50, "dim": 8, "n_heads": 4, "hidden_dim": 12}
MINILM = {"vocab_size": 30522, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def made(
    kind: str = "bert", layers: int = 6, head: str = "sequence_classification", classes: int = 3, **config: Any
) -> Any:
    """A small network without dropout, each of whose parameters is random, biases and normalisations too."""
    sizes = (DISTIL if kind == "distilbert" else SIZES) | POSITIONS | {"num_hidden_layers": layers}
    net = transformer(kind, head, classes, sizes | config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


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
        assert initialise(student, source) == [name for name, _ in student.named_parameters()]
        assert torch.equal(student(**inputs).logits, source(**inputs).logits)

    def test_bert_to_electra(self, tokens: Mapping[str, Tensor]) -> None:
        source, student = made(layers=3), made("electra", 3, embedding_size=8)
        head = {name: value.clone() for name, value in student.classifier.named_parameters()}
        filled = initialise(student, source)
        assert filled == [name for name, _ in student.named_parameters() if name.startswith("electra.")]
        ours, theirs = student.electra(**tokens), source.bert(**tokens)
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert all(torch.equal(value, head[name]) for name, value in student.classifier.named_parameters())

    def test_minilm_into_a_sentence_encoder(self, minilm: str, sentences: Mapping[str, Tensor]) -> None:
        source = transformer(minilm, "sentence_embedding", pretrained=True).eval()
        student = transformer("bert", "sentence_embedding", None, {**MINILM, "num_hidden_layers": 6}).eval()
        assert len(initialise(student, source)) == 103  # of the file's 103 tensors
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


class TestTruncation:
    """Hidden states 8 → 4, feed-forward 12 → 6; four heads of width 2 become two of 2, or four of 1."""

    @pytest.mark.parametrize(("heads", "kept"), [(2, [0, 1, 2, 3]), (4, [0, 2, 4, 6])])
    def test_rows_and_columns(self, heads: int, kept: list[int]) -> None:
        source = made(layers=2)
        student = made(
            layers=2, hidden_size=4, num_attention_heads=heads, intermediate_size=6, max_position_embeddings=9
        )
        filled = initialise(student, source)
        assert {name for name, _ in student.named_parameters()} - set(filled) == {
            "classifier.weight",
            "classifier.bias",
        }
        ours, theirs = student.bert.state_dict(), source.bert.state_dict()
        one = "encoder.layer.1."
        expected = {
            "embeddings.word_embeddings.weight": theirs["embeddings.word_embeddings.weight"][:, :4],
            "embeddings.position_embeddings.weight": theirs["embeddings.position_embeddings.weight"][:9, :4],
            "embeddings.LayerNorm.bias": theirs["embeddings.LayerNorm.bias"][:4],
            one + "attention.self.query.weight": theirs[one + "attention.self.query.weight"][kept, :4],
            one + "attention.self.key.bias": theirs[one + "attention.self.key.bias"][kept],
            one + "attention.self.value.weight": theirs[one + "attention.self.value.weight"][kept, :4],
            one + "attention.output.dense.weight": theirs[one + "attention.output.dense.weight"][:4, kept],
            one + "attention.output.dense.bias": theirs[one + "attention.output.dense.bias"][:4],
            one + "attention.output.LayerNorm.weight": theirs[one + "attention.output.LayerNorm.weight"][:4],
            one + "intermediate.dense.weight": theirs[one + "intermediate.dense.weight"][:6, :4],
            one + "intermediate.dense.bias": theirs[one + "intermediate.dense.bias"][:6],
            one + "output.dense.weight": theirs[one + "output.dense.weight"][:4, :6],
            "pooler.dense.weight": theirs["pooler.dense.weight"][:4, :4],
        }
        for name, value in expected.items():
            assert torch.equal(ours[name], value), name

    def test_distilbert_by_its_own_names(self) -> None:
        source, student = made("distilbert", 2), made("distilbert", 1, dim=4, n_heads=4, hidden_dim=6)
        initialise(student, source, layers=[1])
        ours, theirs = student.distilbert.transformer.layer[0], source.distilbert.transformer.layer[1]
        assert torch.equal(ours.attention.k_lin.weight, theirs.attention.k_lin.weight[[0, 2, 4, 6], :4])
        assert torch.equal(ours.attention.out_lin.weight, theirs.attention.out_lin.weight[:4, [0, 2, 4, 6]])
        assert torch.equal(ours.ffn.lin2.weight, theirs.ffn.lin2.weight[:4, :6])

    def test_heads_that_are_left_compute_what_they_did(self) -> None:
        """Where the hidden states outside of the first four are zero, the kept heads' attention is the source's."""
        source, student = made(layers=1), made(layers=1, hidden_size=4, num_attention_heads=2)
        initialise(student, source)
        states = torch.randn(2, 5, 4)
        padded = torch.cat([states, torch.zeros(2, 5, 4)], 2)
        ours = student.bert.encoder.layer[0].attention.self(states)[0]
        theirs = source.bert.encoder.layer[0].attention.self(padded)[0]
        torch.testing.assert_close(ours, theirs[..., :4])


class TestFactorised:
    @pytest.mark.parametrize("hidden", [8, 4])
    def test_product_is_numpys_best_approximation(self, hidden: int) -> None:
        source = made(layers=2)
        student = made("electra", 2, embedding_size=3, hidden_size=hidden, num_attention_heads=hidden // 2)
        filled = initialise(student, source, embeddings="factorise")
        assert {name for name, _ in student.named_parameters()} - set(filled) == {
            "classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"
        }  # fmt: skip
        table = source.bert.embeddings.word_embeddings.weight.detach().numpy()[:, :hidden].astype(np.float64)
        left, values, right = np.linalg.svd(table, full_matrices=False)
        best = (left[:, :3] * values[:3]) @ right[:3]
        embeddings, projection = student.electra.embeddings, student.electra.embeddings_project
        product = (embeddings.word_embeddings.weight @ projection.weight.T).detach().numpy()
        np.testing.assert_allclose(product, best, atol=1e-5)
        positions = source.bert.embeddings.position_embeddings.weight.detach().numpy()[:, :hidden]
        ours = (embeddings.position_embeddings.weight @ projection.weight.T).detach().numpy()
        np.testing.assert_allclose(ours, positions @ right[:3].T @ right[:3], atol=1e-5)

    def test_minilm(self, minilm: str, sentences: Mapping[str, Tensor]) -> None:
        """The loss is what singular values say; the first layer reads what is near the source's."""
        source = transformer(minilm, "sentence_embedding", pretrained=True).encoder.eval()
        sizes = {**MINILM, "num_hidden_layers": 3, "embedding_size": 256}
        student = transformer("electra", "sentence_embedding", None, sizes).encoder.eval()
        initialise(student, source, embeddings="factorise")
        table = source.embeddings.word_embeddings.weight.detach().double()
        factors = student.embeddings.word_embeddings.weight, student.embeddings_project.weight
        product = factors[0].detach().double() @ factors[1].detach().double().T
        squares = np.linalg.eigvalsh((table.T @ table).numpy())  # of the singular values, the smallest first
        assert (table - product).norm().item() == pytest.approx(squares[: 384 - 256].sum() ** 0.5, rel=1e-6)
        with torch.no_grad():
            ids, counts = sentences["input_ids"], sentences["attention_mask"].bool()
            theirs = source.embeddings(ids)[counts]
            ours = student.embeddings_project(student.embeddings(ids))[counts]
            nn.init.ones_(student.embeddings.LayerNorm.weight)
            new_gain = student.embeddings_project(student.embeddings(ids))[counts]
        assert (ours - theirs).norm() < 0.75 * (new_gain - theirs).norm()
        assert torch.cosine_similarity(ours, theirs).mean() > 0.5


class TestHead:
    def test_other_classes_leave_it(self) -> None:
        source, student = made(classes=3), made(classes=4)
        before = student.classifier.weight.clone()
        assert not any(name.startswith("classifier") for name in initialise(student, source))
        assert torch.equal(student.classifier.weight, before)

    def test_no_half_of_it(self) -> None:
        """A narrower student's classifier has a bias of the source's shape, but no weight."""
        source, student = made(), made(hidden_size=4)
        before = student.classifier.bias.clone()
        assert "classifier.bias" not in initialise(student, source)
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
            ({}, {}, {"layers": [0, 9]}, "2 layers are named, and the student has 6"),
            ({"layers": 2}, {}, {"layers": [0, 9]}, "no layer 9"),
            ({"num_attention_heads": 2}, {}, {}, "2 attention heads of width 4, the source 4 of width 2"),
            ({"max_position_embeddings": 20}, {}, {}, "position_embeddings has 20 rows in the student, 16 in"),
            ({"intermediate_size": 20}, {}, {}, r"intermediate.dense.weight is \[20, 8\] in the student and \[12, 8\]"),
            ({"kind": "distilbert"}, {}, {}, "DistilBertModel and BertModel differ.*student.net.model=bert"),
            ({"kind": "roberta"}, {}, {}, "count positions differently .*padding_idx 1 and None"),
            ({"kind": "electra", "embedding_size": 4}, {}, {}, "4 wide, the source's 8. Take embeddings=factorise"),
            ({"kind": "electra", "embedding_size": 8}, {}, {"embeddings": "factorise"}, "there is no projection"),
            ({}, {}, {"embeddings": "factorise"}, "8 wide, its hidden states 8, and there is no projection"),
            (
                {"kind": "electra", "embedding_size": 2},
                {"kind": "electra", "embedding_size": 4},
                {"embeddings": "factorise"},
                "those of the source are factorised already, 4 wide",
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
        with pytest.raises(UserError, match=f"the {which} is a BiLSTM, and only transformers are filled"):
            initialise(*((other, made()) if which == "student" else (made(), other)))

    def test_fused_attention_of_another_width(self) -> None:
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        source = made("modernbert", 2, **special)
        same, narrower = made("modernbert", 2, **special), made("modernbert", 2, hidden_size=4, **special)
        assert initialise(same, source)
        with pytest.raises(UserError, match="not known which parameters in the layers of ModernBertModel are"):
            initialise(narrower, source)
