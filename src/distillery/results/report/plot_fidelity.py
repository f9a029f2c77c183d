"""The report's picture of language models: divergence from the teacher by position, and calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distillery.results.report.collect import Run
from distillery.results.report.plot import GREY
from distillery.results.report.plot_calibration import best_of, colours_of, finish_reliability, keys, reliability
from distillery.results.report.statistics import mean_and_ci95
from distillery.results.report.table import compared_with

LINES = {"own_text": "-", "data_text": "--"}  # of `RunRecord.fidelity`, by kind of text


def plot_fidelity(students: Sequence[Run]) -> Figure | None:
    """The picture of the best methods; None: there is nothing to draw."""
    methods: dict[str, list[Run]] = {}
    for run in students:
        if run.record.fidelity and "brier" not in run.record.metrics["last"]:  # not of classes
            methods.setdefault(run.label, []).append(run)
    shown = best_of(methods)
    if not shown:
        return None
    colours = colours_of(shown)
    figure = Figure(figsize=(8, 3.6), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    for name, runs in shown.items():
        _by_position(left, runs, colours[name])
        reliability(right, [run.record.fidelity["student"] for run in runs], colours[name])
    left.set(
        title="Divergence from the teacher", xlabel="tokens after the prompt", ylabel="KL(teacher ‖ student), nats"
    )
    left.set_ylim(bottom=0)
    left.set_xlim(left=0)
    finish_reliability(right, "token")
    styles = [
        Line2D([], [], color=GREY, ls=style, label=label)
        for style, label in zip(LINES.values(), ("own text", "data's text"), strict=True)
    ]
    figure.legend(
        handles=[*keys([*shown], colours), *styles],
        loc="outside lower center",
        ncols=min(5, len(shown) + 2),
        frameon=False,
    )
    return figure


def _by_position(ax: Axes, runs: Sequence[Run], colour: str) -> None:
    """The mean over seeds and its 95 % interval, as far as the data's texts reach: few of the student's are longer.

    A seed whose texts end early has no value at the end.
    """
    found = [run.record.fidelity[name] for run in runs if (name := compared_with(run)) is not None]
    texts = [{kind: each[kind]["kl_by_place"] for kind in LINES} for each in found if "own_text" in each]
    if not texts:
        return
    width = runs[0].record.fidelity["student"]["texts"]["places"]
    table = np.full((len(texts), max(len(each["data_text"]) for each in texts)), np.nan)
    middle = (np.arange(table.shape[1]) + 0.5) * width
    for kind, style in LINES.items():
        table[:] = np.nan
        for row, each in zip(table, texts, strict=True):
            own = each[kind][: len(row)]
            row[: len(own)] = own
        mean, ci95 = np.transpose([mean_and_ci95(place[~np.isnan(place)]) for place in table.T])
        ax.plot(middle, mean, style, color=colour, lw=1.4, marker="o", ms=2.5)
        ax.fill_between(middle, mean - ci95, mean + ci95, color=colour, alpha=0.1, lw=0)
