"""Layers of different kinds, sizes and widths in one shape, against slices and means written out."""

import itertools

import pytest
import torch
from torch import Tensor

from distillery.losses.alignment import align, align_maps, as_map
from fixtures.cases import each_case


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def same(found: tuple[Tensor, Tensor], student: Tensor, teacher: Tensor) -> None:
    torch.testing.assert_close(found[0], student)
    torch.testing.assert_close(found[1], teacher)


@each_case("prefix", [0, 1, 2, 5])
def test_tokens_are_read_row_by_row_without_their_prefix(prefix: int) -> None:
    tokens = draw(2, prefix + 9, 4)
    found = as_map(tokens)
    assert found.shape == (2, 4, 3, 3)
    for row, column in itertools.product(range(3), repeat=2):
        torch.testing.assert_close(found[:, :, row, column], tokens[:, prefix + 3 * row + column])


@each_case("length", [0, 15, 22, 98, 128])
def test_tokens_that_are_no_square_grid(length: int) -> None:
    """98: an image of 14 × 7 patches; 128: a text."""
    with pytest.raises(ValueError, match=f"{length} tokens are not a square grid"):
        as_map(draw(2, length, 4))


def test_what_has_no_positions_is_no_map() -> None:
    with pytest.raises(ValueError, match=r"\[2, 4\] has no positions"):
        as_map(draw(2, 4))


@each_case("shape", [(2, 6, 4, 3), (2, 7, 6), (2, 6)])
def test_what_agrees_passes_unchanged(shape: tuple[int, ...]) -> None:
    student, teacher = draw(*shape), draw(*shape) + 1
    found = align(student, teacher)
    assert found[0] is student
    assert found[1] is teacher


def test_map_beside_tokens() -> None:
    """A CNN's 4 × 4 map is averaged to the 2 × 2 patches of a ViT with a class token, and the other way round."""
    features, tokens = draw(3, 6, 4, 4), draw(3, 5, 6)
    blocks = features.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    grid = tokens[:, 1:].reshape(3, 2, 2, 6).permute(0, 3, 1, 2)
    same(align(features, tokens), blocks, grid)
    same(align(tokens, features), grid, blocks)


def test_tokens_of_other_grids() -> None:
    student, teacher = draw(3, 1 + 16, 6), draw(3, 2 + 4, 6)
    finer = student[:, 1:].reshape(3, 2, 2, 2, 2, 6).mean((2, 4)).permute(0, 3, 1, 2)
    same(align(student, teacher), finer, teacher[:, 2:].reshape(3, 2, 2, 6).permute(0, 3, 1, 2))


def test_vector_beside_positions() -> None:
    vector, features, tokens = draw(3, 6), draw(3, 6, 4, 5), draw(3, 1 + 9, 6)
    same(align(vector, features), vector, features.mean((2, 3)))
    same(align(tokens, vector), tokens[:, 1:].mean(1), vector)


@each_case("shape", [(2, 6, 4, 3), (2, 7, 6), (2, 6)])
def test_neighbouring_channels_of_the_wider_are_averaged(shape: tuple[int, ...]) -> None:
    dim = 1 if len(shape) == 4 else -1
    wide, narrow = draw(*shape), draw(*shape).narrow(dim, 0, 3)
    expected = torch.stack([(wide.select(dim, 2 * i) + wide.select(dim, 2 * i + 1)) / 2 for i in range(3)], dim)
    same(align(wide, narrow), expected, narrow)
    same(align(narrow, wide), narrow, expected)


def test_maps_keep_their_channels() -> None:
    student, teacher = align_maps(draw(2, 10, 6), draw(2, 4, 5, 2))
    assert student.shape == (2, 6, 3, 2)
    assert teacher.shape == (2, 4, 3, 2)


@each_case(("student", "teacher"), [((2, 6, 4, 4), (2, 5, 3)), ((2, 10, 4), (2, 17, 7)), ((2, 5), (2, 6, 3, 2))])
def test_gradient_reaches_both(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    given = draw(*student).requires_grad_(), draw(*teacher).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: tuple(align(s, t)), given)


def test_half_precision_is_left_behind() -> None:
    student, teacher = align(torch.full((1, 4, 2, 2), 6e4).half(), torch.ones(1, 4, 1, 1).bfloat16())
    assert student.dtype == teacher.dtype == torch.float32
    assert (student == torch.tensor(6e4).half().float()).all()
