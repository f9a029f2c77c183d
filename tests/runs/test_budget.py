"""An edge budget: a student over it is not trained, and the best one within it is exported."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from omegaconf import DictConfig

from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.results.exports import Export, ExportFormat, Measured, read_exports
from distillery.results.layout import EXPORT, EXPORTS, RECORD
from distillery.results.record import RunRecord
from distillery.runs import sweep, winner
from distillery.runs.budget import Budget
from distillery.runs.export import candidate
from distillery.runs.export.export import export
from distillery.runs.export.formats import registry
from distillery.runs.job import Job
from distillery.runs.run import train
from fixtures.command_line import Cli
from fixtures.composing import Compose
from fixtures.runs import STUDENT

TAKEN = Measured(
    format="onnx",
    bytes=100_000,
    latency_ms_min=0.4,
    latency_ms_median=0.5,
    busy=False,
    runtime="onnxruntime 1.23.2",
    cpu="A processor",
)
SIZES = {"[4]": 4_000, "[8]": 8_000, "[16]": 16_000}  # bytes of a student of these widths, as `measurements` fakes them


@pytest.fixture
def jobs(teacher: Path) -> Sequence[str]:
    given = ("trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none")
    return ("-m", *STUDENT, f"teachers.main.weights='{teacher}'", *given, "hydra.sweep.dir=sweep")


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of exports before the training: the widths of the students that were measured, in order."""
    found: list[str] = []

    def measured(name: str, model: Any) -> Measured:
        found.append(str(list(model.cfg.student.net.widths)))
        return replace(TAKEN, format=name, bytes=SIZES[found[-1]] // (2 if name == "onnx_int8" else 1))

    monkeypatch.setattr(candidate, "measure", measured)
    monkeypatch.setattr(sweep, "validated", lambda budget, record, folder: record.val_monitored)
    monkeypatch.setattr(winner, "export", lambda run, formats: [exported(run, *formats)])
    return found


def exported(run: Path, name: str) -> Export:
    """In place of the export of a run: as much is taken as before the training."""
    return Export(
        **RunRecord.read(run).target[name]["measured"],
        path="onnx/model.onnx",
        max_difference=0.0,
        agreement=1.0,
        score=0.5,
        samples=797,
        batch_size=32,
        batch_latency_ms_min=1.0,
        batch_latency_ms_median=1.0,
        peak_memory_bytes=1,
        verified_in_fresh_process=True,
        needs=["onnxruntime"],
    )


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the jobs of sweeps give to the sweeper."""
    found: list[float] = []
    run = sweep.sweep_job

    def noted(cfg: DictConfig, overrides: Sequence[str]) -> float | None:
        value = run(cfg, overrides)
        found.append(math.nan if value is None else value)
        return value

    monkeypatch.setattr(sweep, "sweep_job", noted)
    return found


def records() -> dict[str, RunRecord]:
    return {path.parent.name: RunRecord.read(path.parent) for path in sorted(Path("sweep").rglob(RECORD))}


def test_the_larger_of_both_shares_decides() -> None:
    assert Budget("onnx", 0.5, 0.1).excess(TAKEN) == 1, "as much as it may"
    assert Budget("onnx", 0.25, 0.4).excess(TAKEN) == 2
    assert Budget("onnx", 1.0, 0.08).excess(TAKEN) == pytest.approx(1.25)
    assert Budget("onnx", None, 0.2).excess(TAKEN) == 0.5
    assert Budget("onnx", 0.45, None).excess(replace(TAKEN, busy=True)) < 1, "of a busy machine the fastest forward"
    said = Budget("onnx", 0.25, 0.2).compared(TAKEN)
    assert said == "latency 0.5 ms (over 0.25 ms), size 100 kB (within 200 kB), as onnx"


def test_a_budget_makes_no_other_job(compose_train: Compose) -> None:
    """What is trained is the same: runs that were finished before the budget are kept."""
    budget = ["target.size_mb=1", "target.format=gguf"]
    plain, limited = (Job(check(compose_train("experiment=digits_demo", *more))) for more in ([], budget))
    assert plain.identity() == limited.identity()
    assert plain.budget is None
    assert limited.budget == Budget("gguf", None, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["target.size_mb=1", "target.format=onxx"], "target.format=onxx. Did you mean 'onnx'"),
        (["target.latency_ms=0"], "target.latency_ms=0: it must be a finite number greater than 0 or null"),
        (["target.size_mb=-1"], "target.size_mb=-1: it must be a finite number greater than 0 or null"),
        (["+target.size=1"], "Unknown setting 'target.size'. Did you mean 'size_mb'"),
        (
            ["target.format=onnx"],
            "target.format=onnx: without a budget this changes nothing. Set target.size_mb or target.latency_ms.",
        ),
    ],
)
def test_settings_are_checked(given: list[str], message: str, compose_train: Compose) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check(compose_train("experiment=digits_demo", *given), given)


def test_each_format_can_be_a_target() -> None:
    assert set(get_args(ExportFormat)) == set(registry.FORMATS)


def test_a_single_run_is_refused_before_training(
    compose_train: Compose, teacher: Path, measurements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*STUDENT, f"teachers.main.weights='{teacher}'", "student.net.widths=[16]", "target.size_mb=0.012"]
    cfg = compose_train(*given)
    with pytest.raises(
        UserError, match=r"is not trained: latency 0\.5 ms, size 16 kB \(over 12 kB\), as onnx\. Make it"
    ):
        train(cfg, given)
    assert measurements == ["[16]"]
    assert not Path(cfg.paths.run).exists()
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=re.escape("target.format=onnx needs onnx, onnxscript, onnxruntime: pip install")
    ):
        train(cfg, given)


@pytest.mark.slow
def test_a_grid_trains_what_is_within(
    cli: Cli, jobs: Sequence[str], measurements: list[str], values: list[float]
) -> None:
    grid = (*jobs, "student.net.widths=[8],[16]", "target.format=onnx,onnx_int8", "seed=[0,1]")
    code, said = cli("train", *grid, "target.size_mb=0.006")
    assert code == 0, said
    assert measurements == ["[8]", "[8]", "[16]", "[16]"], "once for all seeds of a trial"
    assert values[0] == pytest.approx(-1e6 * 8 / 6)
    assert values[1] > 0
    assert values[2] == pytest.approx(-1e6 * 16 / 6), "the worse the further over it"
    assert values[3] == pytest.approx(-1e6 * 8 / 6)
    rows = re.findall(r"^ +(\d) +(\S+) +(\S+) +(\S+) +(\S+ kB) +2 +(.*?) *$", said, re.MULTILINE)
    assert [row[-1] for row in rows[::2]] == ["over budget", "over budget"]
    assert [row[4] for row in rows] == ["8 kB", "4 kB", "16 kB", "8 kB"]
    assert "≤ 6 kB" in said
    assert (
        "Winner: trial 1, widths=[8], format=onnx_int8: latency 0.5 ms, size 4 kB (within 6 kB), as onnx_int8." in said
    )
    assert "0 kept, 2 run, 0 failed, 6 over budget: sweep" in said.splitlines()
    trained = [folder for folder in Path("sweep").iterdir() if list(folder.rglob("student.safetensors"))]
    assert len(trained) == 1
    page = Path("sweep/report.md").read_text(encoding="utf-8")
    assert "over budget: latency 0.5 ms, size 8 kB (over 6 kB), as onnx_int8" in page, "the last that was tried"

    code, said = cli("train", *grid, "target.size_mb=0.01")
    assert code == 0, said
    assert len(measurements) == 4, "what was measured is not measured again"
    assert "4 kept, 2 run, 0 failed, 2 over budget: sweep" in said.splitlines()
    assert [round(value) for value in values[4:]].count(round(-1e6 * 1.6)) == 1


def test_if_all_are_over_the_nearest_is_named(cli: Cli, jobs: Sequence[str], measurements: list[str]) -> None:
    code, said = cli("train", *jobs, "student.net.widths=[16],[4],[8]", "target.size_mb=0.001")
    assert code == 1
    assert "No candidate is within the budget: none was trained. The nearest is trial 1, widths=[4]: latency" in said
    assert "0 kept, 0 run, 0 failed, 3 over budget: sweep" in said.splitlines()
    assert "Traceback" not in said
    assert {record.status for record in records().values()} == {"over budget"}
    assert not list(Path("sweep").rglob("*.ckpt"))


def test_the_winner_is_what_its_file_takes(
    cli: Cli, jobs: Sequence[str], measurements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best one's file turns out to be over the budget: the next one wins."""
    scores = {"[4]": 0.2, "[8]": 0.8}

    def validated(budget: Budget, record: RunRecord, folder: Path) -> float:
        return scores["[8]" if "student.net.widths=[8]" in record.overrides else "[4]"]

    def larger(run: Path, formats: Sequence[str]) -> list[Export]:
        found = exported(run, *formats)
        return [replace(found, bytes=found.bytes * 3 // 2)]

    monkeypatch.setattr(sweep, "validated", validated)
    monkeypatch.setattr(winner, "export", larger)
    code, said = cli("train", *jobs, "student.net.widths=[4],[8]", "target.size_mb=0.01")
    assert code == 0, said
    assert "Over the budget after training: trial 1, widths=[8]: latency 0.5 ms, size 12 kB (over 10 kB)" in said
    assert "Winner: trial 0, widths=[4]: latency 0.5 ms, size 6 kB (within 10 kB), as onnx." in said


@pytest.mark.slow
def test_a_search_within_a_size(cli: Cli, jobs: Sequence[str]) -> None:
    """Nothing is faked: the sizes before training are those of the files afterwards."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    space = "student.net.widths=choice([4],[4,8],[16,32])"
    code, said = cli(
        "train", *jobs, "sweep=edge", space, "target.size_mb=0.012", "target.latency_ms=1e6", "hydra.sweeper.n_trials=4"
    )
    assert code == 0, said
    found = records()
    assert {record.status for record in found.values()} == {"over budget", "finished"}
    for name, record in found.items():
        large = "student.net.widths=[16,32]" in record.overrides
        assert (record.status == "over budget") == large
        assert large != (Path("sweep") / name / "student.safetensors").exists()
        for entry in record.target.values():
            assert large == (entry["measured"]["bytes"] > 12_000)
    folder, name = _written(said)
    (shipped,) = read_exports(folder)
    assert shipped.format == name
    assert shipped.bytes <= 12_000
    assert json.loads((folder / EXPORT / EXPORTS).read_text())["exports"][0]["bytes"] == shipped.bytes
    entry = RunRecord.read(folder).target[name]
    assert entry["measured"]["bytes"] == pytest.approx(shipped.bytes, abs=8), "zero points of other lengths"
    assert entry["validation"] == pytest.approx(max(_validations(found)))
    again = [each.score for each in export(folder, [name], repeats=3)]
    assert again == [shipped.score]


def _written(said: str) -> tuple[Path, str]:
    """The run folder and the format of the winner."""
    path = Path(re.findall(r"^Written: (\S+)$", said, re.MULTILINE)[0])
    return path.parents[2], path.parent.name


def _validations(found: dict[str, RunRecord]) -> list[float]:
    return [each["validation"] for record in found.values() for each in record.target.values() if "validation" in each]


@pytest.mark.parametrize(("limit", "fits"), [(1e-6, False), (1e6, True)])
@pytest.mark.slow
def test_a_latency_is_measured(limit: float, fits: bool, compose_train: Callable[..., DictConfig]) -> None:
    given = ["experiment=digits_teacher", "trainer.max_epochs=1", "logger=none", f"target.latency_ms={limit}"]
    if not fits:
        with pytest.raises(UserError, match=r"latency \S+ ms \(over 1e-06 ms\)"):
            train(compose_train(*given), given)
        return
    record = train(compose_train(*given), given).record
    taken = Measured(**record.target["onnx"]["measured"])
    assert 0 < taken.latency_ms_min <= taken.latency_ms_median < limit
    assert taken.runtime.startswith("onnxruntime ")
