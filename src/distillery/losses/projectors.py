"""Trainable adapters from the student's features to the teacher's width. They are not part of the exported student."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.losses.alignment import align, channels
from distillery.losses.term import Pair


def make_projector(kind: str | None, pair: Pair) -> nn.Module:
    """The adapter that maps the student's features to the teacher's number of channels; `align` does the rest.

    Args:
        kind: 'conv' (1×1, for student maps [B,C,H,W]), 'linear' (for vectors [B,D] and tokens [B,L,D]), 'auto'
            (whichever of the two fits the student's features), 'mlp' (two such layers with ReLU in between for maps,
            GELU otherwise), 'none' (no adapter: `align` averages channels of the wider layer), or None (no adapter,
            and the widths must be equal).
        pair: the two layers and their shapes.

    Raises:
        UserError: this kind, or any kind, cannot join these shapes.
    """
    aligned(pair)
    on_maps = len(pair.student) == 4
    fitting = "conv" if on_maps else "linear"
    width_in, width_out = channels(pair.student), channels(pair.teacher)
    if kind is None and width_in != width_out:
        raise UserError(
            f"Cannot compare {pair} without a projector: the widths {width_in} and {width_out} differ. "
            "Set projector=auto, or projector=none to average channels of the wider layer, or choose layers of "
            "equal width."
        )
    if kind in (None, "none"):
        return nn.Identity()
    if kind not in ("auto", "mlp", fitting):
        raise UserError(f"projector={kind} cannot join {pair}. Set projector={fitting} or projector=auto.")
    if kind != "mlp":
        return _layer(width_in, width_out, on_maps)
    activation = nn.ReLU() if on_maps else nn.GELU()
    return nn.Sequential(_layer(width_in, width_out, on_maps), activation, _layer(width_out, width_out, on_maps))


def run(module: nn.Module, features: Tensor) -> Tensor:
    """`module(features)`, with the features in the precision of the module's parameters.

    Every call of a module that belongs to a loss goes through this: with trainer.precision=bf16-true the modules are
    in bfloat16, while features may already be in float32.
    """
    for parameter in module.parameters():
        features = features.to(parameter.dtype)
        break
    output: Tensor = module(features)
    return output


def aligned(
    pair: Pair, function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = align
) -> tuple[torch.Size, torch.Size]:
    """The shapes of student and teacher after `function`, which is `align` or `align_maps`.

    Raises:
        UserError: the two layers cannot be compared.
    """
    for shape in (pair.student, pair.teacher):
        if len(shape) not in (2, 3, 4):
            raise UserError(f"Cannot compare {pair}: layers must be maps [B,C,H,W], tokens [B,L,D] or vectors [B,D].")
    try:
        student, teacher = function(*(torch.empty(shape, device="meta") for shape in (pair.student, pair.teacher)))
    except ValueError as error:
        raise UserError(f"Cannot compare {pair}: {error}") from None
    return student.shape, teacher.shape


def _layer(width_in: int, width_out: int, on_maps: bool) -> nn.Module:
    return nn.Conv2d(width_in, width_out, kernel_size=1) if on_maps else nn.Linear(width_in, width_out)


class ExitBranch(nn.Module):
    """A classifier on an intermediate layer: the mean over the positions of maps or tokens, then a linear layer."""

    def __init__(self, shape: torch.Size, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels(shape), classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, classes]."""
        pooled = at_least_float32(features)
        if features.dim() > 2:
            pooled = pooled.mean((2, 3) if features.dim() == 4 else 1)
        return run(self.linear, pooled)
