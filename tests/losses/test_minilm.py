"""MiniLM and MiniLMv2 against loops over heads and tokens, written from the papers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.attention.minilm import MiniLM
from distillery.losses.attention.minilmv2 import MiniLMv2
from distillery.losses.functional import minilm, minilmv2
from distillery.losses.signals import Attention, Signals
from distillery.losses.token_terms import AttentionTerm
from fixtures import formulas
from fixtures.cases import each_case
from reference import token_attention as reference

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
ONES = torch.ones(3, 4)
EACH_MASK = each_case("mask", [None, MASK])
Vectors = tuple[Tensor, Tensor, Tensor]


def vectors(heads: int, width: int, seed: int = 0) -> Vectors:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 3, heads, 4, width, dtype=torch.float64, generator=generator)
    return query, key, value


def scores(given: Vectors) -> Tensor:
    return given[0] @ given[1].mT * given[0].shape[-1] ** -0.5


def arrays(given: Vectors) -> list[np.ndarray]:
    return [part.numpy() for part in given]


def attention(given: Vectors, mask: Tensor | None = None) -> Attention:
    return Attention(*given, mask, given[0].shape[-1] ** -0.5)


def value_of(term: AttentionTerm, ours: Attention, theirs: Attention, mask: Tensor | None = None) -> Tensor:
    term.build({"x": ours.query.shape}, {"x": theirs.query.shape})
    student, teacher = (Signals(torch.zeros(3, 2), attention={"x": given}, mask=mask) for given in (ours, theirs))
    return term(student, teacher, {})


class TestMiniLM:
    @EACH_MASK
    @each_case("heads", [1, 3])
    def test_values(self, heads: int, mask: Tensor | None) -> None:
        student, teacher = vectors(heads, 5), vectors(heads, 8, seed=1)
        expected = reference.minilm(arrays(student), arrays(teacher), (ONES if mask is None else mask).numpy())
        given = (scores(student), scores(teacher), student[2], teacher[2], mask)
        np.testing.assert_allclose(minilm(*given, reduction="none"), expected, rtol=1e-10)
        assert minilm(*given).item() == pytest.approx(expected.mean(), rel=1e-10)
        value = value_of(MiniLM(layers={"x": "x"}), attention(student), attention(teacher), mask)
        np.testing.assert_allclose(value, expected, rtol=1e-10)

    @EACH_MASK
    def test_gradient(self, mask: Tensor | None) -> None:
        student, teacher = vectors(2, 3), vectors(2, 4, seed=1)

        def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return minilm(scores((query, key, value)), scores(teacher), value, teacher[2], mask)

        assert torch.autograd.gradcheck(loss, tuple(part.requires_grad_() for part in student))

    def test_attention_is_that_of_the_network_with_its_scale_and_mask(self) -> None:
        causal = torch.ones(4, 4, dtype=torch.bool).tril()
        student, teacher = vectors(2, 5), vectors(2, 5, seed=1)
        ours, theirs = (Attention(*given, causal, 2.0) for given in (student, teacher))
        rows = 0.0
        for t in range(4):
            s, p = (given.query[:, :, t, None] @ given.key[:, :, : t + 1].mT * 2.0 for given in (ours, theirs))
            rows = rows + (p.softmax(-1) * (p.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean((1, 2)) / 4
        same_values = Attention(theirs.query, theirs.key, ours.value, causal, 2.0)
        torch.testing.assert_close(value_of(MiniLM(layers={"x": "x"}), ours, same_values), rows)


class TestMiniLMv2:
    @EACH_MASK
    @each_case("relation_heads", [1, 2, 6])
    @each_case("relations", [("qq", "kk", "vv"), ("qk", "vq")])
    def test_values_of_networks_that_differ_in_heads_and_width(
        self, relations: tuple[str, ...], relation_heads: int, mask: Tensor | None
    ) -> None:
        student, teacher = vectors(2, 6), vectors(3, 8, seed=1)
        counts = (ONES if mask is None else mask).numpy()
        expected = reference.minilmv2(arrays(student), arrays(teacher), relation_heads, relations, counts)
        rows = minilmv2(student, teacher, relation_heads, relations, mask, reduction="none")
        np.testing.assert_allclose(rows, expected, rtol=1e-10)
        assert minilmv2(student, teacher, relation_heads, relations, mask).item() == pytest.approx(expected.mean())
        term = MiniLMv2(layers={"x": "x"}, relation_heads=relation_heads, relations=relations)
        np.testing.assert_allclose(value_of(term, attention(student), attention(teacher), mask), expected, rtol=1e-10)

    @EACH_MASK
    def test_gradient(self, mask: Tensor | None) -> None:
        student, teacher = vectors(2, 3), vectors(1, 4, seed=1)
        given = tuple(part.requires_grad_() for part in student)
        assert torch.autograd.gradcheck(lambda *parts: minilmv2(parts, teacher, 2, mask=mask), given)

    def test_relation_heads_are_by_default_those_of_the_student(self) -> None:
        student, teacher = vectors(2, 6), vectors(3, 8, seed=1)
        value = value_of(MiniLMv2(layers={"x": "x"}), attention(student), attention(teacher))
        torch.testing.assert_close(value, minilmv2(student, teacher, 2, reduction="none"))

    @each_case(
        ("settings", "words"),
        [
            ({"relations": ["qq", "vw"]}, "unknown relation 'vw'. Did you mean 'v"),
            ({"relations": []}, r"relations=\[\]"),
            ({"relations": ["qq", "qq"]}, "each once"),
            ({"relation_heads": 0}, "relation_heads=0"),
            ({"relation_heads": 1.5}, "relation_heads=1.5"),
        ],
    )
    def test_settings_that_are_refused(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(UserError, match=words):
            MiniLMv2(**settings)

    def test_relation_heads_that_do_not_divide_the_width_are_refused(self) -> None:
        term = MiniLMv2(layers={"a": "b"}, relation_heads=8)
        with pytest.raises(UserError, match=r"the student's width 12 into 8 relation heads.*divisor of both widths"):
            term.build({"a": torch.Size((3, 2, 4, 6))}, {"b": torch.Size((3, 2, 4, 8))})


@pytest.mark.parametrize("term", [MiniLM, MiniLMv2])
class TestBoth:
    def test_mask_of_zeros_gives_zero(self, term: type[AttentionTerm]) -> None:
        student, teacher = vectors(2, 4), vectors(2, 4, seed=1)
        given = tuple(part.requires_grad_() for part in student)
        mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
        for own in (None, mask.bool()[:, None, None]):
            value = value_of(term(layers={"x": "x"}), attention(given, own), attention(teacher, own), mask)
            assert value[0].item() == 0
            assert (value[1:] > 0).all()
            value.sum().backward()
            assert all(part.grad is not None and part.grad.isfinite().all() for part in given)
            assert not any(part.grad[0].any() for part in given)  # type: ignore[index]

    def test_padding_changes_nothing(self, term: type[AttentionTerm]) -> None:
        student, teacher = vectors(2, 4), vectors(2, 4, seed=1)
        other = tuple(part.masked_fill(~MASK.bool()[:, None, :, None], 7.0) for part in student)
        values = [
            value_of(term(layers={"x": "x"}), attention(given), attention(teacher), MASK) for given in (student, other)
        ]
        torch.testing.assert_close(*values)

    def test_lengths_that_differ_are_refused(self, term: type[AttentionTerm]) -> None:
        with pytest.raises(UserError, match="numbers of tokens differ, 4 and 5"):
            term(layers={"a": "b"}).build({"a": torch.Size((3, 2, 4, 6))}, {"b": torch.Size((3, 2, 5, 6))})


def test_heads_that_differ_are_refused_by_minilm() -> None:
    with pytest.raises(UserError, match="numbers of heads differ, 2 and 3"):
        MiniLM(layers={"a": "b"}).build({"a": torch.Size((3, 2, 4, 6))}, {"b": torch.Size((3, 3, 4, 6))})


def relation(x: Tensor) -> Tensor:
    return formulas.p(x @ x.mT / x.shape[-1] ** 0.5)


@formulas.plain("minilm", "s_scores", "t_scores", "s_heads", "t_heads")
def plain_minilm(x: formulas.Inputs) -> Tensor:
    values = formulas.divergence(relation(x["t_heads"]), relation(x["s_heads"]))
    return (formulas.divergence(formulas.p(x["t_scores"]), formulas.p(x["s_scores"])) + values).mean()


@formulas.plain_of("minilmv2", lambda x: minilmv2((x["s_heads"],) * 3, (x["t_heads"],) * 3, relation_heads=4))
def plain_minilmv2(x: formulas.Inputs) -> Tensor:
    given = range(3)  # queries, keys and values, which are the same here
    return sum(formulas.divergence(relation(x["t_heads"]), relation(x["s_heads"])).mean() for _ in given)
