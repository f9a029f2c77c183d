"""What the commands refuse: exit code 2, one message, no traceback, and nothing is left behind."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import HydraException
from safetensors.torch import save_file

from distillery.commands import evaluate, export, report, study, train
from distillery.config.explain import user_message
from distillery.models.cnn import SmallCNN
from fixtures.command_line import DEMO, Answer, Command, assert_refused, left_behind
from fixtures.datasets import write_image_folder

PICTURES = (*DEMO, "data=image_folder", "data.num_workers=0", "data.train_size=null", "data.batch_size=4")
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
