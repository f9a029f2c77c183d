"""The record's timeline, and the picture of it: which panels there are, and what they show."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from distillery.results.record import RunRecord
from distillery.results.report.collect import collect
from distillery.results.report.plot import STYLE
from distillery.results.report.plot_timeline import methods_of, timeline_figure
from distillery.results.report.write import write_report
from distillery.results.timeline import Epoch

MakeRun = Callable[..., Path]
Line = dict[str, Any]


def timeline(epochs: int, **given: Callable[[int], Any]) -> list[Line]:
    """Entries of so many epochs; by default nothing changes in them."""
    fields: dict[str, Callable[[int], Any]] = {
        "step": lambda epoch: 10 * epoch,
        "stage": lambda _: "",
        "lr": lambda _: 0.1,
        "score": lambda epoch: 0.5 + 0.01 * epoch,
        "numbers": lambda _: {"task.weight": 1.0},
    }
    return [
        {"epoch": epoch, **{name: value(epoch) for name, value in (fields | given).items()}}
        for epoch in range(1, epochs + 1)
    ]


STAGED = timeline(
    10,
    stage=lambda epoch: "hint" if epoch <= 4 else "distil",
    lr=lambda epoch: 0.1 if epoch <= 4 else 0.001,
    numbers=lambda epoch: (
        {"task.weight": 0.0, "hint.weight": 100.0}
        if epoch <= 4
        else {"task.weight": 1.0, "kd.weight": epoch / 10, "kd.temperature": 4.0}
    ),
)


@pytest.fixture
def drawn(make_run: MakeRun, tmp_path: Path) -> Iterator[Callable[..., Figure]]:
    """drawn(method=[timeline of each seed], …): the figure."""

    def draw(**methods: list[list[Line]]) -> Figure:
        for method, seeds in methods.items():
            for seed, entries in enumerate(seeds):
                make_run(method, seed, 0.9, timeline=entries)
        found = {method.name: method for method in methods_of(collect([tmp_path]))}
        return timeline_figure([found[method] for method in methods if method in found])

    with rc_context(STYLE):
        yield draw


def columns(figure: Figure) -> dict[str, list[Axes]]:
    """The panels of each method, from top to bottom."""
    found: dict[Any, list[Axes]] = {}
    for ax in figure.axes:
        found.setdefault((ax.get_figure(root=False), ax.get_subplotspec().colspan.start), []).append(ax)
    return {panels[0].get_title(loc="left"): panels for panels in found.values()}


def labels(panels: list[Axes]) -> list[str]:
    return [ax.get_ylabel() for ax in panels]


def lines(ax: Axes) -> list[list[float]]:
    """The values of the numbers in a panel, NaN where there is no line."""
    return [list(patch.get_data().values) for patch in ax.patches if isinstance(patch, StepPatch)]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    entry = {"epoch": 1, "step": 8, "stage": "hint", "lr": 0.1, "score": None, "numbers": {"task.weight": 0.5}}
    RunRecord("kd", "kd", 0, "abc", timeline=[entry]).write(tmp_path)
    read = RunRecord.read(tmp_path)
    assert read.timeline == [entry]
    assert [Epoch(**each) for each in read.timeline] == [Epoch(1, 8, "hint", 0.1, None, {"task.weight": 0.5})]


def test_each_panel_has_its_numbers(drawn: Callable[..., Figure]) -> None:
    (panels,) = columns(drawn(staged=[STAGED])).values()
    assert labels(panels) == ["", "val. score (%)", "weight", "learning rate", "temperature"]
    strip, score, weight, rate, temperature = panels
    assert [text.get_text() for text in strip.texts] == ["hint", "distil"]
    assert [text.get_position()[0] for text in strip.texts] == [2, 7]  # the middles of 0–4 and 4–10
    one, two = (line.get_ydata() for line in score.lines[1::2])  # no line goes from one stage to the next
    np.testing.assert_allclose(one, [51, 52, 53, 54])
    np.testing.assert_allclose(two, [55, 56, 57, 58, 59, 60])
    nan = np.nan
    expected = [[0] * 4 + [1] * 6, [100] * 4 + [nan] * 6, [nan] * 4 + [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]]
    np.testing.assert_allclose(lines(weight), expected)
    np.testing.assert_allclose(lines(rate), [[0.1] * 4 + [0.001] * 6])
    np.testing.assert_allclose(lines(temperature), [[nan] * 4 + [4.0] * 6])
    assert (weight.get_yscale(), rate.get_yscale(), temperature.get_yscale()) == ("symlog", "log", "linear")
    assert [ax.get_xlabel() for ax in panels] == ["", "", "", "", "epoch"]


def test_a_panel_is_there_where_there_is_something_for_it(drawn: Callable[..., Figure]) -> None:
    def falling(epoch: int) -> float:
        return 0.2 - 0.01 * epoch

    beta = timeline(5, numbers=lambda epoch: {"task.weight": 1.0, "dkd.weight": 1.0, "dkd.beta": float(epoch)})
    blind = [{**line, "lr": falling(line["epoch"]), "score": None} for line in beta]
    figure = drawn(plain=[timeline(10, lr=falling)], dkd=[beta], blind=[blind])
    found = columns(figure)
    assert labels(found["plain"]) == ["val. score (%)", "learning rate"]  # no stage, and no weight changes
    assert labels(found["dkd"]) == ["", "other"]  # a row is named once; neither its rate nor its weights change
    assert len(found["blind"]) == 3
    assert [text.get_text() for text in found["blind"][0].texts] == ["no validation"]
    assert {ax.get_xlim() for ax in figure.axes} == {(0, 10)}
    assert {ax.get_yscale() for ax in figure.axes} == {"linear"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dkd.beta"]


def test_the_mean_is_of_the_epochs_that_every_seed_has(drawn: Callable[..., Figure]) -> None:
    scores = ([0.2, 0.4, 0.6], [0.4, None, 0.8, 0.9])
    seeds = [timeline(len(s), lr=lambda e: 1 / e, score=lambda e, s=s: s[e - 1]) for s in scores]  # type: ignore[misc]
    score = columns(drawn(kd=seeds))["kd"][0]
    *thin, thick = [(list(line.get_xdata()), list(line.get_ydata())) for line in score.lines]
    assert [x for x, _ in thin] == [[1, 2, 3], [1, 3, 4]]
    assert thick[0] == [1, 3]
    assert thick[1] == pytest.approx([30, 70])


@pytest.mark.parametrize("count", [1, 4, 6, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3, 5))])
def test_nothing_overlaps_with_long_names_of_stages(drawn: Callable[..., Figure], count: int) -> None:
    names = ["feature_imitation_abc", "attention_alignment_x", "fine_tuning_on_labels"]
    long = timeline(60, stage=lambda epoch: names[(epoch > 1) + (epoch > 2)])
    figure = drawn(**{f"method_{i}": [long] for i in range(count)})
    figure.draw_without_rendering()
    found = columns(figure)
    assert len(found) == count
    for strip, *_ in found.values():
        boxes = [text.get_window_extent() for text in strip.texts]
        assert [text.get_text() for text in strip.texts] == names
        assert all(strip.get_window_extent().y0 <= box.y0 and box.y1 <= strip.get_window_extent().y1 for box in boxes)
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    boxes = [ax.get_tightbbox() for ax in figure.axes] + [each.get_window_extent() for each in figure.legends]
    overlapping = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.shrunk(0.99, 0.9).overlaps(b)]
    assert not overlapping
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_no_picture_where_nothing_changes(make_run: MakeRun, tmp_path: Path) -> None:
    once = timeline(5, lr=lambda epoch: 1 / epoch, score=lambda epoch: 0.9 if epoch == 5 else None)
    make_run("kd", 0, 0.9, timeline=timeline(5))
    make_run("dkd", 0, 0.9, timeline=once)  # a point above a schedule
    make_run("baseline", 0, 0.8)  # a record of before
    out = tmp_path / "out"
    out.mkdir()
    (out / "timeline.png").write_bytes(b"of a former report")
    write_report([tmp_path], out, "Flat")
    assert not (out / "timeline.png").exists()
    assert "timeline" not in (out / "report.md").read_text().lower()


@pytest.mark.slow
def test_the_report_shows_the_first_six(make_run: MakeRun, tmp_path: Path) -> None:
    for i in range(7):
        make_run(f"method_{i}", 0, 0.9, timeline=STAGED, started=f"2026-01-0{i + 1}")
    make_run("flat", 0, 0.9, timeline=timeline(5))
    write_report([tmp_path], tmp_path / "out", "Stages")
    text = (tmp_path / "out/report.md").read_text()
    assert "(timeline.png)" in text
    assert "The first 6 of 7 methods are shown." in text
    assert matplotlib.image.imread(tmp_path / "out/timeline.png").shape[1] == 1600
    assert [each.name for each in methods_of(collect([tmp_path]))] == [f"method_{i}" for i in range(7)]
