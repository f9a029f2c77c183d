import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import similarity_preserving
from distillery.losses.relation.similarity_preserving import SimilarityPreserving
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw


@each_case("shape", [(6, 4), (5, 3, 2, 2), (4, 7, 3)])
def test_rows_of_inner_products(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(shape[0], 7, seed=1)

    def rows(features: Tensor) -> np.ndarray:
        x = features.flatten(1).numpy()
        return np.array([[a @ b for b in x] / np.sqrt(sum((a @ b) ** 2 for b in x)) for a in x])

    expected = ((rows(student) - rows(teacher)) ** 2).sum() / shape[0] ** 2
    assert similarity_preserving(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_dead_samples_have_a_moderate_gradient() -> None:
    """`F.normalize`, as in the reference, gives gradients of 1e12."""
    student = draw(5, 3).float()
    student[2:4] = 0
    student.requires_grad_()
    value = similarity_preserving(student, draw(5, 4, seed=1).float())
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert 0 < student.grad.abs().max() < 10


def test_no_samples_no_loss() -> None:
    assert similarity_preserving(draw(0, 4), draw(0, 3)).item() == 0


def test_batches_must_agree() -> None:
    with pytest.raises(ValueError, match="student has 3 samples, teacher 4"):
        similarity_preserving(draw(3, 2), draw(4, 2))


def test_layer_without_features_is_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"compares one vector per sample.*student layer 'a' \[5\] .*Choose layers",
    ):
        SimilarityPreserving(layers={"a": "b"}).build({"a": torch.Size([5])}, {"b": torch.Size([5, 4])})


@formulas.plain("similarity_preserving", "s_map", "t_map")
def plain_similarity_preserving(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(e.flatten(1) @ e.flatten(1).T) for e in (x["s_map"], x["t_map"]))
    return (s - t).pow(2).sum() / len(s) ** 2
