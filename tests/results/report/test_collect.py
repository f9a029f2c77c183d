"""Collecting: which runs are found, what they agree with, which of them are compared."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distillery.core.errors import UserError
from distillery.results.report.collect import collect
from distillery.results.report.selection import select

MakeRun = Callable[..., Path]


def test_runs_come_in_the_order_of_folders_then_of_their_start(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("kd", 0, 0.9, folder="b/z", started="2026-01-01")
    make_run("at", 0, 0.9, folder="b/a", started="2026-01-02", status="failed", error="NaN")
    make_run("rkd", 0, 0.9, folder="a/deep/er", started="2026-01-03")
    runs = collect([tmp_path / "b", tmp_path / "a", tmp_path / "a/deep"])
    assert [run.record.method for run in runs] == ["kd", "at", "rkd"]
    assert [run.record.status for run in runs] == ["finished", "failed", "finished"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="There is no run in"):
        collect([tmp_path])


def test_a_torn_file_is_refused_by_name(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("kd", 0, 0.9)
    (folder / "predictions.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(UserError, match=r"predictions\.npz is damaged"):
        collect([tmp_path])
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is torn"):
        collect([tmp_path])


def test_agreement_is_with_the_own_teacher_and_the_baselines_with_the_one_of_its_seed(
    make_run: MakeRun, tmp_path: Path
) -> None:
    index = [7, 8, 9, 10]
    for seed, teacher in [(0, [0, 0, 0, 0]), (1, [1, 1, 1, 1])]:
        make_run("kd", seed, 0.9, predictions={"index": index, "student": [0, 0, 1, 2], "main": teacher})
        make_run("baseline", seed, 0.8, predictions={"index": index, "student": [1, 1, 1, 0]})
    make_run("baseline", 2, 0.8, predictions={"index": [7, 8, 9, 11], "student": [0, 0, 0, 0]})  # other samples
    make_run("baseline", 3, 0.8)
    found = {run.folder.name: run.agreement for run in collect([tmp_path])}
    assert found == {
        "kd_seed0": 0.5,
        "kd_seed1": 0.25,
        "baseline_seed0": 0.25,
        "baseline_seed1": 0.75,
        "baseline_seed2": None,
        "baseline_seed3": None,
    }


def test_agreement_with_several_teachers_is_their_mean(make_run: MakeRun, tmp_path: Path) -> None:
    teachers = {"main": {"sha256": "a", "score": 0.9}, "second": {"sha256": "b", "score": 0.9}}
    arrays = {"index": [0, 1], "student": [1, 1], "main": [1, 1], "second": [0, 1]}
    make_run("kd", 0, 0.9, teachers=teachers, predictions=arrays)
    assert [run.agreement for run in collect([tmp_path])] == [0.75]


def test_only_finished_runs_are_compared_the_latest_of_each_job(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0, 0.8)
    make_run("kd", 0, 0.7, folder="kd_old", started="2026-01-01T10")
    make_run("kd", 0, 0.9, folder="kd_new", started="2026-01-01T12")
    make_run("kd", 0, None, folder="kd_failed", started="2026-01-01T13", status="failed", error="NaN", metrics={})
    make_run("kd", 1, 0.9, folder="kd_going", status="running")
    make_run("kd", 2, None, folder="kd_blank")
    selection = select(collect([tmp_path]))
    assert {run.folder.name for run in selection.students} == {"baseline_seed0", "kd_new"}
    assert {run.folder.name: reason for run, reason in selection.left_out} == {
        "kd_old": f"there is a later run, `{tmp_path / 'kd_new'}`",
        "kd_failed": "failed: NaN",
        "kd_going": "running",
        "kd_blank": "finished without a test score",
    }


def test_the_run_that_made_the_teacher_is_no_baseline(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("baseline", 0, 0.98, folder="teacher", student_sha256="t0", cost={"params": 270_000})
    make_run("baseline", 0, 0.8)
    make_run("baseline", 1, 0.8, student_sha256=None)
    make_run("kd", 0, 0.9)
    make_run("kd", 1, None, status="failed", teachers={"main": {"sha256": None}})
    selection = select(collect([tmp_path]))
    out = {run.folder.name: reason for run, reason in selection.left_out}
    assert out == {"teacher": "its student is a teacher of the other runs", "kd_seed1": "failed"}
    assert {run.folder.name for run in selection.students} == {"baseline_seed0", "baseline_seed1", "kd_seed0"}


def test_what_cannot_be_compared_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("kd", 0, 0.9, status="failed")
    with pytest.raises(UserError, match="None of the runs is finished"):
        select(collect([tmp_path]))
    make_run("kd", 0, 0.9)
    make_run("kd", 1, 0.9, cost={"params": 7})
    with pytest.raises(UserError, match=r"different size.*kd_seed1"):
        select(collect([tmp_path]))
    make_run("kd", 1, 0.9, data={"name": "cifar10", "test": 10000, "score_name": "accuracy"})
    with pytest.raises(UserError, match=r"digits \(4 test samples\).*cifar10 \(10000 test samples\)"):
        select(collect([tmp_path]))
