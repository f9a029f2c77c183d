from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.srrl import SRRL
from distillery.losses.functional import srrl
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import srrl as reference


@each_case(("alpha", "beta"), [(1.0, 1.0), (0.3, 0.0), (0.0, 2.0)])
def test_rows(alpha: float, beta: float) -> None:
    student, teacher, weight, bias = draw(4, 6), draw(4, 6, seed=1), draw(5, 6, seed=2), draw(5, seed=3)
    given = [x.numpy() for x in (student, teacher, weight, bias)]
    expected = reference.srrl(*given, alpha=alpha, beta=beta)
    np.testing.assert_allclose(srrl(student, teacher, weight, alpha, beta, "none").numpy(), expected, rtol=1e-10)
    assert srrl(student, teacher, weight, alpha, beta).item() == pytest.approx(np.mean(expected), rel=1e-10)


def built(**settings: Any) -> SRRL:
    torch.manual_seed(0)
    term = SRRL(**settings)
    taps = {"embedding": Size([4, 6]), "head:weight": Size([5, 6])}
    term.build({"embedding": Size([4, 3])}, taps)
    return term.double()


def value(term: SRRL, student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    layers = {"embedding": teacher, "head:weight": weight}
    return term(Signals(draw(4, 2), {"embedding": student}), Signals(draw(4, 2), layers), {})


@each_case(("alpha", "beta"), [(1.0, 1.0), (0.3, 2.0)])
def test_term_has_the_authors_connector(alpha: float, beta: float) -> None:
    term = built(alpha=alpha, beta=beta)
    student, teacher, weight = draw(4, 3), draw(4, 6, seed=1), draw(5, 6, seed=2)
    (matrix,) = (p.detach().numpy() for name, p in term.named_parameters() if p.dim() == 2)
    assert sum(p.numel() for p in term.parameters()) == 3 * 6 + 2 * 6
    projected = student.numpy() @ matrix.T
    normed = (projected - projected.mean(0)) / np.sqrt(projected.var(0) + 1e-5)
    given = np.maximum(normed, 0), teacher.numpy(), weight.numpy(), np.zeros(5)
    expected = reference.srrl(*given, alpha=alpha, beta=beta)
    np.testing.assert_allclose(value(term, student, teacher, weight).detach().numpy(), expected, rtol=1e-9)


def test_overfits_a_batch() -> None:
    term, student = built(), draw(4, 3).requires_grad_()
    teacher, weight = draw(4, 6, seed=1).relu(), draw(5, 6, seed=2)
    optimizer = torch.optim.SGD([student, *term.parameters()], lr=0.05, momentum=0.9)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = value(term, student, teacher, weight).mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.05 * values[0]


def test_other_projector() -> None:
    assert isinstance(built(projector="auto").connect, nn.Linear)


@each_case(
    ("settings", "words"),
    [
        ({"projector": None}, "without a projector: the widths 3 and 6 differ"),
        ({"projector": "none"}, "projector=none.*Set projector=connector"),
    ],
)
def test_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(**settings)


def test_features_that_the_classifier_does_not_take_are_refused() -> None:
    term = SRRL(layers={"a": "b"})
    with pytest.raises(UserError, match=r"the teacher's classifier takes 6 features.*'b' \[4, 8\].*Set layers=null"):
        term.build({"a": Size([4, 3])}, {"b": Size([4, 8]), "head:weight": Size([5, 6])})


@formulas.plain("srrl", "s_vector", "t_vector", "head")
def plain_srrl(x: formulas.Inputs) -> Tensor:
    s, t = x["s_vector"], x["t_vector"]
    return F.mse_loss(s, t) + F.mse_loss(s @ x["head"].T, t @ x["head"].T)


@terms.example_of(SRRL)
def example_srrl(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """With the teacher's classifier."""
    return terms.with_heads(terms.plain(term), batch, draw, (batch, 5))
