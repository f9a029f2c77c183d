"""Nodes with a `_target_`, checked against the signature of what they name."""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from hydra.errors import HydraException
from hydra.utils import get_object

from distillery.core.errors import UserError, did_you_mean, named
from distillery.core.kinds import conform
from distillery.models.timm_names import check_timm

HYDRA: dict[str, Any] = {
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list[Any],
}  # what Hydra reads of a node

Kinds = Mapping[str, Any]  # the annotation of each setting


def check_target(path: str, node: Mapping[str, Any], kinds: Kinds | None = None) -> dict[str, Any]:
    """A node with a `_target_`, each setting as the annotation of the parameter admits it (see `conform`).

    Nodes inside are checked too.

    Args:
        kinds: annotations that take the place of the target's own.

    Raises:
        UserError: the target cannot be imported, takes no such setting, or no such value; with the full path.
    """
    target = imported(f"{path}._target_", node["_target_"])
    names, takes_any = parameters(target)
    if not takes_any:
        refuse_unknown(path, node, [*names, *HYDRA])
    checked = check_settings(path, node, {**names, **HYDRA, **(kinds or {})})
    if node["_target_"] == "timm.create_model":
        try:
            check_timm(checked.get("model_name", ""))
        except UserError as error:
            raise named(path, error) from None
    return checked


def check_settings(path: str, node: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """`node` with each value as its annotation admits it; a setting without one is let through."""
    return {key: _setting(f"{path}.{key}" if path else key, value, kinds.get(key, Any)) for key, value in node.items()}


def refuse_unknown(path: str, node: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse a key of `node` that is none of `known`, with the nearest of them."""
    known = set(known)
    if unknown := [str(key) for key in node if key not in known]:
        full = f"{path}.{unknown[0]}" if path else unknown[0]
        raise UserError(f"Unknown setting {full!r}." + did_you_mean(unknown[0], known - HYDRA.keys()))


def imported(path: str, name: Any) -> Callable[..., Any]:
    """What `name` names.

    Raises:
        UserError: there is no such thing.
    """
    try:
        found: Callable[..., Any] = get_object(name)
    except (HydraException, ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot import {name!r}: {error}") from error
    if not callable(found):
        raise UserError(f"{path}: cannot import {name!r}: it is not callable, but a {type(found).__name__}.")
    return found


@lru_cache(maxsize=1000)
def parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The annotations of a callable's parameters (`Any` where there is none), and whether it takes others too."""
    try:
        signature = inspect.signature(target).parameters.values()
    except ValueError:  # a builtin does not tell
        return {}, True
    hints = _hints(target.__init__ if inspect.isclass(target) else target)
    named = [parameter.name for parameter in signature if parameter.kind is not parameter.VAR_KEYWORD]
    return {name: hints.get(name, Any) for name in named}, len(named) < len(signature)


def _hints(function: Any) -> dict[str, Any]:
    """The annotations, with what `Annotated` adds; none where one of them cannot be read."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # imported by type checkers only
        return {}


def _setting(path: str, value: Any, kind: Any) -> Any:
    if _has_target(value) or kind is Any:
        return _inside(path, value)
    return conform(path, value, kind)


def _has_target(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _inside(path: str, value: Any) -> Any:
    """`value` with the nodes in it checked."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return check_target(path, value)
        return {key: _inside(f"{path}.{key}", each) for key, each in value.items()}
    if isinstance(value, list):
        return [_inside(f"{path}[{index}]", each) for index, each in enumerate(value)]
    return value
