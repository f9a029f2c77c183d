"""The report's picture: what the student saves and keeps (left), what each method gains over seeds."""

import math
from collections.abc import Sequence, Set
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from distillery.results.report.collect import Run
from distillery.results.report.formats import best_method, in_unit, percent, points, si, times, verdicts
from distillery.results.report.labels import Label, label_apart
from distillery.results.report.pareto import frontier
from distillery.results.report.score import Score
from distillery.results.report.table import BASELINE, TEACHER, is_teacher

# Okabe and Ito's palette, told apart with any colour vision; what has no measurable gain is hollow besides
BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#D55E00", "#6E6E6E"
PALETTE = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9")  # of what has a legend
COLOURS = {"better than the baseline": GREEN, "worse than the baseline": RED}
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#999999",
    "axes.labelcolor": "#333333", "xtick.color": "#333333", "ytick.color": "#333333",
    "xtick.major.size": 3, "ytick.major.size": 0,
}  # fmt: skip
KEY = """{score}
small: one seed · large: mean · hollow: no gain shown
bar: 95 % interval of the gain, paired by seed"""
LONGEST_NAME = 22
LEAST_HEIGHT, HEIGHT = 3.5, 4.5  # inches: of the whole picture, and of the left half at most
TITLE_PAD = 18  # points: room for the names of the reference lines


def plot(table: pd.DataFrame, students: Sequence[Run]) -> Figure:
    """The picture of a method table, 1600 pixels wide; its height grows with the number of methods.

    Args:
        table: as `method_table` gives it.
        students: the runs it was made of, for the score of every seed.
    """
    score = Score.of_table(table)
    plain = score.generic(table).astype({"flops": "float64", "params": "float64"})
    rows = plain.set_index("method").to_dict("index")
    methods = sorted(
        (name for name in rows if not is_teacher(name)), key=lambda name: score.sign * rows[name]["score_mean"]
    )
    said = verdicts(table)
    colours = {name: COLOURS.get(said.get(name, ""), GREY) for name in methods}
    layout = ConstrainedLayoutEngine(wspace=0.06)
    height = max(LEAST_HEIGHT, 1.7 + 0.26 * len(methods))
    figure = Figure(figsize=(8, height), dpi=200, layout=layout)
    right_alone = height - HEIGHT  # inches: the right half grows with the methods, the left would only be stretched
    if right_alone > 0:
        grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.2], height_ratios=[HEIGHT, right_alone])
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[:, 1])
    else:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
    best = best_method(table) or methods[-1]
    _score_against_cost(left, rows, methods, best, colours, score)
    _gains(right, rows, methods, colours, said, students, score)
    _frontier(left, rows, {best, BASELINE}, colours, score)
    return figure


def _score_against_cost(
    ax: Axes, rows: dict[str, Any], methods: list[str], best: str, colours: dict[str, str], kind: Score
) -> None:
    ax.set_title("Score against cost", pad=TITLE_PAD)
    ax.set_ylabel(_label(kind))
    if kind.lower:
        ax.yaxis.set_inverted(True)  # up is better
    costs = _costs(rows)
    if not costs:
        ax.text(0.5, 0.5, "FLOPs were not measured", transform=ax.transAxes, ha="center", color=GREY)
        return
    low, high = min(costs.values()), max(costs.values())
    upper = max({best, BASELINE} & {*methods}, key=methods.index)
    for name in costs:
        if name in (best, BASELINE):
            # the label of the higher one goes up and the other's down, so that they never meet
            up, score = name == upper, kind.factor * rows[name]["score_mean"]
            place = math.log(costs[name] / low) / math.log(high / low) if high > low else 0.0  # on the axis
            side = "center" if up and 0.1 < place < 0.9 else "right" if place > 0.5 else "left"
            ax.scatter(costs[name], score, s=46, color=colours[name], linewidths=0, zorder=3)
            ax.annotate(
                f"{short(name, 16)} {_short_score(rows[name]['score_mean'], kind)}", (costs[name], score),
                xytext=({"left": 7, "center": 0, "right": -7}[side], 6 if side == "center" else 1 if up else -1),
                textcoords="offset points", ha=side, va="bottom" if up else "top",
                color=colours[name], weight="bold", bbox={"fc": "white", "ec": "none", "pad": 0.5},
            )  # fmt: skip
        elif not is_teacher(name):
            score = kind.factor * rows[name]["score_mean"]
            ax.scatter(costs[name], score, s=16, color=colours[name], alpha=0.45, linewidths=0)
    if TEACHER in costs:
        _teacher_and_gap(ax, rows, costs, best, colours[best], kind)
    _cost_axis(ax, rows, costs)
    ax.margins(y=0.16)


def _costs(rows: dict[str, Any]) -> dict[str, float]:
    return {name: row["flops"] for name, row in rows.items() if row["flops"] > 0}


def _frontier(ax: Axes, rows: dict[str, Any], named: Set[str], colours: dict[str, str], kind: Score) -> None:
    """The Pareto frontier of students and teacher, where there are students of different cost, and who is on it."""
    costs = _costs(rows)
    names = frontier(costs, {name: kind.sign * rows[name]["score_mean"] for name in costs})
    students = [name for name in names if not is_teacher(name)]
    if len(students) < 2:
        return
    places = {name: (costs[name], kind.factor * rows[name]["score_mean"]) for name in costs}
    ax.step(*zip(*(places[name] for name in names), strict=True), where="post", color="#BBBBBB", lw=1, zorder=1)
    shown = [Label(*places[name], short(name, 16), colours[name]) for name in students if name not in named]
    x, y = places[names[len(names) // 2]]
    label_apart(ax, [*shown, Label(x, y, "Pareto frontier", "#999999")], [*places.values()])


def _teacher_and_gap(
    ax: Axes, rows: dict[str, Any], costs: dict[str, float], best: str, colour: str, kind: Score
) -> None:
    """The teacher, the distance down to the baseline, and how much of it the best method recovers."""
    score, cost = kind.factor * rows[TEACHER]["score_mean"], costs[TEACHER]
    ax.axhline(score, color=BLUE, lw=0.8, ls=":", zorder=1)
    ax.scatter(cost, score, s=46, marker="s", color=BLUE, linewidths=0, zorder=3)
    ax.annotate(
        f"teacher {_short_score(rows[TEACHER]['score_mean'], kind)}", (cost, score), xytext=(0, 7),
        textcoords="offset points", ha="center", color=BLUE, weight="bold",
    )  # fmt: skip
    gap = rows[best]["gap_recovered"]
    if math.isnan(gap) or gap <= 0 or abs(math.log(cost / costs.get(best, cost))) < math.log(2):
        return
    floor, reached = (kind.factor * rows[name]["score_mean"] for name in (BASELINE, best))
    reached = max(reached, score) if kind.lower else min(reached, score)
    ax.plot([cost, cost], [floor, score], color="#DDDDDD", lw=5, solid_capstyle="butt", zorder=1)
    ax.plot([cost, cost], [floor, reached], color=colour, lw=5, solid_capstyle="butt", zorder=2)
    ax.annotate(
        f"{percent(gap, 0)} % of\nthe gap", (cost, (floor + reached) / 2), xytext=(6, 0),
        textcoords="offset points", va="center", color=colour,
    )  # fmt: skip


def _cost_axis(ax: Axes, rows: dict[str, Any], costs: dict[str, float]) -> None:
    """Ticks at the networks themselves, with what each costs; below them, what the student saves."""
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = math.log10(min(costs.values())), math.log10(max(costs.values()))
    span = high - low
    pad = max(0.28 * span, min(0.35, max(0.05, 0.7 * span)))  # two ticks that are near must not overlap
    ax.set_xlim(10 ** (low - pad), 10 ** (high + pad))
    ticks: dict[float, str] = {}
    for name in sorted(costs, key=lambda name: name not in (TEACHER, BASELINE)):
        apart = 0.34 * (high - low + 2 * pad)
        if all(abs(math.log10(costs[name] / other)) > apart for other in ticks):
            row = rows[name]
            latency = "" if math.isnan(row["latency_ms"]) else f"\n{row['latency_ms']:.3g} ms"
            ticks[costs[name]] = f"{si(costs[name])} FLOPs\n{si(row['params'])} params{latency}"
    ax.set_xticks(list(ticks), list(ticks.values()))
    if TEACHER in costs:
        ax.set_xlabel(_savings(rows[TEACHER], rows[BASELINE if BASELINE in costs else next(iter(costs))]))


def _savings(teacher: dict[str, Any], student: dict[str, Any]) -> str:
    found = []
    for key, less, more in [
        ("flops", "fewer FLOPs", "more FLOPs"),
        ("params", "fewer params", "more params"),
        ("latency_ms", "faster", "slower"),
    ]:
        if said := times(teacher[key] / student[key], less, more):  # NaN where one is not known
            found.append(said)
    return f"student: {found[0]}\n{', '.join(found[1:])}".strip() if found else ""


def _gains(
    ax: Axes, rows: dict[str, Any], methods: list[str], colours: dict[str, str], said: dict[str, str],
    students: Sequence[Run], kind: Score,
) -> None:  # fmt: skip
    ax.set_title("Every method, every seed", pad=TITLE_PAD)
    ax.set_xlabel(KEY.format(score=_label(kind)))
    if kind.lower:
        ax.xaxis.set_inverted(True)  # to the right is better
    baseline = kind.factor * rows[BASELINE]["score_mean"] if BASELINE in rows else math.nan
    for height, name in enumerate(methods):
        row, colour = rows[name], colours[name]
        scores = [kind.factor * run.score for run in students if run.label == name and run.score is not None]
        ax.scatter(scores, [height - 0.24] * len(scores), s=7, color=colour, alpha=0.5, linewidths=0, zorder=2)
        gain, ci95 = kind.factor * row["diff_mean"], kind.factor * row["diff_ci95"]
        if not math.isnan(ci95):  # around baseline + gain: the bar crosses the baseline's line if the gain may be 0
            low, high = baseline + gain - ci95, baseline + gain + ci95
            ax.plot([low, high], [height, height], color=colour, lw=2, zorder=3)
        face = colour if name == BASELINE or said.get(name) in COLOURS else "white"
        ax.scatter(kind.factor * row["score_mean"], height, s=38, color=face, edgecolors=colour, lw=1.4, zorder=4)
        if not math.isnan(gain):
            gap = "" if math.isnan(row["gap_recovered"]) else f"  ({percent(row['gap_recovered'], 0)} %)"
            ax.annotate(
                points(row["diff_mean"], row["diff_ci95"], kind) + gap, (1.02, height),
                xycoords=("axes fraction", "data"), va="center", color=colour, annotation_clip=False,
            )  # fmt: skip
    ax.set_yticks(range(len(methods)), [short(name) for name in methods])
    ax.set_ylim(-0.7, len(methods) - 0.4)
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    if BASELINE in rows and len(methods) > 1:
        gap_known = any(not math.isnan(rows[name]["gap_recovered"]) for name in methods)
        ax.annotate(
            "Δ baseline" + (" (of gap)" if gap_known else ""), (1.02, 1), xytext=(0, TITLE_PAD),
            xycoords="axes fraction", textcoords="offset points", color="#333333", annotation_clip=False,
        )  # fmt: skip
    _reference_lines(ax, rows, kind)


def _label(kind: Score) -> str:
    return f"test {kind.name} (lower is better)" if kind.lower else "test score (%)"


def _short_score(value: float, kind: Score) -> str:
    return in_unit(value, kind) if kind.lower else percent(value)


def _reference_lines(ax: Axes, rows: dict[str, Any], kind: Score) -> None:
    """Lines at baseline and teacher, named above the axes; names that would meet lean outwards."""
    lines = {name: kind.factor * rows[name]["score_mean"] for name in (BASELINE, TEACHER) if name in rows}
    looks: dict[str, dict[str, Any]] = {
        TEACHER: {"color": BLUE, "ls": ":"},
        BASELINE: {"color": GREY, "ls": "--"},
    }
    for name, score in lines.items():
        ax.axvline(score, lw=1, zorder=1, **looks[name])
    low, high = ax.get_xlim()
    close = len(lines) == 2 and abs(lines[TEACHER] - lines[BASELINE]) < 0.3 * abs(high - low)
    lower = min(lines, key=lambda name: kind.sign * lines[name], default="")
    for name, score in lines.items():
        ax.annotate(
            name, (score, 1), xytext=(0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center" if not close else "right" if name == lower else "left", va="bottom",
            color=looks[name]["color"], annotation_clip=False,
        )  # fmt: skip


def short(name: str, longest: int = LONGEST_NAME) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
