"""The report's second picture: how each method's run went, epoch by epoch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, zip_longest
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator, NullLocator

from distillery.results.report.collect import Run
from distillery.results.report.loss_shares import loss_shares
from distillery.results.report.plot import GREY, PALETTE, short
from distillery.results.report.score import FRACTION, Score
from distillery.results.timeline import Epoch

MOST = 6  # methods in one picture
COLUMNS = 3  # side by side
WIDTH = 8.0  # inches
INK = "#333333"
LINES = ("-", "--", ":")
TINTS = ("#E3EEF6", "#FBEEDB", "#E2F1EC", "#F6E6EF", "#EEEEEE")  # of the stages
STAGE_SIZE = 7  # points
LINE = 1.25 * STAGE_SIZE
MARGIN = 0.85  # inches beside a panel
TITLE, GAP = 1.0, 0.1  # inches: of title and axis labels in a tier, and below each panel
LEGEND = 5  # columns
FEW = 20  # epochs with a score: each is marked
RATE = "learning rate"
KINDS = ("weight", "temperature", "other")  # of numbers, a panel each
DECADE = 10  # what spans more is drawn on a logarithmic axis
NOTHING = 1e5  # a rate that falls by more has ended at 0, as the schedules of transformers do


@dataclass(frozen=True)
class Method:
    """What is drawn of a method.

    Attributes:
        epochs: of its first seed.
        scores: on the validation split as they are shown, by stage and epoch, with a column for each seed.
        kind: of these scores.
        shares: of each loss in the training loss by epoch, of the first seed, see `loss_shares`.
    """

    name: str
    epochs: Sequence[Epoch]
    scores: pd.DataFrame
    kind: Score = FRACTION
    shares: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def edges(self) -> list[int]:
        """Where the epochs begin and end on the axis: each reaches from the number of the one before it to its own."""
        return [self.epochs[0].epoch - 1, *(each.epoch for each in self.epochs)]

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        """Name, begin and end on the axis."""
        parts = [(name, [each.epoch for each in part]) for name, part in groupby(self.epochs, lambda each: each.stage)]
        return [(name, epochs[0] - 1, epochs[-1]) for name, epochs in parts if name]

    def numbers(self, kind: str) -> pd.DataFrame:
        """Those of a kind that change, by their name in the legend; NaN in the epochs that lack them."""
        found = pd.DataFrame([{**each.numbers, RATE: each.lr} for each in self.epochs])
        own = [path for path in found if _kind(path) == kind and found[path].nunique(dropna=False) > 1]
        return found[own].rename(columns=_label)


@dataclass(frozen=True)
class Panel:
    """A row of the picture, where a method has something for it."""

    label: str
    height: float  # inches
    has: Callable[[Method], bool]
    draw: Callable[[Axes, Method], None]


def plot_timeline(students: Sequence[Run]) -> Figure | None:
    """The picture of the first methods in which something changes, 1600 pixels wide; None: there are none."""
    methods = methods_of(students)
    return timeline_figure(methods[:MOST]) if methods else None


def methods_of(students: Sequence[Run]) -> list[Method]:
    """Those in whose first seed something changes, in order of appearance.

    A learning rate alone, without at least two scores beside it, says nothing about a run.
    """
    methods = []
    for name in dict.fromkeys(run.label for run in students):
        runs = sorted((run for run in students if run.label == name), key=lambda run: run.record.seed)
        timelines = [[Epoch(**entry) for entry in run.record.timeline] for run in runs]
        curve = sum(each.score is not None for each in timelines[0]) > 1
        states = [(each.stage, each.numbers, curve and each.lr) for each in timelines[0]]
        shares = loss_shares(runs[0].folder, runs[0].record)
        if any(state != states[0] for state in states) or len(shares) > 1:
            scores = [
                pd.Series({(each.stage, each.epoch): each.score for each in epochs}, dtype="float64")
                for epochs in timelines
                if epochs
            ]
            kind = Score.of_record(runs[0].record.data)
            shown = kind.factor * pd.concat(scores, axis=1).dropna(how="all")
            methods.append(Method(name, timelines[0], shown, kind, shares))
    return methods


def timeline_figure(methods: Sequence[Method]) -> Figure:
    """A column of panels for each method, all on one axis of epochs; more than three methods are in two tiers."""
    columns = len(methods) if len(methods) <= COLUMNS else math.ceil(len(methods) / 2)
    tiers = [methods[i : i + columns] for i in range(0, len(methods), columns)]
    end = max(method.epochs[-1].epoch for method in methods)
    looks = _looks(methods)
    names = dict.fromkeys(name for method in methods for name, *_ in method.stages)
    tints = {name: TINTS[i % len(TINTS)] for i, name in enumerate(names)}
    rows = [_panels(tier, methods, looks, 72 * (WIDTH / columns - MARGIN) / end) for tier in tiers]
    heights = [TITLE + sum(panel.height + GAP for panel in panels) for panels in rows]
    legend = 0.2 * math.ceil(len(looks) / LEGEND) + 0.1
    figure = Figure(figsize=(WIDTH, sum(heights) + legend), dpi=200, layout="constrained")
    parts = figure.subfigures(len(tiers), squeeze=False, height_ratios=heights).flat
    for part, tier, panels in zip(parts, tiers, rows, strict=True):
        sizes = [panel.height for panel in panels]
        axes = part.subplots(len(panels), columns, squeeze=False, sharex=True, height_ratios=sizes)
        axes[0, 0].set_xlim(0, end)
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        for column, method in zip_longest(axes.T, tier):
            shown = []
            for panel, ax in zip(panels, column, strict=True):
                if method is None or not panel.has(method):
                    ax.remove()
                    continue
                for name, begin, to in method.stages:
                    ax.axvspan(begin, to, color=tints[name], lw=0, zorder=0)
                panel.draw(ax, method)
                if method is next(filter(panel.has, tier)):
                    ax.set_ylabel(panel.label)
                shown.append(ax)
            if method is not None:
                shown[0].set_title(short(method.name))
                shown[-1].set_xlabel("epoch")
                shown[-1].tick_params(labelbottom=True)
        part.align_ylabels()
    if looks:
        handles = [Line2D([], [], label=name, lw=1.6, **look) for name, look in looks.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND, frameon=False)
    return figure


def _panels(
    tier: Sequence[Method], methods: Sequence[Method], looks: Mapping[str, dict[str, Any]], scale: float
) -> list[Panel]:
    """Those for which one of the tier has something, from top to bottom. `scale`: points for each epoch."""
    scores, kind = pd.concat([method.scores for method in methods]).stack(), methods[0].kind
    label = f"val. {kind.name}" if kind.lower else "val. score (%)"
    stages = [(_width(name), scale * (to - begin)) for method in tier for name, begin, to in method.stages]
    upright = any(width > room for width, room in stages)
    strip = max(width for width, _ in stages) if upright else 1.6 * STAGE_SIZE

    def numbers(kind: str, draw: Callable[..., None]) -> Panel:
        return Panel(kind, 0.8, lambda method: not method.numbers(kind).empty, draw)

    draw_numbers = partial(_numbers, looks=looks)
    panels = [
        Panel("", strip / 72, lambda _: bool(stages), partial(_stages, upright=upright, apart=LINE / scale)),
        Panel(
            label,
            1.1,
            lambda _: not scores.empty,
            partial(_scores, low=scores.min(), high=scores.max()),
        ),
        Panel("loss share", 0.8, lambda method: len(method.shares) > 1, partial(_shares, looks=looks)),
        numbers("weight", partial(draw_numbers, kind="weight")),
        numbers(RATE, _learning_rate),
        numbers("temperature", partial(draw_numbers, kind="temperature")),
        numbers("other", partial(draw_numbers, kind="other")),
    ]
    return [panel for panel in panels if any(map(panel.has, tier))]


def _stages(ax: Axes, method: Method, upright: bool, apart: float) -> None:
    """Their names; if they are upright, at least `apart` epochs apart."""
    ax.set_yticks([])
    ax.tick_params(bottom=False)
    ax.spines[:].set_visible(False)
    stages = method.stages or [("one stage", method.edges[0], method.edges[-1])]
    if not method.stages:
        ax.axvspan(*stages[0][1:], color="#F6F6F6", lw=0)
        upright = False
    places = [(begin + to) / 2 for _, begin, to in stages]
    if upright:
        places = _apart(places, apart, ax.get_xlim()[1])
    for (name, *_), place in zip(stages, places, strict=True):
        ax.text(place, 0.5, short(name), ha="center", va="center", size=STAGE_SIZE, color=INK, rotation=90 * upright)


def _width(name: str) -> float:
    """Points that a stage's name takes, with some air."""
    return float(TextPath((0, 0), short(name), STAGE_SIZE).get_extents().width) + 8


def _apart(places: Sequence[float], distance: float, end: float) -> list[float]:
    """The places, those that are too near to the one before pushed on, and back from the end."""
    kept: list[float] = []
    for place in places:
        kept.append(max(place, kept[-1] + distance if kept else distance / 2))
    return [min(place, end - distance * (len(kept) - i - 0.5)) for i, place in enumerate(kept)]


def _scores(ax: Axes, method: Method, low: float, high: float) -> None:
    """Each seed thin; thick their mean, over the epochs in which all have one. All methods' on one axis.

    A stage may have a student of its own: no line goes from one to the next.
    """
    if method.scores.empty:
        ax.text(0.5, 0.5, "no validation", transform=ax.transAxes, ha="center", va="center", color=GREY)
    marker = "o" if method.scores.index.get_level_values(1).nunique() <= FEW else None
    for _, scores in method.scores.droplevel(0).groupby(method.scores.index.get_level_values(0), sort=False):
        for _, seed in scores.items():
            ax.plot(seed.dropna(), color=INK, lw=0.6, alpha=0.5)
        ax.plot(scores.mean(axis=1, skipna=False).dropna(), color=INK, lw=1.6, marker=marker, ms=3, clip_on=False)
    margin = 0.08 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(4))


def _shares(ax: Axes, method: Method, looks: Mapping[str, dict[str, Any]]) -> None:
    """The losses on each other, in the order of the legend."""
    names = [name for name in looks if name in method.shares]
    colours = [looks[name]["color"] for name in names]
    ax.stackplot(method.shares.index, method.shares[names].T, colors=colours, alpha=0.8, lw=0)
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    for label, side in zip(ax.get_yticklabels(), ("bottom", "center", "top"), strict=True):
        label.set(verticalalignment=side)  # the panels above and below have labels at their edges, too


def _numbers(ax: Axes, method: Method, kind: str, looks: Mapping[str, dict[str, Any]]) -> None:
    """A line for each. The later ones are thinner and lie on the others: equal numbers are all seen."""
    numbers = method.numbers(kind)
    thicker = min(1.5, 3.6 / numbers.shape[1])
    for i, name in enumerate(numbers):
        width = 1.4 + thicker * (numbers.shape[1] - 1 - i)
        ax.stairs(numbers[name], method.edges, baseline=None, lw=width, **looks[name])
    largest = numbers.abs().max()
    low, high = largest[largest > 0].min(), largest.max()
    if high > DECADE * low:
        ax.set_yscale("symlog", linthresh=low)  # a linear axis would show the small ones as 0
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        ax.set_yticks([0, *(10.0**decade for decade in decades)])  # of themselves some would meet near 0
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        _linear(ax, numbers.stack())


def _learning_rate(ax: Axes, method: Method) -> None:
    rates = method.numbers(RATE)[RATE]
    ax.stairs(rates, method.edges, baseline=None, color=INK, lw=1.4)
    positive = rates[rates > 0]
    if DECADE * positive.min() < positive.max() < NOTHING * positive.min():
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.margins(y=0.1)
    else:
        _linear(ax, rates)


def _linear(ax: Axes, values: pd.Series) -> None:
    """An axis that holds 0: a number that does not change is not blown up."""
    low, high = min(0.0, values.min()), max(0.0, values.max())
    margin = 0.1 * (high - low) or 1.0
    ax.set_ylim(low - margin, high + margin)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}" if abs(x) >= 1e-3 or not x else f"{x:.1e}".replace("e-0", "e-"))


def _kind(path: str) -> str:
    name = path.rpartition(".")[2]
    return name if name in ("weight", "temperature", RATE) else "other"


def _label(path: str) -> str:
    return path.rpartition(".")[0] if _kind(path) in ("weight", "temperature") else path


def _looks(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Colour and line of what the legend has: the same for a loss in every panel and method."""
    changing = (label for method in methods for kind in KINDS for label in method.numbers(kind))
    labels = dict.fromkeys([*(name for method in methods for name in method.shares), *changing])
    looks: dict[str, dict[str, Any]] = {"task": {"color": GREY, "ls": "-"}} if "task" in labels else {}
    for i, label in enumerate(label for label in labels if label != "task"):
        looks[label] = {"color": PALETTE[i % len(PALETTE)], "ls": LINES[i // len(PALETTE) % len(LINES)]}
    return looks
