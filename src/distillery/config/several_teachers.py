"""`loss.<name>.teacher: [main, b]`: the settings of a loss with several teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

from distillery.core.errors import UserError, did_you_mean

COMBINE = "combine"  # a loss's key that is none of its arguments: see `losses/several.py`


def per_teacher(path: str, loss: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each teacher that the loss at `path` names: the loss's settings `teacher` and `layers`.

    `layers` may be one mapping for all of them, or `{<teacher>: <its layers>, …}`.

    Raises:
        UserError: no teacher, one named twice, `combine` with a single one, or layers of other teachers.
    """
    named = loss.get("teacher", "main")
    teachers = list(named) if isinstance(named, Sequence) and not isinstance(named, str) else [named]
    if not teachers or len(set(teachers)) < len(teachers):
        raise UserError(f"{path}.teacher={named}: name one teacher, or several, each once: [main, b].")
    if len(teachers) == 1 and loss.get(COMBINE) is not None:
        raise UserError(f"{path}.{COMBINE}={loss[COMBINE]} wants several teachers: {path}.teacher=[{teachers[0]},…]")
    if "layers" not in loss:
        return [{"teacher": name} for name in teachers]
    layers = loss["layers"]
    if _is_per_teacher(layers, teachers):
        if wrong := [str(name) for name in layers if name not in teachers]:
            raise UserError(f"{path}.layers: this loss has no teacher {wrong[0]!r}." + did_you_mean(wrong[0], teachers))
        if missing := [name for name in teachers if name not in layers]:
            raise UserError(f"{path}.layers says nothing of {missing[0]!r}; give each teacher its own, or auto.")
        return [{"teacher": name, "layers": layers[name]} for name in teachers]
    return [{"teacher": name, "layers": layers} for name in teachers]


def _is_per_teacher(layers: Any, teachers: Sequence[str]) -> bool:
    if not isinstance(layers, Mapping):
        return False
    all_named = len(teachers) > 1 and set(layers) == set(teachers)
    return all_named or any(isinstance(each, Mapping) for each in layers.values())
