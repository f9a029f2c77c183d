"""The report's picture of classes: which the best method gains against the baseline, and which it loses."""

import numpy as np
from matplotlib.figure import Figure

from distillery.results.report.classes import ClassFigures
from distillery.results.report.plot import GREEN, GREY, RED, short

MOST = 40  # classes: those that lose most, and those that gain most


def plot_classes(figures: ClassFigures, method: str | None) -> Figure | None:
    """The differences of F1, the mean over seeds with its 95 % interval; None: there are none."""
    own = figures.table[figures.table["method"] == method].dropna(subset=["diff_baseline"])
    if own.empty:
        return None
    own = own.sort_values("diff_baseline", kind="stable")
    shown = own if len(own) <= MOST else own.iloc[[*range(MOST // 2), *range(len(own) - MOST // 2, len(own))]]
    gains, halves = 100 * shown["diff_baseline"], 100 * shown["diff_baseline_ci95"].fillna(0)
    clear = gains.abs() > halves
    colours = np.where(clear & (gains > 0), GREEN, np.where(clear & (gains < 0), RED, GREY))
    figure = Figure(figsize=(8, 1.1 + 0.2 * len(shown)), dpi=200, layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(shown))
    ax.barh(places, gains, color=colours, height=0.7, alpha=0.75)
    ax.errorbar(gains, places, xerr=halves, fmt="none", ecolor="#333333", elinewidth=0.8)
    ax.axvline(0, color="#333333", lw=0.8)
    ax.set_yticks(places, [short(str(name)) for name in shown["class"]])
    ax.set_ylim(-0.6, len(shown) - 0.4)
    some = f", {MOST} of {len(own)} classes" if len(shown) < len(own) else ""
    ax.set_title(f"{short(str(method))} against the baseline, by class{some}")
    ax.set_xlabel("difference of F1 (points), with 95 % interval over seeds; grey: none is measurable")
    return figure
