import pytest
import torch
from torch import Tensor

from distillery.losses.functional import uld
from distillery.losses.response.uld import ULD
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from reference.uld import by_assignment


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@each_case("vocabularies", [(6, 6), (4, 6), (6, 4)])
def test_rows(vocabularies: tuple[int, int]) -> None:
    """Sorting is the cheapest of all ways to match the classes."""
    student, teacher = draw(5, vocabularies[0]), draw(5, vocabularies[1], seed=1)
    expected = [by_assignment(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert uld(student, teacher, reduction="none").tolist() == pytest.approx(expected, rel=1e-9)
    assert uld(student, teacher).item() == pytest.approx(sum(expected) / 5, rel=1e-9)


def test_what_the_classes_are_called_does_not_matter() -> None:
    student, teacher = draw(5, 6), draw(5, 4, seed=1)
    torch.testing.assert_close(uld(student.flip(1), teacher), uld(student, teacher))


def test_no_rows_give_zero() -> None:
    value = uld(draw(0, 6).requires_grad_(), draw(0, 4))
    value.backward()
    assert value.item() == 0


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student \[5, 6\] and teacher \[4, 6\] differ in their rows"):
        uld(draw(5, 6), draw(4, 6))


@formulas.plain("uld", "s_logits", "t_logits")
def plain_uld(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.p(x[name]).sort(descending=True).values for name in ("s_logits", "t_logits"))
    return (s - t).abs().sum(1).mean()


@terms.example_of(ULD)
def example_uld(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """A teacher in doubt: two networks that are certain, each of its own class, agree for this loss."""
    teacher = Signals(draw(batch, terms.CLASSES).tanh())
    return terms.Example(terms.plain(term), Signals(draw(batch, terms.CLASSES)), teacher, terms.labels(batch))
