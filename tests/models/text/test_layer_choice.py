"""Which layers of the source a student begins with, by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from distillery.core.errors import UserError
from distillery.models.text.layer_choice import chosen_layers


@pytest.mark.parametrize(
    ("layers", "available", "wanted", "expected"),
    [
        ("even", 12, 6, [0, 2, 4, 7, 9, 11]),  # DistilBERT
        ("even", 12, 12, list(range(12))),
        ("even", 12, 4, [0, 4, 7, 11]),
        ("even", 12, 3, [0, 6, 11]),
        ("even", 6, 3, [0, 3, 5]),
        ("even", 6, 2, [0, 5]),
        ("even", 6, 1, [0]),
        ("even", 1, 1, [0]),
        ("first", 6, 2, [0, 1]),
        ("last", 6, 2, [4, 5]),
        ("last", 6, 6, [0, 1, 2, 3, 4, 5]),
        ([1, 3, 5], 6, 3, [1, 3, 5]),
        ([5, 0], 6, 2, [5, 0]),
        ([0, 0, 1], 2, 3, [0, 0, 1]),  # deeper than the source, when asked for
    ],
)
def test_chosen(layers: Any, available: int, wanted: int, expected: Sequence[int]) -> None:
    assert chosen_layers(layers, available, wanted) == expected


@pytest.mark.parametrize(
    ("layers", "available", "wanted", "message"),
    [
        ("evn", 6, 3, "layers=evn. Did you mean 'even'"),
        ("even", 6, 8, r"the student has 8 layers, the source 6.*at most 6"),
        ([0, 1], 6, 3, r"2 layers are listed, but the student has 3.*num_hidden_layers to 2"),
        ([0, 6], 6, 2, r"no layer 6; the source's are 0 to 5"),
        ([-1, 0], 6, 2, r"no layer -1"),
    ],
)
def test_refused(layers: Any, available: int, wanted: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_layers(layers, available, wanted)
