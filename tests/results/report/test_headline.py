"""The first sentence of a report: what it claims, and what it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from distillery.results.report.collect import collect
from distillery.results.report.headline import headline
from distillery.results.report.selection import select
from distillery.results.report.table import method_table
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
BASELINE, KD = [0.80, 0.84, 0.82, 0.86], [0.88, 0.90, 0.86, 0.92]
TEACHER = {"source": "t", "sha256": "t0", "score": 0.98, "params": 56_000, "flops": 9e6, "latency_ms": 3.1}
COST = {"params": 5000, "flops": 6e5, "latency_ms": 1.0}
BUSY = {"latency": {"minimum_ms": 0.9, "busy": True}}


@pytest.fixture
def said(make_run: MakeRun, tmp_path: Path) -> Callable[..., str]:
    """said(kd=[score of each seed], …, teacher=…, cost=…): the sentence."""

    def write(teacher: dict[str, Any] = TEACHER, cost: dict[str, Any] = COST, **more: Any) -> str:
        validation = more.pop("validation", {})
        changes = {key: more.pop(key) for key in ("data", "environment") if key in more}
        for method, scores in more.items():
            for seed, score in enumerate(scores):
                last = {"epoch": 9, "test_score": score, "val_score": validation.get(method)}
                own = {} if method == "baseline" else {"main": teacher}
                make_run(method, seed, score, metrics={"last": last}, teachers=own, cost=cost, **changes)
        students = select(collect([tmp_path])).students
        return headline(method_table(students), students)

    return write


def test_every_clause_of_a_measured_student(said: Callable[..., str]) -> None:
    low, high = stats.ttest_1samp([score / 0.98 for score in KD], 0).confidence_interval(0.95)
    assert (f"{50 * (low + high):.1f}", f"{50 * (high - low):.1f}") == ("90.8", "4.2")
    assert said(baseline=BASELINE, kd=KD) == (
        "The student (`kd`) keeps 90.8 % (± 4.2) of the teacher's accuracy, runs 3.1× faster (PyTorch, batch 1, one "
        "thread) and has 11× fewer parameters; it recovers 40 % (± 17) of the gap between the same network trained "
        "alone and the teacher."
    )


@pytest.mark.parametrize("busy", ["student", "teacher"])
def test_a_latency_of_a_busy_machine_is_not_claimed(said: Callable[..., str], busy: str) -> None:
    teacher, cost = (TEACHER | BUSY, COST) if busy == "teacher" else (TEACHER, COST | BUSY)
    assert "accuracy and has 11× fewer parameters;" in said(baseline=BASELINE, kd=KD, teacher=teacher, cost=cost)


def test_what_is_slower_and_larger_is_said(said: Callable[..., str]) -> None:
    cost = {"params": 560_000, "flops": 6e5, "latency_ms": 6.2}
    assert "runs 2.0× slower (PyTorch, batch 1, one thread) and has 10× more parameters" in said(kd=KD, cost=cost)


@pytest.mark.parametrize(
    ("kd", "said_of_it"),
    [
        ([0.1, 0.4], "keeps 25.5 % (2 seeds, too few for an interval)"),  # ± 194.5
        ([0.5, 0.6], "keeps 56.1 % (2 seeds, too few for an interval)"),  # ± 64.8
        ([0.5, 0.51], "keeps 51.5 % (± 6.5)"),
        ([0.1, 0.4, 0.45, 0.35], "keeps 33.2 % (± 25.2)"),
    ],
)
def test_an_interval_that_reaches_0_says_nothing(said: Callable[..., str], kd: list[float], said_of_it: str) -> None:
    assert said_of_it in said(kd=kd)
    low, high = stats.ttest_1samp([score / 0.98 for score in kd], 0).confidence_interval(0.95)
    assert ("±" in said_of_it) == (low > 0)
    if low > 0:
        assert f"± {50 * (high - low):.1f}" in said_of_it


@pytest.mark.parametrize(
    ("kd", "ending"),
    [
        ([0.81, 0.83, 0.84, 0.87], "; it is not measurably better than the same network trained alone."),
        ([0.88], "keeps 89.8 % (one seed) of the teacher's accuracy, runs"),
    ],
)
def test_a_gain_inside_its_interval_is_not_claimed(said: Callable[..., str], kd: list[float], ending: str) -> None:
    sentence = said(baseline=BASELINE[: len(kd)], kd=kd)
    assert ending in sentence
    assert "gap" not in sentence


def test_a_gap_inside_its_interval_is_not_claimed(said: Callable[..., str]) -> None:
    sentence = said(baseline=BASELINE, kd=KD, teacher=TEACHER | {"score": 0.85})
    assert sentence.startswith("The student (`kd`) reaches 104.7 %")
    assert sentence.endswith("; it is better than the same network trained alone by 6.00 points.")


def test_the_method_is_chosen_on_validation_and_not_on_test(said: Callable[..., str]) -> None:
    validation = {"baseline": 0.5, "kd": 0.8, "lucky": 0.7}
    sentence = said(baseline=BASELINE, kd=KD, lucky=[0.9, 0.92, 0.93, 0.95], validation=validation)
    assert sentence.startswith("The student (`kd`) keeps 90.8 %")


def test_a_baseline_that_no_method_beats_is_named(said: Callable[..., str]) -> None:
    sentence = said(baseline=KD, kd=BASELINE)
    assert sentence == (
        "No method is better than the student trained alone (`baseline`), which keeps 90.8 % (± 4.2) of the teacher's "
        "accuracy, runs 3.1× faster (PyTorch, batch 1, one thread) and has 11× fewer parameters."
    )


def test_bits_per_byte_are_not_a_share(said: Callable[..., str]) -> None:
    data = {"name": "s", "fingerprint": "f", "train": 1, "val": 1, "test": 4}
    data |= {"score_name": "bits per byte", "higher_is_better": False}
    sentence = said(baseline=[2.50, 2.54, 2.52], kd=[2.40, 2.43, 2.44], teacher=TEACHER | {"score": 2.1}, data=data)
    assert sentence.startswith(
        "The student (`kd`) reaches 2.4233 bits per byte (± 0.0517; the teacher has 2.1000), runs"
    )
    assert "recovers 23 %" in sentence


def test_without_a_teacher_there_is_nothing_to_say(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("kd", 0, 0.9, teachers={})
    report = write_report([tmp_path], tmp_path, "Alone")
    assert headline(report.table, report.selection.students) == ""
    assert (tmp_path / "report.md").read_text().startswith("# Alone\n\nData")
