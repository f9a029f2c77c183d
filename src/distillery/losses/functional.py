"""Every loss as a pure function of tensors, usable without the rest of the template.

The functions are those of the modules in the four families: `distillery.losses.response.kd.kd` is `functional.kd`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from distillery.losses.discovery import functions_of, loss_modules

FUNCTIONS = {name: function for module in loss_modules() for name, function in functions_of(module).items()}
globals().update(FUNCTIONS)
__all__ = sorted(FUNCTIONS)

if TYPE_CHECKING:
    from torch import Tensor

    def __getattr__(name: str) -> Callable[..., Tensor]: ...
