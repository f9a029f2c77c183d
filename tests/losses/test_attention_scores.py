"""Losses on given attention scores: TextBrewer's two and TinyBERT's. The first two's values: test_loss_reference.py."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.attention.attention_ce import AttentionCE
from distillery.losses.attention.attention_mse import AttentionMSE
from distillery.losses.attention.tinybert_attention import TinyBERTAttention
from distillery.losses.functional import attention_ce, attention_mse, tinybert_attention
from distillery.losses.signals import Attention, Signals
from distillery.losses.term import Term
from distillery.losses.token_terms import AttentionTerm
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import token_attention as reference

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
EACH_TERM = each_case("term", [AttentionMSE, AttentionCE, TinyBERTAttention])


def scores() -> tuple[Tensor, Tensor]:
    return 3 * draw(3, 2, 4, 4), 3 * draw(3, 2, 4, 4, seed=1)


class TestMSE:
    def test_each_sample_is_the_mean_over_its_own_pairs_of_tokens(self) -> None:
        student, teacher = scores()
        gaps = (student - teacher).square()
        expected = torch.stack([gaps[b, :, :n, :n].mean() for b, n in enumerate((3, 2, 4))])
        torch.testing.assert_close(attention_mse(student, teacher, MASK, reduction="none"), expected)

    def test_no_mask_is_a_mask_of_ones(self) -> None:
        student, teacher = scores()
        for reduction in ("mean", "none"):
            value = attention_mse(student, teacher, reduction=reduction)  # type: ignore[arg-type]
            ones = attention_mse(student, teacher, torch.ones(3, 4), reduction)  # type: ignore[arg-type]
            torch.testing.assert_close(value, ones)


class TestCE:
    def test_each_sample_is_the_mean_over_its_own_queries(self) -> None:
        student, teacher = scores()
        expected = []
        for b, n in enumerate((3, 2, 4)):
            terms = -teacher[b].softmax(-1) * student[b].log_softmax(-1)
            expected.append(terms[:, :n, :n].sum(-1).mean())
        torch.testing.assert_close(attention_ce(student, teacher, MASK, reduction="none"), torch.stack(expected))

    def test_keys_of_minus_infinity_are_not_there(self) -> None:
        student, teacher = scores()
        hidden = ~MASK.bool()[:, None, None].expand_as(student)
        value = attention_ce(*(x.masked_fill(hidden, -torch.inf) for x in (student, teacher)), MASK, reduction="none")
        for b, n in enumerate((3, 2, 4)):
            alone = attention_ce(student[b : b + 1, :, :n, :n], teacher[b : b + 1, :, :n, :n])
            torch.testing.assert_close(value[b], alone)

    def test_falls_to_the_entropy_of_the_teacher(self) -> None:
        _, teacher = scores()
        entropy = -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(attention_ce(teacher, teacher), entropy)
        assert attention_ce(teacher + draw(3, 2, 4, 4, seed=2), teacher) > entropy


class TestTinyBERT:
    @each_case("padding", [-100.0, -1e4, -torch.inf])
    def test_padding_is_zero_and_counts(self, padding: float) -> None:
        student, teacher = scores()
        hidden = ~MASK.bool()[:, None, None].expand_as(student)
        given = [x.masked_fill(hidden, padding) for x in (student, teacher)]
        expected = reference.tinybert(*(x.numpy() for x in given))
        value = tinybert_attention(*given, reduction="none")
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert tinybert_attention(*given).item() == pytest.approx(expected.mean(), rel=1e-12)
        shares = torch.tensor([3 / 4, 2 / 4, 1.0]).double()  # of the keys that are none
        keys = [(student - teacher)[b, ..., :n].square().mean() for b, n in enumerate((3, 2, 4))]
        torch.testing.assert_close(value, shares * torch.stack(keys))

    def test_scores_just_above_count(self) -> None:
        student, teacher = torch.full((1, 1, 1, 1), -99.9), torch.full((1, 1, 1, 1), -100.0)
        assert tinybert_attention(student, teacher).item() == pytest.approx(99.9**2)


@each_case("loss", [attention_mse, attention_ce, tinybert_attention])
def test_gradient(loss: object) -> None:
    student, teacher = scores()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())  # type: ignore[operator]


@each_case("loss", [attention_mse, attention_ce])
def test_mask_of_zeros_gives_zero(loss: object) -> None:
    student, teacher = scores()
    student.masked_fill_(torch.ones(3, 1, 1, 4, dtype=torch.bool), -torch.inf) if loss is attention_ce else None
    value = loss(student.requires_grad_(), teacher, torch.zeros(3, 4))  # type: ignore[operator]
    value.backward()
    assert value.item() == 0
    assert student.grad is not None
    assert not student.grad.any()


@each_case("loss", [attention_mse, attention_ce, tinybert_attention])
def test_broadcasting_is_refused(loss: object) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        loss(draw(3, 1, 4, 4), draw(3, 2, 4, 4))  # type: ignore[operator]


def attention(seed: int, mask: Tensor | None = None, heads: int = 2, length: int = 4, width: int = 5) -> Attention:
    query, key, value = (draw(3, heads, length, width, seed=seed + i) for i in range(3))
    return Attention(query, key, value, mask, width**-0.5)


def signals(mask: Tensor | None = None, **layers: Attention) -> Signals:
    return Signals(draw(3, 2), attention=layers, mask=mask)


def built(term: type[AttentionTerm], student: Signals, teacher: Signals) -> AttentionTerm:
    made = term(layers=dict(zip(student.attention, teacher.attention, strict=True)))
    made.build(*({tap: a.query.shape for tap, a in given.attention.items()} for given in (student, teacher)))
    return made


@EACH_TERM
def test_term_sums_its_pairs(term: type[AttentionTerm]) -> None:
    student = signals(a=attention(0), b=attention(3))
    teacher = signals(x=attention(6), y=attention(9, width=7))
    value = built(term, student, teacher)(student, teacher, {})
    parts = [
        built(term, ours, theirs)(ours, theirs, {})
        for ours, theirs in (
            (signals(a=student.attention["a"]), signals(x=teacher.attention["x"])),
            (signals(b=student.attention["b"]), signals(y=teacher.attention["y"])),
        )
    ]
    assert value.shape == (3,)
    torch.testing.assert_close(value, parts[0] + parts[1])


@EACH_TERM
@each_case("own_mask", [False, True])
def test_padding_changes_nothing(term: type[AttentionTerm], own_mask: bool) -> None:
    """What is behind the last token that counts may be anything."""
    keys = MASK.bool()[:, None, None] if own_mask else None
    plain = [signals(MASK, x=attention(seed, keys)) for seed in (0, 10)]
    other = [signals(MASK, x=attention(seed, keys)) for seed in (0, 10)]
    for given in other:
        for tensor in (given.attention["x"].key, given.attention["x"].value):
            tensor[~MASK.bool()[:, None].expand(3, 2, 4)] = 7.0
    value = built(term, *plain)(*plain, {})
    torch.testing.assert_close(built(term, *other)(*other, {}), value)
    assert value.isfinite().all()
    assert (value > 0).all()


@EACH_TERM
def test_heads_that_differ_are_refused(term: type[AttentionTerm]) -> None:
    with pytest.raises(UserError, match=r"numbers of heads differ, 2 and 3.*minilmv2"):
        built(term, signals(a=attention(0)), signals(b=attention(0, heads=3)))


@EACH_TERM
def test_lengths_that_differ_are_refused(term: type[AttentionTerm]) -> None:
    with pytest.raises(UserError, match=r"numbers of tokens differ, 4 and 5.*same tokenizer"):
        built(term, signals(a=attention(0)), signals(b=attention(0, length=5)))


@formulas.plain("attention_mse", "s_scores", "t_scores", "mask")
def plain_attention_mse(x: formulas.Inputs) -> Tensor:
    counts = x["mask"][:, None, :, None] * x["mask"][:, None, None, :]
    return ((x["s_scores"] - x["t_scores"]).pow(2) * counts).sum() / (counts.sum() * 4)


@formulas.plain("attention_ce", "s_scores", "t_scores", "mask")
def plain_attention_ce(x: formulas.Inputs) -> Tensor:
    terms = -(formulas.p(x["t_scores"]) * formulas.p(x["s_scores"]).log()) * x["mask"][:, None, None, :]
    return (terms.sum(-1) * x["mask"][:, None]).sum() / (x["mask"].sum() * 4)


@formulas.plain("tinybert_attention", "s_scores", "t_scores")
def plain_tinybert_attention(x: formulas.Inputs) -> Tensor:
    s, t = (torch.where(x[name] <= -100, torch.zeros(()), x[name]) for name in ("s_scores", "t_scores"))
    return (s - t).pow(2).mean()


@terms.example_of(AttentionMSE, TinyBERTAttention)
def example_scores(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Operands of at most 10: the gradient is of their third degree, and 1e4³ out of float16's range."""
    return terms.default(term, batch, lambda *shape: 10 * (draw(*shape) / 10).tanh())
