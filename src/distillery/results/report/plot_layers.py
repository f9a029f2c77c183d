"""Pictures of the layers of student and teacher: how alike they are, and what their attention looks at."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distillery.results.report.plot import short

Pairs = Sequence[tuple[str, str]]  # paths of layers of student and teacher
Maps = Mapping[str, Sequence[NDArray[np.float32]]]  # by network: the attention of its layer of each pair
LONGEST_NAME = 20
FEW = 8  # layers up to which cells have numbers


def plot_similarity(matrix: NDArray[np.float64], layers: Mapping[str, Sequence[str]]) -> Figure:
    """The CKA of all layers with each other: three blocks of one matrix.

    Args:
        matrix: [A + B, A + B], those of the student first.
        layers: the names of the layers of `student` and `teacher`.
    """
    number = len(layers["student"])
    parts = {
        ("student", "teacher"): matrix[:number, number:],
        ("student", "student"): matrix[:number, :number],
        ("teacher", "teacher"): matrix[number:, number:],
    }
    figure = Figure(figsize=(8.4, 3.4), dpi=200, layout="constrained")
    axes = figure.subplots(1, 3)
    for ax, ((down, across), values) in zip(axes, parts.items(), strict=True):
        image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1)
        ax.set(xlabel=across, ylabel=down, title=f"{down} and {across}" if down != across else f"{down} alone")
        for set_ticks, name in ((ax.set_xticks, across), (ax.set_yticks, down)):
            names = [short(layer, LONGEST_NAME) for layer in layers[name]]
            set_ticks(range(len(names)), names, fontsize=6, **({"rotation": 90} if set_ticks == ax.set_xticks else {}))
        if max(values.shape) <= FEW:
            for (row, column), value in np.ndenumerate(values):
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6,
                        color="white" if value < 0.6 else "black")  # fmt: skip
        _without_frame(ax)
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.7, pad=0.01)
    bar.set_label("CKA")
    bar.outline.set_visible(False)
    return figure


def plot_attention_of_images(images: NDArray[np.float32], maps: Maps, pairs: Pairs) -> Figure:
    """What each network attends to in some images, for each pair of layers side by side.

    Args:
        images: [B, H, W, C] in [0, 1].
        maps: [B, h, w] of each layer; each is drawn from 0 to its maximum.
    """
    columns = 1 + 2 * len(pairs)
    figure = Figure(figsize=(1.25 * columns, 1.25 * len(images) + 0.5), dpi=150, layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, (image, own) in enumerate(zip(images, axes, strict=True)):
        own[0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        for place in range(len(pairs)):
            for side, name in enumerate(("teacher", "student")):
                own[1 + 2 * place + side].imshow(maps[name][place][row], cmap="magma", vmin=0)
        for ax in own:
            ax.set(xticks=[], yticks=[])
            _without_frame(ax)
    axes[0, 0].set_title("image", fontsize=7)
    for place, (ours, theirs) in enumerate(pairs):
        axes[0, 1 + 2 * place].set_title(f"teacher\n{short(theirs, LONGEST_NAME)}", fontsize=7)
        axes[0, 2 + 2 * place].set_title(f"student\n{short(ours, LONGEST_NAME)}", fontsize=7)
    return figure


def plot_attention_of_texts(tokens: Sequence[str], maps: Maps, pairs: Pairs) -> Figure:
    """What the tokens (rows) of a text attend to (columns), for each pair of layers; the teacher above the student.

    Args:
        maps: [L, L] of each layer; each is drawn from 0 to its maximum.
    """
    figure = Figure(figsize=(3.2 * len(pairs) + 0.4, 6.6), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for row, name in enumerate(("teacher", "student")):
        for place, pair in enumerate(pairs):
            ax = axes[row, place]
            ax.imshow(maps[name][place], cmap="magma", vmin=0)
            ax.set_title(f"{name}, {short(pair[1 - row], LONGEST_NAME + 8)}", fontsize=7)
            ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=5)
            ax.set_yticks(range(len(tokens)), tokens, fontsize=5)
            _without_frame(ax)
    return figure


def _without_frame(ax: Axes) -> None:
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
