import pytest
import torch
from torch import Size

from distillery.core.errors import UserError
from distillery.losses.feature.simkd import SimKD
from distillery.losses.signals import Signals
from fixtures.cases import each_case
from fixtures.random import draw


@each_case("factor", [1, 2])
def test_rows_are_mean_squared_errors_at_the_students_size(factor: int) -> None:
    student, teacher = draw(3, 5, 4, 4), draw(3, 5, 4 * factor, 4 * factor, seed=1)
    pooled = teacher.numpy().reshape(3, 5, 4, factor, 4, factor).mean((3, 5))
    term = SimKD(layers={"projector": "stage"})
    term.build({"projector": student.shape}, {"stage": teacher.shape})
    value = term(Signals(draw(3, 2), {"projector": student}), Signals(draw(3, 2), {"stage": teacher}), {})
    expected = ((student.numpy() - pooled) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(value, torch.tensor(expected))


@each_case("shape", [(3, 4, 4, 4), (3, 5)])
def test_student_without_the_teachers_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"cannot compare .*model/student=simkd"):
        SimKD(layers={"a": "b"}).build({"a": Size(shape)}, {"b": Size([3, 5, 4, 4])})
