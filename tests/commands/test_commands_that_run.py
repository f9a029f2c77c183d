"""What the commands do, what they say of it, and what they leave behind."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from distillery.commands import evaluate, train
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from fixtures.command_line import DEMO, SHORT, Command, assert_refused, left_behind
from fixtures.runs import STUDENT, sha256


def run_folder(below: Path) -> Path:
    (found,) = below.rglob(RECORD)
    return found.parent


def test_the_plan_shows_the_wiring_and_leaves_nothing(command: Command, teacher: Path, tmp_path: Path) -> None:
    losses = ["loss/feature=[hint]", "loss/attention=[attention_transfer]"]
    answer = command(train, *DEMO, f"teachers.main.weights='{teacher}'", *losses, "plan=true")
    assert (answer.code, answer.err) == (0, "")
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in answer.out.splitlines() if line.startswith("│")]
    assert ["100", "200", "797", "25", "4", "1", "4", "32-true"] in rows
    student, taught = 5178, 56554  # Σ 9·in·out + 2·out of the convolutions and their BatchNorms, and the head
    assert any(row[:5] == ["student", "SmallCNN", "new", f"{student:,}", f"{student:,}"] for row in rows)
    assert any(row[:5] == ["teacher main", "SmallCNN", str(teacher), f"{taught:,}", "0"] for row in rows)
    assert ["kd", "0.9", "logits", "main: logits"] in [row[:4] for row in rows]
    hint = next(row for row in rows if row[0] == "hint")
    shapes = [re.findall(r"(\d+)×(\d+)×(\d+)", cell)[0] for cell in hint[2:4]]
    assert hint[4] == f"{(int(shapes[0][0]) + 1) * int(shapes[1][0]):,} parameters", "a 1×1 convolution and its bias"
    assert shapes[0][1:] == shapes[1][1:]
    pairs = [row[-2:] for row in rows]
    assert ["stages.0 16×8×8", "main: stages.0 32×8×8"] in pairs
    assert ["stages.1 32×4×4", "main: stages.1 64×4×4"] in pairs
    assert left_behind(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")  # no epoch was done
@pytest.mark.parametrize(("setting", "steps"), [("trainer.accumulate_grad_batches=3", 4), ("trainer.max_steps=3", 3)])
def test_a_plan_counts_the_steps_that_will_be_done(
    setting: str, steps: int, command: Command, teacher: Path, tmp_path: Path
) -> None:
    given = [*STUDENT, f"teachers.main.weights='{teacher}'", "trainer.max_epochs=1", SHORT[-1], setting]
    (row,) = (line for line in command(train, *given, "plan=true").out.splitlines() if "│   100 │" in line)
    assert int(row.split("│")[-3]) == steps
    assert command(train, *given).code == 0
    assert pd.read_csv(run_folder(tmp_path) / "metrics/version_0/metrics.csv")["step"].max() == steps


def test_the_plan_leaves_what_was_there(command: Command, tmp_path: Path) -> None:
    (tmp_path / "outputs" / "other").mkdir(parents=True)
    assert command(train, "experiment=digits_teacher", "plan=true").code == 0
    assert left_behind(tmp_path) == ["outputs", "outputs/other"]


@pytest.mark.parametrize("refused", [["data.train_size=-3"], ["plan=true"]])
def test_only_the_folders_that_hydra_made_are_removed(refused: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "scratch" / "results").mkdir(parents=True)  # by a batch script, for what comes later
    command(train, "experiment=digits_teacher", *refused, "hydra.run.dir=scratch/results/first/run")
    assert left_behind(tmp_path) == ["scratch", "scratch/results"]
    (tmp_path / "scratch" / "results" / "mine").mkdir()
    command(train, "experiment=digits_teacher", *refused, "hydra.run.dir=scratch/results/mine")
    assert left_behind(tmp_path) == ["scratch", "scratch/results", "scratch/results/mine"]


@pytest.mark.parametrize("setting", [["hydra.run.dir=file/run"], ["-m", "hydra.sweep.dir=file/sweep", "seed=0,1"]])
def test_a_folder_that_cannot_be_made(setting: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = command(train, *setting, "experiment=digits_teacher", *SHORT)
    assert answer.code == 2
    assert re.search(r"folder cannot be made: .*file.*hydra\.run\.dir=", answer.err)
    assert "Traceback" not in answer.err
    assert left_behind(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["[v1] first", "it's, a=b :x: $HOME"])
def test_the_last_line_works_when_it_is_pasted(name: str, command: Command, tmp_path: Path) -> None:
    """Also where the folder's name has what rich, Hydra or the shell would take for something else."""
    hydra = name.replace("'", "\\'")
    answer = command(train, "experiment=digits_teacher", "debug=fdr", *SHORT[1:], f"hydra.run.dir='out/{hydra}'")
    assert answer.code == 0, answer.err
    line = answer.out.splitlines()[-1]
    echoed = subprocess.run(
        ["sh", "-c", line.replace("distill-evaluate", "printf %s", 1)], capture_output=True, text=True
    )
    (argument,) = [echoed.stdout]
    proof = command(evaluate, argument)
    assert proof.code == 0, (line, proof.err)
    assert re.search(r"test score 0\.\d+, recorded", proof.out)


def test_a_run_and_the_proof_of_it(command: Command, teacher: Path, tmp_path: Path) -> None:
    answer = command(train, *DEMO, f"teachers.main.weights='{teacher}'", "seed=2")
    assert (answer.code, answer.err) == (0, "")
    folder = run_folder(tmp_path)
    assert re.fullmatch(r"outputs/digits_demo/kd_seed2_[\d_-]+", folder.relative_to(tmp_path).as_posix())
    assert not list(folder.glob("*.log")), "nothing was logged"
    record = RunRecord.read(folder)
    score = f"{record.metrics['last']['test_score']:.4f}"
    assert re.search(rf"kd seed 2: test score {score}, validation 0\.\d+", answer.out)
    for shown in ("Networks", "Scale of the losses", "Teacher 'main': accuracy 0."):
        assert shown in answer.out, "only the bar is hidden"
    copied = answer.out.splitlines()[-1].split()
    assert copied[0] == "distill-evaluate"
    before = left_behind(tmp_path)
    proof = command(evaluate, *copied[1:])
    assert proof.code == 0
    assert proof.out.splitlines() == [
        f"kd seed 2: test score {score}, recorded {score}",
        "tolerance: 0 of 797 samples (scored on cpu then and now)",
    ]
    assert command(evaluate, *copied[1:], "split=val").code == 0
    assert left_behind(tmp_path) == before

    weights = load_file(folder / "student.safetensors")
    weights["head.bias"] += 1e-3
    save_file(weights, folder / "student.safetensors")
    assert_refused(command(evaluate, *copied[1:]), r"does not hold the weights that the run exported")


def test_a_sweep_has_a_readable_folder_for_each_job(command: Command, teacher: Path, tmp_path: Path) -> None:
    given = [*DEMO, f"teachers.main.weights='{teacher}'", "loss/response=[kd],[dkd]", "seed=1"]
    assert command(train, "-m", *given).code == 0
    (sweep,) = (tmp_path / "outputs" / "digits_demo").iterdir()
    assert re.fullmatch(r"sweep_[\d_-]+", sweep.name)
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0_kd_seed1", "1_dkd_seed1"]
    for method in ("kd", "dkd"):
        (folder,) = sweep.glob(f"*_{method}_seed1")
        record = RunRecord.read(folder)
        assert (record.method, record.seed, record.status) == (method, 1, "finished")
        assert f"loss/response=[{method}]" in record.overrides
        cfg = OmegaConf.load(folder / "config.yaml")
        assert list(cfg.loss) == [method]
        assert cfg.paths.run == str(folder)
        assert command(evaluate, f"run='{folder}'").code == 0


@pytest.mark.filterwarnings("error:.*starts again")
def test_resuming_from_the_command_line(command: Command, teacher: Path, tmp_path: Path) -> None:
    saved = "callbacks.checkpoint_last.every_n_epochs=1"
    assert command(train, *DEMO, f"teachers.main.weights='{teacher}'", saved).code == 0
    folder, before = run_folder(tmp_path), left_behind(tmp_path)
    answer = command(train, f"resume={folder.relative_to(tmp_path)}", "loss.kd.temperature=2")
    assert_refused(answer, r"config from its folder, and loss\.kd\.temperature=2 is not part of it")
    assert left_behind(tmp_path) == before
    answer = command(train, f"resume={folder.relative_to(tmp_path)}")
    assert answer.code == 0
    assert "holds this very run, finished: kept" in answer.out
    assert left_behind(tmp_path) == before
    finished = RunRecord.read(folder)
    replace(finished, status="running").write(folder)  # as if it was killed while it was scored
    assert command(train, f"resume={folder.relative_to(tmp_path)}").code == 0
    again = RunRecord.read(folder)
    assert (again.status, again.metrics) == (finished.status, finished.metrics)
    assert (again.config_hash, again.overrides) == (finished.config_hash, finished.overrides)
    assert len([*tmp_path.rglob(RECORD)]) == 1


def begin(folder: Path, teacher: Path) -> "subprocess.Popen[str]":
    """A run of several epochs in a process of its own, which goes on when the first is saved."""
    given = [*DEMO, f"teachers.main.weights='{teacher}'", f"hydra.run.dir='{folder}'", "trainer.max_epochs=150"]
    given += ["loss/feature=[hint]", "callbacks.checkpoint_last.every_n_epochs=1"]
    command = [sys.executable, "-m", "distillery.commands.train", *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=folder.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


@pytest.mark.long
def test_a_killed_process_is_resumed(command: Command, teacher: Path, tmp_path: Path) -> None:
    killed = begin(tmp_path / "killed", teacher)
    killed.send_signal(signal.SIGSTOP)
    before = (tmp_path / "killed" / "config.yaml").read_bytes()
    another = command(train, *DEMO, f"teachers.main.weights='{teacher}'", f"hydra.run.dir='{tmp_path / 'killed'}'")
    assert_refused(another, r"killed is in use: another process runs a job in it")
    assert_refused(command(train, f"resume={tmp_path / 'killed'}"), r"killed is in use")
    assert (tmp_path / "killed" / "config.yaml").read_bytes() == before
    killed.kill()
    killed.communicate()
    assert RunRecord.read(tmp_path / "killed").status == "running"
    assert command(train, f"resume={tmp_path / 'killed'}").code == 0
    whole = begin(tmp_path / "whole", teacher)
    assert whole.communicate()[1] == ""
    assert whole.returncode == 0
    for file in ("student.safetensors", "predictions.npz"):
        assert sha256(tmp_path / "killed" / file) == sha256(tmp_path / "whole" / file), file


@pytest.mark.slow
def test_an_interrupted_run_says_so(teacher: Path, tmp_path: Path) -> None:
    process = begin(tmp_path / "run", teacher)
    process.send_signal(signal.SIGINT)
    shown = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in "".join(shown)
    assert f"To resume it: distill-train resume={tmp_path / 'run'}\n" in shown[0]
    record = RunRecord.read(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "KeyboardInterrupt: ")
    assert not (tmp_path / "run" / "student.safetensors").exists()
