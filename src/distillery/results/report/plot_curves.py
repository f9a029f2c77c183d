"""The report's picture of learning: the validation score of every method, epoch by epoch."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distillery.results.report.collect import Run
from distillery.results.report.comparison import by_label
from distillery.results.report.plot import GREY, PALETTE, short
from distillery.results.report.score import Score
from distillery.results.report.table import is_baseline

FEW = 20  # epochs with a score: each is marked
FAINT = "#CCCCCC"  # of the methods that are not named


def plot_curves(students: Sequence[Run]) -> Figure | None:
    """The picture, of the mean over seeds; None: there are no two epochs with a score.

    The baseline is black. Of more methods than there are colours, those with the best last score have one.
    """
    curves = {label: curve for label, runs in by_label(students).items() if len(curve := mean_curve(runs)) > 1}
    if not curves:
        return None
    score = Score.of_record(students[0].record.data)
    ranked = sorted(curves, key=lambda label: score.sign * curves[label].iloc[-1], reverse=True)
    methods = [label for label in ranked if not is_baseline(label)]
    colours = dict(zip(methods, PALETTE, strict=False)) | {label: "#000000" for label in ranked if is_baseline(label)}
    figure = Figure(figsize=(8, 3.8), dpi=200, layout="constrained")
    ax = figure.subplots()
    for label in reversed(ranked):  # the best on top
        curve = score.factor * curves[label]
        named = label in colours
        marker = "o" if named and len(curve) <= FEW else None
        look: dict[str, Any] = {"color": colours.get(label, FAINT), "ls": "--" if is_baseline(label) else "-"}
        ax.plot(curve.index, curve, lw=1.6 if named else 0.8, marker=marker, ms=3, **look)
    name = f"{score.name} (lower is better)" if score.lower else "score (%)"
    ax.set(title="Learning curves", xlabel="epoch", ylabel=f"validation {name}")
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    keys = [
        Line2D([], [], color=colours[label], ls="--" if is_baseline(label) else "-", label=short(label))
        for label in ranked
        if label in colours
    ]
    if others := len(ranked) - len(keys):
        keys.append(Line2D([], [], color=FAINT, label=f"{others} other{'s' if others > 1 else ''}"))
    figure.legend(handles=keys, loc="outside right upper", frameon=False, labelcolor=GREY)
    return figure


def mean_curve(runs: Sequence[Run]) -> pd.Series:
    """Validation score by epoch, the mean over seeds, in the epochs in which each of them has one."""
    curves = [
        pd.Series({each["epoch"]: each["score"] for each in run.record.timeline}, dtype="float64") for run in runs
    ]
    return pd.concat(curves, axis=1).mean(axis=1, skipna=False).dropna()
