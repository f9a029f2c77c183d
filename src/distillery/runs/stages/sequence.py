"""The stages of a run, built one after the other: what each is made of, and how long it is."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from distillery.config.build import Parts, build, build_data, updates
from distillery.config.instantiate import make_scheduled
from distillery.config.names import teachers_of
from distillery.config.networks import blank_student, build_teacher, complete_teacher
from distillery.config.stages import RUN_TEACHER, Stage, expanded, placed, stage_teachers, stages_of
from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.roles import FROZEN, PLACE, role_of
from distillery.data.module import Data
from distillery.losses.term import Term
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.results.layout import CONFIG, STAGES, STUDENT
from distillery.runs.plan import show_plan, stage_row, stage_table
from distillery.teachers.curriculum import confidences, easiest
from distillery.teachers.ensemble import Ensemble, refuse_task
from distillery.training.freezing import freeze_rest, thaw
from distillery.training.fsdp import is_sharded, whole_state
from distillery.training.logged_metrics import refuse_unlogged


class StageSequence:
    """The stages of a run and the parts of the one that is trained now. A run without stages has a single one.

    Args:
        cfg: the composed config.

    Raises:
        UserError: see `stages_of`.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.folder = Path(cfg.paths.run)
        self.students: dict[str, str] = {}  # SHA-256 of the files that finished stages have left, by stage
        self._data: dict[str, Data] = {}
        self._confidences: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of a teacher in samples, see `curriculum.py`
        self.stages = stages_of(cfg)
        for place, stage in enumerate(self.stages):
            if stage.steps is not None:
                self.stages[place] = stage.lasting(math.ceil(stage.steps / updates(self.data(place), cfg.trainer)[0]))
        self.given = expanded(cfg, self.stages) if self.several else cfg  # what other processes make the same of
        self.place = 0  # of the stage that is trained now
        self.parts: Parts
        self._teachers: dict[str, str] = {}  # from outside: SHA-256 by the stage's name and theirs
        self._trainable: set[str] = set()  # of the student: what is trained where no stage freezes it

    @property
    def several(self) -> bool:
        """Whether it has stages at all."""
        return bool(self.stages[0].name)

    @property
    def stage(self) -> Stage:
        """The one that is trained now."""
        return self.stages[self.place]

    def config(self) -> DictConfig:
        """What is written down of the run: the config of the stage that is trained now, and all stages.

        Its `trainer` is that of the one fit.
        """
        if not self.several:
            return self.parts.cfg
        cfg = expanded(self.parts.cfg, self.stages)
        cfg.ensemble, cfg.resume = self.given.ensemble, self.given.resume
        cfg.trainer.max_epochs = sum(map(self.epochs, range(len(self.stages))))
        cfg.trainer.reload_dataloaders_every_n_epochs = 1  # each stage may have data of its own
        return cfg

    def data(self, place: int) -> Data:
        """The data of a stage; stages with the same settings share them."""
        stage = self.stages[place]
        teacher = OmegaConf.to_yaml(stage.cfg.teachers, resolve=True) if stage.easiest else ""
        judged = OmegaConf.to_yaml(stage.cfg.data, resolve=True) + teacher
        key = f"{judged}{stage.easiest}"
        if key not in self._data:
            with said_of(stage):
                data = build_data(stage.cfg)
                if stage.easiest and judged not in self._confidences:
                    self._confidences[judged] = self._judge(data, stage)
            if stage.easiest:
                index, confidence, classes = self._confidences[judged]
                data.narrow(index[easiest(confidence, classes, stage.easiest)].sort().values)
            self._data[key] = data
        return self._data[key]

    def _judge(self, data: Data, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """How confident the stage's teacher is of each sample, see `confidences`."""
        teacher = teachers_of(stage.cfg).get("main")
        if teacher is None or role_of(teacher) != FROZEN or "main" in stage_teachers(stage.cfg):
            raise UserError(
                "easiest: it asks for a frozen teacher, teachers.main, that is there before the run: that one says "
                "what is easy."
            )
        task, _ = make_scheduled("task", stage.cfg.task)
        whole = complete_teacher(teacher, data, task, "main", stage.cfg.student)
        return confidences(build_teacher(whole, "main"), data, task)

    def epochs(self, place: int) -> int:
        """The length of a stage in epochs; where it waits for a metric, the greatest."""
        return int(self.stages[place].cfg.trainer.max_epochs)

    def begin(self, place: int = 0, students: Mapping[str, str] | None = None) -> None:
        """Build the parts of the stage with this number, without those before it being trained.

        Weights of the student that went through these are to be filled in from a checkpoint.

        Args:
            students: what earlier stages have left, see `students`.

        Raises:
            UserError: a student of an earlier stage is another than it was.
        """
        self.students = dict(students or {})
        for name, known in self.students.items():
            if self._left(name) != known:
                raise UserError(
                    f"{self.folder / STAGES / name} does not hold the student that stage {name!r} has left: their "
                    "hashes differ. Put back that file, or start the run again without resume."
                )
        first = max(number for number in range(place + 1) if self.stages[number].fresh)
        former = None
        for number in range(first, place + 1):
            self.parts = self._build(number, self.folder, former)
            former = self.parts.distiller.student
        self.place = place

    def rehearse(self, show: bool) -> None:
        """Build every stage once, so that what cannot work is refused before the first is trained.

        Students that are not yet trained stand in for the trained ones.

        Args:
            show: print what each is made of, and what it costs.
        """
        former = None
        rows = []
        with TemporaryDirectory(prefix="distillery-") as folder:
            for number, stage in enumerate(self.stages):
                parts = self._build(number, Path(folder), None if stage.fresh else former)
                former = parts.distiller.student
                if show:
                    show_plan(parts, f"Stage {number + 1}: {stage.name}" if self.several else "")
                    rows.append(stage_row(stage, parts))
                if number + 1 < len(self.stages):  # no stage comes after the last, to learn from it
                    leave(parts, stage.name, Path(folder))
        if show and self.several:
            Console().print(stage_table(rows))

    def advance(self, is_main: bool, wait: Callable[[], None]) -> set[str] | None:
        """Leave the student of this stage to later ones, and build the next.

        Args:
            is_main: whether this process writes.
            wait: returns when all processes have called it.

        Returns: where the student goes on, the losses that do, too: with the same layers and teachers.
        """
        self.gather()
        if is_main:
            leave(self.parts, self.stage.name, self.folder)
        wait()
        self.students[self.stage.name] = self._left(self.stage.name)
        self.place += 1
        before, student = self.parts, self.parts.distiller.student.cpu()  # where all is built
        self.parts = self._build(self.place, self.folder, None if self.stage.fresh else student)
        if is_main:
            save_config(self.config(), self.folder)
        return None if self.stage.fresh else lasting_losses(before, self.parts)

    def _left(self, name: str) -> str:
        """SHA-256 of the file with the student that a stage has left."""
        path = self.folder / STAGES / name / STUDENT
        if not path.is_file():
            raise UserError(f"There is no {path}, which stage {name!r} has left. Put it back, or start the run again.")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def gather(self) -> None:
        """Where the student of this stage is sharded, a whole one takes its place; to be called by all processes."""
        student = self.parts.distiller.student
        if is_sharded(student):
            state = {name: value.cpu() for name, value in whole_state(student).items()}
            whole = blank_student(self.parts.cfg.student, next(student.parameters()).dtype)
            whole.load_state_dict(state)
            self.parts.distiller.student = whole

    def sources(self) -> dict[str, str]:
        """SHA-256 of what the run is made from: each stage's data, and the teachers from outside of those built."""
        data = {f"{stage.name}:data": self.data(place).fingerprint for place, stage in enumerate(self.stages)}
        return data | self._teachers

    def own_teachers(self) -> dict[str, str]:
        """The teachers of this stage that are students of earlier ones: the stage's name by the teacher's."""
        return stage_teachers(self.stage.cfg) if self.several else {}

    def teachers(self) -> dict[str, Network]:
        """Those that a finished run is held against: of this stage, and the frozen ones that only earlier stages had.

        A student of an earlier stage is called `stage:<name>`. Where two stages have different teachers of one name,
        it is the later stage's.
        """
        own = self.own_teachers()
        found = {
            PLACE + own[name] if name in own else name: each for name, each in self.parts.distiller.teachers.items()
        }
        for number in reversed(range(self.place)):
            cfg = self.stages[number].cfg
            for name, teacher in teachers_of(cfg).items():
                if role_of(teacher) == FROZEN and name not in stage_teachers(cfg) and name not in found:
                    task, student = self.parts.distiller.task, self.parts.cfg.student
                    found[name] = build_teacher(complete_teacher(teacher, self.data(number), task, name, student), name)
        return found

    def ensemble(self) -> Ensemble | None:
        """The students of the stages that the config names together with the last one; None if it names none."""
        task, student = self.parts.distiller.task, self.parts.distiller.student
        found: list[Network] = []
        for name in self.given.ensemble or ():
            cfg = OmegaConf.create({**RUN_TEACHER, "weights": str(self.folder / STAGES / name)})
            whole = complete_teacher(cfg, self.parts.data, task, name, self.parts.cfg.student)
            found.append(build_teacher(whole, name).to(student.device))
        return Ensemble([*found, student]) if found else None

    def _build(self, place: int, folder: Path, former: Network | None) -> Parts:
        stage = self.stages[place]
        parts = self._staged(place, folder, former) if self.several else build(stage.cfg.copy())
        for name, teacher in parts.distiller.frozen.items():
            source = f"{stage.name}:teachers.{name}"
            if name not in stage_teachers(stage.cfg) and source not in self._teachers:
                self._teachers[source] = teacher.fingerprint()
        return parts

    def _staged(self, place: int, folder: Path, former: Network | None) -> Parts:
        stage = self.stages[place]
        cfg = placed(stage.cfg, folder)
        data = self.data(place)
        with said_of(stage):
            parts = build(cfg, data, former, stage.seed)
            for name, source in stage_teachers(stage.cfg).items():
                parts.distiller.frozen[name].source = PLACE + source
            if self.given.ensemble and place + 1 == len(self.stages):
                refuse_task(parts.distiller.task)
            if former is None:
                named = parts.distiller.student.named_parameters()
                self._trainable = {name for name, parameter in named if parameter.requires_grad}
            thaw(parts.distiller.student, self._trainable)
            if stage.until:
                refuse_unlogged(stage.cfg.callbacks, {}, parts.data.sizes["val"] > 0, {"until": stage.until.metric})
            freeze_rest(parts.distiller, stage.train, parts.example)
        return parts


def lasting_losses(before: Parts, after: Parts) -> set[str]:
    """The losses of both stages with the same layers and the same teachers."""
    old, new = before.distiller.objective.terms, after.distiller.objective.terms
    return {name for name in old.keys() & new.keys() if _compared(before, old[name]) == _compared(after, new[name])}


def _compared(parts: Parts, term: nn.Module) -> dict[str, Any]:
    """What a loss compares, by teacher: which one that is, and its pairs of layers."""
    assert isinstance(term, Term)
    teachers = teachers_of(parts.cfg)
    return {name: (teachers.get(name), one.taps) for name, one in term.by_teacher.items()}


def leave(parts: Parts, name: str, folder: Path) -> None:
    """Write the student of a stage as a run folder, from which a network is rebuilt."""
    own = folder / STAGES / name
    own.mkdir(parents=True, exist_ok=True)
    save_config(parts.cfg, own)
    save_weights(parts.distiller.student.net, own / STUDENT)


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write the resolved config of a run to its folder, whole or not at all."""
    with atomic_write(folder / CONFIG) as unfinished:
        OmegaConf.save(cfg, unfinished, resolve=True)


@contextmanager
def said_of(stage: Stage) -> Iterator[None]:
    """Errors within name the stage."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{stage.label}{error}") from error
