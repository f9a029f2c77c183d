import pytest
import torch
from torch import nn

from distillery.core.errors import UserError
from distillery.losses.projectors import make_projector
from distillery.losses.term import Pair
from fixtures.cases import each_case


def pair(student: tuple[int, ...], teacher: tuple[int, ...]) -> Pair:
    return Pair("block1", "stage2", torch.Size(student), torch.Size(teacher))


@each_case(
    ("kind", "student", "teacher", "projected", "parameters"),
    [
        ("auto", (2, 8, 6, 6), (2, 5, 3, 3), (2, 5, 6, 6), 8 * 5 + 5),
        ("conv", (2, 8, 6, 6), (2, 8, 6, 6), (2, 8, 6, 6), 8 * 8 + 8),
        ("auto", (2, 8), (2, 5), (2, 5), 8 * 5 + 5),
        ("linear", (2, 7, 8), (2, 7, 5), (2, 7, 5), 8 * 5 + 5),
        ("auto", (2, 8, 6, 6), (2, 17, 5), (2, 5, 6, 6), 8 * 5 + 5),
        ("auto", (2, 17, 8), (2, 5, 6, 6), (2, 17, 5), 8 * 5 + 5),
        ("linear", (2, 8), (2, 5, 6, 6), (2, 5), 8 * 5 + 5),
        ("mlp", (2, 8, 6, 6), (2, 5, 3, 3), (2, 5, 6, 6), 8 * 5 + 5 + 5 * 5 + 5),
        ("mlp", (2, 8), (2, 5), (2, 5), 8 * 5 + 5 + 5 * 5 + 5),
        ("mlp", (2, 7, 8), (2, 7, 5), (2, 7, 5), 8 * 5 + 5 + 5 * 5 + 5),
        ("none", (2, 8, 6, 6), (2, 5, 6, 6), (2, 8, 6, 6), 0),
        (None, (2, 8, 6, 6), (2, 8, 3, 3), (2, 8, 6, 6), 0),
        (None, (2, 7, 8), (2, 7, 8), (2, 7, 8), 0),
    ],
)
def test_projected_shape(
    kind: str | None,
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    projected: tuple[int, ...],
    parameters: int,
) -> None:
    projector = make_projector(kind, pair(student, teacher))
    assert projector(torch.randn(student)).shape == projected
    assert sum(p.numel() for p in projector.parameters()) == parameters


def test_without_projector_features_pass_unchanged() -> None:
    features = torch.randn(2, 8)
    assert isinstance(projector := make_projector(None, pair((2, 8), (2, 8))), nn.Identity)
    assert projector(features) is features


@each_case(("shape", "other"), [((2, 8, 4, 4), (2, 5, 4, 4)), ((2, 7, 8), (2, 7, 5)), ((2, 8), (2, 5))])
def test_mlp_is_two_layers_with_a_bend(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    projector = make_projector("mlp", pair(shape, other))
    first, second = (layer for layer in projector.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    inner = first(x := torch.randn(shape))
    bend = torch.relu if len(shape) == 4 else nn.functional.gelu
    torch.testing.assert_close(projector(x), second(bend(inner)))


@each_case(
    ("kind", "student", "teacher", "words"),
    [
        (
            None,
            (2, 8, 6, 6),
            (2, 5, 6, 6),
            r"without a projector: the widths 8 and 5 differ\. Set projector=auto, or projector=none",
        ),
        (None, (2, 7, 8), (2, 7, 5), "the widths 8 and 5 differ"),
        ("linear", (2, 8, 6, 6), (2, 5, 6, 6), "projector=linear cannot join .* Set projector=conv"),
        ("conv", (2, 8), (2, 5), "projector=conv cannot join .* Set projector=linear"),
        ("conv", (2, 17, 8), (2, 5, 6, 6), "projector=conv cannot join .* Set projector=linear"),
        ("auto", (2, 8, 6, 6, 6), (2, 8, 6, 6, 6), r"layers must be maps \[B,C,H,W\], tokens \[B,L,D\] or vectors"),
        ("auto", (2,), (2,), "layers must be maps"),
        ("auto", (2, 15, 8), (2, 9, 8), r"15 tokens are not a square grid .* Choose layers with the same number"),
        ("none", (2, 15, 8), (2, 8, 3, 3), "15 tokens are not a square grid"),
    ],
)
def test_impossible_pairs_are_refused(
    kind: str | None, student: tuple[int, ...], teacher: tuple[int, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        make_projector(kind, pair(student, teacher))
    assert f"student layer 'block1' {list(student)}" in str(refused.value)
    assert f"teacher layer 'stage2' {list(teacher)}" in str(refused.value)
