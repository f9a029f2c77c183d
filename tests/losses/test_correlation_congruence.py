import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.functional import correlation_congruence
from distillery.losses.relation.correlation_congruence import CorrelationCongruence
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw
from reference import correlation_congruence as reference


def test_author_form() -> None:
    student, teacher = draw(6, 3, 2), draw(6, 3, 2, seed=1)
    expected = reference.author(student.flatten(1).numpy(), teacher.flatten(1).numpy())
    assert correlation_congruence(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@each_case("gamma", [0.4, 1.5])
@each_case("p", [2, 5])
def test_gaussian_form(gamma: float, p: int) -> None:
    student, teacher = draw(6, 3), 10 * draw(6, 5, seed=1)
    value = correlation_congruence(student, teacher, "gaussian", gamma, p)
    assert value.item() == pytest.approx(reference.gaussian(student.numpy(), teacher.numpy(), gamma, p), rel=1e-12)


def test_a_long_series_is_the_gaussian_kernel() -> None:
    student, teacher = (nn.functional.normalize(draw(6, width, seed=width)) for width in (3, 5))
    kernels = [np.exp(-0.7 * ((x[:, None] - x[None]) ** 2).sum(-1)) for x in (student.numpy(), teacher.numpy())]
    value = correlation_congruence(student, teacher, "gaussian", 0.7, 30)
    assert value.item() == pytest.approx(((kernels[0] - kernels[1]) ** 2).mean(), rel=1e-10)


@each_case("variant", ["author", "gaussian"])
@each_case("batch", [0, 1])
def test_too_few_samples(batch: int, variant: str) -> None:
    student = draw(batch, 4).requires_grad_()
    value = correlation_congruence(student, draw(batch, 4, seed=1), variant)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        correlation_congruence(draw(3, 1), draw(3, 2))
    with pytest.raises(ValueError, match="student has 3 samples, teacher 4"):
        correlation_congruence(draw(3, 2), draw(4, 2), "gaussian")
    with pytest.raises(UserError, match=r"variant=gauss\..*'gaussian'"):
        correlation_congruence(draw(3, 2), draw(3, 2), "gauss")


def built(student: Tensor, teacher: Tensor, **settings: object) -> CorrelationCongruence:
    term = CorrelationCongruence(layers={"a": "b"}, **settings)  # type: ignore[arg-type]
    term.build({"a": student.shape}, {"b": teacher.shape})
    return term.double()


def test_term_projects_for_the_author_form_only() -> None:
    student, teacher = draw(5, 3), draw(5, 4, seed=1)
    signals = Signals(draw(5, 2), {"a": student}), Signals(draw(5, 2), {"b": teacher})
    term = built(student, teacher)
    (projector,) = term.projectors
    torch.testing.assert_close(term(*signals, {}), correlation_congruence(projector(student), teacher))
    term = built(student, teacher, variant="gaussian", gamma=0.7, p=3)
    assert not list(term.parameters())
    torch.testing.assert_close(term(*signals, {}), correlation_congruence(student, teacher, "gaussian", 0.7, 3))


@formulas.plain("correlation_congruence", "s_vector", "t_vector")
def plain_correlation_congruence(x: formulas.Inputs) -> Tensor:
    gap = (x["s_vector"] - x["t_vector"]).abs()
    return (gap[:-1] * gap[1:]).sum(1).mean()
