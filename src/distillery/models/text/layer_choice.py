"""Which layers of a larger network a student is initialised from."""

from collections.abc import Sequence
from typing import Literal, get_args

from distillery.core.errors import UserError, did_you_mean

Layers = Literal["even", "first", "last"]


def chosen_layers(layers: Layers | Sequence[int], available: int, wanted: int) -> list[int]:
    """The numbers, from 0, of the `wanted` layers out of `available`.

    even: the i-th is i · (available - 1) / (wanted - 1), to the nearest, upwards of two: the first and the last are
    always among them, and 12 → 6 gives 0, 2, 4, 7, 9, 11, as DistilBERT has it. A single one is the first.

    Raises:
        UserError: more layers than there are, numbers out of range, or not as many as the student has layers.
    """
    if isinstance(layers, str):
        if layers not in get_args(Layers):
            raise UserError(
                f"student.initialise.layers={layers}.{did_you_mean(layers, get_args(Layers))} Or list layer numbers."
            )
        if wanted > available:
            raise UserError(
                f"student.initialise.layers={layers}: the student has {wanted} layers, the source {available}. Give "
                f"the student at most {available}, or list a source layer for each, such as [0, 0, 1, 1]."
            )
        if layers == "even":
            gaps = max(wanted - 1, 1)
            return [(2 * i * (available - 1) + gaps) // (2 * gaps) for i in range(wanted)]
        return list(range(wanted)) if layers == "first" else list(range(available - wanted, available))
    numbers = list(layers)
    if len(numbers) != wanted:
        raise UserError(
            f"student.initialise.layers={numbers}: {len(numbers)} layers are listed, but the student has {wanted}. "
            f"List {wanted}, or set the student's num_hidden_layers to {len(numbers)}."
        )
    if wrong := [number for number in numbers if number not in range(available)]:
        raise UserError(
            f"student.initialise.layers={numbers}: there is no layer {wrong[0]}; the source's are 0 to {available - 1}."
        )
    return numbers
