"""Records the queries, keys and values of attention layers, from which maps and relations are computed."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from distillery.core.errors import UserError
from distillery.losses.signals import Attention


class Recorder(TorchFunctionMode):
    """While active, notes what each `F.scaled_dot_product_attention` is given, and lets it run as it is."""

    def __init__(self, note: Callable[[Attention], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self._note(_operands(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


class Recorders:
    """One for each tapped module that is running; inactive outside of these modules, where it would cost time."""

    def __init__(self) -> None:
        self._active: list[tuple[Recorder, list[Attention]]] = []

    def attach(self, module: nn.Module, name: str, keep: Callable[[Attention], None]) -> list[RemovableHandle]:
        """Hand `keep` the (last) attention of every forward of `module` from now on; returns the hooks that do so.

        Raises:
            UserError: in a forward without attention.
        """

        def begin(_: nn.Module, __: Any) -> None:
            found: list[Attention] = []
            self._active.append((Recorder(found.append), found))
            self._active[-1][0].__enter__()

        def end(_: nn.Module, __: Any, ___: Any) -> None:
            found = self._leave()
            if not found:
                raise UserError(f"{name}: no attention ran in this forward. {MEND}")
            keep(found[-1])

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    def close(self) -> None:
        """Leave those that are still active: the forward has raised, or was interrupted. To be called after each."""
        while self._active:
            self._leave()

    def _leave(self) -> list[Attention]:
        recorder, found = self._active.pop()
        recorder.__exit__(None, None, None)
        return found


def attention_modules(net: nn.Module, run: Callable[[], object]) -> list[str]:
    """The paths of the modules that call `F.scaled_dot_product_attention` themselves, in the order in which they do."""
    running, found = [""], dict[str, None]()

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: running.append(path)

    def leave(*_: object) -> None:
        running.pop()

    hooks = [module.register_forward_pre_hook(enter(path)) for path, module in net.named_modules()]
    hooks += [module.register_forward_hook(leave) for module in net.modules()]
    try:
        with Recorder(lambda _: found.setdefault(running[-1])):
            run()
    finally:
        remove(hooks)
    return list(found)


def remove(hooks: list[RemovableHandle]) -> None:
    """Remove the hooks from their modules and from the list."""
    while hooks:
        hooks.pop().remove()


MEND = (
    "What is recorded are the operands of F.scaled_dot_product_attention. With transformers, load the model with "
    "attn_implementation='sdpa'; with timm, call timm.layers.set_fused_attn(True) before creating it; "
    "nn.MultiheadAttention cannot be read."
)


def _operands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """The arguments of `F.scaled_dot_product_attention`, each in its place."""
    if enable_gqa:  # grouped-query attention: groups of query heads share a head of keys and values
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return Attention(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
