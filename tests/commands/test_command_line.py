"""The commands as a user meets them: what they answer, what they refuse and how, what they leave behind."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from distillery.commands import evaluate, export, report, study, train
from distillery.commands.entry import heavy_imports
from distillery.config.explain import user_message
from distillery.core.paths import CONFIGS
from distillery.models.cnn import SmallCNN
from distillery.results.layout import RECORD
from distillery.results.record import RunRecord
from fixtures.command_line import Answer, Command
from fixtures.datasets import write_image_folder
from fixtures.runs import STUDENT, sha256

HEAVY = ("torch", "torchvision", "lightning", "timm", "sklearn", "scipy", "pandas", "matplotlib", "wandb", "numpy")
# Run in a process of its own: what a command answers, and on the last line what it imported for that.
LIGHT = f"""
import importlib, json, sys
sys.argv = sys.argv[1:]
try:
    importlib.import_module(f"distillery.commands.{{sys.argv[0].removeprefix('distill-')}}").main()
except SystemExit as exit:
    assert not exit.code, exit.code
print()
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""
SHORT = ("trainer.max_epochs=1", "logger=none", "trainer.enable_progress_bar=false")
DEMO = ("experiment=digits_demo", "min_teacher_score=0", *SHORT)
PICTURES = (*DEMO, "data=image_folder", "data.num_workers=0", "data.train_size=null", "data.batch_size=4")


def light(*command_line: str, **environment: str) -> str:
    """What a command answers in a process of its own, in which it imports nothing heavy."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *command_line], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    answer, _, heavy = done.stdout.rstrip("\n").rpartition("\n")
    assert json.loads(heavy) == []
    return answer


def completed(line: str) -> list[str]:
    """What TAB offers after `line`."""
    return light(line.split()[0], "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).split()


def left_behind(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def run_folder(below: Path) -> Path:
    (found,) = below.rglob(RECORD)
    return found.parent


# What is answered at once, and what begins soon.


def test_a_study_begins_without_what_few_runs_need() -> None:
    few = "{'timm', 'wandb', 'torchao', 'transformers.modeling_utils'}"
    code = f"import sys, distillery.runs.study; print({few} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_the_second_job_of_a_sweep_keeps_nothing_of_the_first() -> None:
    """The collector must be on afterwards, and reach what has become garbage since the first imports."""
    try:
        with heavy_imports():
            assert not gc.isenabled()
        former_job = Path("network")
        with heavy_imports():
            pass
        assert gc.isenabled()
        assert any(each is former_job for each in gc.get_objects())
    finally:
        gc.unfreeze()


def test_help_lists_every_option_of_every_group() -> None:
    shown = light("distill-train", "--help")
    choices, _, settings = shown.partition("== Config")
    groups = dict(re.findall(r"^([\w/]+): (.+)$", choices, re.MULTILINE))
    for path in CONFIGS.glob("*/**/*.yaml"):
        group = path.parent.relative_to(CONFIGS).as_posix()
        if group not in ("hydra", "study"):
            assert path.stem in groups[group].split(", "), path
    assert "temperature: 4.0" in settings


@pytest.mark.parametrize(
    ("name", "setting"),
    [("evaluate", "run"), ("predict", "top"), ("export", "out"), ("report", "runs"), ("study", "replace")],
)
def test_the_other_commands_help_with_what_is_theirs(name: str, setting: str) -> None:
    shown = light(f"distill-{name}", "--help")
    assert f"distill-{name}" in shown
    assert re.search(rf"^{setting}:", shown, re.MULTILINE)
    assert not re.search(r"^(experiment|loss/\w+):", shown, re.MULTILINE), "an option of distill-train"


def test_the_config_is_shown() -> None:
    shown = yaml.safe_load(light("distill-train", "--cfg", "job", "experiment=digits_demo", "seed=3"))
    assert (shown["seed"], shown["name"], shown["loss"]["kd"]["temperature"]) == (3, "digits_demo", 4.0)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("distill-train loss/response=lo", ["loss/response=logit_mse", "loss/response=logit_standardized_kd"]),
        ("distill-train experiment=digits_", ["experiment=digits_demo", "experiment=digits_teacher"]),
        ("distill-train loss.kd.temp", ["loss.kd.temperature="]),
        ("distill-evaluate sp", ["split="]),
    ],
)
def test_tab_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


# What is refused: exit code 2, one message, no traceback, and nothing is left behind.

TRAIN = [
    (["sede=1"], r"Unknown setting 'sede'\. Did you mean 'seed'"),
    (["+sede=1", "model/teacher=none"], r"Unknown setting 'sede'\. Did you mean 'seed'"),
    (["loss.kd.temprature=2"], r"Unknown setting 'loss\.kd\.temprature'\. Did you mean 'loss\.kd\.temperature'\?"),
    (["trainer.max_epoch=3"], r"Unknown setting 'trainer\.max_epoch'\. Did you mean 'trainer\.max_epochs'"),
    (["loss.kd.combine=best"], r"Unknown setting 'loss\.kd\.combine'\. .*behind a plus: \+loss\.kd\.combine="),
    (["temperature=2"], r"Unknown setting 'temperature'\. Did you mean 'loss\.kd\.temperature'\?"),
    (["loss.hint.weight=2"], r"Unknown setting 'loss\.hint'\. Choose it first: loss/feature=hint"),
    (["logger.wandb.project=x"], r"Unknown setting 'logger\.wandb'\. Choose it first: logger=wandb"),
    (["task=multi_label", "task.class_weights=balanced"], r"It is a setting of task=classification, segmentation, tok"),
    (["data.augment={crap: 1}"], r"Unknown setting 'data\.augment\.crap'\. Did you mean 'data\.augment\.crop'\?"),
    (["data.augment.mixup=0.2"], r"Unknown setting 'data\.augment\.mixup'\. .*behind a plus: \+data\.augment\.mixup="),
    (["data/augment=rbs"], r"Unknown option 'rbs' for data/augment\. Did you mean 'rsb'"),
    (["teacher=none"], r"Unknown setting 'teacher'\. Did you mean 'model/teacher'\?"),
    (["loss=kd"], r"Unknown setting 'loss'\. Did you mean .*'loss/response'"),
    (["loss/respons=kd"], r"Unknown setting 'loss/respons'\. Did you mean 'loss/response'\?"),
    (["loss/response=[kdd]"], r"Unknown option 'kdd' for loss/response\. Did you mean 'kd'"),
    (["loss/response=[kd,nothing_like_it]"], r"'nothing_like_it' for loss/response\. Choose from: akl, "),
    (["data=cifar"], r"Unknown option 'cifar' for data\. Did you mean 'cifar"),
    (["experiment=digit_demo"], r"Unknown option 'digit_demo' for experiment\. Did you mean 'digits_demo'"),
    (["experiment=cifar100/vgg13"], r"Unknown option 'vgg13' for experiment/cifar100\. Did you mean 'vgg13_vgg8'"),
    (["loss/response=[kd,kd]", "teachers.main.weights=x"], r"'kd' is named twice"),
    ([], r"no value yet: teachers\.main\.weights=…"),
    (["logger=null"], r"^error logger=null: name one of its options\. Did you mean 'none'\?$"),
    (["experiment/glue=mrpc"], r"^error Nothing of experiment/glue is chosen .* \+experiment/glue=… adds it\.$"),
    (
        ["optim=null"],
        r"^error optim=null: name one of its options\. Choose from: adamw, adamw_linear, sgd, sgd_steps\.$",
    ),
    (
        ["loss.kd=null", "teachers.main.weights=x"],
        r"loss\.kd=null: it must be a mapping\. To leave a loss out, do not choose it: loss/response=\[\]",
    ),
    (["teachers.main=null"], r"teachers\.main=null: it must be a mapping\. model/teacher=none is the baseline"),
    (
        ["data.batch_size=abc", "model/teacher=none"],
        r"data\.batch_size=abc: it must be a whole number of at least 1\.$",
    ),
    (["experiment=digit_demo", "-m", "seed=0,1"], r"^error Unknown option 'digit_demo' for experiment\. Did you mean"),
    (
        ["-m", "seed=0,1", "hydra/launcher=submitit"],
        r"'submitit' for hydra/launcher\. Did you mean 'submitit_",
    ),
    (["-m", "seed=0,1", "hydra/launcher=slurm"], r"'slurm' for hydra/launcher\. Did you mean 'submitit_slurm'\?"),
    (["-m", "seed=0,1", "hydra/launcher=rya"], r"'rya' for hydra/launcher\. Did you mean 'ray'\?"),
    (["seed"], r"Error parsing override 'seed'"),
    (["resume=nowhere"], r"nowhere is not a run folder"),
    (["experiment=digits_demo"], r"no config\.yaml in it\. .*train the network first: distill-study study=digits_demo"),
    (
        ["experiment=digits_demo", "plan=true"],
        r"teachers\.main\.weights: .* is not a run folder: .* Name another folder, or",
    ),
    (
        ["stages=fitnets", "trainer.max_steps=5", "teachers.main.weights=x"],
        r"trainer\.max_steps: stages have lengths of their own, stages\.<name>\.steps",
    ),
    (
        ["stages=fitnets", "stages.hint.los={}"],
        r"Unknown setting 'stages\.hint\.los'\. Did you mean 'stages\.hint\.loss'\? .* plus: \+stages\.hint\.los=…$",
    ),
]
OTHERS = [
    (evaluate, [], r"Which run\? Name a run folder"),
    (evaluate, ["run=nowhere"], r"nowhere is not a run folder"),
    (evaluate, ["run=x", "data.root=y", "stride=8"], r"data\.\* and stride exclude each other"),
    (evaluate, ["runs=x"], r"Unknown setting 'runs'\. Did you mean 'run'\?"),
    (export, [], r"Which run\? Name a run folder"),
    (export, ["run=nowhere"], r"nowhere is not a run folder"),
    (export, ["run=x", "outt=y"], r"Unknown setting 'outt'\. Did you mean 'out'\?"),
    (report, [], r"Which runs\?"),
    (report, ["runs=nowhere"], r"nowhere is not a folder"),
    (study, [], r"Which study\?.* digits_demo"),
    (study, ["study=digit_demo"], r"Unknown option 'digit_demo' for study\. Did you mean 'digits_demo'\?"),
    (study, ["study=own_texts"], r"These settings have no value yet: path=…, teacher_net=…"),
    (study, ["study=own_images"], r"These settings have no value yet: data\.root=…"),
    (study, ["study=digits_demo", "seed=1"], r"Unknown setting 'seed'\. Did you mean 'seeds'\?"),
    (
        study,
        ["study=digits_demo", "hardware=auto"],
        r"setting of the study's runs\. Write 'overrides=\[\"hardware=auto\"\]'$",
    ),
    (study, ["study=digits_demo", "+hardware=auto"], r"^error hardware is a setting of the study's runs\. Write "),
    (study, ["study=digits_demo", "trainer.max_epochs=1"], r"Write 'overrides=\[\"trainer\.max_epochs=1\"\]'$"),
    (study, ["study=digits_demo", "+overides=[]"], r"Unknown setting 'overides'\. Did you mean 'overrides'\?"),
    (evaluate, ["run=x", "hardware=auto"], r"Unknown setting 'hardware'\. `--cfg job` shows all there are\.$"),
    (report, ["runs=x", "+titel=a"], r"Unknown setting 'titel'\. Did you mean 'title'\?"),
]


def assert_refused(answer: Answer, message: str) -> None:
    assert answer.code == 2, answer
    assert re.search(message, answer.err), answer.err
    assert "Traceback" not in answer.err
    assert answer.out.strip() == ""  # a progress bar that was removed leaves an empty line


@pytest.mark.parametrize(("arguments", "message"), TRAIN)
def test_training_is_refused(arguments: list[str], message: str, command: Command, tmp_path: Path) -> None:
    assert_refused(command(train, *arguments), message)
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(("module", "arguments", "message"), OTHERS)
def test_the_others_refuse(module: Any, arguments: list[str], message: str, command: Command, tmp_path: Path) -> None:
    assert_refused(command(module, *arguments), message)
    assert left_behind(tmp_path) == []


def test_launchers_that_are_not_there_say_what_is_missing() -> None:
    absent = HydraException("In 'hydra/config': Could not find 'hydra/launcher/ray'\n")
    assert user_message(absent, "train") == "hydra/launcher=ray is not installed: pip install hydra-ray-launcher"
    no_cluster = RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?')
    assert "hydra/launcher=submitit_local" in str(user_message(no_cluster, "train"))
    assert user_message(RuntimeError("another"), "train") is None


def missing(folder: Path) -> list[str]:
    return [f"teachers.main.weights='{folder / 'no.pth'}'"]


def torn(folder: Path) -> list[str]:
    save_file({"head.bias": torch.zeros(10)}, folder / "net.safetensors")
    (folder / "net.safetensors").write_bytes((folder / "net.safetensors").read_bytes()[:-8])
    return [f"teachers.main.weights='{folder / 'net.safetensors'}'"]


def foreign(folder: Path) -> list[str]:
    torch.save(torch.nn.Linear(3, 10).state_dict(), folder / "net.pth")
    return [f"teachers.main.weights='{folder / 'net.pth'}'"]


def three_classes(folder: Path) -> list[str]:
    torch.save(SmallCNN(num_classes=3, in_chans=1).state_dict(), folder / "net.pth")
    return [
        f"teachers.main.weights='{folder / 'net.pth'}'",
        "teachers.main.net.widths=[16,32]",
        "+teachers.main.net.num_classes=3",
    ]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (missing, r"There is no file .*no\.pth"),
        (torn, r"net\.safetensors \(\d+ bytes\) cannot be read.*corrupt or cut off"),
        (foreign, r"net\.pth does not fit the SmallCNN .*missing.*unexpected \(weight, bias\)"),
        (three_classes, r"The main network gives logits \(8, 3\) where the task has 10 classes"),
    ],
)
def test_a_teachers_file(prepare: Callable[[Path], list[str]], message: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    given = ["model/teacher=cnn", *prepare(tmp_path / "weights")]
    before = left_behind(tmp_path)
    assert_refused(command(train, *DEMO, *given), message)
    assert left_behind(tmp_path) == before


def test_a_teacher_of_other_data(command: Command, teacher: Path, tmp_path: Path) -> None:
    write_image_folder(tmp_path / "pictures", {"train": 6, "val": 2, "test": 2}, shape=(8, 8))
    given = ["data.root=pictures", "data.source.size=8", f"teachers.main.weights='{teacher}'"]
    before = left_behind(tmp_path)
    assert_refused(command(train, *PICTURES, *given), r"The main network cannot read a batch of images \(4, 3, 8, 8\)")
    assert left_behind(tmp_path) == before


def no_class(root: Path) -> None:
    (root / "train").mkdir(parents=True)


def one_class(root: Path) -> None:
    write_image_folder(root, classes=["ant"])


def empty_class(root: Path) -> None:
    write_image_folder(root)
    for path in (root / "val" / "bee").iterdir():
        path.unlink()


def truncated(root: Path) -> None:
    write_image_folder(root)
    path = root / "train" / "cat" / "0005.png"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda _: None, r"The image folder 'pictures' does not exist"),
        (no_class, r"'pictures.*' has (no class folder|'train' but neither)"),
        (one_class, r"'pictures/train' has only the class folder 'ant'"),
        (empty_class, r"'pictures/val/bee' has no image"),
        (truncated, r"'pictures/train/cat/0005\.png' cannot be decoded"),
    ],
)
def test_an_image_folder(write: Callable[[Path], None], message: str, command: Command, tmp_path: Path) -> None:
    write(tmp_path / "pictures")
    before = left_behind(tmp_path)
    assert_refused(command(train, *PICTURES, "model/teacher=none", "data.root=pictures"), message)
    assert left_behind(tmp_path) == before


VIT = ("model/student=timm", "student.net.model_name=test_vit", "+student.net.img_size=32", "student.input.size=32")
ATTENTION = ("loss/response=[]", "loss/attention=[attention_transfer]")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("{head: head}", r"loss\.attention_transfer: .*'head' \[8, 10\]"),
        ("{block.0: stages.0}", r"student network has no layer 'block\.0' .*Did you mean 'blocks\.0'"),
        ("{blocks.0: stage.0}", r"main network has no layer 'stage\.0' .*Did you mean 'stages\.0'"),
    ],
)
def test_attention_without_maps(layers: str, message: str, command: Command, teacher: Path, tmp_path: Path) -> None:
    given = [f"teachers.main.weights='{teacher}'", f"loss.attention_transfer.layers={layers}"]
    assert_refused(command(train, *DEMO, *VIT, *ATTENTION, *given), message)
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_what_a_shell_sees_of_a_refusal(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "distill-train"
    for arguments, message in ((["+sede=1", "model/teacher=none"], "'sede'"), ([*DEMO], "no config.yaml in it")):
        done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert_refused(Answer(done.returncode, done.stdout, done.stderr), message)
        assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.root=bilder/größe", r"""Hydra cannot read this value\. Write "data\.root='bilder/größe'"$"""),
        ("data.root=a=b", r"""Write "data\.root='a=b'"$"""),
        ("+student.net={x: ö}", r"Put the texts in it between quotes\.$"),
        ("data.root=a,b", r"""with -m\. Write 'data\.root=\[a,b\]' for a list, "data\.root='a,b'" for a text\.$"""),
    ],
)
def test_values_that_hydra_cannot_read(argument: str, message: str, command: Command, tmp_path: Path) -> None:
    assert_refused(command(train, argument), message)
    assert left_behind(tmp_path) == []


def test_a_reader_that_has_seen_enough() -> None:
    """As `distill-train --help | head -1`."""
    code = "from distillery.commands.train import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0


# What is done.


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
