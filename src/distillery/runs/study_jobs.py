"""The jobs of a study: the teacher's, those of the trials, and the students'."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig

from distillery.config.check import check
from distillery.config.command_line import quoted
from distillery.config.loss_catalogue import loss_choices
from distillery.config.names import BASELINE
from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import ANSWERS, EMA, PEER, SELF, SERVED, STORED
from distillery.results.layout import TRIALS
from distillery.runs import loggers
from distillery.runs.job import Job

WITHOUT_A_RUN = (EMA, PEER, SELF, SERVED, STORED, ANSWERS)  # roles of teachers that no run has trained
CHOICE = "model/teacher="
WITHOUT_TEACHER = ["model/teacher=none", "task.weight=1.0"]
CONTROLS = {BASELINE: WITHOUT_TEACHER, "label_smoothing": [*WITHOUT_TEACHER, "task.label_smoothing=0.1"]}


@dataclass
class Student:
    """A student of a study, whose job is checked when it is first asked for.

    Attributes:
        folder: of its run.
        make: composes and checks its job.
    """

    folder: Path
    make: Callable[[], Job]

    @cached_property
    def job(self) -> Job:
        """Its job. Raises UserError: see `check`."""
        return self.make()


class StudyJobs:
    """Composes and checks the jobs of a study.

    With `teacher: null` the study trains none: the students say which they have. Of several choices of model/teacher
    that of the method counts, then that of `overrides`, then that of `student`.

    Attributes:
        methods: the overrides of each.
        teacher: the teacher's job; None: the study trains none.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._cfg, self._out = cfg, Path(cfg.out)
        self._fingerprints: dict[str, tuple[str, str]] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self.methods = methods_of(cfg)
        self.teacher: Job | None = None
        if cfg.teacher is not None:
            given = [*cfg.teacher, *cfg.overrides]
            self.teacher = self._job("teacher", Path(cfg.teacher_folder), given, None, role="teacher")

    def students(self, settings: Mapping[str, Sequence[str]] | None = None) -> list[Student]:
        """The students, seed by seed, so that a study cut short still compares whole seeds.

        Each method is checked at once, and each seed: their combinations, when they are asked for, have nothing new.

        Args:
            settings: overrides of each method that its trials have chosen.

        Raises:
            UserError: see `check`.
        """
        found = []
        for seed in self._cfg.seeds:
            for method in self.methods:
                folder, own = self._out / method / f"seed{seed}", (settings or {}).get(method, ())
                make = partial(self._student, f"{method} seed {seed}", folder, method, seed, own)
                found.append(Student(folder, make))
        methods = len(self.methods)
        for place, student in enumerate(found):
            if place < methods or place % methods == 0:
                _ = student.job
        return found

    def trial(self, method: str, candidate: Sequence[str], held: Sequence[str] = ()) -> Job:
        """The job that tries a candidate, see `candidates`, beside the settings that the baseline's trials chose."""
        folder = self._out / TRIALS / method / re.sub(r"[^\w.,=+-]", "_", ",".join(candidate))
        label = f"{method} trial {' '.join(candidate)}"
        return self._student(label, folder, method, self._cfg.trial_seed, [*held, *candidate], role="trial")

    def _student(
        self, label: str, folder: Path, method: str, seed: int, settings: Sequence[str], role: str | None = None
    ) -> Job:
        cfg, overrides = self._cfg, [*self.methods[method], *settings]
        given = [*cfg.student, *overrides, *cfg.overrides, f"method='{method}'"]
        choices = [each for each in (*cfg.student, *cfg.overrides, *overrides) if each.startswith(CHOICE)][-1:]
        given = [*(override for override in given if not override.startswith(CHOICE)), *choices]
        if self.teacher is not None and not {CHOICE + each for each in WITHOUT_A_RUN} & {*choices}:
            # also for a baseline, which may begin with layers of it
            given.append(f"++teachers.main.weights={quoted(self.teacher.folder)}")
        return self._job(label, folder, given, seed, role)

    def _job(
        self, label: str, folder: Path, overrides: Sequence[str], seed: int | None, role: str | None = None
    ) -> Job:
        cfg = self._cfg
        given = [*cfg.both, *overrides, "trainer.enable_progress_bar=false"]
        if (common := tuple(given)) not in self._composed:
            self._composed[common] = compose("train", overrides=given)
        own = self._composed[common].copy()  # the jobs of a method differ in these alone, and Hydra takes its time
        own.paths.run, own.replace = str(folder).replace("${", "\\${"), cfg.replace
        given.append(f"paths.run={quoted(folder)}")
        if seed is not None:
            own.seed = seed
            given.append(f"seed={seed}")
        loggers.join_study(own, cfg.name, label, role)
        return Job(check(own, given), given, label, self._fingerprints, group=self._out)


def methods_of(cfg: DictConfig) -> dict[str, Sequence[str]]:
    """The overrides of each method. A list has names of losses (`kd+hint`) and of `CONTROLS`.

    Raises:
        UserError: no loss has this name.
    """
    if not isinstance(cfg.methods, ListConfig):
        return {str(name): overrides for name, overrides in cfg.methods.items()}
    names = dict.fromkeys([BASELINE, *map(str, cfg.methods)])
    return {name: CONTROLS[name] if name in CONTROLS else loss_choices(name) for name in names}


def candidates(cfg: DictConfig) -> dict[str, list[list[str]]]:
    """The candidates of each method that has trials, the baseline first: every combination of the values, as overrides.

    Values are written as after `-m`: `loss.kd.weight=0.5,2`.

    Raises:
        UserError: trials of a method that the study does not have, or something that is no choice of values.
    """
    methods = methods_of(cfg)
    for name in cfg.trials or {}:
        if name not in methods:
            raise UserError(f"trials.{name}: the study has no method {name!r}." + did_you_mean(str(name), methods))
    found = {}
    for name in sorted(map(str, cfg.trials or {}), key=lambda name: name != BASELINE):
        parsed = OverridesParser.create().parse_overrides([*cfg.trials[name]])
        if wrong := [each.input_line for each in parsed if each.is_sweep_override() and not each.is_discrete_sweep()]:
            raise UserError(f"trials.{name}: {wrong[0]} is an interval. List the values: key=a,b,c")
        found[name] = [list(each) for each in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]
    return found
