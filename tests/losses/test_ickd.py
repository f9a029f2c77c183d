from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.functional import ickd
from distillery.losses.relation.ickd import ICKD, Variant
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw
from reference import ickd as reference

FORMS: list[tuple[Variant, Callable[[np.ndarray, np.ndarray], float]]] = [
    ("author", reference.author),
    ("paper", reference.paper),
]
each_form = each_case(("variant", "by_hand"), FORMS)


@each_form
@each_case("size", [(3, 2), (4, 4)])
def test_rows(variant: Variant, by_hand: Callable[[np.ndarray, np.ndarray], float], size: tuple[int, int]) -> None:
    student, teacher = draw(3, 4, 3, 2), 2 * draw(3, 4, *size, seed=1)
    expected = [by_hand(s, t) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    np.testing.assert_allclose(ickd(student, teacher, variant, reduction="none").numpy(), expected, rtol=1e-12)
    assert ickd(student, teacher, variant).item() == pytest.approx(np.mean(expected), rel=1e-12)


def test_dead_channel_has_a_moderate_gradient() -> None:
    student = draw(2, 4, 3, 3).float()
    student[:, 1] = 0
    student.requires_grad_()
    value = ickd(student, draw(2, 4, 3, 3, seed=1).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert 0 < student.grad.abs().max() < 10


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="differ in samples or channels"):
        ickd(draw(2, 1, 3, 3), draw(2, 4, 3, 3))
    with pytest.raises(UserError, match=r"variant=authors\..*'author'"):
        ickd(draw(2, 4, 3, 3), draw(2, 4, 3, 3), "authors")  # type: ignore[arg-type]


@each_form
def test_term_projects_then_compares(variant: Variant, by_hand: object) -> None:
    student, teacher = draw(4, 3, 6, 6), draw(4, 5, 3, 3, seed=1)
    term = ICKD(layers={"a": "b"}, variant=variant)
    term.build({"a": student.shape}, {"b": teacher.shape})
    (projector,) = term.double().projectors
    pooled = nn.functional.avg_pool2d(projector(student), 2)
    value = term(Signals(draw(4, 2), {"a": student}), Signals(draw(4, 2), {"b": teacher}), {})
    torch.testing.assert_close(value, ickd(pooled, teacher, variant, reduction="none"))


def test_term_reads_tokens_as_the_map_of_their_grid() -> None:
    student, teacher = draw(4, 3, 2, 2), draw(4, 1 + 4, 3, seed=1)
    term = ICKD(layers={"a": "b"}, projector=None)
    term.build({"a": student.shape}, {"b": teacher.shape})
    grid = teacher[:, 1:].mT.reshape(4, 3, 2, 2)
    value = term(Signals(draw(4, 2), {"a": student}), Signals(draw(4, 2), {"b": teacher}), {})
    torch.testing.assert_close(value, ickd(student, grid, reduction="none"))


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"has no positions. Choose a layer before the global pooling"):
        ICKD(layers={"a": "b"}).build({"a": torch.Size([4, 8])}, {"b": torch.Size([4, 8, 3, 3])})


@formulas.plain("ickd", "s_map", "t_map")
def plain_ickd(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(e.flatten(2) @ e.flatten(2).mT) for e in (x["s_map"], x["t_map"]))
    return (s - t).pow(2).sum(2).mean()
