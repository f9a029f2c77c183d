"""The stages of a run, built one after the other: what each is made of, and how long it is."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from distillery.config.build import Parts, build
from distillery.config.check import check_stage
from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import complete_teacher
from distillery.config.optim import updates
from distillery.config.stages import RUN_TEACHER, RunSpec, Stage, expanded, placed, stage_teachers
from distillery.config.students import blank_student, exported_student
from distillery.core.errors import UserError
from distillery.core.files import atomic_write, sha256_of
from distillery.core.process import is_main
from distillery.core.roles import PLACE
from distillery.core.terminal import plain_console
from distillery.data.module import Data
from distillery.losses.term import Term
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.results.layout import CONFIG, STAGES, STUDENT
from distillery.runs.plan import show_plan, stage_row, stage_table
from distillery.runs.stages.stage_data import StageData
from distillery.tasks.metrics import validated
from distillery.teachers.ensemble import Ensemble, refuse_task
from distillery.teachers.frozen import Teacher
from distillery.training.freezing import freeze_rest, thaw
from distillery.training.fsdp import is_sharded, whole_state
from distillery.training.logged_metrics import refuse_unlogged


class StageSequence:
    """The stages of a run, and the parts of the one that is being trained. A run without stages has a single one.

    Data sets and teachers are shared: each is read or loaded once, whichever stages ask for it.

    Attributes:
        folder: the run folder.
        stages: all stages, in order.
        job_cfg: the config that other processes are given: with every stage written out, so that they make the same.
        place: the number of the stage that is being trained, from 0 on.
        parts: what that stage is made of.
        students: SHA-256 of the student files that finished stages have left, by stage.
    """

    def __init__(self, spec: RunSpec) -> None:
        cfg = spec.cfg
        self.folder = Path(cfg.paths.run)
        self.students: dict[str, str] = {}
        self.place = 0
        self.parts: Parts
        self._loaded = LoadedTeachers()
        self._data = StageData(self._loaded)
        self._outside: dict[int, dict[str, Teacher]] = {}  # the teachers that no stage has trained, by stage and name
        self._trainable: set[str] = set()  # the student's parameters that are trained unless a stage freezes them
        self.stages = [*spec.stages]
        for place, stage in enumerate(self.stages):
            if stage.steps is not None:
                epochs = math.ceil(stage.steps / updates(self.data(place), cfg.trainer)[0])
                self.stages[place] = check_stage(stage.lasting(epochs))
        self.job_cfg = expanded(cfg, self.stages) if self.several else cfg

    @property
    def several(self) -> bool:
        """Whether the run has stages at all."""
        return bool(self.stages[0].name)

    @property
    def stage(self) -> Stage:
        """The stage that is being trained."""
        return self.stages[self.place]

    @property
    def is_last(self) -> bool:
        """Whether that is the last one."""
        return self.place == len(self.stages) - 1

    def saved_cfg(self) -> DictConfig:
        """The config that is saved with the run: that of the stage which is being trained, with all stages in it.

        Its open settings are filled in, and its `trainer` is that of the whole fit.
        """
        if not self.several:
            return self.parts.cfg
        cfg = expanded(self.parts.cfg, self.stages)
        cfg.ensemble, cfg.resume = self.job_cfg.ensemble, self.job_cfg.resume
        cfg.trainer.max_epochs = sum(stage.cfg.trainer.max_epochs for stage in self.stages)
        cfg.trainer.reload_dataloaders_every_n_epochs = 1  # each stage may have data of its own
        return cfg

    # Stages, built one after the other

    def rehearse(self, show: bool) -> Parts:
        """Build every stage once, so that what cannot work is refused before the first is trained.

        Students that are not yet trained stand in for the trained ones.

        Args:
            show: print what each stage is made of, and what it costs.

        Returns: the parts of the last stage.
        """
        former: Parts | None = None
        rows = []
        with TemporaryDirectory(prefix="distillery-") as folder:
            for place, stage in enumerate(self.stages):
                former = parts = self._build(place, Path(folder), former)
                if show:
                    show_plan(parts, f"Stage {place + 1}: {stage.name}" if self.several else "")
                    rows.append(stage_row(stage, parts))
                if any(PLACE + stage.name in OmegaConf.to_yaml(later.cfg) for later in self.stages[place + 1 :]):
                    save_student(parts, stage.name, Path(folder))
                for name in stage_teachers(stage.cfg):
                    self._loaded.forget(parts.distiller.frozen[name])
        if show and self.several:
            plain_console().print(stage_table(rows))
        assert former is not None
        return former

    def begin(self, place: int = 0, students: Mapping[str, str] | None = None) -> None:
        """Build the parts of a stage, after those of the stages before it, as a run that was not stopped has done.

        The weights are to be filled in from a checkpoint.

        Args:
            place: the number of the stage.
            students: what earlier stages have left, see `students`.

        Raises:
            UserError: the student of an earlier stage is not the one that the stage left.
        """
        self.students = dict(students or {})
        for name, sha256 in self.students.items():
            if self._student_hash(name) != sha256:
                raise UserError(
                    f"{self.folder / STAGES / name} does not hold the student that stage {name!r} has left: their "
                    "hashes differ. Put back that file, or start the run again without resume."
                )
        former = None
        for number in range(place + 1):
            former = self.parts = self._build(number, self.folder, former)
        self.place = place

    def advance(self, wait: Callable[[], None]) -> set[str] | None:
        """Save the student of this stage, and build the next stage.

        Args:
            wait: returns when all processes have called it.

        Returns: the losses that keep their state, which have the same layers and teachers; None: the student is new.
        """
        self.gather()
        if is_main():
            save_student(self.parts, self.stage.name, self.folder)
        wait()
        self.students[self.stage.name] = self._student_hash(self.stage.name)
        before = self.parts
        for network in (before.distiller.student, *before.distiller.frozen.values()):
            network.cpu()  # where the next stage is built
        self.place += 1
        self.parts = self._build(self.place, self.folder, before)
        if is_main():
            save_config(self.saved_cfg(), self.folder)
        return None if self.stage.fresh else lasting_losses(before, self.parts)

    def gather(self) -> None:
        """Replace a sharded student by a whole one, and make its teachers whole; to be called by all processes."""
        for teacher in self.parts.distiller.frozen.values():
            teacher.unshard()
        student = self.parts.distiller.student
        if is_sharded(student):
            state = {name: value.cpu() for name, value in whole_state(student).items()}
            whole = blank_student(self.parts.cfg.student, next(student.parameters()).dtype)
            whole.load_state_dict(state)
            self.parts.distiller.student = whole

    def _build(self, place: int, folder: Path, before: Parts | None) -> Parts:
        """The parts of a stage; `folder` holds the students of earlier stages, `before` is the stage before."""
        stage, data = self.stages[place], self.data(place)
        with stage.named_in_errors():
            own = placed(stage, folder) if self.several else stage
            parts = build(own, data, None if stage.fresh else before, self._loaded)
            if self.several:
                self._set_up(stage, parts)
        trained = stage_teachers(stage.cfg)
        self._outside[place] = {name: each for name, each in parts.distiller.frozen.items() if name not in trained}
        return parts

    def _set_up(self, stage: Stage, parts: Parts) -> None:
        """What only stages ask for: teachers from other stages, a frozen part of the student, an end by a metric."""
        student = parts.distiller.student
        for name, source in stage_teachers(stage.cfg).items():
            parts.distiller.frozen[name].source = PLACE + source
        if self.job_cfg.ensemble and stage is self.stages[-1]:
            refuse_task(parts.distiller.task)
        if stage.fresh:
            self._trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
        thaw(student, self._trainable)
        if stage.until:
            validations = validated(parts.distiller.task.metrics) if parts.data.sizes["val"] else ()
            refuse_unlogged(stage.cfg.callbacks, {}, validations, {"until": stage.until.metric})
        freeze_rest(parts.distiller, stage.train, parts.example)

    def data(self, place: int) -> Data:
        """The data of a stage, read when they are first asked for."""
        with self.stages[place].named_in_errors():
            return self._data.of(self.stages[place])

    # Teachers and students

    def sources(self) -> dict[str, str]:
        """SHA-256 of what the run is made from: each stage's data, and the teachers that no stage has trained.

        Of the teachers those of the stages that were built so far.
        """
        sources = {f"{stage.name}:data": self.data(place).fingerprint for place, stage in enumerate(self.stages)}
        for place, teachers in self._outside.items():
            for name, teacher in teachers.items():
                sources[f"{self.stages[place].name}:teachers.{name}"] = teacher.identity
        return sources

    def teachers(self) -> dict[str, Network]:
        """The teachers that a finished run is compared with: this stage's, and the frozen ones of earlier stages.

        A student of an earlier stage is called `stage:<name>`, and is compared only if it teaches in this stage. Where
        two stages have different teachers of one name, it is the later stage's.
        """
        own = stage_teachers(self.stage.cfg)
        found = {
            PLACE + own[name] if name in own else name: each for name, each in self.parts.distiller.teachers.items()
        }
        for place in reversed(range(self.place)):
            found |= {name: each for name, each in self._outside[place].items() if name not in found}
        return found

    def ensemble(self) -> Ensemble | None:
        """The students of the stages that the config names together with the last one; None if it names none."""
        student = self.parts.distiller.evaluated
        others: list[Teacher] = []
        for name in self.job_cfg.ensemble or ():
            cfg = OmegaConf.create({**RUN_TEACHER, "weights": str(self.folder / STAGES / name)})
            whole = complete_teacher(cfg, self.parts.data, self.parts.distiller.task, name, self.parts.cfg.student)
            others.append(self._loaded.load(whole, name, beside=others))
        return Ensemble([*(other.to(student.device) for other in others), student]) if others else None

    def _student_hash(self, name: str) -> str:
        """SHA-256 of the file with the student that a stage has left."""
        path = self.folder / STAGES / name / STUDENT
        if not path.is_file():
            raise UserError(f"There is no {path}, which stage {name!r} has left. Put it back, or start the run again.")
        return sha256_of(path)


def lasting_losses(before: Parts, after: Parts) -> set[str]:
    """The losses that have the same layers and the same teachers in both stages."""
    old, new = before.distiller.objective.terms, after.distiller.objective.terms
    return {name for name in old.keys() & new.keys() if _compared(before, old[name]) == _compared(after, new[name])}


def _compared(parts: Parts, term: nn.Module) -> dict[str, Any]:
    """By teacher, what a loss compares: the teacher's config, and the pairs of layers."""
    assert isinstance(term, Term)
    return {name: (parts.cfg.teachers.get(name), one.taps) for name, one in term.by_teacher.items()}


def save_student(parts: Parts, name: str, folder: Path) -> None:
    """Write the student of a stage as a run folder, from which the network can be rebuilt."""
    own = folder / STAGES / name
    own.mkdir(parents=True, exist_ok=True)
    save_config(parts.cfg, own)
    save_weights(exported_student(parts.cfg.student, parts.distiller.evaluated).net, own / STUDENT)


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved config of a run to its folder, atomically."""
    with atomic_write(folder / CONFIG) as unfinished:
        OmegaConf.save(cfg, unfinished, resolve=True)
