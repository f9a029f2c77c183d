"""How much each unit of a transformer counts, by its weights or by what it gives on texts (Minitron)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.evaluation_mode import evaluating
from distillery.models.text.truncation import Scores, Widths, is_of_heads

Inputs = Mapping[str, Any]  # of a network, by the names of its arguments


def by_magnitude(layers: Iterable[nn.Module], outside: Iterable[Tensor], widths: Widths) -> list[Scores]:
    """The norm of all weights that belong to a unit, for each layer.

    Keys and values belong to the heads of queries that share them, in equal parts.

    Args:
        layers: the numbered layers of the network.
        outside: its parameters in no layer: tables, normalisations.
    """
    hidden = torch.zeros(widths.hidden)
    inside: list[tuple[Tensor, Tensor]] = []
    for parameter in outside:
        hidden += _squares(parameter, widths.hidden)
    for layer in layers:
        heads, inner = torch.zeros(widths.heads), torch.zeros(widths.inner)
        for name, parameter in layer.named_parameters():
            of_heads = [axis for axis in range(parameter.dim()) if is_of_heads(name, axis)]
            for axis in of_heads:
                units = _along(parameter, axis)
                heads += _per_head(units, widths) if len(units) % widths.head == 0 else 0.0
            rest = [axis for axis in range(parameter.dim()) if axis not in of_heads]
            hidden += _squares(parameter, widths.hidden, rest)
            inner += _squares(parameter, widths.inner, rest)
        inside.append((heads.sqrt(), inner.sqrt()))
    return [Scores(hidden.sqrt(), heads, inner) for heads, inner in inside]


def by_activation(
    net: nn.Module, layers: Sequence[nn.Module], widths: Widths, batches: Iterable[tuple[Inputs, Tensor]]
) -> list[Scores]:
    """What the units of each layer give on texts: the mean over a text's tokens, of which the norm over the texts.

    Of a head it is the length of its result; of a neuron, and of a hidden channel behind each normalisation, the
    absolute value (Muralidharan et al. 2024, https://arxiv.org/abs/2407.14679, section 2.2).

    Args:
        batches: the arguments of `net`, and the mask [B, L] of the tokens that count.

    Raises:
        UserError: it is not known which modules read the heads and the neurons.
    """
    hidden, norms = torch.zeros(widths.hidden), _normalisations(net, widths.hidden)
    heads, inner = torch.zeros(len(layers), widths.heads), torch.zeros(len(layers), widths.inner)
    with evaluating(net):
        for inputs, mask in batches:
            found: dict[Any, Tensor] = {}
            with _recording(layers, norms, widths, found):
                net(**inputs)
            for place, value in found.items():
                kind, number = place
                sums = hidden if kind == "hidden" else (heads if kind == "heads" else inner)[number]
                if kind == "heads":
                    value = value.unflatten(-1, (widths.heads, widths.head)).norm(dim=-1)
                counts = (mask > 0).to(value.dtype)[..., None]
                mean = (value.abs() * counts).sum(1) / counts.sum(1).clamp(min=1)
                sums += mean.square().sum(0)
    if missing := [name for name, each in {"heads": heads, "neurons": inner}.items() if not each.sum(1).all()]:
        raise UserError(
            f"student.initialise.keep=activation: cannot find the modules of {type(net).__name__} that read the "
            f"{missing[0]}. Set student.initialise.keep=magnitude."
        )
    return [Scores(hidden.sqrt(), heads[n].sqrt(), inner[n].sqrt()) for n in range(len(layers))]


@contextmanager
def _recording(
    layers: Sequence[nn.Module], norms: Sequence[nn.Module], widths: Widths, found: dict[Any, Tensor]
) -> Iterator[None]:
    """Keeps what the modules that read heads and neurons are given, and what normalisations give, by kind and place."""

    def reads(number: int, of_heads: bool, _: nn.Module, given: tuple[Any, ...]) -> None:
        if of_heads and given[0].shape[-1] == widths.heads * widths.head:
            found["heads", number] = given[0].float()
        elif not of_heads and given[0].shape[-1] == widths.inner:
            found["inner", number] = given[0].float()  # where a hidden state is as wide, the last one to run is it

    def gives(number: int, _: nn.Module, __: Any, result: Tensor) -> None:
        found["hidden", number] = result.float()

    hooks = [norm.register_forward_hook(partial(gives, number)) for number, norm in enumerate(norms)]
    for number, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if getattr(module, "weight", torch.zeros(0)).dim() == 2:
                hook: Callable[..., None] = partial(reads, number, is_of_heads(f"{path}.weight", 1))
                hooks.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def _normalisations(net: nn.Module, hidden: int) -> list[nn.Module]:
    """The modules with one weight for each hidden channel."""
    return [module for module in net.modules() if getattr(module, "weight", torch.zeros(0)).shape == (hidden,)]


def _along(parameter: Tensor, axis: int) -> Tensor:
    """The sum of squares at each position of an axis."""
    return parameter.detach().float().square().movedim(axis, 0).reshape(parameter.shape[axis], -1).sum(1)


def _squares(parameter: Tensor, size: int, axes: Iterable[int] = range(2)) -> Tensor:
    """The same for the axes of this size; zero where there are none."""
    found = [_along(parameter, axis) for axis in axes if axis < parameter.dim() and parameter.shape[axis] == size]
    return torch.stack(found).sum(0) if found else torch.zeros(size)


def _per_head(units: Tensor, widths: Widths) -> Tensor:
    """The sum over each head [H] of what its units, or those of the keys and values that it shares, have."""
    sums = units.view(-1, widths.head).sum(1)
    return sums.repeat_interleave(widths.heads // len(sums)) * len(sums) / widths.heads
