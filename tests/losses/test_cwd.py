import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.cwd import CWD
from distillery.losses.functional import cwd
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> list[float]:
    """The mean over channels of each sample's divergences, without T²."""
    values = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        divergences = []
        for ours, theirs in zip(s, t, strict=True):
            log_q, log_p = log_softmax(ours.ravel() / temperature), log_softmax(theirs.ravel() / temperature)
            divergences.append(np.sum(np.exp(log_p) * (log_p - log_q)))
        values.append(np.mean(divergences))
    return values


@each_case("temperature", [1.0, 4.0])
@each_case("t_squared", [True, False])
def test_rows(temperature: float, t_squared: bool) -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1)
    expected = np.array(by_hand(student, teacher, temperature)) * (temperature**2 if t_squared else 1.0)
    values = cwd(student, teacher, temperature, t_squared, reduction="none")
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-10)
    assert cwd(student, teacher, temperature, t_squared).item() == pytest.approx(expected.mean(), rel=1e-10)


def test_level_of_a_channel_does_not_matter() -> None:
    student, teacher = draw(4, 3, 4, 4), draw(4, 3, 4, 4, seed=1)
    torch.testing.assert_close(cwd(student + draw(4, 3, 1, 1, seed=2), teacher - 5), cwd(student, teacher))


@each_case("projector", ["auto", "none"])
@each_case("student_shape", [(4, 3, 6, 6), (4, 10, 3)])
def test_term_sums_pairs_behind_projectors(projector: str, student_shape: tuple[int, ...]) -> None:
    student = {"a": draw(*student_shape), "b": draw(4, 5, 4, 4)}
    teacher = {"x": draw(4, 6, 3, 3, seed=1), "y": draw(4, 5, 4, 4, seed=1)}
    term = CWD(layers={"a": "x", "b": "y"}, projector=projector, temperature=3.0, t_squared=False)
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    term.double()
    first, second = (project(student[tap]) for project, tap in zip(term.projectors, student, strict=True))
    if len(student_shape) == 3:
        first = first[:, 1:].mT.reshape(4, -1, 3, 3)  # without the class token
    else:
        first = first.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5))
    wanted = teacher["x"]
    if projector == "none":
        wanted = wanted.unflatten(1, (3, 2)).mean(2)  # the wider one's neighbouring channels are averaged
    expected = cwd(first, wanted, 3.0, False, "none") + cwd(second, teacher["y"], 3.0, False, "none")
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    torch.testing.assert_close(value, expected)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"cwd cannot compare student layer 'a' \[4, 8, 1, 1\].*Choose earlier layers"):
        CWD(layers={"a": "x"}).build({"a": torch.Size((4, 8, 1, 1))}, {"x": torch.Size((4, 8, 4, 4))})
    with pytest.raises(ValueError, match="differ in shape"):
        cwd(draw(2, 1, 4, 4), draw(2, 3, 4, 4))


@formulas.plain("cwd", "s_map", "t_map")
def plain_cwd(x: formulas.Inputs) -> Tensor:
    return (
        formulas.divergence(formulas.p(x["t_map"].flatten(2)), formulas.p(x["s_map"].flatten(2))).sum()
        / x["s_map"].shape[:2].numel()
    )
