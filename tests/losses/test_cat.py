import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.cat import CAT
from distillery.losses.functional import cat
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw


def pooled(maps: np.ndarray, grid: int) -> np.ndarray:
    batch, classes, height, width = maps.shape
    cells = maps.reshape(batch, classes, grid, height // grid, grid, width // grid).mean((3, 5))
    return cells.reshape(batch, classes, -1)


def unit(maps: np.ndarray) -> np.ndarray:
    return maps / np.sqrt((maps**2).sum(-1, keepdims=True))


@each_case("normalize", [True, False])
@each_case("resolution", [2, 4])
def test_rows(resolution: int, normalize: bool) -> None:
    student, teacher = draw(3, 5, 8, 4), draw(3, 5, 4, 8, seed=1)
    maps = [pooled(x.numpy(), resolution) for x in (student, teacher)]
    if normalize:
        maps = [unit(x) for x in maps]
    rows = cat(student, teacher, resolution, normalize, reduction="none")
    np.testing.assert_allclose(rows.numpy(), ((maps[0] - maps[1]) ** 2).mean((1, 2)), rtol=1e-12)


def test_dead_maps_have_no_gradient() -> None:
    """`F.normalize` gives them one of 1e12."""
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    cat(student, torch.randn(2, 3, 4, 4)).backward()
    assert student.grad is not None
    assert not student.grad.any()


@each_case(("resolution", "normalize"), [(2, False), (4, True)])
def test_term_applies_each_classifier_at_every_position(resolution: int, normalize: bool) -> None:
    student = {"a": draw(3, 6, 4, 4), "head:weight": draw(5, 6, seed=1)}
    teacher = {"b": draw(3, 7, 8, 8, seed=2), "head:weight": draw(5, 7, seed=3)}
    term = CAT(layers={"a": "b"}, resolution=resolution, normalize=normalize)
    assert (term.student_taps, term.teacher_taps) == (["a", "head:weight"], ["b", "head:weight"])
    term.build(*({tap: tensor.shape for tap, tensor in layers.items()} for layers in (student, teacher)))
    maps = [
        torch.tensor(np.einsum("kc,bchw->bkhw", layers["head:weight"].numpy(), layers[tap].numpy()))
        for layers, tap in ((student, "a"), (teacher, "b"))
    ]
    value = term(Signals(draw(3, 5), student), Signals(draw(3, 5), teacher), {})
    torch.testing.assert_close(value, cat(*maps, resolution, normalize, reduction="none"))


def test_students_classifier_learns_too() -> None:
    student = {"a": draw(3, 6, 4, 4).requires_grad_(), "head:weight": draw(5, 6, seed=1).requires_grad_()}
    teacher = {"b": draw(3, 7, 4, 4, seed=2), "head:weight": draw(5, 7, seed=3)}
    CAT(layers={"a": "b"})(Signals(draw(3, 5), student), Signals(draw(3, 5), teacher), {}).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in student.values())


@each_case(
    ("shape", "words"),
    [
        ((4, 6), r"student's classifier \[5, 6\].*layer 'a', whose shape is \[4, 6\]. Name the map \[B,6,H,W\]"),
        ((4, 8, 4, 4), r"shape is \[4, 8, 4, 4\]"),
        ((4, 6, 1, 1), r"shape is \[4, 6, 1, 1\]"),
    ],
)
def test_layer_that_the_classifier_does_not_fit_is_refused(shape: tuple[int, ...], words: str) -> None:
    teacher = {"b": Size([4, 7, 4, 4]), "head:weight": Size([5, 7])}
    with pytest.raises(UserError, match=words):
        CAT(layers={"a": "b"}).build({"a": Size(shape), "head:weight": Size([5, 6])}, teacher)


def test_one_pair() -> None:
    with pytest.raises(UserError, match=r"names 2\. Name one"):
        CAT(layers={"a": "b", "c": "d"}).build(dict.fromkeys("ac", Size([4, 6, 4, 4])), dict.fromkeys("bd", Size([4])))
    with pytest.raises(UserError, match="resolution=0"):
        CAT(resolution=0)


@formulas.plain("cat", "s_map", "t_map")
def plain_cat(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(F.adaptive_avg_pool2d(x[name], 2).flatten(2)) for name in ("s_map", "t_map"))
    return (s - t).pow(2).mean()


@terms.example_of(CAT)
def example_cat(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """With the classifiers that make the class maps. At 1e4 their gradient would be out of float16's range."""
    return terms.with_heads(terms.plain(term), batch, lambda *shape: 0.01 * draw(*shape), (batch, 5, 4, 4))
