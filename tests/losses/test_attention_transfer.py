import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.attention.attention_transfer import AttentionTransfer
from distillery.losses.functional import attention_transfer
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw


def attention(features: Tensor, p: float) -> np.ndarray:
    energy = (np.abs(features.numpy()) ** p).mean(1).reshape(len(features), -1)
    return energy / np.linalg.norm(energy, axis=1, keepdims=True)


@each_case("p", [1, 2, 3, 4])
def test_rows(p: int) -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 7, 2, 5, seed=1)
    expected = ((attention(student, p) - attention(teacher, p)) ** 2).mean(1)
    rows = attention_transfer(student, teacher, p=p, reduction="none")
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-12)
    assert attention_transfer(student, teacher, p=p).item() == pytest.approx(expected.mean(), rel=1e-12)


@each_case("larger", ["student", "teacher"])
def test_larger_map_is_pooled_before_its_attention(larger: str) -> None:
    big, small = draw(4, 3, 6, 4), draw(4, 5, 3, 2, seed=1)
    pooled = torch.tensor(big.numpy().reshape(4, 3, 3, 2, 2, 2).mean((3, 5)))
    expected = ((attention(pooled, 2) - attention(small, 2)) ** 2).mean()
    given = (big, small) if larger == "student" else (small, big)
    assert attention_transfer(*given).item() == pytest.approx(expected, rel=1e-12)


def test_scale_of_the_features_does_not_matter() -> None:
    student, teacher = draw(4, 3, 5, 5), draw(4, 3, 5, 5, seed=1)
    torch.testing.assert_close(attention_transfer(1e3 * student, 1e-2 * teacher), attention_transfer(student, teacher))


def test_dead_map_has_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_transfer(student, torch.randn(2, 3, 4, 4)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_tokens_are_the_map_of_their_grid() -> None:
    """A class token is no position; what is left of the tokens is read row by row."""
    student, teacher = draw(4, 3, 2, 2), draw(4, 1 + 9, 6, seed=1)
    grid = teacher[:, 1:].reshape(4, 3, 3, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(attention_transfer(student, teacher), attention_transfer(student, grid))
    torch.testing.assert_close(attention_transfer(teacher[..., :2], teacher), attention_transfer(grid[:, :2], grid))


def test_term_sums_its_pairs() -> None:
    student = {"a": draw(4, 3, 4, 4), "b": draw(4, 5, 2, 2)}
    teacher = {"x": draw(4, 6, 4, 4, seed=1), "y": draw(4, 6, 2, 2, seed=2)}
    term = AttentionTransfer(layers={"a": "x", "b": "y"}, p=4)
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    expected = sum(attention_transfer(student[s], teacher[t], 4, reduction="none") for s, t in (("a", "x"), ("b", "y")))
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


@each_case(
    ("student", "teacher", "words"),
    [
        ((4, 8), (4, 8, 4, 4), r"\[4, 8\] has no positions\. Choose a layer before the global pooling"),
        ((4, 8, 4, 4), (4, 15, 32), "15 tokens are not a square grid"),
        ((4, 8, 1, 1), (4, 8, 4, 4), "a single position always has attention 1. Choose earlier layers"),
        ((4, 8, 1, 4), (4, 8, 4, 1), "a single position"),
    ],
)
def test_layers_that_are_no_maps_are_refused(student: tuple[int, ...], teacher: tuple[int, ...], words: str) -> None:
    term = AttentionTransfer(layers={"block1": "stage2"})
    with pytest.raises(UserError, match=words) as refused:
        term.build({"block1": torch.Size(student)}, {"stage2": torch.Size(teacher)})
    assert f"student layer 'block1' {list(student)}" in str(refused.value)
    assert f"teacher layer 'stage2' {list(teacher)}" in str(refused.value)


def test_power_must_be_positive() -> None:
    with pytest.raises(UserError, match="p=0"):
        AttentionTransfer(p=0)


@formulas.plain("attention_transfer", "s_map", "t_map")
def plain_attention_transfer(x: formulas.Inputs) -> Tensor:
    s, t = (formulas.unit(x[name].pow(2).mean(1).flatten(1)) for name in ("s_map", "t_map"))
    return (s - t).pow(2).mean()
