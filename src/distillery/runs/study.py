"""A study: one teacher, then every method with every seed, under one progress bar; then the report."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, ListConfig

from distillery.config.check import check, refuse_missing
from distillery.config.command_line import quoted
from distillery.config.loss_catalogue import loss_choices
from distillery.config.names import BASELINE
from distillery.core.roles import ANSWERS, EMA, PEER, SELF, SERVED, STORED
from distillery.core.terminal import plain_console
from distillery.runs import loggers
from distillery.runs.job import Job
from distillery.runs.run import run_job
from distillery.runs.show_report import show_report
from distillery.runs.study_bar import StudyBar

WITHOUT_A_RUN = (EMA, PEER, SELF, SERVED, STORED, ANSWERS)  # roles of teachers that no run has trained
CHOICE = "model/teacher="
WITHOUT_TEACHER = ["model/teacher=none", "task.weight=1.0"]
CONTROLS = {BASELINE: WITHOUT_TEACHER, "label_smoothing": [*WITHOUT_TEACHER, "task.label_smoothing=0.1"]}


def run_study(cfg: DictConfig) -> None:
    """Run the jobs of the study that are not finished; write the report into `cfg.out`.

    A job that is already in its folder is kept, resumed or refused as any job is (see `job.py`). All settings are
    checked first, and before the first student is trained all folders are looked at. A student's run that fails is
    recorded as failed and shown in the report; the others run all the same.

    Raises:
        UserError: a config that does not compose or check, or a folder that holds another job and may not be replaced.
    """
    refuse_missing(cfg)
    out = Path(cfg.out)
    teacher, students = jobs(cfg, out)
    with StudyBar(plain_console(), (teacher is not None) + len(students)) as bar:
        if teacher is not None:
            run(teacher, bar)
        for job in students:
            job.found()  # refuses the folder of another job
        for job in students:
            try:
                run(job, bar)
            except Exception as error:  # out of memory, say: no reason to lose the other runs
                job.record_failure(error)
                bar.failed(job.label, error)
    if not students:  # seeds=[]: the teacher alone, of whose signals distill-cache can then be written
        return
    shared = [] if teacher is None or teacher.folder.is_relative_to(out) else [teacher.folder]
    report = show_report([out, *shared], out, cfg.title)
    loggers.log_report(students[0].cfg, report, out)


def jobs(cfg: DictConfig, out: Path) -> tuple[Job | None, list[Job]]:
    """The teacher's job and the students', seed by seed, so that a study cut short still compares whole seeds.

    With `teacher: null` the study trains none: the students say which they have. Of several choices of model/teacher
    that of the method counts, then that of `overrides`, then that of `student`.
    """
    fingerprints: dict[str, tuple[str, str]] = {}

    def job(label: str, folder: Path, overrides: Sequence[str], role: str | None = None) -> Job:
        given = [*cfg.both, *overrides, f"paths.run={quoted(folder)}", "trainer.enable_progress_bar=false"]
        own = compose("train", overrides=given)
        own.replace = cfg.replace
        loggers.join_study(own, cfg.name, role)
        return Job(check(own, given), given, label, fingerprints)

    teacher = None
    if cfg.teacher is not None:
        teacher = job("teacher", Path(cfg.teacher_folder), [*cfg.teacher, *cfg.overrides], role="teacher")
    students = []
    methods = methods_of(cfg)
    for seed in cfg.seeds:
        for method, overrides in methods.items():
            given = [*cfg.student, *overrides, *cfg.overrides, f"method='{method}'", f"seed={seed}"]
            choices = [each for each in (*cfg.student, *cfg.overrides, *overrides) if each.startswith(CHOICE)][-1:]
            given = [*(override for override in given if not override.startswith(CHOICE)), *choices]
            if teacher is not None and not {CHOICE + role for role in (EMA, PEER, SELF, SERVED, STORED, ANSWERS)} & {
                *choices
            }:
                # also for a baseline, which may begin with layers of it
                given.append(f"++teachers.main.weights={quoted(teacher.folder)}")
            students.append(job(f"{method} seed {seed}", out / str(method) / f"seed{seed}", given))
    return teacher, students


def methods_of(cfg: DictConfig) -> dict[str, Sequence[str]]:
    """The overrides of each method. A list has names of losses (`kd+hint`) and of `CONTROLS`.

    Raises:
        UserError: no loss has this name.
    """
    if not isinstance(cfg.methods, ListConfig):
        return dict(cfg.methods)
    names = dict.fromkeys([BASELINE, *map(str, cfg.methods)])
    return {name: CONTROLS[name] if name in CONTROLS else loss_choices(name) for name in names}


def run(job: Job, bar: StudyBar) -> None:
    """Train it, unless it is finished."""
    result = run_job(job, [bar.follow(job.label)])
    record, value = result.record, result.record.val_monitored
    outcome = "kept" if result.kept else "finished" if value is None else f"validation {record.monitored} {value:.4f}"
    bar.done(f"{job.label}: {outcome}")
