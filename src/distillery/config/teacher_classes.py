"""The classes of a frozen teacher, by name brought into the order of the data's."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Size

from distillery.config.networks import run_folder_of
from distillery.core.errors import UserError, did_you_mean
from distillery.data.module import Data
from distillery.models.classifier import missing_classifier
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from distillery.tasks.task import Task
from distillery.teachers.frozen import Teacher

BY_NAME = "names"  # `teachers.<name>.classes=names`: those that are called as the data's
SHOWN = 20  # names in a message
GENERIC = re.compile(r"LABEL_\d+|\d+")


def fit_classes(
    teacher: Teacher, cfg: DictConfig, data: Data, task: Task, outputs: int | None, logits: Size, batch: Any
) -> None:
    """Give the teacher the classes of the data, in their order, or note in `other_classes` why it has others.

    Its own names are those of its run, of its config (`id2label`) or of timm's. Where they are unknown or generic
    (`LABEL_0`), as many classes as the data's are taken as they are. `teachers.<name>.classes` says which belong
    together.

    Args:
        cfg: the completed config of the teacher.
        outputs: see `Task.outputs`.
        logits: the shape of the teacher's logits on `batch`.

    Raises:
        UserError: `classes` names none of the teacher's, or not one for each of the data's.
    """
    ours = list(data.classes)
    theirs = class_names(cfg, teacher)
    theirs = theirs if theirs and len(theirs) == logits[-1] else None
    path = f"teachers.{teacher.name}.classes"
    if (chosen := cfg.get("classes")) is not None:
        if not task.is_of_classes() or len(ours) != outputs:
            raise UserError(
                f"{path}: this task predicts a {task.prediction}, none of the data's classes. Leave it out."
            )
        index = _chosen(path, chosen, ours, theirs, logits[-1])
        _choose(teacher, index, ours, theirs, batch, f"by {path}")
        return
    if (cfg.get("net") or {}).get("num_classes") == 0 or missing_classifier(teacher.net):
        teacher.other_classes = f"has no classifier: it gives {logits[-1]} features"
    elif not task.fits(logits[-1], outputs):
        teacher.other_classes = (
            f"gives logits {tuple(logits)} where the task has {outputs} classes or values" + _subset(path, ours, theirs)
        )
    elif task.is_of_classes() and theirs and len(ours) == outputs:
        keys = _keys(ours, theirs)
        if set(keys[0]) != set(keys[1]):
            teacher.other_classes = "" if _generic(ours) or _generic(theirs) else _differing(path, ours, theirs, *keys)
        elif keys[0] != keys[1]:
            _choose(teacher, [keys[1].index(key) for key in keys[0]], ours, theirs, batch, "reordered by their names")


def class_names(cfg: DictConfig, teacher: Teacher) -> list[str] | None:
    """What the teacher's own classes are called, in the order of its logits; None: unknown."""
    if teacher.class_names is not None:
        return list(teacher.class_names)
    folder = Path(run_folder_of(str(cfg.get("weights"))))
    if (folder / RECORD).is_file():
        return [str(name) for name in RunRecord.read(folder).data["classes"]] or None
    config = getattr(teacher.net, "config", None)
    if labels := getattr(config, "id2label", None):
        return [str(labels[key]) for key in sorted(labels, key=int)]
    named = (getattr(teacher.net, "pretrained_cfg", None) or {}).get("label_names")
    return [str(name) for name in named] if named else None


def _generic(names: Sequence[str]) -> bool:
    return all(GENERIC.fullmatch(name) for name in names)


def _keys(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both without case, spaces and punctuation, unless some of them would be the same then."""
    plain = tuple([re.sub(r"[\W_]+", "", name.casefold()) or name for name in names] for names in (ours, theirs))
    if all(len(set(keys)) == len(keys) for keys in plain):
        return plain  # type: ignore[return-value]
    return list(ours), list(theirs)


def _chosen(path: str, chosen: Any, ours: Sequence[str], theirs: Sequence[str] | None, number: int) -> list[int]:
    """The position of the teacher's class for each of the data's."""
    chosen = list(ours) if chosen == BY_NAME else OmegaConf.to_container(chosen)
    if isinstance(chosen, Mapping):
        given = {str(name): theirs_name for name, theirs_name in chosen.items()}
        if missing := [name for name in ours if name not in given]:
            raise UserError(f"{path}: no class of the teacher for the data's {_list(missing)}.")
        if unknown := [name for name in given if name not in ours]:
            raise UserError(f"{path}: the data have no class {unknown[0]!r}." + did_you_mean(unknown[0], ours))
        chosen = [given[name] for name in ours]
    if len(chosen) != len(ours):
        raise UserError(
            f"{path} has {len(chosen)} classes, and the data {len(ours)} ({_list(ours)}): one for each, in this order."
        )
    index = [_position(path, each, theirs, number) for each in chosen]
    if twice := {place for place in index if index.count(place) > 1}:
        raise UserError(f"{path}: the teacher's class {min(twice)} stands for several classes of the data.")
    return index


def _position(path: str, name: str | int, theirs: Sequence[str] | None, number: int) -> int:
    if isinstance(name, int):
        if not 0 <= name < number:
            raise UserError(f"{path}: there is no class {name}: the teacher has {number}, counted from 0.")
        return name
    if theirs is None:
        raise UserError(f"{path}: the names of the teacher's classes are unknown. Give numbers from 0 to {number - 1}.")
    wanted, known = _keys([name], theirs)
    if wanted[0] in known:
        return known.index(wanted[0])
    raise UserError(f"{path}: the teacher has no class {name!r}." + did_you_mean(name, theirs))


def _choose(
    teacher: Teacher, index: list[int], ours: Sequence[str], theirs: Sequence[str] | None, batch: Any, how: str
) -> None:
    teacher.choose_classes(index, batch)
    own = [theirs[place] if theirs else str(place) for place in index]
    places = zip(ours, index, own, strict=True)
    moved = [
        f"{name} is its {place} ({there})" for number, (name, place, there) in enumerate(places) if number != place
    ]
    teacher.about_classes = f"classes {how}: {_list(moved)}"


def _subset(path: str, ours: Sequence[str], theirs: Sequence[str] | None) -> str:
    if theirs is None:
        return ""
    wanted, known = _keys(ours, theirs)
    return f". All of the data's are among them: {path}={BY_NAME} takes these" if set(wanted) <= set(known) else ""


def _differing(
    path: str, ours: Sequence[str], theirs: Sequence[str], our_keys: Sequence[str], their_keys: Sequence[str]
) -> str:
    only_theirs = [name for name, key in zip(theirs, their_keys, strict=True) if key not in our_keys]
    only_ours = [name for name, key in zip(ours, our_keys, strict=True) if key not in their_keys]
    places = ",".join(map(str, range(len(ours)))) if len(ours) <= SHOWN else "…"
    return (
        f"has classes of other names. Its: {_list(theirs)}. The data's: {_list(ours)}. Only the teacher has "
        f"{_list(only_theirs)}; only the data have {_list(only_ours)}. If they mean the same, say so: "
        f"{path}=[{places}] gives the number of the teacher's class for each of the data's"
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)})" if len(names) > SHOWN else "")
