"""Pictures of the layers of students and their teacher: how alike they are, and what they look at."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from distillery.results.layers import Layers
from distillery.results.report.plot import short

LONGEST_NAME = 20
FEW = 8  # layers up to which cells have numbers


def plot_similarity(layers: Layers) -> Figure:
    """The CKA of all layers of a student and its teacher with each other: three blocks of one matrix."""
    number = len(layers.stages["student"])
    parts = {
        ("student", "teacher"): layers.cka[:number, number:],
        ("student", "student"): layers.cka[:number, :number],
        ("teacher", "teacher"): layers.cka[number:, number:],
    }
    titles = [f"{down} and {across}" if down != across else f"{down} alone" for down, across in parts]
    return _heat_maps(
        titles,
        [*parts.values()],
        [(layers.stages[down], layers.stages[across]) for down, across in parts],
        [*parts],
    )


def plot_similarities(methods: Mapping[str, Layers]) -> Figure:
    """The CKA of each method's layers with those of its teacher, and of these with each other, for comparison."""
    titles, matrices, names, axes = [], [], [], []
    for method, layers in methods.items():
        number = len(layers.stages["student"])
        titles.append(f"{short(method, 16)} and teacher")
        matrices.append(layers.cka[:number, number:])
        names.append((layers.stages["student"], layers.stages["teacher"]))
        axes.append(("student", "teacher"))
    layers = next(iter(methods.values()))
    own, number = layers.stages["teacher"], len(layers.stages["student"])
    return _heat_maps(
        [*titles, "teacher alone"],
        [*matrices, layers.cka[number:, number:]],
        [*names, (own, own)],
        [*axes, ("teacher", "teacher")],
    )


def plot_maps(methods: Mapping[str, Layers]) -> Figure:
    """What the teacher and the methods look at, for each pair of layers; each map is drawn from 0 to its maximum.

    Args:
        methods: of students with the same layers, on the same samples.
    """
    first = next(iter(methods.values()))
    maps = {"teacher": first.maps["teacher"], **{name: layers.maps["student"] for name, layers in methods.items()}}
    return _of_text(maps, first) if first.tokens else _of_images(maps, first)


def _heat_maps(
    titles: Sequence[str],
    matrices: Sequence[NDArray[np.float64]],
    names: Sequence[tuple[Sequence[str], Sequence[str]]],
    axes_names: Sequence[tuple[str, str]],
) -> Figure:
    figure = Figure(figsize=(2.8 * len(titles), 3.4), dpi=200, layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for ax, title, values, (down, across), (ylabel, xlabel) in zip(
        axes, titles, matrices, names, axes_names, strict=True
    ):
        image = ax.imshow(values, cmap="cividis", vmin=0, vmax=1)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_title(title, fontsize=8)
        ax.set_xticks(range(len(across)), [short(each, LONGEST_NAME) for each in across], fontsize=6, rotation=90)
        ax.set_yticks(range(len(down)), [short(each, LONGEST_NAME) for each in down], fontsize=6)
        if max(values.shape) <= FEW:
            for (row, column), value in np.ndenumerate(values):
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6,
                        color="white" if value < 0.6 else "black")  # fmt: skip
        _without_frame(ax)
    bar = figure.colorbar(image, ax=axes.tolist(), shrink=0.7, pad=0.01)
    bar.set_label("CKA")
    bar.outline.set_visible(False)
    return figure


def _of_images(maps: Mapping[str, Sequence[NDArray[np.float32]]], layers: Layers) -> Figure:
    """A row for each image; beside it, for each pair of layers, a column for each network."""
    columns = 1 + len(maps) * len(layers.pairs)
    figure = Figure(figsize=(1.1 * columns, 1.1 * len(layers.images) + 0.6), dpi=150, layout="constrained")
    axes = figure.subplots(len(layers.images), columns, squeeze=False)
    for row, (image, own) in enumerate(zip(layers.images, axes, strict=True)):
        own[0].imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
        for ax, (place, name) in zip(own[1:], _columns(maps, layers), strict=True):
            ax.imshow(maps[name][place][row], cmap="magma", vmin=0)
        for ax in own:
            ax.set(xticks=[], yticks=[])
            _without_frame(ax)
    axes[0, 0].set_title("image", fontsize=6)
    for ax, (place, name) in zip(axes[0, 1:], _columns(maps, layers), strict=True):
        ax.set_title(f"{short(name, 16)}\n{_layer(layers, place, name, 16)}", fontsize=6)
    return figure


def _of_text(maps: Mapping[str, Sequence[NDArray[np.float32]]], layers: Layers) -> Figure:
    """What the tokens (rows) of a text attend to (columns); a row of pictures for each network."""
    pairs, tokens = layers.pairs, layers.tokens
    figure = Figure(figsize=(3.2 * len(pairs) + 0.4, 3.3 * len(maps)), dpi=150, layout="constrained")
    axes = figure.subplots(len(maps), len(pairs), squeeze=False)
    for row, name in zip(axes, maps, strict=True):
        for place, ax in enumerate(row):
            ax.imshow(maps[name][place], cmap="magma", vmin=0)
            ax.set_title(f"{short(name)}, {_layer(layers, place, name, LONGEST_NAME + 8)}", fontsize=7)
            ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=5)
            ax.set_yticks(range(len(tokens)), tokens, fontsize=5)
            _without_frame(ax)
    return figure


def _columns(maps: Mapping[str, Sequence[NDArray[np.float32]]], layers: Layers) -> Iterator[tuple[int, str]]:
    return ((place, name) for place in range(len(layers.pairs)) for name in maps)


def _layer(layers: Layers, place: int, name: str, longest: int) -> str:
    ours, theirs = layers.pairs[place]
    return short(theirs if name == "teacher" else ours, longest)


def _without_frame(ax: Axes) -> None:
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
