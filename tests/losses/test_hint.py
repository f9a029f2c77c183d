import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.hint import Hint
from distillery.losses.functional import hint
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@each_case("shape", [(4, 3, 2, 5), (4, 6, 3), (4, 7)])
def test_rows(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(*shape) ** 2
    squares = (student.numpy() - teacher.numpy()) ** 2
    rows = hint(student, teacher, reduction="none")
    np.testing.assert_allclose(rows.numpy(), squares.reshape(4, -1).mean(1), rtol=1e-12)
    assert hint(student, teacher).item() == pytest.approx(squares.mean(), rel=1e-12)


@each_case(("student_size", "teacher_size"), [((2, 2), (4, 6)), ((4, 6), (2, 2)), ((2, 6), (4, 3))])
def test_larger_map_is_average_pooled(student_size: tuple[int, int], teacher_size: tuple[int, int]) -> None:
    student, teacher = draw(3, 5, *student_size), draw(3, 5, *teacher_size)

    def pooled(x: np.ndarray, height: int, width: int) -> np.ndarray:
        n, c, h, w = x.shape
        return x.reshape(n, c, height, h // height, width, w // width).mean((3, 5))

    size = min(student_size[0], teacher_size[0]), min(student_size[1], teacher_size[1])
    expected = ((pooled(student.numpy(), *size) - pooled(teacher.numpy(), *size)) ** 2).mean()
    assert hint(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_does_not_overflow() -> None:
    student, teacher = torch.full((1, 2), 400.0), torch.full((1, 2), -400.0)
    assert hint(student.half(), teacher.half()).item() == 800.0**2


def test_broadcasting_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        hint(torch.randn(2, 1, 4, 4), torch.randn(2, 3, 4, 4))


def built(projector: str | None, student: Tensor, teacher: Tensor) -> Hint:
    term = Hint(layers={"block": "stage"}, projector=projector)
    term.build({"block": student.shape}, {"stage": teacher.shape})
    return term.double()


def test_term_projects_then_compares() -> None:
    student, teacher = draw(4, 3, 6, 6), draw(4, 5, 3, 3)
    term = built("auto", student, teacher)
    (projector,) = term.projectors
    assert isinstance(projector, nn.Conv2d)
    expected = hint(projector(student), teacher, reduction="none")
    value = term(Signals(draw(4, 2), {"block": student}), Signals(draw(4, 2), {"stage": teacher}), {})
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    value.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())


def test_term_without_projector_has_no_parameters() -> None:
    student, teacher = draw(4, 5), draw(4, 5) + 1
    term = built(None, student, teacher)
    assert not list(term.parameters())
    value = term(Signals(draw(4, 2), {"block": student}), Signals(draw(4, 2), {"stage": teacher}), {})
    torch.testing.assert_close(value, hint(student, teacher, reduction="none"), rtol=0, atol=0)


def test_pairs_are_summed_each_with_its_projector() -> None:
    term = Hint(layers={"a": "x", "b": "y"})
    student, teacher = {"a": draw(4, 2, 3, 3), "b": draw(4, 6)}, {"x": draw(4, 4, 3, 3), "y": draw(4, 5)}
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    term.double()
    on_maps, on_vectors = term.projectors
    expected = hint(on_maps(student["a"]), teacher["x"], reduction="none")
    expected = expected + hint(on_vectors(student["b"]), teacher["y"], reduction="none")
    logits = draw(4, 2)
    torch.testing.assert_close(term(Signals(logits, student), Signals(logits, teacher), {}), expected)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers=atuo: it must be a mapping \{student layer: teacher layer\}"):
        Hint(layers="atuo")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"layers=\{\}"):
        Hint(layers={})


@formulas.plain("hint", "s_map", "t_map")
def plain_hint(x: formulas.Inputs) -> Tensor:
    return (x["s_map"] - x["t_map"]).pow(2).mean()
