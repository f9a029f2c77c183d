"""The report's second picture: how each method's run went, epoch by epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, NullLocator

from distillery.results.report.collect import Run
from distillery.results.report.plot import BLUE, GREEN, GREY, RED, STYLE, short
from distillery.results.timeline import Epoch, changes, epochs_of

MOST = 6  # methods in one picture
COLUMNS = 3  # side by side
WIDTH = 8.0  # inches
INK = "#333333"
COLOURS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9")  # of the losses: Okabe and Ito's; the task's is grey
LINES = ("-", "--", ":")
TINTS = ("#E3EEF6", "#FBEEDB", "#E2F1EC", "#F6E6EF", "#EEEEEE")  # of the stages
STAGE_SIZE = 7  # points
LINE = 1.25 * STAGE_SIZE
LEFT, RIGHT, TOP, BOTTOM, GAP = 0.68, 0.12, 0.3, 0.42, 0.12  # inches beside a method's panels, and between two
LEGEND = 5  # columns
FEW = 20  # epochs with a score: each is marked
KINDS = ("weight", "temperature", "other")  # of numbers, a panel each
DECADE = 10  # what spans more is drawn on a logarithmic axis
NOTHING = 1e5  # a rate that falls by more has ended at 0, as the schedules of transformers do


@dataclass(frozen=True)
class Method:
    """What is drawn of a method: the epochs of its first seed, and of every seed the scores, by stage and epoch."""

    name: str
    epochs: Sequence[Epoch]
    scores: Sequence[Mapping[str, Mapping[int, float]]]

    @property
    def edges(self) -> list[int]:
        """Where the epochs begin and end on the axis: each reaches from the number of the one before it to its own."""
        return [self.epochs[0].epoch - 1, *(each.epoch for each in self.epochs)]

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        """Name, begin and end on the axis."""
        parts = [(name, [each.epoch for each in part]) for name, part in groupby(self.epochs, lambda each: each.stage)]
        return [(name, epochs[0] - 1, epochs[-1]) for name, epochs in parts if name]

    def numbers(self, kind: str) -> dict[str, list[float]]:
        """Those of a kind that change, by their name in the legend; NaN in the epochs that lack them."""
        paths = dict.fromkeys(path for each in self.epochs for path in each.numbers if _kind(path) == kind)
        values = {path: [each.numbers.get(path, math.nan) for each in self.epochs] for path in paths}
        return {_label(path): own for path, own in values.items() if len(set(map(str, own))) > 1}

    @property
    def learning_rate_changes(self) -> bool:
        return len({each.lr for each in self.epochs}) > 1


@dataclass(frozen=True)
class Panel:
    """A row of the picture, where a method has something for it."""

    label: str
    height: float  # inches
    has: Callable[[Method], Any]
    draw: Callable[[Axes, Method], None]


@dataclass(frozen=True)
class Axis:
    """That of the epochs, which every panel has."""

    end: int  # epochs
    width: float  # inches


def plot_timeline(students: Sequence[Run], path: Path) -> list[str]:
    """Writes the picture, 1600 pixels wide; without anything to show none, and a former one is removed.

    Args:
        students: the runs of a report.
        path: of the PNG.

    Returns: the methods with something to show; the first `MOST` of them are in the picture.
    """
    methods = methods_of(students)
    path.unlink(missing_ok=True)
    if methods:
        with rc_context(STYLE):
            timeline_figure(methods[:MOST]).savefig(path)
    return [method.name for method in methods]


def methods_of(students: Sequence[Run]) -> list[Method]:
    """Those in whose first seed something changes, in order of appearance."""
    methods = []
    for name in dict.fromkeys(run.label for run in students):
        records = sorted((run.record for run in students if run.label == name), key=lambda each: each.seed)
        timelines = [epochs_of(record.timeline) for record in records]
        scores = [_by_stage(epochs) for epochs in timelines]
        if changes(timelines[0]):
            methods.append(Method(name, timelines[0], scores))
    return methods


def _by_stage(epochs: Sequence[Epoch]) -> dict[str, dict[int, float]]:
    """The scores that there are, by stage and epoch."""
    scores: dict[str, dict[int, float]] = {}
    for each in epochs:
        if each.score is not None:
            scores.setdefault(each.stage, {})[each.epoch] = each.score
    return scores


def timeline_figure(methods: Sequence[Method]) -> Figure:
    """A column of panels for each method, all on one axis of epochs; more than three methods are in two tiers."""
    columns = len(methods) if len(methods) <= COLUMNS else math.ceil(len(methods) / 2)
    tiers = [methods[i : i + columns] for i in range(0, len(methods), columns)]
    axis = Axis(max(method.epochs[-1].epoch for method in methods), WIDTH / columns - LEFT - RIGHT)
    looks = _looks(methods)
    rows = [_panels(tier, methods, looks, axis) for tier in tiers]
    legend = 0.2 * math.ceil(len(looks) / LEGEND) + 0.1
    height = legend + sum(TOP + sum(panel.height + GAP for panel in panels) + BOTTOM for panels in rows)
    figure = Figure(figsize=(WIDTH, height), dpi=200)
    upper = height
    for tier, panels in zip(tiers, rows, strict=True):
        upper -= TOP
        tops = {panel: upper - sum(each.height + GAP for each in panels[:i]) for i, panel in enumerate(panels)}
        for column, method in enumerate(tier):
            own = {
                panel: _axes(figure, column * WIDTH / columns + LEFT, top - panel.height, panel.height, axis)
                for panel, top in tops.items()
                if panel.has(method)
            }
            for panel, ax in own.items():
                panel.draw(ax, method)
                if not any(panel.has(other) for other in tier[:column]):
                    ax.set_ylabel(panel.label)
                    ax.yaxis.set_label_coords(-0.72 * LEFT / axis.width, 0.5)
            shown = list(own.values())
            shown[0].set_title(short(method.name))
            shown[-1].set_xlabel("epoch")
            shown[-1].tick_params(labelbottom=True)
        upper -= sum(panel.height + GAP for panel in panels) + BOTTOM
    if handles := [Line2D([], [], label=name, lw=1.6, **look) for name, look in looks.items()]:
        figure.legend(handles=handles, loc="lower center", ncols=LEGEND, frameon=False)
    return figure


def _axes(figure: Figure, left: float, bottom: float, height: float, axis: Axis) -> Axes:
    """At a place in inches."""
    width, tall = figure.get_size_inches()
    ax = figure.add_axes((left / width, bottom / tall, axis.width / width, height / tall), xlim=(0, axis.end))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    ax.tick_params(labelbottom=False)
    return ax


def _panels(
    tier: Sequence[Method], methods: Sequence[Method], looks: Mapping[str, dict[str, Any]], axis: Axis
) -> list[Panel]:
    """Those for which one of the tier has something, from top to bottom."""
    names = list(dict.fromkeys(name for method in methods for name, *_ in method.stages))
    tints = {name: TINTS[i % len(TINTS)] for i, name in enumerate(names)}
    scores = [
        100 * score
        for method in methods
        for seed in method.scores
        for stage in seed.values()
        for score in stage.values()
    ]
    upright = [_width(name) for method in tier if not _fits(method, axis) for name, *_ in method.stages]
    strip = max([1.6 * STAGE_SIZE, *upright]) / 72

    def shaded(draw: Callable[..., None], *args: Any) -> Callable[[Axes, Method], None]:
        def shade_and_draw(ax: Axes, method: Method) -> None:
            for name, begin, to in method.stages:
                ax.axvspan(begin, to, color=tints[name], lw=0, zorder=0)
            draw(ax, method, *args)

        return shade_and_draw

    def numbers(kind: str) -> Panel:
        return Panel(kind, 0.8, partial(Method.numbers, kind=kind), shaded(_numbers, kind, looks))

    panels = [
        Panel("", strip, lambda _: any(each.stages for each in tier), shaded(_stages, axis)),
        Panel("val. score (%)", 1.1, lambda _: scores, shaded(_scores, scores)),
        numbers("weight"),
        Panel("learning rate", 0.8, lambda method: method.learning_rate_changes, shaded(_learning_rate)),
        numbers("temperature"),
        numbers("other"),
    ]
    return [panel for panel in panels if any(map(panel.has, tier))]


def _stages(ax: Axes, method: Method, axis: Axis) -> None:
    """Their names; upright, where one of the method's does not fit, and then at least a line apart."""
    ax.set_yticks([])
    ax.tick_params(bottom=False)
    ax.spines[:].set_visible(False)
    stages = method.stages or [("one stage", method.edges[0], method.edges[-1])]
    if not method.stages:
        ax.axvspan(*stages[0][1:], color="#F6F6F6", lw=0)
    places = [(begin + to) / 2 for _, begin, to in stages]
    upright = not _fits(method, axis)
    if upright:
        places = _apart(places, LINE / 72 * axis.end / axis.width, axis.end)
    for (name, *_), place in zip(stages, places, strict=True):
        ax.text(place, 0.5, short(name), ha="center", va="center", size=STAGE_SIZE, color=INK, rotation=90 * upright)


def _fits(method: Method, axis: Axis) -> bool:
    """Whether every stage is long enough for its name."""
    return all(_width(name) <= 72 * axis.width * (to - begin) / axis.end for name, begin, to in method.stages)


def _width(name: str) -> float:
    """Points that a stage's name takes, with some air."""
    return float(TextPath((0, 0), short(name), STAGE_SIZE).get_extents().width) + 6


def _apart(places: Sequence[float], distance: float, end: float) -> list[float]:
    """The places, those that are too near to the one before pushed on, and back from the end."""
    kept: list[float] = []
    for place in places:
        kept.append(max(place, kept[-1] + distance if kept else distance / 2))
    return [min(place, end - distance * (len(kept) - i - 0.5)) for i, place in enumerate(kept)]


def _scores(ax: Axes, method: Method, scores: Sequence[float]) -> None:
    """Each seed thin; thick their mean, over the epochs in which all have one. All methods' on one axis.

    A stage may have a student of its own: no line goes from one to the next.
    """
    if not any(method.scores):
        ax.text(0.5, 0.5, "no validation", transform=ax.transAxes, ha="center", va="center", color=GREY)
    few = len({epoch for seed in method.scores for stage in seed.values() for epoch in stage}) <= FEW
    for name in dict.fromkeys(name for seed in method.scores for name in seed):
        seeds = [seed.get(name, {}) for seed in method.scores]
        common = sorted(set.intersection(*map(set, seeds)))
        for seed in seeds:
            ax.plot(list(seed), [100 * score for score in seed.values()], color=INK, lw=0.6, alpha=0.5)
        means = [100 * sum(seed[epoch] for seed in seeds) / len(seeds) for epoch in common]
        ax.plot(common, means, color=INK, lw=1.6, marker="o" if few else None, ms=3, clip_on=False)
    margin = 0.08 * (max(scores) - min(scores)) or 1.0
    ax.set_ylim(min(scores) - margin, max(scores) + margin)
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _numbers(ax: Axes, method: Method, kind: str, looks: Mapping[str, dict[str, Any]]) -> None:
    """A line for each. The later ones are thinner and lie on the others: equal numbers are all seen."""
    numbers = method.numbers(kind)
    thicker = min(1.5, 3.6 / len(numbers))
    for i, (name, values) in enumerate(numbers.items()):
        ax.stairs(values, method.edges, baseline=None, lw=1.4 + thicker * (len(numbers) - 1 - i), **looks[name])
    known = [[value for value in values if not math.isnan(value)] for values in numbers.values()]
    largest = [size for values in known if (size := max(map(abs, values)))]
    if largest and max(largest) > DECADE * min(largest):
        low, high = min(largest), max(largest)
        ax.set_yscale("symlog", linthresh=low)  # a linear axis would show the small ones as 0
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        ax.set_yticks([0, *(10.0**decade for decade in decades)])  # of themselves some would meet near 0
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        _linear(ax, [value for values in known for value in values])


def _learning_rate(ax: Axes, method: Method) -> None:
    rates = [each.lr for each in method.epochs]
    ax.stairs(rates, method.edges, baseline=None, color=INK, lw=1.4)
    positive = [rate for rate in rates if rate > 0]
    if positive and DECADE * min(positive) < max(positive) < NOTHING * min(positive):
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.margins(y=0.1)
    else:
        _linear(ax, rates)


def _linear(ax: Axes, values: Sequence[float]) -> None:
    """An axis that holds 0: a number that does not change is not blown up."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.1 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}" if abs(x) >= 1e-3 or not x else f"{x:.1e}".replace("e-0", "e-"))


def _kind(path: str) -> str:
    name = path.rpartition(".")[2]
    return name if name in ("weight", "temperature") else "other"


def _label(path: str) -> str:
    return path if _kind(path) == "other" else path.rpartition(".")[0]


def _looks(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Colour and line of what the legend has: the same for a loss in every panel and method."""
    labels = dict.fromkeys(label for method in methods for kind in KINDS for label in method.numbers(kind))
    looks: dict[str, dict[str, Any]] = {"task": {"color": GREY, "ls": "-"}} if "task" in labels else {}
    for i, label in enumerate(label for label in labels if label != "task"):
        looks[label] = {"color": COLOURS[i % len(COLOURS)], "ls": LINES[i // len(COLOURS) % len(LINES)]}
    return looks
