"""Fewer rows and columns of the source, and word embeddings by their singular values: by hand and by NumPy."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.models.text.initialise import initialise
from distillery.models.text.transformer import transformer
from fixtures.small_transformers import MINILM, made


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class TestTruncation:
    """Hidden states 8 → 4, feed-forward 12 → 6; four heads of width 2 become two of 2, or four of 1."""

    @pytest.mark.parametrize(("heads", "kept"), [(2, [0, 1, 2, 3]), (4, [0, 2, 4, 6])])
    def test_rows_and_columns(self, heads: int, kept: list[int]) -> None:
        source = made(layers=2)
        student = made(
            layers=2, hidden_size=4, num_attention_heads=heads, intermediate_size=6, max_position_embeddings=9
        )
        filled = initialise(student, source).names
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
        filled = initialise(student, source, embeddings="factorise").names
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

    def test_words_that_occur_are_kept(self) -> None:
        """With counts, NumPy's best approximation of each row as often as its word occurs, and once more."""
        source = made(layers=1)
        student = made("electra", 1, embedding_size=3)
        table = source.bert.embeddings.word_embeddings.weight.detach()
        counts = torch.arange(len(table)) % 4
        initialise(student, source, embeddings="factorise", counts=counts)
        repeated = np.repeat(table.numpy().astype(np.float64), counts.numpy() + 1, axis=0)
        right = np.linalg.svd(repeated, full_matrices=False)[2][:3]
        embeddings, projection = student.electra.embeddings, student.electra.embeddings_project
        product = (embeddings.word_embeddings.weight @ projection.weight.T).detach().numpy()
        np.testing.assert_allclose(product, table.numpy() @ right.T @ right, atol=1e-5)

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
