"""The report as a page of Markdown: which sections it has, and in what order."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pandas as pd

from distillery.results.layers import Layers
from distillery.results.layout import CURVES, REPORT, TIMELINE
from distillery.results.report.calibration import calibration_section
from distillery.results.report.cheapest import Answer
from distillery.results.report.chosen import chosen_section
from distillery.results.report.classes import ClassFigures, classes_section
from distillery.results.report.collect import Run
from distillery.results.report.definitions import definitions
from distillery.results.report.formats import (
    best_method,
    cells,
    chosen,
    columns,
    points,
    probability,
    verdicts,
    with_spread,
)
from distillery.results.report.headline import headline
from distillery.results.report.language import fidelity_section, samples_section
from distillery.results.report.layers import layers_section
from distillery.results.report.markdown import bullets, listed, section, table_of
from distillery.results.report.plot_timeline import MOST, methods_of
from distillery.results.report.robustness import Robustness, robustness_section
from distillery.results.report.score import Score
from distillery.results.report.search import Search, search_section
from distillery.results.report.selection import Selection
from distillery.results.report.table import BEST_EPOCH, SAMPLE_COLUMNS


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Attributes:
        title: its heading.
        command: the one that makes it again.
        selection: the runs that are compared, and those that are left out.
        table: of the methods, see `method_table`.
        classes: how well each class is predicted.
        robustness: of each method, where it was scored on corrupted pictures.
        layers: of the baseline and the best method, where they were compared with the teacher's.
        trials: by which a study has chosen settings, see `trials_of`.
        search: the trials of a sweep that searched.
        pictures: the names of the files of those that there are.
        answer: to the question for the cheapest student; None: nobody asked.
    """

    title: str
    command: str
    selection: Selection
    table: pd.DataFrame
    classes: ClassFigures
    robustness: Mapping[str, Sequence[Robustness]]
    layers: Mapping[str, Layers]
    trials: pd.DataFrame
    search: Search | None
    pictures: Set[str]
    answer: Answer | None = None


def page(report: Report) -> str:
    """The whole report as Markdown."""
    table, students = report.table, report.selection.students
    parts = [
        f"# {report.title}",
        f"**{sentence}**" if (sentence := headline(table, students)) else "",
        _setting(students),
        markdown_table(table).rstrip(),
        chosen(table),
        f"![Score against cost, and every method's gain over the baseline]({REPORT[-1]})",
        section("Quality at a cost", *_answer(report.answer)),
        section("Against the baseline", _against_baseline(table)),
        f"![Validation score of every method by epoch]({CURVES})" if CURVES in report.pictures else "",
        chosen_section(report.trials, Score.of_monitored(students[0].record)),
        search_section(report.search, Score.of_monitored(students[0].record)),
        classes_section(report.classes, best_method(table), report.pictures),
        calibration_section(table, students, report.pictures),
        robustness_section(report.robustness),
        fidelity_section(table, students, report.pictures),
        layers_section(report.layers, report.pictures),
        samples_section(students),
        section("Training samples", bullets(training_samples(table))),
        section("Teachers", bullets(_about_teachers(students))),
        section("Not in the table", bullets(_left_out(report.selection))),
        _timeline(students) if TIMELINE in report.pictures else "",
        section("Definitions", definitions(table, students)),
        f"Made by `{report.command}`. The numbers, unrounded: [report.csv](report.csv).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    """The table alone, the best method in bold; also of a table that was read back from report.csv."""
    best, shown = best_method(table), columns(table)
    rows = [[f"**{cell}**" if row[0] == best else cell for cell in row] for row in cells(table, shown)]
    return table_of(["method", *(column.heading for column in shown)], rows)


def training_samples(table: pd.DataFrame) -> list[str]:
    """How many training samples each network saw, where some have no label."""
    if not {*SAMPLE_COLUMNS} <= {*table.columns}:
        return []
    known = table[table["labelled"].notna()]
    return [
        f"{row.method}: {row.labelled:,} labelled" + (f" and {row.unlabelled:,} unlabelled" if row.unlabelled else "")
        for row in known.itertuples()
    ]


def _setting(students: Sequence[Run]) -> str:
    records = [run.record for run in students]
    data = records[0].data
    sizes = " or ".join(dict.fromkeys(str(record.data.get("train")) for record in records))
    machines = [record.environment.get("gpu") or record.environment.get("cpu") for record in records]
    versions = [record.environment.get("packages", {}).get("torch") for record in records]
    return (
        f"Data: {data.get('name')}: {sizes} training, {data.get('val')} validation, {data.get('test')} test. "
        f"Seeds: {listed(sorted({record.seed for record in records}))}. "
        f"{len(records)} student runs, {sum(record.seconds or 0 for record in records):.0f} s in all. "
        f"Commit {listed(_commit(record.git) for record in records)}; "
        f"{listed(machines)}; torch {listed(versions)}."
    )


def _commit(git: Mapping[str, Any]) -> str:
    return f"{(git.get('commit') or 'unknown')[:10]}{' (dirty)' if git.get('dirty') else ''}"


def _answer(answer: Answer | None) -> list[str]:
    if answer is None:
        return []
    about = "Students, and their exports, that none beats in both cost and score:" if answer.table else ""
    return [f"**{answer.sentence}**", about, answer.table]


def _against_baseline(table: pd.DataFrame) -> str:
    """What can be said of each method, with its differences and p-values at the last and at the best epoch."""
    found, score = verdicts(table), Score.of_table(table)
    header = ["method", "finding", "Δ last epoch", "p", "p, Holm"]
    if best_epoch := BEST_EPOCH[-1] in table:
        header += ["score, best epoch", "Δ best epoch", "p", "p, Holm"]
    rows = []
    for row in score.generic(table).itertuples():
        if row.method not in found:
            continue
        cells = [row.method, found[row.method], points(row.diff_mean, row.diff_ci95, score)]
        cells += [probability(row.p), probability(row.p_holm)]
        if best_epoch:
            cells.append(with_spread(row.score_best_mean, row.score_best_std, score))
            cells.append(points(row.diff_best_mean, row.diff_best_ci95, score))
            cells += [probability(row.p_best), probability(row.p_best_holm)]
        rows.append(cells)
    return table_of(header, rows, texts=2) if rows else ""


def _timeline(students: Sequence[Run]) -> str:
    number = len(methods_of(students))
    some = f" The first {MOST} of {number} methods are shown." if number > MOST else ""
    return section(
        "Timeline",
        f"![Stages, validation score, shares of the losses, weights, learning rate by epoch]({TIMELINE})",
        "Validation score: a thin line for each seed, a thick one for their mean. The rest is of the first seed: each "
        f"number as it was in the last batch of an epoch. Loss share: of the absolute values of all losses, each times "
        f"its weight.{some}",
    )


def _about_teachers(students: Sequence[Run]) -> list[str]:
    """Where the outputs of those come from that were no networks here, and how those of other classes were scored."""
    found = []
    for name, entry in (each for run in students for each in run.record.teachers.items()):
        if entry.get("params", 0) is None:
            found.append(f"`{name}` was run elsewhere: its outputs are {entry['source']}, SHA-256 `{entry['sha256']}`.")
        if "scored_by" in entry:
            found.append(f"`{name}` is scored by {entry['scored_by']}.")
    return list(dict.fromkeys(found))


def _left_out(selection: Selection) -> list[str]:
    lines = [f"`{run.folder}` ({run.label}, seed {run.record.seed}): {reason}." for run, reason in selection.left_out]
    seeds = {run.label: set[int]() for run in selection.students}
    for run in selection.students:
        seeds[run.label].add(run.record.seed)
    for method, own in seeds.items():
        if missing := sorted(set.union(*seeds.values()) - own):
            lines.append(f"`{method}` has no run of seed {listed(missing)}.")
    return lines
