"""Values against type annotations: what is taken, what is refused, and how an annotation reads in words."""

from collections import UserList
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeInt, PositiveInt

from distillery.core.errors import UserError
from distillery.core.kinds import Says, conform, describe


class Shape(Protocol):
    side: int


TAKEN: list[tuple[Any, Any, Any]] = [
    (int, 25.0, 25),
    (int | float, 1.0, 1.0),  # a share of 1.0 is not one batch
    (float, 1, 1),
    (int | None, "None", None),
    (str | None, "None", "None"),
    (str, 2024, "2024"),
    (Sequence[int], [16.0, 32], [16, 32]),
    (tuple[float, float], [0.9, 0.999], (0.9, 0.999)),
    (tuple[float, float], UserList([0.9, 0.999]), (0.9, 0.999)),  # as OmegaConf's lists are none
    (Iterable[int], [1, 2.0], [1, 2]),
    (Mapping[str, str] | Literal["auto"], "auto", "auto"),
    (Shape, "anything", "anything"),  # Pydantic cannot handle it
]
REFUSED: list[tuple[Any, Any, str]] = [
    (int, True, "a whole number"),
    (int, "25", "a whole number"),
    (int, 1.5, "a whole number"),
    (float, "abc", "a finite number"),
    (float, None, "a finite number"),
    (bool, 1, "true or false"),
    (str, 1.5, "text"),
    (PositiveInt | None, 0, "a whole number of at least 1 or null"),
    (Annotated[int, Ge(0), Lt(9)], -1, "a whole number of at least 0 and less than 9"),
    (Annotated[float, Gt(0), Le(1)], 1.5, "a finite number greater than 0 and of at most 1"),
    (list[NonNegativeInt], [1, -1], "a list, each entry a whole number of at least 0"),
    (Callable[..., Any], "abc", "a mapping with a _target_"),
    (Annotated[int, Ge(1), Says("a number of devices")] | None, "x", "a number of devices or null"),
]


def test_what_can_mean_one_thing_only_is_taken() -> None:
    for kind, value, meant in TAKEN:
        found = conform("x", value, kind)
        assert (found, type(found)) == (meant, type(meant)), (kind, value)


def test_anything_else_is_refused_in_words() -> None:
    for kind, value, words in REFUSED:
        assert describe(kind) == words
        with pytest.raises(UserError, match=r"^a\.b=.*: it must be ") as error:
            conform("a.b", value, kind)
        assert str(error.value).endswith(f"it must be {words}.")
    with pytest.raises(UserError, match=r"^a\.b=evl\. Did you mean 'eval'\?$"):
        conform("a.b", "evl", Literal["eval", "train"])
    with pytest.raises(UserError, match=r"^a\.b=evl\. Did you mean 'eval'\?$"):
        conform("a.b", "evl", Literal["train", 1] | Literal["train", "eval"] | None)
