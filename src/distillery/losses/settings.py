"""The values that a loss's settings may have, declared in their types and checked when the term is made.

temperature: Positive = 4.0
variant: Literal["memory", "in_batch"] = "memory"
"""

import math
from typing import Annotated, get_type_hints

from annotated_types import Ge, Gt, Lt
from pydantic import PositiveInt

from distillery.core.kinds import Says, conform

__all__ = ["Fraction", "Positive", "PositiveInt", "check_settings"]

Positive = Annotated[float, Gt(0), Lt(math.inf), Says("a finite number greater than 0")]
Fraction = Annotated[float, Ge(0), Lt(1), Says("at least 0 and below 1")]


def check_settings(owner: object) -> None:
    """Check every argument of the owner's constructor, an attribute of the same name, and take it as `conform` does.

    Not `weight`: the objective checks the weights of all losses.

    Raises:
        UserError: a value that its type does not admit.
    """
    for name, kind in get_type_hints(type(owner).__init__, include_extras=True).items():
        if name not in ("return", "weight"):
            setattr(owner, name, conform(name, getattr(owner, name), kind))
