"""The report's section and picture on corrupted test images: fabricated files, figures by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillery.results.record import RunRecord
from distillery.results.report.collect import collect
from distillery.results.report.plot_robustness import plot_robustness
from distillery.results.report.robustness import robustness_by_method
from distillery.results.report.write import write_report

FAMILIES = {"gaussian_noise": "noise", "shot_noise": "noise", "jpeg": "digital"}


def write_scores(folder: Path, clean: float, **scores: tuple[float, float]) -> None:
    """Of severities 1 and 5."""
    rows = [
        {"corruption": name, "family": FAMILIES[name], "severity": severity, "score": score}
        for name, both in scores.items()
        for severity, score in zip((1, 5), both, strict=True)
    ]
    content = {"student_sha256": RunRecord.read(folder).student_sha256, "clean": {"score": clean}, "scores": rows}
    (folder / "corruptions.json").write_text(json.dumps(content))


@pytest.fixture
def folders(make_run: Callable[..., Path]) -> list[Path]:
    teacher = make_run("baseline", 9, 0.98, folder="teacher", student_sha256="t0")
    runs = [make_run("baseline", 0, 0.8), make_run("kd", 0, 0.9), make_run("kd", 1, 0.9), make_run("at", 0, 0.85)]
    write_scores(teacher, 1.0, gaussian_noise=(0.9, 0.7), shot_noise=(0.8, 0.6), jpeg=(1.0, 0.6))
    write_scores(runs[0], 0.8, gaussian_noise=(0.6, 0.2))
    write_scores(runs[1], 0.9, gaussian_noise=(0.8, 0.6), shot_noise=(0.6, 0.4), jpeg=(0.9, 0.5))
    write_scores(runs[2], 1.0, gaussian_noise=(0.8, 0.4), shot_noise=(0.6, 0.2), jpeg=(0.9, 0.7))
    return [teacher, *runs]


def test_the_section_has_means_over_corruptions_and_seeds(folders: list[Path], tmp_path: Path) -> None:
    write_report(folders, tmp_path / "report", "Title")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| method | seeds | clean % | corrupted % | relative % | noise % | digital % |" in page
    # of each corruption the mean of its severities: .8, .7, .8 for the teacher
    assert "| teacher | 1 | 100.0 | 76.7 | 76.7 | 75.0 | 80.0 |" in page
    assert "| baseline | 1 | 80.0 | 40.0 | 50.0 | 40.0 | – |" in page
    # seed 0: .7, .5, .7, in all .633 of .9; seed 1: .6, .4, .8, in all .6 of 1
    assert "| kd | 2 | 95.0 | 61.7 | 65.2 | 55.0 | 75.0 |" in page
    assert "| at |" not in page.partition("## Robustness")[2].partition("## Not in the table")[0]


def test_the_picture_has_a_line_for_each_method_and_family(folders: list[Path]) -> None:
    runs = collect(folders)
    figure = plot_robustness(robustness_by_method(runs[1:], runs[:1]))
    assert figure is not None
    noise, digital = figure.axes
    lines = [np.array(line.get_xydata()) for line in noise.lines]
    np.testing.assert_allclose(lines[0], [[0, 100], [1, 85], [5, 65]])  # the teacher
    np.testing.assert_allclose(lines[2], [[0, 95], [1, 70], [5, 40]])
    np.testing.assert_allclose(np.array(digital.lines[1].get_xydata()), [[0, 80]])  # the baseline's are not known
    assert plot_robustness({}) is None
