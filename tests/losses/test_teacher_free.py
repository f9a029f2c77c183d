import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import teacher_free
from distillery.losses.response.teacher_free import TeacherFree
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from reference import teacher_free as reference

TARGET = torch.tensor([0, 6, 2, 2, 5])


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@each_case("correct_probability", [0.9, 0.99])
@each_case("temperature", [1.0, 20.0])
def test_paper(logits: Tensor, correct_probability: float, temperature: float) -> None:
    expected = reference.paper(logits.numpy(), TARGET.numpy(), correct_probability, temperature)
    for t_squared in (True, False):
        rows = teacher_free(logits, TARGET, correct_probability, temperature, t_squared, reduction="none")
        np.testing.assert_allclose(rows.numpy(), expected * (temperature**2 if t_squared else 1), rtol=1e-9)
    mean = teacher_free(logits, TARGET, correct_probability, temperature, t_squared=False)
    assert mean.item() == pytest.approx(expected.mean(), rel=1e-9)


@each_case("correct_probability", [0.9, 0.99])
@each_case("temperature", [1.0, 20.0])
@each_case("t_squared", [True, False])
def test_source(logits: Tensor, correct_probability: float, temperature: float, t_squared: bool) -> None:
    """With a multiplier of C; T² has nothing to make up for."""
    expected = reference.source(logits.numpy(), TARGET.numpy(), correct_probability, temperature, multiplier=7)
    value = teacher_free(logits, TARGET, correct_probability, temperature, t_squared, variant="source")
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_the_virtual_teacher_itself_has_nothing_to_learn() -> None:
    student = torch.full((2, 5), 0.01 / 4, dtype=torch.float64)
    student[torch.arange(2), torch.tensor([3, 1])] = 0.99
    value = teacher_free(student.log(), torch.tensor([3, 1]))
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_term_passes_its_settings_on_and_reads_no_teacher(logits: Tensor) -> None:
    term = TeacherFree(correct_probability=0.9, temperature=2.0, t_squared=False, variant="source")
    assert not term.needs_logits
    value = term(Signals(logits), Signals(torch.full((5, 7), torch.nan)), {"target": TARGET})
    expected = teacher_free(logits, TARGET, 0.9, 2.0, t_squared=False, variant="source", reduction="none")
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    other = TeacherFree()(Signals(logits), Signals(logits), {"target": TARGET})
    torch.testing.assert_close(other, teacher_free(logits, TARGET, reduction="none"), rtol=0, atol=0)


@each_case(
    ("setting", "words"),
    [
        ({"correct_probability": 1.0}, "correct_probability=1.0: it must be .* below 1"),
        ({"correct_probability": 0.0}, "correct_probability=0"),
    ],
)
def test_wrong_settings_are_refused(setting: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TeacherFree(**setting)  # type: ignore[arg-type]


@formulas.plain("teacher_free", "s_logits", "target")
def plain_teacher_free(x: formulas.Inputs) -> Tensor:
    y = formulas.one_hot(x)
    virtual = formulas.p((0.99 * y + 0.01 / 99 * (1 - y)).log(), 20)
    return 400 * formulas.divergence(virtual, formulas.p(x["s_logits"], 20)).mean()
