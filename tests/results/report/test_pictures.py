"""The pictures: their labels do not meet, and what they show is what the runs have."""

import csv
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from distillery.results.layers import Layers
from distillery.results.report.classes import ClassFigures
from distillery.results.report.collect import collect
from distillery.results.report.layers import layer_pictures
from distillery.results.report.loss_shares import loss_shares
from distillery.results.report.plot import STYLE, plot
from distillery.results.report.plot_classes import plot_classes
from distillery.results.report.plot_curves import mean_curve, plot_curves
from distillery.results.report.plot_timeline import plot_timeline
from distillery.results.report.selection import select
from distillery.results.report.table import method_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
TEACHER = {"source": "t", "sha256": "t0", "score": 0.95, "params": 1_000_000, "flops": 4e7, "latency_ms": 10.0}
CLASSES = [f"kind {i}" for i in range(6)]


@pytest.fixture
def study(make_run: MakeRun, tmp_path: Path) -> Path:
    """Students of several sizes, some of nearly equal cost and score, with curves, losses and predictions."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, 6, 300)
    widths = {"baseline": 8, "kd": 8, "kd+hint": 8.1, "kd width=16": 16, "kd width=17": 17, "a_long_name_of_a_loss": 64}
    for place, (method, width) in enumerate(widths.items()):
        for seed in range(3):
            score = 0.70 + 0.02 * place + 0.003 * seed + 0.02 * (width > 10)
            timeline = [
                {"epoch": e, "step": 10 * e, "stage": "", "lr": 0.1 / e, "score": score - 0.3 / e, "numbers": {}}
                for e in range(1, 6)
            ]
            run = make_run(
                method.replace(" ", "_").replace("=", ""), seed, score, timeline=timeline,
                teachers={} if method == "baseline" else {"main": TEACHER},
                cost={"flops": 1e5 * width, "params": int(1e3 * width), "latency_ms": 0.1 * width},
                data={"name": "d", "fingerprint": "f", "train": 9, "val": 9, "test": 300, "score_name": "accuracy",
                      "prediction": "class", "classes": CLASSES},
            )  # fmt: skip
            predicted = np.where(draw.random(300) < score, target, draw.integers(0, 6, 300))
            np.savez(run / "predictions.npz", index=np.arange(300), target=target, student=predicted)
            (run / "metrics" / "version_0").mkdir(parents=True)
            with (run / "metrics" / "version_0" / "metrics.csv").open("w") as file:
                rows = csv.writer(file)
                rows.writerow(["epoch", "step", "val/score", "weighted/task", "weighted/kd"])
                rows.writerow([0, 9, 0.5, None, None])
                for step in range(5, 51, 5):
                    rows.writerow([None, step, None, 1.0, -step / 10])
    return tmp_path


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of texts whose boxes meet by more than a point."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    not_drawn = {
        id(label)
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in not_drawn
    ]
    boxes = [(text.get_text(), text.get_window_extent(renderer).padded(-figure.dpi / 72)) for text in texts]
    inside = [(name, box) for name, box in boxes if box.overlaps(figure.bbox)]
    return [(a, b) for (a, one), (b, other) in combinations(inside, 2) if one.overlaps(other)]


def drawn(study: Path, picture: str) -> Figure | None:
    students = select(collect([study])).students
    with rc_context(STYLE):
        if picture == "classes":
            return plot_classes(ClassFigures(students), "kd")
        if picture == "report":
            return plot(method_table(students), students)
        return (plot_curves if picture == "curves" else plot_timeline)(students)


@pytest.mark.parametrize("picture", ["report", "curves", "timeline", "classes"])
def test_labels_do_not_meet(study: Path, picture: str) -> None:
    figure = drawn(study, picture)
    assert figure is not None
    with rc_context(STYLE):
        assert overlaps(figure) == []


def test_texts_that_meet_are_found() -> None:
    figure = Figure(figsize=(4, 2))
    figure.text(0.5, 0.5, "one word")
    figure.text(0.52, 0.52, "another")
    figure.text(0.1, 0.1, "apart")
    assert overlaps(figure) == [("one word", "another")]


def test_the_frontier_is_named(study: Path) -> None:
    figure = drawn(study, "report")
    assert figure is not None
    names = {text.get_text() for text in figure.axes[0].texts}
    assert "Pareto frontier" in names
    assert "kd_width16" in names
    assert "a_long_name_of_…" in " ".join(names), "the best, with its score"


def test_a_curve_is_the_mean_where_all_seeds_have_a_score(make_run: MakeRun, tmp_path: Path) -> None:
    def entries(scores: list[float | None]) -> list[dict[str, Any]]:
        return [
            {"epoch": i + 1, "step": i, "stage": "", "lr": 1, "score": s, "numbers": {}} for i, s in enumerate(scores)
        ]

    make_run("kd", 0, 0.9, timeline=entries([0.2, None, 0.6, 0.8]))
    make_run("kd", 1, 0.9, timeline=entries([0.4, 0.5, 0.7, None]))
    runs = collect([tmp_path])
    assert mean_curve(runs).to_dict() == pytest.approx({1: 0.3, 3: 0.65})


def test_shares_are_of_absolute_values_by_epoch(study: Path) -> None:
    run = next(run for run in collect([study]) if run.record.method == "kd")
    shares = loss_shares(run.folder, run.record)
    assert [*shares.index] == [1, 2, 3, 4, 5]
    # in the second epoch are the steps 15 and 20, with 1.5 and 2.0 of kd to 1.0 of the task
    assert shares.loc[2].to_dict() == pytest.approx({"task": 1 / 2.75, "kd": 1.75 / 2.75})


def test_a_class_gain_has_the_paired_interval(study: Path) -> None:
    table = ClassFigures(select(collect([study])).students).table
    row = table[(table["method"] == "kd") & (table["class"] == "kind 2")].iloc[0]
    gains = []
    for seed in range(3):
        f1 = []
        for method in ("kd", "baseline"):
            with np.load(study / f"{method}_seed{seed}" / "predictions.npz") as saved:
                hit = ((saved["student"] == 2) & (saved["target"] == 2)).sum()
                f1.append(2 * hit / ((saved["student"] == 2).sum() + (saved["target"] == 2).sum()))
        gains.append(f1[0] - f1[1])
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (row["diff_baseline"], row["diff_baseline_ci95"]) == pytest.approx(((low + high) / 2, (high - low) / 2))


@pytest.mark.slow
@pytest.mark.parametrize("of_texts", [False, True], ids=["images", "texts"])
def test_layers_of_the_baseline_and_the_best_method_are_shown(study: Path, tmp_path: Path, of_texts: bool) -> None:
    draw = np.random.default_rng(1)
    ours, theirs = ([f"{name}.{i}" for i in range(number)] for name, number in (("layer", 3), ("stages.blocks", 6)))
    pairs = [("layer.0.attention.self", theirs[1]), ("layer.1.attention.self", theirs[3]), ("layer.2", theirs[5])]
    images = np.zeros((0, 0, 0, 0), np.float32) if of_texts else draw.random((4, 8, 8, 1), np.float32)
    shape = (24, 24) if of_texts else (4, 7, 7)
    tokens = [f"token{i}" for i in range(24)] if of_texts else []
    written: dict[str, Layers] = {}
    for name in ("baseline", "kd", "a_long_name_of_a_loss"):
        maps = {network: [draw.random(shape, np.float32) for _ in pairs] for network in ("student", "teacher")}
        kind = "attention" if of_texts else "activation"
        stages = {"student": ours, "teacher": theirs}
        written[name] = Layers(stages, draw.random((9, 9)), pairs, maps, kind, images, tokens)
        written[name].write(study / f"{name}_seed0")
    report = write_report([study], tmp_path / "report", "Layers")
    best = "a_long_name_of_a_loss"
    assert [*report.layers] == ["baseline", best]
    for name, layers in report.layers.items():
        np.testing.assert_array_equal(layers.cka, written[name].cka)
        np.testing.assert_array_equal(layers.maps["teacher"][2], written[name].maps["teacher"][2])
        assert (layers.pairs, layers.tokens, layers.stages) == (pairs, tokens, written[name].stages)
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## Layers" in page
    with rc_context(STYLE):
        pictures = layer_pictures(report.layers)
        for name, figure in pictures.items():
            assert f"({name})" in page
            assert figure is not None
            assert overlaps(figure) == []
        shown = [ax.images[0].get_array() for ax in pictures["layer_similarity.png"].axes[:3]]  # type: ignore[union-attr]
    np.testing.assert_array_equal(shown[0], written["baseline"].cka[:3, 3:])
    np.testing.assert_array_equal(shown[1], written[best].cka[:3, 3:])
    np.testing.assert_array_equal(shown[2], written["baseline"].cka[3:, 3:])
