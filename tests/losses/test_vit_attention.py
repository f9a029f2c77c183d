"""Attention between patches, and of the class token to them, against loops over heads and queries."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.attention.class_attention import ClassAttention
from distillery.losses.attention.vit_attention import Distance, ViTAttention
from distillery.losses.functional import class_attention, vit_attention
from distillery.losses.signals import Attention, Signals
from distillery.losses.term import Term
from distillery.losses.token_terms import AttentionTerm
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.replayed_steps import Graph, record
from reference import token_attention as reference

# (heads, tokens) of student and teacher, and the side of the grid on which they are compared
NETWORKS = pytest.mark.parametrize(
    ("student", "teacher", "grid"),
    [
        pytest.param((2, 10), (2, 10), 3, id="alike"),
        pytest.param((2, 10), (3, 10), 3, id="heads"),
        pytest.param((2, 5), (2, 17), 2, id="grids"),
        pytest.param((2, 26), (3, 11), 3, id="uneven grids, heads and registers"),
    ],
)


def scores(heads: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(3, heads, length, length, dtype=torch.float64, generator=generator)


@NETWORKS
@each_case("distance", ["kl", "mse"])
def test_vit_attention(student: tuple[int, int], teacher: tuple[int, int], grid: int, distance: Distance) -> None:
    ours, theirs = scores(*student), scores(*teacher, seed=1)
    expected = reference.vit_attention(ours.numpy(), theirs.numpy(), grid, distance)
    np.testing.assert_allclose(vit_attention(ours, theirs, distance, reduction="none"), expected, rtol=1e-10)
    assert vit_attention(ours, theirs, distance).item() == pytest.approx(expected.mean(), rel=1e-10)


@NETWORKS
def test_class_attention(student: tuple[int, int], teacher: tuple[int, int], grid: int) -> None:
    ours, theirs = scores(*student), scores(*teacher, seed=1)
    expected = reference.class_attention(ours.numpy(), theirs.numpy(), grid)
    np.testing.assert_allclose(class_attention(ours, theirs, reduction="none"), expected, rtol=1e-10)
    assert class_attention(ours, theirs).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_pooling_does_not_wait_for_the_device() -> None:
    ours, theirs = scores(2, 26), scores(3, 11, seed=1)
    with record(graph := Graph()):
        value = vit_attention(ours, theirs)
    graph.replay()
    assert value == vit_attention(ours, theirs)


@NETWORKS
def test_gradient(student: tuple[int, int], teacher: tuple[int, int], grid: int) -> None:
    ours, theirs = scores(*student)[:1, :, :, :], scores(*teacher, seed=1)[:1]
    ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: vit_attention(s, theirs), ours, fast_mode=True)
    assert torch.autograd.gradcheck(lambda s: class_attention(s, theirs), ours, fast_mode=True)


@each_case("loss", [vit_attention, class_attention])
def test_pooled_attention_that_underflows_keeps_its_gradient(loss: object) -> None:
    """The student is certain of the wrong patches: 1e4 apart, their probabilities are 0 in float32."""
    ours, theirs = (1e4 * scores(2, length, seed).float() for length, seed in ((17, 0), (5, 1)))
    value = loss(ours.requires_grad_(), theirs)  # type: ignore[operator]
    value.backward()
    assert value.isfinite()
    assert value > 1e3
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert ours.grad.any()


def value_of(term: AttentionTerm, student: Tensor, teacher: Tensor) -> Tensor:
    """Of operands [B,H,L,D] that serve as queries and keys."""
    given = [Attention(x, x.flip(-1), x, None, 0.7) for x in (student, teacher)]
    term.build({"a": student.shape}, {"b": teacher.shape})
    ours, theirs = (Signals(torch.zeros(3, 2), attention={tap: x}) for tap, x in zip("ab", given, strict=True))
    return term(ours, theirs, {})


@pytest.mark.parametrize(
    ("term", "loss"), [(ViTAttention, vit_attention), (ClassAttention, class_attention)], ids=["vit", "class"]
)
class TestTerms:
    def test_compare_the_scores_of_the_networks(self, term: type[AttentionTerm], loss: object) -> None:
        student, teacher = scores(2, 10)[..., :4], scores(3, 17, seed=1)[..., :6]
        expected = loss(*(x @ x.flip(-1).mT * 0.7 for x in (student, teacher)), reduction="none")  # type: ignore[operator]
        torch.testing.assert_close(value_of(term(layers={"a": "b"}), student, teacher), expected)

    def test_tokens_that_are_no_square_are_refused(self, term: type[AttentionTerm], loss: object) -> None:
        with pytest.raises(UserError, match=r"attention between patches.*15 tokens are not a square grid"):
            value_of(term(layers={"a": "b"}), scores(2, 10)[..., :4], scores(2, 15)[..., :4])


def test_distance_of_the_term() -> None:
    student, teacher = scores(2, 10)[..., :4], scores(2, 10, seed=1)[..., :4]
    values = [
        value_of(ViTAttention(layers={"a": "b"}, distance=distance), student, teacher) for distance in ("kl", "mse")
    ]  # type: ignore[arg-type]
    expected = vit_attention(*(x @ x.flip(-1).mT * 0.7 for x in (student, teacher)), "mse", reduction="none")
    torch.testing.assert_close(values[1], expected)
    assert not torch.allclose(*values)


def test_class_token_is_needed() -> None:
    with pytest.raises(UserError, match=r"all 16 tokens of the teacher are patches.*vit_attention"):
        value_of(ClassAttention(layers={"a": "b"}), scores(2, 10)[..., :4], scores(2, 16)[..., :4])


def patches(x: formulas.Inputs, queries: slice) -> Tensor:
    s, t = (formulas.p(x[name][:, :, queries, 1:]) for name in ("s_scores", "t_scores"))
    return formulas.divergence(t, s).mean()


@formulas.plain("vit_attention", "s_scores", "t_scores")
def plain_vit_attention(x: formulas.Inputs) -> Tensor:
    return patches(x, slice(1, None))


@formulas.plain("class_attention", "s_scores", "t_scores")
def plain_class_attention(x: formulas.Inputs) -> Tensor:
    return patches(x, slice(0, 1))


@terms.example_of(ClassAttention)
def example_class_token(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Four patches behind a class token."""
    made = terms.plain(term)
    student, teacher = (
        Signals(draw(batch, terms.CLASSES), attention={"x": terms.attention(batch, draw, length=5)}) for _ in range(2)
    )
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
