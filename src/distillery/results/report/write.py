"""The report's files: report.md, report.csv and report.png, and its table for the terminal."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from distillery.results.layout import CLASSES, CONFUSION, FIDELITY, TIMELINE
from distillery.results.report.classes import ClassFigures, classes_section
from distillery.results.report.collect import Run, collect
from distillery.results.report.formats import (
    Column,
    best_method,
    cells,
    chosen,
    columns,
    fidelity_columns,
    is_of_sweep,
    is_of_texts,
    metrics_of,
    points,
    verdicts,
)
from distillery.results.report.language import fidelity_section, samples_section
from distillery.results.report.plot import plot
from distillery.results.report.plot_confusion import plot_confusion
from distillery.results.report.plot_fidelity import plot_fidelity
from distillery.results.report.plot_timeline import MOST, plot_timeline
from distillery.results.report.score import Score
from distillery.results.report.selection import Selection, select
from distillery.results.report.table import BEST, BUSY, EXACT, PERPLEXITY, SAMPLE_COLUMNS, is_teacher, method_table

DEFINITIONS = """\
- **score**: {score}on the test split at the last epoch, mean ± sample deviation over seeds; nothing is selected on
  test.
- **Δ baseline**: difference to the same student trained without a teacher, {unit}, paired by
  seed: mean ± half-width of its 95 % t interval. The intervals are not corrected for the number of methods.
- {retention}**Gap recovered**: (student − baseline) ÷ (teacher − baseline); left empty
  unless the teacher is better than the baseline by more than the interval of that difference.
- **agreement**: share of the test {rows} for which student and teacher predict the same class.
- **FLOPs**: 2 × multiply-accumulates, batch 1. **Latency**: median of forwards at batch 1 on one thread{inputs}; of
  the runs that measured the same network on the same machine, the lowest counts.
- **seeds** of the teacher: how many teachers were trained."""
TEXT_DEFINITIONS = """
- **speed-up**: latency of the teacher ÷ that of the student; median over seeds. **Params**: all, and what part of the
  teacher's they are; **non-embedding**: those outside of the tables of words, positions and types, which cost memory,
  but hardly time."""


PERPLEXITY_DEFINITION = """
- **perplexity**: exp(mean loss in nats a predicted token) on the test split, mean over seeds. It compares only where
  vocabulary and masking are the same."""

METRICS_DEFINITION = """
- **{}**: on the test split at the last epoch, mean ± sample deviation over seeds (`task.metrics`)."""

VALIDATION_DEFINITION = """
- **validation**: {} on the validation split at the last epoch, mean ± sample deviation over seeds. The setting that is
  best in it is in bold: none is chosen on the test split."""

BEST_DEFINITION = """
- The method with the best {} on the test split is in bold (`task.monitor`)."""

BUSY_DEFINITION = """
- **(busy)**: whenever the network was measured, something else took the machine's time, so this is not a median but the
  fastest forward. `run.json` has the details (`latency`). Run a job again on an idle machine for a figure to trust."""

EXACT_DEFINITION = """
- **exact %**: share of the test prompts of which the likeliest continuation, token by token, is exactly the given one,
  mean ± standard deviation over seeds."""


def write_report(run_folders: Sequence[Path], out: Path, title: str) -> pd.DataFrame:
    """Writes `report.md`, `report.csv` and `report.png` on all runs below the folders; returns the table.

    And `timeline.png`, where something changes during the runs, `fidelity.png` of language models, and `classes.csv`
    and `confusion.png` where classes are predicted.

    Raises:
        UserError: what `collect` or `select` refuse.
    """
    selection = select(collect(run_folders))
    table = method_table(selection.students, [run for run, _ in selection.left_out])
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "report.csv", index=False)
    plot(table, selection.students, out / "report.png")
    methods = plot_timeline(selection.students, out / TIMELINE)
    drawn = plot_fidelity(selection.students, out / FIDELITY)
    classes = _classes(selection.students, best_method(table), out)
    command = shlex.join(["distill-report", f"runs=[{','.join(map(str, run_folders))}]", f"out={out}"])
    (out / "report.md").write_text(
        markdown(table, selection, title, command, methods, drawn, classes), encoding="utf-8"
    )
    return table


def _classes(students: Sequence[Run], method: str | None, out: Path) -> str:
    """Writes `classes.csv` and `confusion.png`, where classes are predicted; returns the section on them."""
    figures = ClassFigures(students)
    (out / CLASSES).unlink(missing_ok=True)
    if not figures.table.empty:
        figures.table.to_csv(out / CLASSES, index=False)
    return classes_section(figures, method, plot_confusion(figures, method, out / CONFUSION))


def terminal_table(table: pd.DataFrame, title: str) -> Group:
    """The table for a terminal of 80 columns, the best method in bold; below it what the networks cost.

    Costs are a table of their own: beside the scores, no cell would fit on one line. Nor would the settings of a sweep:
    of it, how students compare with their teacher is left to the files. Where they differ, the numbers of training
    samples follow.
    """
    scores, costs = ([column for column in columns(table) if column.is_cost is cost] for cost in (False, True))
    if is_of_sweep(table):
        scores = [column for column in scores if not column.is_of_teacher]
    named = [f"{sentence}\n"] if (sentence := chosen(table)) else []
    bold = {str(best_method(table)): "bold"} | {name: "dim" for name in table["method"] if is_teacher(name)}
    seen = [f"Training samples: {'; '.join(samples)}\n"] if (samples := _samples(table)) else []
    fidelity = [_rows(table, shown, "Fidelity", bold)] if (shown := fidelity_columns(table)) else []
    cost = _rows(_distinct_costs(table), costs, "Cost", {})
    return Group(_rows(table, scores, title, bold), *named, *fidelity, cost, *seen)


def _rows(table: pd.DataFrame, shown: Sequence[Column], title: str, styles: Mapping[str, str]) -> Table:
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("method", overflow="fold")
    for column in shown:
        made.add_column(column.narrow, justify="right", no_wrap=True)
    for row in cells(table, shown):
        made.add_row(*row, style=styles.get(row[0]))
    return made


def _distinct_costs(table: pd.DataFrame) -> pd.DataFrame:
    """One row for all students of one size: their latencies are measurements of one network."""
    students = ~table["method"].map(is_teacher)
    if table.loc[students, ["params", "flops"]].drop_duplicates().shape[0] > 1:
        return table
    one = table[students].iloc[:1].assign(method="students", latency_ms=table.loc[students, "latency_ms"].median())
    if "speed_up" in table:
        one = one.assign(speed_up=table.loc[students, "speed_up"].median())
    return pd.concat([table[~students], one])


def markdown(
    table: pd.DataFrame,
    selection: Selection,
    title: str,
    command: str,
    timelines: Sequence[str],
    drawn: bool = False,
    classes: str = "",
) -> str:
    """The whole report as Markdown.

    Args:
        timelines: the methods with something to show in the second picture.
        drawn: whether there is a picture of the fidelity.
        classes: the section on the classes of the best method.
    """
    parts = [
        f"# {title}",
        _setting(selection.students),
        markdown_table(table).rstrip(),
        chosen(table),
        "![Score against cost, and every method's gain over the baseline](report.png)",
        _list("## Against the baseline", _findings(table)),
        classes,
        fidelity_section(table, selection.students, drawn),
        samples_section(selection.students),
        _list("## Training samples", _samples(table)),
        _list("## Teachers", _about_teachers(selection.students)),
        _list("## Not in the table", _left_out(selection)),
        _timeline(timelines),
        f"## Definitions\n\n{_definitions(table, selection.students)}",
        f"Made by `{command}`. The numbers, unrounded: [report.csv](report.csv).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _timeline(methods: Sequence[str]) -> str:
    if not methods:
        return ""
    some = f" The first {MOST} of {len(methods)} methods are shown." if len(methods) > MOST else ""
    return (
        f"## Timeline\n\n![Stages, validation score, weights, learning rate and temperatures by epoch]({TIMELINE})\n\n"
        "Validation score: a thin line for each seed, a thick one for their mean. The rest is of the first seed: each "
        f"number as it was in the last batch of an epoch.{some}"
    )


def _definitions(table: pd.DataFrame, students: Sequence[Run]) -> str:
    name = students[0].record.data["score_name"]
    texts = is_of_texts(table)
    lower = Score.of_table(table).lower
    measured = _unique(how for run in students if (how := run.record.data.get("measured")))
    said = ("" if name == "accuracy" else name, "lower is better" if lower else "", measured)
    definitions = DEFINITIONS.format(
        score="".join(f"{each}, " for each in said if each),
        unit=f"in {name}, negative where it is better" if lower else "in percentage points",
        retention="" if lower else "**retention**: student ÷ teacher. ",
        rows="samples (tokens, where these are predicted)" if texts else "samples",
        inputs=_inputs(students),
    )
    perplexity = PERPLEXITY_DEFINITION if PERPLEXITY in table else ""
    exact = EXACT_DEFINITION if EXACT in table else ""
    more = METRICS_DEFINITION.format(", ".join(names)) if (names := metrics_of(table)) else ""
    monitored = students[0].record.monitored
    if is_of_sweep(table):
        more += VALIDATION_DEFINITION.format(monitored)
    elif BEST in table:
        more += BEST_DEFINITION.format(monitored)
    busy = BUSY_DEFINITION if BUSY in table else ""
    return definitions + busy + more + (TEXT_DEFINITIONS + perplexity + exact if texts else "")


def _inputs(students: Sequence[Run]) -> str:
    """What was given to the networks whose latency was measured, where the records say so."""
    shapes = [shape for run in students if (shape := (run.record.cost.get("latency") or {}).get("input"))]
    said = _unique(f"{shape[0]} tokens" if len(shape) == 1 else "×".join(map(str, shape)) for shape in shapes)
    return f", input {said}" if said else ""


def _setting(students: Sequence[Run]) -> str:
    records = [run.record for run in students]
    data = records[0].data
    sizes = " or ".join(dict.fromkeys(str(record.data.get("train")) for record in records))
    machines = [record.environment.get("gpu") or record.environment.get("cpu") for record in records]
    versions = [record.environment.get("packages", {}).get("torch") for record in records]
    return (
        f"Data: {data.get('name')}: {sizes} training, {data.get('val')} validation, {data.get('test')} test. "
        f"Seeds: {_unique(sorted({record.seed for record in records}))}. "
        f"{len(records)} student runs, {sum(record.seconds or 0 for record in records):.0f} s in all. "
        f"Commit {_unique(_commit(record.git) for record in records)}; "
        f"{_unique(machines)}; torch {_unique(versions)}."
    )


def _samples(table: pd.DataFrame) -> list[str]:
    """How many training samples each network saw, where some have no label."""
    if not {*SAMPLE_COLUMNS} <= {*table.columns}:
        return []
    known = table[table["labelled"].notna()]
    return [
        f"{row.method}: {row.labelled:,} labelled" + (f" and {row.unlabelled:,} unlabelled" if row.unlabelled else "")
        for row in known.itertuples()
    ]


def _commit(git: Mapping[str, Any]) -> str:
    return f"{(git.get('commit') or 'unknown')[:10]}{' (dirty)' if git.get('dirty') else ''}"


def markdown_table(table: pd.DataFrame) -> str:
    """The table alone, the best method in bold; also of a table that was read back from report.csv."""
    best, shown = best_method(table), columns(table)
    rows = [[f"**{cell}**" if row[0] == best else cell for cell in row] for row in cells(table, shown)]
    header = ["method", *(column.heading for column in shown)]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows])


def _findings(table: pd.DataFrame) -> list[str]:
    found, score = verdicts(table), Score.of_table(table)
    return [
        f"`{row.method}`: {found[row.method]} ({points(row.diff_mean, row.diff_ci95, score)} {score.unit})."
        for row in score.generic(table).itertuples()
        if row.method in found
    ]


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
            lines.append(f"`{method}` has no run of seed {_unique(missing)}.")
    return lines


def _list(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([heading, "", *(f"- {line}" for line in lines)]) if lines else ""


def _unique(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))
