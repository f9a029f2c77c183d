"""A study: one teacher, then every method with every seed, under one progress bar; then the report."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig

from distillery.config.check import check
from distillery.config.command_line import quoted
from distillery.core.roles import EMA, PEER, SELF
from distillery.core.terminal import plain_console, say
from distillery.results.layout import report_files
from distillery.results.report.write import terminal_table, write_report
from distillery.runs import loggers
from distillery.runs.job import Job
from distillery.runs.run import train
from distillery.runs.study_bar import StudyBar


def run_study(cfg: DictConfig) -> None:
    """Run the jobs of the study that are not finished; write `report.md`, `report.csv` and `report.png` into `cfg.out`.

    A job that is already in its folder is kept, resumed or refused as any job is (see `job.py`). All settings are
    checked first, and before the first student is trained all folders are looked at. A student's run that fails is
    recorded as failed and shown in the report; the others run all the same.

    Raises:
        UserError: a config that does not compose or check, or a folder that holds another job and may not be replaced.
    """
    out, console = Path(cfg.out), plain_console()
    teacher, students = jobs(cfg, out)
    for job in (teacher, *students):
        spec = check(job.cfg, job.overrides)
        job.cfg, job.stages = spec.cfg, spec.stages
    with StudyBar(console, 1 + len(students)) as bar:
        run(teacher, bar)
        fingerprints: dict[str, str] = {}
        finished = [(found := job.found(fingerprints)) and found.status == "finished" for job in students]
        for job, kept in zip(students, finished, strict=True):
            if kept:
                bar.skip(job.label)
                continue
            try:
                run(job, bar)
            except Exception as error:  # out of memory, say: no reason to lose the other runs
                job.record_failure(error)
                bar.failed(job.label, error)
    shared = [] if teacher.folder.is_relative_to(out) else [teacher.folder]
    report = write_report([out, *shared], out, cfg.title)
    console.print(terminal_table(report, cfg.title))
    say("Report: " + "  ".join(str(out / name) for name in report_files(out)))
    loggers.log_report(students[0].cfg, report, out)


def jobs(cfg: DictConfig, out: Path) -> tuple[Job, list[Job]]:
    """The teacher's job and the students', seed by seed, so that a study cut short still compares whole seeds."""
    teacher = _job("teacher", Path(cfg.teacher_folder), [*cfg.teacher, *cfg.overrides], cfg.replace)
    loggers.join_study(teacher.cfg, cfg.name, role="teacher")
    students = []
    for seed in cfg.seeds:
        for method, overrides in cfg.methods.items():
            own = [*cfg.student, *overrides, *cfg.overrides, f"method='{method}'", f"seed={seed}"]
            if not any(f"model/teacher={role}" in own for role in (EMA, PEER, SELF)):
                own.append(f"++teachers.main.weights={quoted(teacher.folder)}")  # a baseline may begin with its layers
            folder = out / str(method) / f"seed{seed}"
            students.append(_job(f"{method} seed {seed}", folder, own, cfg.replace))
    for job in students:
        loggers.join_study(job.cfg, cfg.name)
    return teacher, students


def run(job: Job, bar: StudyBar) -> None:
    """Train it, unless it is finished."""
    result = train(job.cfg, job.overrides, callbacks=[bar.follow(job.label)])
    if result.kept:
        bar.skip(job.label)
    else:
        bar.finished(job.label, result.record.val_score)


def _job(label: str, folder: Path, overrides: Sequence[str], replace: bool) -> Job:
    whole = [*overrides, f"paths.run={quoted(folder)}", "trainer.enable_progress_bar=false"]
    cfg = compose("train", overrides=whole)
    cfg.replace = replace
    return Job(cfg, whole, label=label)
