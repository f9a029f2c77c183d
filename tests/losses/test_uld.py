import pytest
import torch
from torch import Tensor

from distillery.losses.functional import uld
from distillery.losses.response.uld import ULD
from distillery.losses.signals import Signals
from reference.uld import by_assignment


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocabularies", [(6, 6), (4, 6), (6, 4)])
def test_rows(vocabularies: tuple[int, int]) -> None:
    """Sorting is the cheapest of all ways to match the classes."""
    student, teacher = draw(5, vocabularies[0]), draw(5, vocabularies[1], seed=1)
    expected = [by_assignment(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    assert uld(student, teacher, reduction="none").tolist() == pytest.approx(expected, rel=1e-9)
    assert uld(student, teacher).item() == pytest.approx(sum(expected) / 5, rel=1e-9)


@pytest.mark.parametrize("vocabularies", [(4, 6), (6, 4)])
def test_gradient(vocabularies: tuple[int, int]) -> None:
    teacher = draw(5, vocabularies[1], seed=1)
    assert torch.autograd.gradcheck(lambda s: uld(s, teacher), draw(5, vocabularies[0]).requires_grad_())


def test_what_the_classes_are_called_does_not_matter() -> None:
    student, teacher = draw(5, 6), draw(5, 4, seed=1)
    torch.testing.assert_close(uld(student.flip(1), teacher), uld(student, teacher))


def test_masked_tokens_do_not_count() -> None:
    student, teacher = draw(2, 3, 6).requires_grad_(), draw(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    value = uld(student, teacher, mask)
    assert value.item() == pytest.approx(uld(student[0, :2], teacher[0, :2]).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient[0, :2].any(dim=-1).all()
    assert not gradient[0, 2].any()
    assert not gradient[1].any()
    rows = uld(student, teacher, mask, reduction="none")
    assert rows.shape == (2, 3)
    nothing = uld(student, teacher, torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(nothing, student)
    assert nothing.item() == 0
    assert not gradient.any()


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student \[5, 6\] and teacher \[4, 6\] differ in their rows"):
        uld(draw(5, 6), draw(4, 6))


def test_term() -> None:
    student, teacher = draw(5, 6), draw(5, 4, seed=1)
    value = ULD()(Signals(student), Signals(teacher), {})
    torch.testing.assert_close(value, uld(student, teacher, reduction="none"), rtol=0, atol=0)
