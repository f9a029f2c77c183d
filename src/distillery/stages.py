"""`cfg.stages` → the stages of a run, each with a whole config of its own.

A stage's config is that of the stage before with what the stage names merged into it: what it does not name stays.
What it names as null is again what the run has.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distillery.errors import UserError, did_you_mean
from distillery.names import FROZEN, NAME, role_of, teachers_of

FOLDER = "stages"  # in a run folder: the student of each finished stage, in a run folder of its own
PLACE = "stage:"  # `teacher: stage:<name>`, and wherever a config wants weights: the student of that stage
KEYS = frozenset("epochs steps until teacher teachers student loss task train optim data easiest".split())
SHARE = re.compile(r"\d+(\.\d+)?%")  # of the run's epochs
UNTIL = {"metric": "val/score", "mode": "max", "patience": 3, "min_delta": 0.0}
GENERATION = 10_007  # added to the seed for each earlier student of the same config: generations begin differently
RUN_TEACHER: dict[str, Any] = {
    "net": None,
    "weights": None,
    "input": {},
    "bn_mode": "eval",
    "cache": False,
}  # by its weights alone


@dataclass(frozen=True)
class Until:
    """A stage ends when `metric` has not improved by more than `min_delta` in `patience` validations in a row."""

    metric: str
    mode: str
    patience: int
    min_delta: float

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` improves on the best one so far."""
        if best is None or math.isnan(best):
            return True
        return value > best + self.min_delta if self.mode == "max" else value < best - self.min_delta


@dataclass(frozen=True)
class Stage:
    """One period of training.

    Attributes:
        name: "" for the only one of a run without stages.
        cfg: the whole config of the stage, as if it were a run of its own; `trainer.max_epochs` is its length.
        fresh: it begins with a student of its own; otherwise with that of the stage before, as it is then.
        train: which parameters of the student are trained, as wildcards for their names; None: all that a loss reaches.
        steps: its length in updates, where it is not given in epochs; it ends with the epoch in which they are done.
        until: when it ends before that.
        seed: of a fresh student's first weights.
        easiest: the share of the training samples, of each class, of which the teacher `main` is most confident; None:
            all of them.
    """

    name: str
    cfg: DictConfig
    fresh: bool = True
    train: list[str] | None = None
    steps: int | None = None
    until: Until | None = None
    seed: int = 0
    easiest: float | None = None

    @property
    def label(self) -> str:
        """How errors begin."""
        return f"Stage {self.name!r}: " if self.name else ""

    def plain(self) -> dict[str, Any]:
        """All of it as plain data, from which `stages_of` makes it again."""
        rest = {key: value for key, value in vars(self).items() if key not in ("name", "cfg")}
        rest["until"] = vars(self.until) if self.until else None
        return {"config": OmegaConf.to_container(self.cfg, resolve=True), **rest}


def stages_of(cfg: DictConfig) -> list[Stage]:
    """The stages of a run, in order; a single one without a name where `cfg.stages` is empty.

    Raises:
        UserError: a stage with unknown or contradicting settings, or one that asks for what an earlier stage has not.
    """
    given = cfg.get("stages")
    if not given:
        return [Stage("", cfg.copy(), seed=cfg.seed)]
    if all(isinstance(node, Mapping) and "config" in node for node in given.values()):
        return [_restored(str(name), node) for name, node in given.items()]
    root: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    root |= {"name": cfg.name, "method": cfg.method, "paths": OmegaConf.to_container(cfg.paths, resolve=True)}
    # a stage's teacher is not what the run's own student begins with
    root |= {"ensemble": None, "student": OmegaConf.to_container(cfg.student, resolve=True)}
    nodes: dict[Any, Any] = root.pop("stages")
    _refuse_names(nodes)
    resolved: Any = OmegaConf.to_container(given, resolve=True)
    for place, (name, node) in enumerate(resolved.items()):
        _refuse_node(name, node, root["loss"], [*nodes][:place])
    lengths = _lengths(resolved, cfg.trainer.max_epochs)
    stages: list[Stage] = []
    plain, losses, students = root, dict(root["loss"]), []
    train: list[str] | None = None
    easiest: float | None = None
    for name, node in nodes.items():
        said = {key: resolved[name][key] for key in ("teacher", "teachers") if key in node}  # of the run's own teacher
        plain = _merged_stage(plain, root, {**node, **said}, losses)
        plain["trainer"] = {**plain["trainer"], "max_epochs": lengths[name]}
        train, easiest = resolved[name].get("train", train), resolved[name].get("easiest", easiest)
        own = OmegaConf.create(plain)
        OmegaConf.resolve(own)
        fresh = not stages or "student" in node
        students += [own.student] if fresh else []
        generation = students.count(own.student) - 1 if fresh else 0
        until = Until(**{**UNTIL, **resolved[name]["until"]}) if node.get("until") else None
        seed = (own.seed + GENERATION * generation) % 2**32
        stages.append(Stage(name, own, fresh, train, resolved[name].get("steps"), until, seed, easiest))
    return stages


def expanded(cfg: DictConfig, stages: Sequence[Stage]) -> DictConfig:
    """`cfg` with the stages as whole configs: what is written down, and handed to other processes.

    Resolved as they are in `cfg`, they would lose what follows from a stage's own settings, as the length of a cosine.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.stages = {stage.name: stage.plain() for stage in stages if stage.name}
    return cfg


def placed(cfg: DictConfig, folder: Path) -> DictConfig:
    """`cfg` with the run folder of a stage's student in place of each `stage:<name>`."""
    return OmegaConf.create(_placed(OmegaConf.to_container(cfg, resolve=True), folder))


def stage_teachers(cfg: DictConfig) -> dict[str, str]:
    """The teachers that are students of earlier stages: the stage's name by the teacher's."""
    weights = {
        str(name): str(teacher.get("weights"))
        for name, teacher in teachers_of(cfg).items()
        if role_of(teacher) == FROZEN
    }
    return {name: source.removeprefix(PLACE) for name, source in weights.items() if source.startswith(PLACE)}


def merged(base: Any, given: Any) -> Any:
    """`given` over `base`; what is of something else replaces it whole: another `_target_`, another map of layers."""
    if not isinstance(base, Mapping) or not isinstance(given, Mapping):
        return given
    if "_target_" in given and given["_target_"] != base.get("_target_"):
        return dict(given)
    changed = {key: value if key == "layers" else merged(base.get(key), value) for key, value in given.items()}
    return {**base, **changed}


def _restored(name: str, node: DictConfig) -> Stage:
    plain: dict[str, Any] = OmegaConf.to_container(node)  # type: ignore[assignment]
    config = OmegaConf.create(plain.pop("config"))
    plain["until"] = Until(**plain["until"]) if plain["until"] else None
    return Stage(name, config, **plain)


def _merged_stage(
    before: dict[str, Any], root: dict[str, Any], node: dict[str, Any], losses: dict[str, Any]
) -> dict[str, Any]:
    """The stage's config; `losses` holds the latest settings of every loss, and is brought up to date."""
    plain = {**before}
    for key in ("task", "optim", "data"):
        if key in node:
            plain[key] = root[key] if node[key] is None else merged(plain[key], node[key])
    if "loss" in node:
        for name, changes in (node["loss"] or {}).items():
            losses[name] = root["loss"][name] if changes is None else merged(losses[name], changes)
        plain["loss"] = {name: losses[name] for name in node["loss"] or {}}
    if "student" in node:
        plain["student"] = merged(root["student"], node["student"] or {})
    if "teacher" in node and node["teacher"] is None:
        plain["teachers"] = root["teachers"]
    elif "teacher" in node:
        plain["teachers"] = {**plain["teachers"], "main": _teacher(plain["teachers"].get("main"), node["teacher"])}
    for name, teacher in (node.get("teachers") or {}).items():
        plain["teachers"] = {**plain["teachers"], name: _teacher(plain["teachers"].get(name), teacher)}
    return plain


def _lengths(nodes: Any, total: int) -> dict[str, int]:
    """Each stage's epochs by name, where a share of the run's is given, as 40%, in whole epochs; all make up `total`.

    Of a stage that is so many steps long it is not yet known: `total`.
    """
    shares, lengths, done = 0.0, {}, 0
    for name, node in nodes.items():
        length = (node or {}).get("epochs", total)
        if isinstance(length, str):
            shares += float(length.removesuffix("%")) / 100
            length = max(1, round(shares * total) - done)
            done += length
        lengths[name] = length
    return lengths


def _teacher(before: dict[str, Any] | None, given: Any) -> dict[str, Any]:
    """A stage's teacher: named by its weights, `none`, or changes to the one before."""
    if given == "none":
        return {**(before or {}), "none": True}
    if isinstance(given, str):
        return {**RUN_TEACHER, "weights": given}
    if "weights" in given or before is None or "none" in before:
        return {**RUN_TEACHER, **given}
    changed: dict[str, Any] = merged(before, given)
    return changed


def _refuse_names(nodes: Mapping[Any, Any]) -> None:
    for name in nodes:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"stages.{name}: folders are called by it; use letters, digits and . _ + - only.")


def _refuse_node(name: str, node: Any, losses: Mapping[str, Any], earlier: Sequence[str]) -> None:
    path = f"stages.{name}"
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={node}: here are settings, as {{epochs: 10, loss: {{kd: {{}}}}}}.")
    if unknown := [str(key) for key in node if key not in KEYS]:
        raise UserError(f"Unknown setting '{path}.{unknown[0]}'." + did_you_mean(unknown[0], KEYS))
    lengths = [key for key in ("epochs", "steps") if node.get(key) is not None]
    if len(lengths) != 1:
        more = " `until` ends it earlier." if "until" in node else ""
        raise UserError(f"{path}: give its length, either as epochs or as steps.{more}")
    length = node[lengths[0]]
    is_share = lengths == ["epochs"] and isinstance(length, str) and SHARE.fullmatch(length)
    if not is_share and (type(length) is not int or length < 1):
        share = ", or a share of trainer.max_epochs, as 40%" if lengths == ["epochs"] else ""
        raise UserError(f"{path}.{lengths[0]}={length}: it must be a whole number from 1 on{share}.")
    _refuse_until(f"{path}.until", node.get("until"))
    if not isinstance(train := node.get("train"), list | None) or train == []:
        raise UserError(f"{path}.train={train}: give a list of wildcards for names of parameters, as ['layer1.*'].")
    part = node.get("easiest")
    if part is not None and (isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1):
        raise UserError(f"{path}.easiest={part}: it must be a share of the training samples, above 0 and at most 1.")
    for loss in node.get("loss") or {}:
        if loss not in losses:
            raise UserError(
                f"{path}.loss.{loss}: every loss of any stage is composed once, at the root."
                f"{did_you_mean(str(loss), losses)} Choose it there: loss/response=[…], loss/feature=[…]"
            )
    for source in _sources(node):
        if source not in earlier:
            raise UserError(f"{path}: there is no earlier stage {source!r}." + did_you_mean(source, earlier))


def _refuse_until(path: str, until: Any) -> None:
    if until is None:
        return
    if not isinstance(until, Mapping):
        raise UserError(f"{path}={until}: give {{metric: val/score, patience: 3}}.")
    if unknown := [str(key) for key in until if key not in UNTIL]:
        raise UserError(f"Unknown setting '{path}.{unknown[0]}'." + did_you_mean(unknown[0], UNTIL))
    settings = {**UNTIL, **until}
    if settings["mode"] not in ("max", "min"):
        raise UserError(f"{path}.mode={settings['mode']}: max, if greater is better, or min.")
    if type(settings["patience"]) is not int or settings["patience"] < 1:
        raise UserError(f"{path}.patience={settings['patience']}: it must be a whole number from 1 on.")
    if isinstance(settings["min_delta"], bool) or not isinstance(settings["min_delta"], int | float):
        raise UserError(f"{path}.min_delta={settings['min_delta']}: it must be a number.")


def _sources(node: Any) -> list[str]:
    """The stages that are named anywhere in the settings."""
    if isinstance(node, Mapping):
        return [name for value in node.values() for name in _sources(value)]
    if isinstance(node, list):
        return [name for value in node for name in _sources(value)]
    return [node.removeprefix(PLACE)] if isinstance(node, str) and node.startswith(PLACE) else []


def _placed(node: Any, folder: Path) -> Any:
    if isinstance(node, dict):
        return {key: _placed(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return str(folder / FOLDER / node.removeprefix(PLACE)) if isinstance(node, str) and node.startswith(PLACE) else node
