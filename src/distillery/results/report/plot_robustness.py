"""The report's picture of robustness: the score by severity of the corruptions, for each family."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from distillery.results.report.plot_calibration import MOST, colours_of, keys, line_of
from distillery.results.report.robustness import Robustness


def plot_robustness(methods: Mapping[str, Sequence[Robustness]]) -> Figure | None:
    """The picture of the teacher and the first methods, means over seeds; None: there is nothing to draw."""
    shown = dict([*methods.items()][: MOST + 1])
    if not shown:
        return None
    colours = colours_of(shown)
    families = list(dict.fromkeys(family for own in shown.values() for one in own for family in one.by_severity))
    figure = Figure(figsize=(8, 2.9), dpi=200, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(families), sharey=True))
    for name, own in shown.items():
        clean = float(np.mean([one.clean for one in own]))
        means = pd.concat([one.by_severity for one in own]).groupby(level=0).mean()
        for ax, family in zip(axes, families, strict=True):
            known = means[family].dropna() if family in means else pd.Series(dtype=float)
            score = 100 * np.array([clean, *known])
            ax.plot([0, *known.index], score, line_of(name), color=colours[name], marker="o", ms=2.5, lw=1.4)
    for ax, family in zip(axes, families, strict=True):
        ax.set(title=family, xlabel="severity", xticks=range(6), xticklabels=["clean", *range(1, 6)])
        ax.grid(axis="y", color="#EEEEEE", zorder=0)
    axes[0].set_ylabel("test score (%)")
    figure.legend(handles=keys([*shown], colours), loc="outside lower center", ncols=min(6, len(shown)), frameon=False)
    return figure
