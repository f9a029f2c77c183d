"""The report's picture of classifiers: how far their probabilities can be trusted, and nearness to the teacher."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distillery.results.report.collect import Run
from distillery.results.report.plot import GREY, PALETTE, short
from distillery.results.report.score import Score
from distillery.results.report.table import TEACHER, compared_with, is_baseline, is_teacher

MOST = 7  # methods in a picture
LARGEST = 60  # of a dot, square points: the share of all rows is its area
LEAST = 10  # rows of a dot


def plot_calibration(students: Sequence[Run]) -> Figure | None:
    """The picture of the teacher and the best methods; None: no classes are predicted."""
    methods: dict[str, list[Run]] = {}
    for run in students:
        if "brier" in run.record.metrics["last"]:
            methods.setdefault(run.label, []).append(run)
    shown = best_of(methods)
    if not shown:
        return None
    colours = colours_of([TEACHER, *shown])
    teachers = {
        entry.get("sha256") or run.record.teachers[name]["sha256"]: entry  # of a baseline the entry says whose it is
        for runs in shown.values()
        for run in runs
        if (name := compared_with(run)) is not None and (entry := run.record.fidelity[name])
    }
    figure = Figure(figsize=(8, 3.6), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2)
    reliability(left, teachers.values(), colours[TEACHER], line_of(TEACHER))
    for name, runs in shown.items():
        reliability(left, [run.record.fidelity["student"] for run in runs], colours[name])
        _score_by_divergence(right, runs, colours[name])
    finish_reliability(left, "class")
    right.set(title="Fidelity", xlabel="KL(teacher ‖ student), nats", ylabel="test score (%)")
    right.set_xlim(left=0)
    if not teachers:
        right.remove()
    names = [*([TEACHER] if teachers else []), *shown]
    figure.legend(handles=keys(names, colours), loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return figure


def best_of(methods: Mapping[str, Sequence[Run]]) -> dict[str, Sequence[Run]]:
    """The baseline and, of the others, those with the best mean score: `MOST` in all, in their own order."""

    def rank(name: str) -> tuple[bool, float]:
        own = methods[name]
        scores = [run.score for run in own if run.score is not None]
        return not is_baseline(name), -Score.of_record(own[0].record.data).sign * sum(scores) / max(1, len(scores))

    kept = sorted(methods, key=rank)[:MOST]
    return {name: runs for name, runs in methods.items() if name in kept}


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """The colour of each method: the baseline is black, and teachers are grey."""
    others = iter(PALETTE)
    return {
        name: "#000000" if is_baseline(name) else GREY if is_teacher(name) else next(others, GREY) for name in names
    }


def keys(names: Sequence[str], colours: Mapping[str, str]) -> list[Line2D]:
    """The entries of a legend; those of teachers are dotted."""
    return [Line2D([], [], color=colours[name], ls=line_of(name), label=short(name)) for name in names]


def line_of(name: str) -> str:
    return ":" if is_teacher(name) else "-"


def reliability(ax: Axes, entries: Iterable[Mapping[str, Any]], colour: str, line: str = "-") -> None:
    """Accuracy against confidence by bins, over all entries of a record's `fidelity` together."""
    bins = [entry["bins"] for entry in entries if "bins" in entry]
    if not bins:
        return
    count = np.array([each["count"] for each in bins], dtype=float)
    sure, right = (
        np.nan_to_num(np.array([each[key] for each in bins], dtype=float)) for key in ("confidence", "accuracy")
    )
    total = count.sum(0)
    enough = total >= LEAST
    x, y = ((values * count).sum(0)[enough] / total[enough] for values in (sure, right))
    ax.plot(x, y, line, color=colour, lw=0.8, alpha=0.6)
    ax.scatter(x, y, s=4 + LARGEST * total[enough] / total.sum(), color=colour, linewidths=0, zorder=3)


def finish_reliability(ax: Axes, what: str) -> None:
    """The line of perfect calibration, and the axes."""
    limit = min(1.02, max(*ax.get_xlim(), *ax.get_ylim(), 0.1) * 1.05)
    ax.plot([0, limit], [0, limit], color="#BBBBBB", lw=1, zorder=1)
    ax.set(title="Calibration", xlabel=f"probability of the likeliest {what}", ylabel="share that is right")
    ax.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _score_by_divergence(ax: Axes, runs: Sequence[Run], colour: str) -> None:
    """A small dot for each seed, and a large one for their mean."""
    known = [
        (run.record.fidelity[name]["kl"], 100 * run.score)
        for run in runs
        if (name := compared_with(run)) is not None and run.score is not None
    ]
    if known:
        divergence, score = np.array(known).T
        ax.scatter(divergence, score, s=9, color=colour, alpha=0.5, linewidths=0)
        ax.scatter(divergence.mean(), score.mean(), s=46, color=colour, linewidths=0, zorder=3)
