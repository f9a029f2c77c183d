"""The values that a loss's settings may have, declared in their types and checked when the term is made.

temperature: Positive = 4.0
variant: Literal["memory", "in_batch"] = "memory"
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from distillery.core.errors import UserError, did_you_mean

KINDS = {bool: "true or false", int: "a whole number", float: "a number"}
ACCEPTED: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float)}


def positive(name: str, value: float) -> None:
    """Raise UserError unless the value is finite and greater than 0."""
    if not 0 < value < math.inf:
        raise UserError(f"{name}={value}: it must be a finite number greater than 0.")


def fraction(name: str, value: float) -> None:
    """Raise UserError unless the value is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise UserError(f"{name}={value}: it must be at least 0 and below 1.")


Positive = Annotated[float, positive]
PositiveInt = Annotated[int, positive]
Fraction = Annotated[float, fraction]


def check_settings(owner: object) -> None:
    """Check every argument of the owner's constructor, which it holds as an attribute of the same name.

    Not `weight`: the objective checks the weights of all losses.

    Raises:
        UserError: a value is of the wrong type, is not one of a `Literal`'s, or fails a check in an `Annotated` type.
    """
    for name, kind in get_type_hints(type(owner).__init__, include_extras=True).items():
        if name not in ("return", "weight"):
            _check(name, kind, getattr(owner, name))


def choice(name: str, value: object, literal: Any) -> None:
    """Raise UserError unless the value is one of the `Literal` type's."""
    if value not in get_args(literal):
        options = [str(option) for option in get_args(literal)]
        raise UserError(f"{name}={value}: unknown value.{did_you_mean(str(value), options)}")


def _check(name: str, kind: Any, value: Any) -> None:
    checks: list[Callable[[str, Any], None]] = []
    if get_origin(kind) is Annotated:
        kind, *checks = get_args(kind)
    if get_origin(kind) is Literal:
        choice(name, value, kind)
    if kind in KINDS and (not isinstance(value, ACCEPTED[kind]) or (isinstance(value, bool) and kind is not bool)):
        raise UserError(f"{name}={value}: it must be {KINDS[kind]}.")
    for check in checks:
        check(name, value)
