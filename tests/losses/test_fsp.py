import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.fsp import FSP
from distillery.losses.functional import fsp
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw


def matrix(first: Tensor, second: Tensor) -> np.ndarray:
    """Of one sample's maps of one size: entry by entry."""
    return np.array([[np.mean(a.numpy() * b.numpy()) for b in second] for a in first])


def by_hand(*maps: Tensor) -> list[float]:
    return [float(np.mean((matrix(s1, s2) - matrix(t1, t2)) ** 2)) for s1, s2, t1, t2 in zip(*maps, strict=True)]


def test_rows() -> None:
    """The student's maps need not have the teacher's size."""
    maps = draw(4, 3, 2, 5), draw(4, 6, 2, 5, seed=1), draw(4, 3, 4, 4, seed=2), draw(4, 6, 4, 4, seed=3)
    np.testing.assert_allclose(fsp(*maps, reduction="none").numpy(), by_hand(*maps), rtol=1e-12)
    assert fsp(*maps).item() == pytest.approx(np.mean(by_hand(*maps)), rel=1e-12)


def pooled(features: Tensor) -> Tensor:
    batch, channels, height, width = features.shape
    return torch.tensor(features.numpy().reshape(batch, channels, height // 2, 2, width // 2, 2).mean((3, 5)))


@each_case("larger", [0, 1])
def test_larger_map_is_average_pooled(larger: int) -> None:
    sizes = [(2, 3), (2, 3)]
    sizes[larger] = (4, 6)
    shapes = [(4, channels, *size) for channels, size in zip((3, 5), sizes, strict=True)]
    student, teacher = ([draw(*shape, seed=seed) for shape in shapes] for seed in (0, 1))
    expected = fsp(*(pooled(x) if x.shape[2] == 4 else x for x in (*student, *teacher)))
    torch.testing.assert_close(fsp(*student, *teacher), expected)


TAPS = {"a": "x", "b": "y", "c": "z"}


def built(student: dict[str, Tensor], teacher: dict[str, Tensor], projector: str | None = "auto") -> FSP:
    term = FSP(layers=dict(list(TAPS.items())[: len(student)]), projector=projector)
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    return term.double()


def test_term_goes_over_consecutive_layers() -> None:
    student = {"a": draw(4, 2, 8, 8), "b": draw(4, 3, 4, 4), "c": draw(4, 5, 2, 2)}
    teacher = {"x": draw(4, 2, 8, 8, seed=1), "y": draw(4, 3, 8, 8, seed=1), "z": draw(4, 5, 4, 4, seed=1)}
    value = built(student, teacher)(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    expected = fsp(student["a"], student["b"], teacher["x"], teacher["y"], reduction="none")
    expected = expected + fsp(student["b"], student["c"], teacher["y"], teacher["z"], reduction="none")
    torch.testing.assert_close(value, expected)


def test_projector_stands_where_widths_differ() -> None:
    student, teacher = {"a": draw(4, 2, 4, 4), "b": draw(4, 3, 4, 4)}, {"x": draw(4, 2, 4, 4), "y": draw(4, 7, 4, 4)}
    term = built(student, teacher)
    same, other = term.projectors
    assert isinstance(same, nn.Identity)
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    expected = fsp(student["a"], other(student["b"]), teacher["x"], teacher["y"], reduction="none")
    torch.testing.assert_close(value, expected)


def test_what_cannot_be_compared_is_refused() -> None:
    student, teacher = {"a": draw(4, 2, 4, 4), "b": draw(4, 3, 4, 4)}, {"x": draw(4, 2, 4, 4), "y": draw(4, 7, 4, 4)}
    with pytest.raises(UserError, match=r"layer 'b' .*the widths 3 and 7 differ. Set projector=auto"):
        built(student, teacher, projector=None)
    with pytest.raises(UserError, match=r"fsp .* needs at least two; `layers` has student layer 'a'"):
        built({"a": draw(4, 2, 4, 4)}, {"x": draw(4, 2, 4, 4)})
    with pytest.raises(UserError, match=r"layer 'b' \[4, 3\].*no positions"):
        built(student | {"b": draw(4, 3)}, teacher)
    with pytest.raises(UserError, match=r"projector=none.*Set projector=auto"):
        FSP(projector="none")
    with pytest.raises(ValueError, match="differ in shape"):
        fsp(draw(2, 3, 4, 4), draw(2, 4, 4, 4), draw(2, 3, 4, 4), draw(2, 5, 4, 4))


@formulas.plain("fsp", "s_map", "s_map2", "t_map", "t_map2")
def plain_fsp(x: formulas.Inputs) -> Tensor:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        first = F.adaptive_avg_pool2d(first, second.shape[2:])
        return (first.unsqueeze(2) * second.unsqueeze(1)).mean((3, 4))

    return (flow(x["s_map"], x["s_map2"]) - flow(x["t_map"], x["t_map2"])).pow(2).mean()


@terms.example_of(FSP)
def example_fsp(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Two layers of each network. At 1e4 the gradient, of the third degree, would be out of float16's range."""
    made = terms.plain(term, layers={"x": "x", "y": "y"})
    student, teacher = (
        Signals(draw(batch, terms.CLASSES), {"x": 0.01 * draw(batch, 5, 4, 4), "y": 0.01 * draw(batch, 3, 2, 2)})
        for _ in range(2)
    )
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
