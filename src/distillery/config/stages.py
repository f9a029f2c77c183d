"""`cfg.stages` → the stages of a run, each with a whole config of its own.

A stage's config is that of the stage before, with the stage's own settings merged into it. A setting that is null
restores the value that the run has. `train` alone is not handed on: a stage without it trains the whole student.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from distillery.config.candidates import Candidates
from distillery.config.check_stages import check_stages, lengths_of
from distillery.config.spec import Until
from distillery.core.errors import UserError
from distillery.core.roles import FROZEN, PLACE, role_of
from distillery.results.layout import STAGES
from distillery.training.schedules import Schedule

GENERATION = 10_007  # added to the seed for each earlier student of the same config: generations begin differently
# a teacher that is named by its weights alone
RUN_TEACHER: dict[str, Any] = {"net": None, "weights": None, "input": {}, "bn_mode": "eval", "cache": False}

Schedules = Mapping[str, Schedule]  # by the setting that each takes the place of


@dataclass(frozen=True)
class Stage:
    """One period of training.

    Attributes:
        name: "" for the only one of a run without stages.
        cfg: the whole config of the stage, as if it were a run of its own; `trainer.max_epochs` is its length.
        fresh: it begins with a student of its own; otherwise with that of the stage before, as it is then.
        train: which parameters of the student are trained, as wildcards for their names; None: all that a loss reaches.
        steps: its length in updates, if it was given so; `cfg` has the length of the run until `lasting` sets its own.
        unresolved: `cfg` before its interpolations, some of which may refer to its length, were resolved.
        until: when it ends earlier.
        seed: of a fresh student's first weights.
        easiest: the share of the training samples, of each class, of which the teacher `main` is most confident; None:
            all of them.
        schedules: the schedules in `cfg`, by the path of what they belong to: `task`, `rollouts`, `loss.kd`.
        per_teacher: the settings `teacher` and `layers` of each loss, by its name, for each of its teachers.
    """

    name: str
    cfg: DictConfig
    fresh: bool = True
    train: list[str] | None = None
    steps: int | None = None
    unresolved: DictConfig | None = None
    until: Until | None = None
    seed: int = 0
    easiest: float | None = None
    schedules: Mapping[str, Schedules] = field(default_factory=dict)
    per_teacher: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Within: messages for the user begin with the name of the stage."""
        try:
            yield
        except UserError as error:
            if not self.name:
                raise
            raise UserError(f"Stage {self.name!r}: {error}") from error

    def lasting(self, epochs: int) -> Self:
        """The stage with its length in epochs, which was given in updates. Its config is to be checked again."""
        assert self.unresolved is not None
        cfg = self.unresolved.copy()
        cfg.trainer.max_epochs, cfg.resume = epochs, self.cfg.resume
        OmegaConf.resolve(cfg)
        return replace(self, cfg=cfg, steps=None)

    def plain(self) -> dict[str, Any]:
        """The stage as plain data, from which `stages_of` restores it; it is to be checked again."""
        rest: dict[str, Any] = {key: getattr(self, key) for key in ("fresh", "train", "steps", "seed", "easiest")}
        rest["until"] = asdict(self.until) if self.until else None
        return {"config": OmegaConf.to_container(self.cfg, resolve=True), **rest}


@dataclass(frozen=True)
class RunSpec:
    """A config that has been checked: what a run is built from.

    Attributes:
        cfg: the config, each setting of the type that is wanted.
        stages: the stages that it describes, each with such a config of its own; a run without stages has a single one.
        open: the values of each setting that is to be timed; both configs have the first of them.
        composed: the config as it was composed, where settings are open.
    """

    cfg: DictConfig
    stages: list[Stage]
    open: Candidates = field(default_factory=dict)
    composed: DictConfig | None = None

    def resuming(self, folder: Path | None) -> Self:
        """The same run, resumed in this folder; None: it starts from the beginning."""

        def resumed(cfg: DictConfig) -> DictConfig:
            cfg = cfg.copy()
            cfg.resume = str(folder) if folder else None
            return cfg

        stages = [replace(stage, cfg=resumed(stage.cfg)) for stage in self.stages]
        return replace(self, cfg=resumed(self.cfg), stages=stages)


def stages_of(cfg: DictConfig) -> list[Stage]:
    """The stages that `cfg.stages` describes, in order; their configs are not checked yet.

    Raises:
        UserError: a stage with unknown or contradicting settings, or one that refers to a stage that is not before it.
    """
    given = cfg.stages
    if all(isinstance(node, Mapping) and "config" in node for node in given.values()):
        return [_restored(str(name), node) for name, node in given.items()]
    root: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    root |= {"name": cfg.name, "method": cfg.method, "paths": OmegaConf.to_container(cfg.paths, resolve=True)}
    # a stage's teacher is not what the run's own student begins with
    root |= {"ensemble": None, "student": OmegaConf.to_container(cfg.student, resolve=True)}
    nodes: dict[Any, Any] = root.pop("stages")
    resolved: Any = OmegaConf.to_container(given, resolve=True)
    chosen = {name: loss for name, loss in root["loss"].items() if loss and "_target_" in loss}
    resolved = check_stages(resolved, chosen, cfg.trainer)
    lengths = lengths_of(resolved, cfg.trainer.max_epochs)
    stages: list[Stage] = []
    plain, losses, students = root, dict(root["loss"]), []
    easiest: float | None = None
    for name, node in nodes.items():
        said = {key: resolved[name][key] for key in ("teacher", "teachers") if key in node}  # of the run's own teacher
        plain = _merged_stage(plain, root, {**node, **said}, losses)
        plain["trainer"] = {**plain["trainer"], "max_epochs": lengths[name]}
        easiest = resolved[name].get("easiest", easiest)
        train, steps = resolved[name].get("train"), resolved[name].get("steps")
        unresolved = OmegaConf.create(plain)
        own = unresolved.copy()
        OmegaConf.resolve(own)
        fresh = not stages or "student" in node
        students += [own.student] if fresh else []
        generation = students.count(own.student) - 1 if fresh else 0
        until = Until(**resolved[name]["until"]) if node.get("until") else None
        seed = int(own.seed + GENERATION * generation) % 2**32
        stages.append(Stage(name, own, fresh, train, steps, unresolved, until, seed, easiest))
    return stages


def expanded(cfg: DictConfig, stages: Sequence[Stage]) -> DictConfig:
    """`cfg` with a whole config for each stage: this is saved with the run and handed to other processes.

    In a resolved `cfg` the interpolations that follow a stage's own settings, as the length of a cosine, would be lost.
    """
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.stages = {stage.name: stage.plain() for stage in stages if stage.name}
    return cfg


def placed(stage: Stage, folder: Path) -> Stage:
    """The stage with the run folder of a stage's student in place of each `stage:<name>`."""
    return replace(stage, cfg=OmegaConf.create(_placed(OmegaConf.to_container(stage.cfg, resolve=True), folder)))


def stage_teachers(cfg: DictConfig) -> dict[str, str]:
    """The teachers that are students of earlier stages: the stage's name by the teacher's."""
    weights = {
        str(name): str(teacher.get("weights")) for name, teacher in cfg.teachers.items() if role_of(teacher) == FROZEN
    }
    return {name: source.removeprefix(PLACE) for name, source in weights.items() if source.startswith(PLACE)}


def merged(base: Any, given: Any) -> Any:
    """`given` merged into `base`. A node with another `_target_`, and a map of layers, replace the former one whole."""
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
    """The stage's config. `losses` holds the latest settings of every loss and is updated in place."""
    plain = {**before}
    for key in ("task", "optim", "data", "rollouts"):
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


def _teacher(before: dict[str, Any] | None, given: Any) -> dict[str, Any]:
    """A stage's teacher: named by its weights, `none`, or changes to the one before.

    Another's weights bring their own network and input; how its BatchNorm normalises is as before. It is not cached
    unless it says so: what is kept of a teacher that one run alone has would help no other.
    """
    if given == "none":
        return {**(before or {}), "none": True}
    if isinstance(given, str):
        given = {"weights": given}
    if "weights" in given or before is None or "none" in before:
        return {**RUN_TEACHER, **({"bn_mode": before["bn_mode"]} if before and "bn_mode" in before else {}), **given}
    changed: dict[str, Any] = merged(before, given)
    return changed


def _placed(node: Any, folder: Path) -> Any:
    if isinstance(node, dict):
        return {key: _placed(value, folder) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return str(folder / STAGES / node.removeprefix(PLACE)) if isinstance(node, str) and node.startswith(PLACE) else node
