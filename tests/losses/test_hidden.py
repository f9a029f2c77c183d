"""Losses on hidden states. Their values: test_loss_reference.py."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.hidden_cosine import HiddenCosine
from distillery.losses.feature.hidden_mse import HiddenMSE
from distillery.losses.feature.pkd import PKD
from distillery.losses.functional import hidden_cosine, hidden_mse, pkd
from distillery.losses.signals import Signals
from distillery.losses.token_terms import TokenTerm
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
LENGTHS = (3, 2, 4)
TERMS = [HiddenMSE, HiddenCosine, PKD]
EACH_TERM = pytest.mark.parametrize("term", TERMS)


@pytest.mark.parametrize("reduction", ["mean", "none"])
class TestMasks:
    def expected(self, rows: Tensor, reduction: str) -> Tensor:
        """[B,L] → over all tokens that count, or over each sample's."""
        kept = [rows[b, :n] for b, n in enumerate(LENGTHS)]
        return torch.cat(kept).mean() if reduction == "mean" else torch.stack([row.mean() for row in kept])

    def test_mse(self, reduction: Any) -> None:
        student, teacher = draw(3, 4, 5), draw(3, 4, 5, seed=1)
        rows = (student - teacher).square().mean(-1)
        torch.testing.assert_close(hidden_mse(student, teacher, MASK, reduction), self.expected(rows, reduction))
        torch.testing.assert_close(hidden_mse(student, teacher).item(), rows.mean().item())

    def test_cosine(self, reduction: Any) -> None:
        student, teacher = draw(3, 4, 5), 3 * draw(3, 4, 5, seed=1)
        rows = 1 - F.cosine_similarity(student, teacher, dim=-1)
        torch.testing.assert_close(hidden_cosine(student, teacher, MASK, reduction), self.expected(rows, reduction))
        torch.testing.assert_close(hidden_cosine(student, teacher).item(), rows.mean().item())

    @each_case("loss", [hidden_mse, hidden_cosine])
    def test_mask_of_zeros_gives_zero(self, loss: Any, reduction: Any) -> None:
        student = draw(3, 4, 5).requires_grad_()
        value = loss(student, draw(3, 4, 5, seed=1), torch.zeros(3, 4), reduction)
        value.sum().backward()
        assert not value.any()
        assert student.grad is not None
        assert not student.grad.any()


def test_pkd_compares_directions_of_the_first_token() -> None:
    student, teacher = draw(3, 4, 5), draw(3, 6, 5, seed=1)
    cosines = F.cosine_similarity(student[:, 0], teacher[:, 0])
    torch.testing.assert_close(pkd(student, teacher, reduction="none"), 2 - 2 * cosines)
    torch.testing.assert_close(pkd(student[:, 0], 7 * teacher), (2 - 2 * cosines).mean())


@pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine, pkd])
class TestEach:
    def test_broadcasting_is_refused(self, loss: Any) -> None:
        with pytest.raises(ValueError, match="differ in shape"):
            loss(draw(3, 4, 1), draw(3, 4, 5))

    def test_unknown_reduction_is_refused(self, loss: Any) -> None:
        with pytest.raises(ValueError, match="reduction='sum'"):
            loss(draw(3, 4, 5), draw(3, 4, 5), reduction="sum")


@each_case("loss", [hidden_cosine, pkd])
def test_state_of_no_length_does_not_break_the_run(loss: Any) -> None:
    student = torch.zeros(3, 4, 5, requires_grad=True)
    loss(student, torch.randn(3, 4, 5)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() <= 1e6


def built(term: type[TokenTerm], student: Tensor, teacher: Tensor, projector: str | None = "auto") -> TokenTerm:
    made = term(layers={"a": "b"}, projector=projector)
    made.build({"a": student.shape}, {"b": teacher.shape})
    return made.double()


def value_of(term: TokenTerm, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    return term(Signals(draw(3, 2), {"a": student}, mask=mask), Signals(draw(3, 2), {"b": teacher}, mask=mask), {})


@EACH_TERM
class TestTerms:
    def test_project_then_compare(self, term: type[TokenTerm]) -> None:
        student, teacher = draw(3, 4, 5), draw(3, 4, 7, seed=1)
        made = built(term, student, teacher)
        (projector,) = made.projectors
        assert isinstance(projector, nn.Linear)
        value = value_of(made, student, teacher, MASK)
        projected = projector(student)
        expected = {
            HiddenMSE: lambda: hidden_mse(projected, teacher, MASK, "none"),
            HiddenCosine: lambda: hidden_cosine(projected, teacher, MASK, "none"),
            PKD: lambda: pkd(projected, teacher, "none"),
        }[term]()
        torch.testing.assert_close(value, expected)
        value.sum().backward()
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())

    def test_padding_changes_nothing(self, term: type[TokenTerm]) -> None:
        student, teacher = draw(3, 4, 5), draw(3, 4, 7, seed=1)
        made = built(term, student, teacher)
        value = value_of(made, student, teacher, MASK)
        other = [x.masked_fill(~MASK.bool().unsqueeze(-1), 9.0) for x in (student, teacher)]
        torch.testing.assert_close(value_of(made, *other, MASK), value)

    def test_widths_may_be_averaged_instead(self, term: type[TokenTerm]) -> None:
        student, teacher = draw(3, 4, 4), draw(3, 4, 8, seed=1)
        made = built(term, student, teacher, projector="none")
        assert not list(made.parameters())
        narrow = teacher.unflatten(-1, (4, 2)).mean(-1)
        torch.testing.assert_close(
            value_of(made, student, teacher), value_of(built(term, student, narrow, None), student, narrow)
        )

    def test_widths_that_differ_without_projector_are_refused(self, term: type[TokenTerm]) -> None:
        with pytest.raises(UserError, match="widths 5 and 7 differ"):
            built(term, draw(3, 4, 5), draw(3, 4, 7), projector=None)

    def test_maps_are_refused(self, term: type[TokenTerm]) -> None:
        with pytest.raises(UserError, match=r"tokens \[B,L,D\], and cannot compare.*Choose the blocks of transformers"):
            built(term, draw(3, 5, 4, 4), draw(3, 5, 4, 4))

    def test_unknown_projector_is_refused(self, term: type[TokenTerm]) -> None:
        with pytest.raises(UserError, match="projector=linaer: unknown kind"):
            term(projector="linaer")


@each_case("term", [HiddenMSE, HiddenCosine])
def test_numbers_of_tokens_that_differ_are_refused(term: type[TokenTerm]) -> None:
    with pytest.raises(UserError, match=r"numbers of tokens differ, 4 and 6.*hint"):
        built(term, draw(3, 4, 5), draw(3, 6, 5))


@formulas.plain("hidden_mse", "s_hidden", "t_hidden", "mask")
def plain_hidden_mse(x: formulas.Inputs) -> Tensor:
    return ((x["s_hidden"] - x["t_hidden"]).pow(2) * x["mask"].unsqueeze(-1)).sum() / (x["mask"].sum() * 96)


@formulas.plain("hidden_cosine", "s_hidden", "t_hidden", "mask")
def plain_hidden_cosine(x: formulas.Inputs) -> Tensor:
    return ((1 - F.cosine_similarity(x["s_hidden"], x["t_hidden"], dim=-1)) * x["mask"]).sum() / x["mask"].sum()


@formulas.plain("pkd", "s_hidden", "t_hidden")
def plain_pkd(x: formulas.Inputs) -> Tensor:
    return (formulas.unit(x["s_hidden"][:, 0]) - formulas.unit(x["t_hidden"][:, 0])).pow(2).sum(1).mean()
