"""What the commands leave behind: the steps that were planned, a folder for each job, the same job resumed."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from fixtures.command_line import Cli
from fixtures.runs import STUDENT

READABLE = re.compile(r"[A-Za-z0-9._+-]+")


@pytest.fixture
def student(teacher: Path) -> Sequence[str]:
    return (*STUDENT, "trainer.max_epochs=1", f"teachers.main.weights='{teacher}'", "trainer.enable_progress_bar=false")


TAUGHT = "teachers.main.weights=teacher"

# The command line and what must be said of it.
ERRORS = [
    (["loss.kd.temprature=2"], r"'loss\.kd\.temprature'\. Did you mean 'loss\.kd\.temperature'\?"),
    (["+loss.kd.temprature=2", TAUGHT], r"'loss\.kd\.temprature'\. Did you mean '(loss\.kd\.)?temperature'\?"),
    (["sede=1"], r"'sede'\. Did you mean 'seed'"),
    (["trainer.max_epoch=3"], r"'trainer\.max_epoch'\. Did you mean 'trainer\.max_epochs'"),
    (["loss/response=kdd"], r"'kdd' for loss/response\. Did you mean 'kd' or 'dkd'"),
    (["loss/response=[kd,nothing_like_it]"], r"'nothing_like_it' for loss/response\. Choose from: dkd, kd\."),
    (["data=cifar"], r"'cifar' for data\. Did you mean 'cifar"),
    (["experiment=cifar100/resnet56_resnet21"], r"for experiment.*\. Did you mean .*resnet56_resnet20'"),
    (["loss/response=[kd,kd]", TAUGHT], r"'kd' is named twice.*\+loss/response@loss\.kd_b=kd"),
    (["loss.dkd.beta=2"], r"'loss\.dkd.*loss/response=dkd"),
    ([], r"no value yet: teachers\.main\.weights"),
    ([TAUGHT], r"'teacher' is not a run folder: there is no config\.yaml in it"),
    (["model/teacher=cnn", TAUGHT], r"There is no file teacher"),
    (["resume=nowhere"], r"nowhere is not a run folder"),
    (["seed=1", "seed"], r"(?i)seed"),
]


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # no epoch was done
@pytest.mark.parametrize(
    ("override", "steps"), [("trainer.accumulate_grad_batches=3", "4"), ("trainer.max_steps=3", "3")]
)
def test_a_plan_counts_the_steps_that_will_be_done(
    override: str, steps: str, cli: Cli, student: Sequence[str], tmp_path: Path
) -> None:
    _, planned = cli("train", *student, "plan=true", override)
    (row,) = (line for line in planned.splitlines() if "│   100 │" in line)
    assert row.split("│")[-2].strip() == steps
    cli("train", *student, override, f"hydra.run.dir='{tmp_path / 'run'}'")
    lines = (tmp_path / "run" / "metrics" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    assert max(int(line.split(",")[column]) for line in lines[1:]) == int(steps)


@pytest.mark.slow
def test_a_sweep_leaves_a_readable_folder_a_job(cli: Cli, student: Sequence[str], tmp_path: Path) -> None:
    code, _ = cli("train", "-m", *student, "loss/response=kd,[kd,dkd]", "seed=0,1")
    assert code == 0
    records = {path.parent: RunRecord.read(path.parent) for path in sorted(tmp_path.rglob(RECORD))}
    assert [folder.name for folder in records] == ["0_kd_seed0", "1_kd_seed1", "2_kd+dkd_seed0", "3_kd+dkd_seed1"]
    (sweep,) = {folder.parent for folder in records}
    for folder in (*records, sweep, sweep.parent):
        assert READABLE.fullmatch(folder.name)
    assert [record.method for record in records.values()] == ["kd", "kd", "kd+dkd", "kd+dkd"]
    assert [record.seed for record in records.values()] == [0, 1, 0, 1]
    assert {record.status for record in records.values()} == {"finished"}
    assert len({record.student_sha256 for record in records.values()}) == 4
    assert not any("," in override for r in records.values() for override in r.overrides if override.startswith("seed"))

    code, _ = cli("report", f"runs=['{sweep}']", "out=report")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.csv", "report.md", "report.png"]


def test_a_run_is_resumed_by_its_folder(cli: Cli, student: Sequence[str], tmp_path: Path) -> None:
    assert cli("train", *student, "hydra.run.dir=first", "optim.optimizer.lr=1e30")[0] == 2
    assert RunRecord.read(tmp_path / "first").status == "failed"

    assert cli("train", *student, "hydra.run.dir=second")[0] == 0
    before = RunRecord.read(tmp_path / "second")
    replace(before, status="running").write(tmp_path / "second")  # killed while it was scored
    code, said = cli("train", "resume=second", "seed=1")
    assert (code, "seed=1 is not part of it" in said) == (2, True)
    code, said = cli("train", "resume=second")
    assert code == 0
    assert "Warning" not in said
    after = RunRecord.read(tmp_path / "second")
    assert (after.config_hash, after.overrides) == (before.config_hash, before.overrides)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
