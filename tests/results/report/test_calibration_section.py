"""The report's section and picture on classifiers: fabricated records, figures by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillery.results.report.collect import Run, collect
from distillery.results.report.plot_calibration import best_of, plot_calibration
from distillery.results.report.write import write_report

TEACHER = {
    **{"role": "frozen", "source": "teacher", "sha256": "t0", "score": 0.98, "params": 1, "flops": 1, "latency_ms": 1},
    **{"calibration_error": 0.01, "adaptive_calibration_error": 0.02, "brier": 0.03, "nll": 0.04},
}


def bins(count: list[int], confidence: list[float], accuracy: list[float | None]) -> dict[str, Any]:
    return {"count": count, "confidence": confidence, "accuracy": accuracy}


@pytest.fixture
def folders(make_run: Callable[..., Path]) -> list[Path]:
    """A baseline that was compared with the teacher later, and two seeds of kd."""
    made = []
    for method, seed, score, kl in (("baseline", 0, 0.8, 0.5), ("kd", 0, 0.9, 0.25), ("kd", 1, 0.94, 0.15)):
        figures = {"calibration_error": kl / 10, "adaptive_calibration_error": kl / 5, "brier": kl, "nll": 2 * kl}
        own = bins([40, 5, 60], [0.4, 0.6, 0.9], [0.5, 0.2, 0.8 if seed else 1.0])
        theirs: dict[str, Any] = {"samples": 105, "agreement": 0.9, "kl": kl, "reverse_kl": 1, "cka": 1 - kl}
        if method == "baseline":
            theirs["sha256"] = TEACHER["sha256"]
        fidelity = {"student": {"samples": 105, "entropy": 1, "bins": own}, "main": {**theirs, "bins": own}}
        metrics = {"last": {"epoch": 9, "test_score": score, **figures}}
        made.append(make_run(method, seed, score, teacher=TEACHER, metrics=metrics, fidelity=fidelity))
    return made


def test_the_section_has_means_over_seeds(folders: list[Path], tmp_path: Path) -> None:
    write_report(folders, tmp_path / "report", "Title")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| method | agreement % | KL | CKA | ECE % | adaptive ECE % | Brier | NLL |" in page
    assert "| teacher | – | – | – | 1.00 | 2.00 | 0.0300 | 0.0400 |" in page
    assert "| baseline | – | 0.5000 | 0.500 | 5.00 | 10.00 | 0.5000 | 1.0000 |" in page
    assert "| kd | – | 0.2000 | 0.800 | 2.00 | 4.00 | 0.2000 | 0.4000 |" in page
    assert "(calibration.png)" in page
    assert (tmp_path / "report" / "calibration.png").is_file()


def test_the_picture_has_the_bins_of_all_seeds_and_each_seeds_divergence(folders: list[Path]) -> None:
    figure = plot_calibration(collect(folders))
    assert figure is not None
    left, right = figure.axes
    lines = [np.array(line.get_xydata()) for line in left.lines]
    kd = lines[2]  # after those of the teacher and of the baseline
    np.testing.assert_allclose(kd, [[0.4, 0.5], [0.6, 0.2], [0.9, 0.9]])  # 5 + 5 rows are enough for a dot
    np.testing.assert_allclose(lines[1], [[0.4, 0.5], [0.9, 1.0]])  # 5 are not
    dots = [np.array(each.get_offsets()) for each in right.collections]
    np.testing.assert_allclose(dots[2], [[0.25, 90], [0.15, 94]])
    np.testing.assert_allclose(dots[3], [[0.2, 92]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["teacher", "baseline", "kd"]


def test_runs_without_the_figures_have_no_section(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write_report([make_run("kd", 0, 0.9)], tmp_path / "report", "Title")
    assert "calibration" not in (tmp_path / "report" / "report.md").read_text().lower()
    assert not (tmp_path / "report" / "calibration.png").exists()


@pytest.mark.parametrize("higher", [True, False])
def test_of_many_methods_the_best_are_drawn_and_the_baseline(make_run: Callable[..., Path], higher: bool) -> None:
    data = {"name": "d", "fingerprint": "f", "train": 1, "val": 1, "test": 1, "score_name": "s"}
    names = [*(f"m{place}" for place in range(9)), "baseline"]
    scores = {name: [0.1 * place, 0.1 * place + 0.02] for place, name in enumerate(names)} | {"baseline": [0.45, 0.45]}
    folders = [
        make_run(name, seed, score, data={**data, "higher_is_better": higher})
        for name, own in scores.items()
        for seed, score in enumerate(own)
    ]
    methods: dict[str, list[Run]] = {}
    for run in collect(folders):
        methods.setdefault(run.record.method, []).append(run)
    wanted = names[3:9] if higher else names[:6]
    assert [*best_of({name: methods[name] for name in names})] == [*wanted, "baseline"]
