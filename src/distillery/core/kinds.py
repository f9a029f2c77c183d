"""Settings checked against type annotations: what a YAML file or a command line gives, as a parameter takes it."""

import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError
from pydantic_core import SchemaError

from distillery.core.errors import UserError, did_you_mean

ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("of at least", "ge"),
    Gt: ("greater than", "gt"),
    Le: ("of at most", "le"),
    Lt: ("less than", "lt"),
}


@dataclass(frozen=True)
class Says:
    """In an `Annotated` type: what error messages call it, in place of the description made from the type."""

    text: str


def conform(path: str, value: Any, kind: Any) -> Any:
    """`value` if the annotation `kind` admits it, or what it can only mean: 25.0 → 25, "None" → null.

    Types are compared strictly, as in JSON: text is no number and 1 is not true, but a list may stand for a tuple. An
    annotation that Pydantic cannot handle admits everything.

    Raises:
        UserError: names `path`, the value, and what is expected there.
    """
    adapter = _adapter(kind)
    if adapter is None:
        return value
    value = _plain(value)
    word = str(value) if type(value) is int else value  # a folder called 2024
    for meant in (value, _whole_numbers(value), _nulls(_whole_numbers(value)), word):
        try:
            found = adapter.validate_json(json.dumps(meant), strict=True)
            found = list(found) if isinstance(found, Iterator) else found  # an Iterable is validated as it is read
        except (ValidationError, TypeError):  # TypeError: a value that is no plain data
            continue
        return meant if meant == found else found  # not 1.0 for 1, which would be another job
    if options := _options(kind):
        raise UserError(f"{path}={shown(value)}." + did_you_mean(shown(value), map(shown, options)))
    raise UserError(f"{path}={shown(value)}: it must be {describe(kind)}.")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def describe(kind: Any) -> str:
    """An annotation in words: "a whole number of at least 1 or null"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        said = next((each.text for each in arguments[1:] if isinstance(each, Says)), None)
        bounds = " and ".join(_bound(each, arguments[0] is int) for each in arguments[1:] if type(each) in BOUNDS)
        return said or f"{describe(arguments[0])} {bounds}".strip()
    if origin in (Union, types.UnionType):
        options = dict.fromkeys(map(describe, arguments))
        return (", or " if any("," in option for option in options) else " or ").join(options).replace(",,", ",")
    if origin is Literal:
        return " or ".join(map(shown, arguments))
    if kind in NAMES:
        return NAMES[kind]
    base = origin or kind
    if base.__module__ not in ("builtins", "collections.abc") or not issubclass(base, Iterable):
        return "a mapping with a _target_"  # of an object
    if issubclass(base, Mapping):
        return "a mapping"
    return f"a list, each entry {describe(arguments[0])}" if arguments else "a list"


def _options(kind: Any) -> tuple[Any, ...]:
    """All values that the annotation admits; () if they cannot be counted."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) not in (Union, types.UnionType):
        return (None,) if kind is type(None) else ()
    parts = [_options(each) for each in get_args(kind)]
    return tuple(option for part in parts for option in part) if all(parts) else ()


@lru_cache(maxsize=1000)
def _adapter(kind: Any) -> TypeAdapter[Any] | None:
    for config in (ANY_CLASS, None):  # a type that has a config of its own takes no other
        try:
            return TypeAdapter(kind, config=config)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, SchemaError, TypeError, NameError):
            return None
        except PydanticUserError:
            continue
    return None


def _bound(constraint: Any, whole: bool) -> str:
    if whole and isinstance(constraint, Gt):
        constraint = Ge(constraint.gt + 1)  # type: ignore[operator]
    words, name = BOUNDS[type(constraint)]
    return f"{words} {getattr(constraint, name)}"


def _plain(value: Any) -> Any:
    """`value` with dicts and lists for other mappings and sequences."""
    return _each(_plain, value)


def _whole_numbers(value: Any) -> Any:
    """`value` with 25 for 25.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _each(_whole_numbers, value)


def _nulls(value: Any) -> Any:
    """`value` with null for "None", which some sweepers write."""
    return None if value == "None" else _each(_nulls, value)


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: function(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [function(each) for each in value]
    return value
