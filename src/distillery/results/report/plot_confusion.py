"""The report's picture of classes: which are taken for which, by the student and by its teacher."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distillery.results.layout import CLASSES
from distillery.results.report.classes import ClassFigures, off_diagonal
from distillery.results.report.plot import RED, short
from distillery.results.report.table import TEACHER

MOST = 200  # classes in a picture
NUMBERED, NAMED = 12, 40  # classes up to which cells have numbers, and axes names
RIGHT = "#E8E8E8"  # of the diagonal
COLOURS = LinearSegmentedColormap.from_list("confusion", ["#FFFFFF", RED])


def plot_confusion(figures: ClassFigures, method: str | None) -> Figure | None:
    """The picture of a method, and of its teacher; None: there is nothing to draw."""
    shown = {name: figures.confusions[name] for name in (method, TEACHER) if name in figures.confusions}
    if method not in shown or len(figures.names) > MOST:
        return None
    size = 4.4 if len(figures.names) > NUMBERED else 3.6
    numbers = "" if len(figures.names) <= NAMED else f", numbered from 0 as in {CLASSES}"
    most = max(max(off_diagonal(counts).max() for counts in shown.values()), 0.01)
    figure = Figure(figsize=(size * len(shown) + 0.6, size), dpi=200, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    for ax, (name, counts) in zip(axes, shown.items(), strict=True):
        image = _draw(ax, counts, figures.names, most)
        ax.set(title=short(name), xlabel=f"predicted class{numbers}")
    axes[0].set_ylabel(f"class{numbers}")
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.8, pad=0.02, ticks=MaxNLocator(5, integer=True))
    bar.set_label("% of the class taken for another")
    bar.outline.set_visible(False)
    return figure


def _draw(ax: Axes, counts: NDArray[np.int64], names: list[str], most: float) -> AxesImage:
    wrong, number = off_diagonal(counts), len(names)
    image = ax.imshow(100 * wrong, cmap=COLOURS, vmin=0, vmax=100 * most)
    ax.imshow(
        np.where(np.eye(number) > 0, 1.0, np.nan), cmap=LinearSegmentedColormap.from_list("right", [RIGHT, RIGHT])
    )
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    if number <= NAMED:
        labels = [short(name, 14) for name in names]
        ax.set_xticks(range(number), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
        ax.set_yticks(range(number), labels)
        ax.tick_params(length=0, labelsize=7 if number <= NUMBERED else 5)
    if number <= NUMBERED:
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            dark = row != column and wrong[row, column] > 0.6 * most
            ax.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=6.5,
                    color="white" if dark else "#333333")  # fmt: skip
    return image
