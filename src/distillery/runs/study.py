"""A study: one teacher, then every method with every seed, under one progress bar; then the report."""

from pathlib import Path

from omegaconf import DictConfig

from distillery.config.check import refuse_missing
from distillery.core.terminal import plain_console
from distillery.results.record import RunRecord
from distillery.runs import loggers
from distillery.runs.job import Job, refuse_unusable
from distillery.runs.run import run_job
from distillery.runs.show_report import show_report
from distillery.runs.study_bar import StudyBar
from distillery.runs.study_jobs import StudyJobs
from distillery.runs.study_trials import Trials


def run_study(cfg: DictConfig) -> None:
    """Run the jobs of the study that are not finished; write the report into `cfg.out`.

    A job that is already in its folder is kept, resumed or refused as any job is (see `job.py`). All settings are
    checked first, and before the first student is trained all folders are looked at, with trials once they are done. A
    student's run that fails is recorded as failed and shown in the report; the others run all the same.

    Raises:
        UserError: a config that does not compose or check, a folder that holds another job and may not be replaced,
            or a method of which all trials failed.
    """
    refuse_missing(cfg)
    out = Path(cfg.out)
    jobs = StudyJobs(cfg)
    trials = Trials(cfg, jobs)
    students = jobs.students(trials.first)
    with StudyBar(plain_console(), (jobs.teacher is not None) + len(trials) + len(students)) as bar:

        def attempt(job: Job) -> RunRecord | None:
            """Its record; None if it failed, which is recorded, and shown here and in the report."""
            try:
                return run(job, bar)
            except Exception as error:  # out of memory, say: no reason to lose the other runs
                job.record_failure(error)
                bar.failed(job.label, error)
                return None

        if jobs.teacher is not None:
            run(jobs.teacher, bar)
        if trials:
            students = jobs.students(trials.choose(attempt))
        for student in students:
            refuse_unusable(student.folder)
            if student.folder.exists():
                student.job.found()  # refuses that of another job
        for student in students:
            attempt(student.job)
    if not students:  # seeds=[]: the teacher alone, of whose signals distill-cache can then be written
        return
    shared = [] if jobs.teacher is None or jobs.teacher.folder.is_relative_to(out) else [jobs.teacher.folder]
    report = show_report([out, *shared], out, cfg.title)
    loggers.log_report(students[0].job.cfg, report, out)


def run(job: Job, bar: StudyBar) -> RunRecord:
    """Train it, unless it is finished."""
    result = run_job(job, [bar.follow(job.label)])
    record, value = result.record, result.record.val_monitored
    outcome = "kept" if result.kept else "finished" if value is None else f"validation {record.monitored} {value:.4f}"
    bar.done(f"{job.label}: {outcome}")
    return record
