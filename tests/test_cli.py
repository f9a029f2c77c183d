"""The commands as a user types them: help, completion, errors, plan, sweeps."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig

from distillery.compat import CONFIGS
from distillery.results.schema import FILE, RunRecord
from fixtures.runs import STUDENT, train_teacher

COMMANDS = ("train", "study", "evaluate", "report")
HEAVY = "torch torchvision lightning timm torchmetrics wandb numpy scipy pandas sklearn matplotlib safetensors"
READABLE = re.compile(r"[A-Za-z0-9._+-]+")
# Prints what it was asked for, then the heavy packages that were imported for it.
LOOK = f"""
import sys
from distillery.{{command}} import main
sys.argv = ["distill-{{command}}", *{{arguments}}]
try:
    main()
finally:
    sys.stdout.flush()
    print("\\nheavy:", sorted(set("{HEAVY}".split()) & set(sys.modules)))
"""
Cli = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("train", "seed=1", …)` in an empty folder: exit code, and all that was printed.

    In this process, since importing torch anew takes seconds. An error that is no `UserError` is raised.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: to be put back
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])
    monkeypatch.setattr(logging.root, "level", logging.root.level)

    def run(command: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"distill-{command}", *arguments])
        capfd.readouterr()
        try:
            import_module(f"distillery.{command}").main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        printed = capfd.readouterr()
        return int(code or 0), printed.out + printed.err

    return run


@pytest.fixture
def student(teacher: Path) -> Sequence[str]:
    return (*STUDENT, "trainer.max_epochs=1", f"teachers.main.weights='{teacher}'", "trainer.enable_progress_bar=false")


def look(command: str, *arguments: str, **environment: str) -> tuple[str, list[str]]:
    """What a process of its own prints, and which heavy packages it imported."""
    code = LOOK.format(command=command, arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    out, _, heavy = done.stdout.partition("\nheavy:")
    assert heavy, done.stderr
    return out, json.loads(heavy.replace("'", '"'))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    out, heavy = look(command, "--help")
    assert heavy == []
    assert f"distill-{command} " in out


def test_the_help_names_every_choice() -> None:
    out, _ = look("train", "--help")
    for folder in ("loss/response", "loss/feature", "loss/attention", "loss/relation", "data", "experiment", "debug"):
        choices = sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))
        assert f"\n{folder}: {', '.join(choices)}\n" in out


@pytest.mark.parametrize("command", ["train", "study"])
def test_the_config_is_shown_without_importing_anything_heavy(command: str) -> None:
    out, heavy = look(command, "--cfg", "job", *(["study=digits_demo"] if command == "study" else []))
    assert heavy == []
    assert {"train": "temperature: 4.0", "study": "kd+hint:"}[command] in out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("loss/response=k", "loss/response=kd"),
        ("loss.kd.temp", "loss.kd.temperature="),
        ("experiment=digits_d", "experiment=digits_demo"),
        ("model/stud", "model/student="),
    ],
)
def test_tab_completes_without_importing_anything_heavy(typed: str, completed: str) -> None:
    line = f"distill-train {typed}"
    out, heavy = look("train", "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert heavy == []
    assert completed in out.split()


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
    ([TAUGHT], r"'teacher', and there is no config\.yaml in it\. Train it first"),
    (["model/teacher=cnn", TAUGHT], r"There is no file teacher"),
    (["resume=nowhere"], r"nowhere is not a run folder"),
    (["seed=1", "seed"], r"(?i)seed"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_an_error_is_said_without_a_traceback(arguments: list[str], message: str, cli: Cli, tmp_path: Path) -> None:
    code, said = cli("train", *arguments)
    assert code == 2
    assert re.search(message, said), said
    assert said.count("error ") == 1
    assert "Traceback" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "a refused run leaves nothing"
    assert not list(tmp_path.rglob("*seed*")), "not even an empty folder"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", [], r"Which run\?.*distill-evaluate run="),
        ("evaluate", ["run=nowhere"], r"nowhere is not a run folder: it has no run\.json"),
        ("evaluate", ["run=nowhere", "split=train"], r"no split 'train'"),
        ("evaluate", ["runs=nowhere"], r"'runs'\. Did you mean 'run'"),
        ("study", [], r"study=.*digits_demo"),
        ("study", ["study=digit_demo"], r"'digit_demo' for study\. Did you mean 'digits_demo'"),
        ("report", [], r"Which runs\?"),
        ("report", ["runs=[nowhere]"], r"nowhere is no folder"),
    ],
)
def test_the_other_commands_too(command: str, arguments: list[str], message: str, cli: Cli, tmp_path: Path) -> None:
    code, said = cli(command, *arguments)
    assert code == 2
    assert re.search(message, said, re.DOTALL), said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_run_says_what_to_do_next(cli: Cli, student: Sequence[str], tmp_path: Path) -> None:
    code, said = cli("train", *student)
    assert code == 0
    (folder,) = (path.parent for path in tmp_path.rglob(FILE))
    record = RunRecord.read(folder)
    assert folder.relative_to(tmp_path).parts[:2] == ("outputs", "digits_demo")
    assert re.fullmatch(r"kd_seed0_[\d_-]+", folder.name)
    assert record.overrides == list(student)
    assert f"kd seed 0: test score {record.metrics['last']['test_score']:.4f}" in said
    (proposed,) = re.findall(r"^distill-(evaluate) (run=\S+)$", said, re.MULTILINE)
    code, said = cli(*proposed)
    assert code == 0
    assert f"recorded {record.metrics['last']['test_score']:.4f}" in said


def test_a_plan_is_shown_and_nothing_else_done(cli: Cli, student: Sequence[str], tmp_path: Path) -> None:
    losses = ("loss/feature=[hint]", "loss/attention=[attention_transfer]", "loss/relation=[rkd]")
    code, said = cli("train", *student, *losses, "plan=true", "trainer.max_epochs=7")
    assert code == 0
    rows = {
        cells[0]: cells[1:] for line in said.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:-1]])
    }
    assert rows["100"] == ["200", "797", "10", "10", "7", "70"]
    assert rows["student"] == ["SmallCNN", "new", "5,178", "5,178", "167k"]
    assert rows["teacher main"][2:4] == ["56,554", "0"]
    assert rows["task"] == ["0.1", "logits", "labels", ""]
    assert rows["kd"] == ["0.9", "logits", "main: logits", ""]
    assert rows["hint"] == ["100", "stages.1 32×4×4", "main: stages.1 64×4×4", f"{32 * 64 + 64:,} parameters"]
    assert rows["attention_transfer (at)"] == ["10", "stages.0 16×8×8", "main: stages.0 32×8×8", ""]
    assert rows[""] == ["", "stages.1 32×4×4", "main: stages.1 64×4×4", ""]
    assert rows["rkd"] == ["0.2", "embedding 32", "main: embedding 64", ""]
    assert "test score" not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or "seed" in path.name]


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
    records = {path.parent: RunRecord.read(path.parent) for path in sorted(tmp_path.rglob(FILE))}
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


def test_a_job_of_a_sweep_that_cannot_work_does_not_stop_the_others(
    cli: Cli, student: Sequence[str], tmp_path: Path
) -> None:
    code, said = cli("train", "-m", *student, "data.train_size=3,50", "hydra.sweep.dir=sweep")
    assert code == 2
    assert "data.train_size=3: Cannot draw 3 of 800 samples" in said
    assert [path.parent.name for path in (tmp_path / "sweep").rglob(FILE)] == ["1_kd_seed0"]


def test_a_run_is_resumed_by_its_folder(cli: Cli, student: Sequence[str], tmp_path: Path) -> None:
    assert cli("train", *student, "hydra.run.dir=first", "optim.optimizer.lr=1e30")[0] == 2
    assert RunRecord.read(tmp_path / "first").status == "failed"
    code, said = cli("train", "resume=first")
    assert (code, "cannot be resumed: it has no checkpoints/last.ckpt" in said) == (2, True)

    assert cli("train", *student, "hydra.run.dir=second")[0] == 0
    before = RunRecord.read(tmp_path / "second")
    code, said = cli("train", "resume=second", "seed=1")
    assert (code, "seed=1 is not part of it" in said) == (2, True)
    code, said = cli("train", "resume=second")
    assert code == 0
    assert "Warning" not in said
    after = RunRecord.read(tmp_path / "second")
    assert (after.config_hash, after.overrides) == (before.config_hash, before.overrides)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.slow
def test_the_module_is_the_command(student: Sequence[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distillery.train", *student]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr
    (path,) = tmp_path.rglob(FILE)
    assert RunRecord.read(path.parent).status == "finished"
