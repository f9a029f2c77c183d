"""A study: one teacher, then every method with every seed, one bar for all of it, and the report at the end."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig
from rich.console import Console

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.core.roles import EMA, PEER, SELF
from distillery.results.layout import RECORD, report_files
from distillery.results.record import RunRecord
from distillery.results.report.write import terminal_table, write_report
from distillery.runs import loggers
from distillery.runs.job import Job
from distillery.runs.run import train
from distillery.runs.study_bar import StudyBar


def run_study(cfg: DictConfig) -> None:
    """Run what is missing of the study and write `report.md`, `report.csv` and `report.png` into `cfg.out`.

    A student's run that fails, for whatever reason, is recorded as failed and shown in the report; the others go on.
    A run of another config is only replaced on demand; one that learnt from another teacher than is there now is
    run again.

    Raises:
        UserError: a config that does not compose or check, or a folder that holds another config's run.
    """
    out, console = Path(cfg.out), Console()
    teacher, students = jobs(cfg, out)
    for job in (teacher, *students):
        check(job.cfg, job.overrides)
        record = job.record()
        if record and record.status == "finished" and not job.finished() and not cfg.replace:
            raise UserError(
                f"{job.folder} holds a finished run of another config. Run it again over it with replace=true, "
                "or give this study a folder of its own, out=…"
            )
    with StudyBar(console, 1 + len(students)) as bar:
        sha256 = teacher_hash(teacher, bar)
        for job in students:
            record = job.finished()
            if record and all(used["sha256"] == sha256 for used in record.frozen_teachers.values()):
                bar.skip(job.label)
                continue
            try:
                run(job, bar)
            except Exception as error:  # out of memory, say: no reason to lose the other runs
                job.failed(error)
                bar.failed(job.label, error)
    shared = [] if teacher.folder.is_relative_to(out) else [teacher.folder]
    report = write_report([out, *shared], out, cfg.title)
    console.print(terminal_table(report, cfg.title))
    console.print(f"{out}/{'  '.join(report_files(out))}", highlight=False, soft_wrap=True)
    loggers.log_report(students[0].cfg, report, out)


def jobs(cfg: DictConfig, out: Path) -> tuple[Job, list[Job]]:
    """The teacher's run and the students', seed by seed, so that a study cut short still compares whole seeds."""
    teacher = _job("teacher", Path(cfg.teacher_folder), [*cfg.teacher, *cfg.overrides])
    loggers.join_study(teacher.cfg, cfg.name, role="teacher")
    students = []
    for seed in cfg.seeds:
        for method, overrides in cfg.methods.items():
            own = [*cfg.student, *overrides, *cfg.overrides, f"method='{method}'", f"seed={seed}"]
            if not any(f"model/teacher={role}" in own for role in (EMA, PEER, SELF)):
                own.append(f"++teachers.main.weights='{teacher.folder}'")  # a baseline may begin with its layers
            students.append(_job(f"{method} seed {seed}", out / str(method) / f"seed{seed}", own))
    for job in students:
        loggers.join_study(job.cfg, cfg.name)
    return teacher, students


def teacher_hash(teacher: Job, bar: StudyBar) -> str | None:
    """The hash of the teacher's weights; trains it first if need be."""
    record = teacher.finished()
    if record:
        bar.skip(teacher.label)
    else:
        record = run(teacher, bar)
    return record.student_sha256


def run(job: Job, bar: StudyBar) -> RunRecord:
    """Train it. What an earlier run left in the folder no longer counts, however this one ends."""
    (job.folder / RECORD).unlink(missing_ok=True)
    record = train(job.cfg, job.overrides, callbacks=[bar.follow(job.label)]).record
    bar.finished(job.label, record.metrics["last"]["val_score"])
    return record


def _job(label: str, folder: Path, overrides: Sequence[str]) -> Job:
    whole = [*overrides, f"paths.run='{folder}'", "trainer.enable_progress_bar=false"]
    return Job(label, folder, whole, compose("train", overrides=whole))
