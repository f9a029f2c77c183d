"""The report's picture of language models: divergence from the teacher by position, and calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distillery.results.report.collect import Run
from distillery.results.report.plot import GREY, PALETTE, short
from distillery.results.report.table import compared_with, is_baseline

MOST = 7  # methods in the picture
LARGEST = 60  # of a dot, square points: the share of all tokens is its area
LEAST = 10  # tokens of a dot


def plot_fidelity(students: Sequence[Run]) -> Figure | None:
    """The picture of the first methods; None: there is nothing to draw."""
    methods: dict[str, list[Run]] = {}
    for run in students:
        if run.record.fidelity and "brier" not in run.record.metrics["last"]:  # not of classes
            methods.setdefault(run.label, []).append(run)
    shown = dict([*methods.items()][:MOST])
    if not shown:
        return None
    others = iter(PALETTE)
    colours = {name: "#000000" if is_baseline(name) else next(others, GREY) for name in shown}
    figure = Figure(figsize=(8, 3.6), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    for name, runs in shown.items():
        _by_position(left, runs, colours[name])
        _reliability(right, runs, colours[name])
    left.set(
        title="Divergence from the teacher", xlabel="tokens after the prompt", ylabel="KL(teacher ‖ student), nats"
    )
    left.set_ylim(bottom=0)
    left.set_xlim(left=0)
    limit = max(*right.get_xlim(), *right.get_ylim(), 0.1) * 1.05
    right.plot([0, limit], [0, limit], color="#BBBBBB", lw=1, zorder=1)
    right.set(title="Calibration", xlabel="probability of the likeliest token", ylabel="share that is right")
    right.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    right.xaxis.set_major_locator(MaxNLocator(5))
    right.yaxis.set_major_locator(MaxNLocator(5))
    keys = [Line2D([], [], color=colours[name], label=short(name)) for name in shown]
    styles = [
        Line2D([], [], color=GREY, ls=style, label=label) for style, label in (("-", "own text"), ("--", "data's text"))
    ]
    figure.legend(handles=[*keys, *styles], loc="outside lower center", ncols=min(5, len(keys) + 2), frameon=False)
    return figure


def _by_position(ax: Axes, runs: Sequence[Run], colour: str) -> None:
    """The mean over seeds; a seed whose texts end early has no value at the end."""
    for kind, style in (("own_text", "-"), ("data_text", "--")):
        profiles = [
            run.record.fidelity[name][kind]["kl_by_place"]
            for run in runs
            if (name := compared_with(run)) is not None and kind in run.record.fidelity[name]
        ]
        if not profiles:
            continue
        table = np.full((len(profiles), max(map(len, profiles))), np.nan)
        for row, profile in zip(table, profiles, strict=True):
            row[: len(profile)] = profile
        width = runs[0].record.fidelity["student"]["texts"]["places"]
        middle = (np.arange(table.shape[1]) + 0.5) * width
        ax.plot(middle, np.nanmean(table, 0), style, color=colour, lw=1.4, marker="o", ms=2.5)


def _reliability(ax: Axes, runs: Sequence[Run], colour: str) -> None:
    """Accuracy against confidence by bins, over all seeds together."""
    bins = [run.record.fidelity["student"]["bins"] for run in runs if "bins" in run.record.fidelity["student"]]
    if not bins:
        return
    count = np.array([each["count"] for each in bins], dtype=float)
    sure, right = (
        np.nan_to_num(np.array([each[key] for each in bins], dtype=float)) for key in ("confidence", "accuracy")
    )
    total = count.sum(0)
    enough = total >= LEAST
    x, y = ((values * count).sum(0)[enough] / total[enough] for values in (sure, right))
    ax.plot(x, y, color=colour, lw=0.8, alpha=0.6)
    ax.scatter(x, y, s=4 + LARGEST * total[enough] / total.sum(), color=colour, linewidths=0, zorder=3)
