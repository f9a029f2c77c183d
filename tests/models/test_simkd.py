import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.vision import VisionData
from distillery.models.adapters import ImageAdapter
from distillery.models.cifar import create
from distillery.models.cnn import SmallCNN
from distillery.models.simkd import SimKD
from distillery.models.taps.network import Network
from distillery.models.weights import save_weights
from distillery.results.record import RunRecord
from distillery.runs.job import resumed
from distillery.runs.run import train
from distillery.runs.verify_run import verify_run
from distillery.tasks.classification import Classification
from distillery.tasks.evaluate import evaluate
from fixtures.building import build
from fixtures.runs import Died, Dies, config, sha256, train_student

ALONE = ("model/student=simkd", "loss/response=[]", "loss/feature=[simkd]", "task.weight=0", "trainer.max_epochs=8")


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a student trained for eight epochs."""
    return train_student(tmp_path_factory.mktemp("simkd") / "run", teacher, *ALONE).folder


def student_of(folder: Path) -> SimKD:
    """By its config and its export, with no code of training."""
    net: SimKD = instantiate(OmegaConf.load(folder / "config.yaml").student.net)
    net.load_state_dict(load_file(folder / "student.safetensors"))
    return net.eval()


def digits(folder: Path) -> tuple[VisionData, dict[str, Tensor]]:
    data = instantiate(OmegaConf.load(folder / "config.yaml").data)
    return data, next(iter(data.test_dataloader()))


def normalised(folder: Path, image: Tensor) -> Tensor:
    adapter = OmegaConf.load(folder / "config.yaml").student.input
    return (image - torch.tensor(list(adapter.mean))[:, None, None]) / torch.tensor(list(adapter.std))[:, None, None]


def test_export_carries_projector_and_the_teachers_classifier(run: Path, teacher: Path) -> None:
    exported, theirs = load_file(run / "student.safetensors"), load_file(teacher / "student.safetensors")
    assert torch.equal(exported["head.weight"], theirs["head.weight"])
    assert torch.equal(exported["head.bias"], theirs["head.bias"])
    assert not [name for name in exported if name.startswith("backbone.head")]
    assert [name for name in exported if name.startswith("projector.")]


def test_logits_are_the_teachers_head_on_the_projected_map(run: Path, teacher: Path) -> None:
    """Of a backbone rebuilt apart, up to its last stage."""
    net = student_of(run)
    exported, theirs = load_file(run / "student.safetensors"), load_file(teacher / "student.safetensors")
    backbone = SmallCNN(10, 1, (16, 32))
    stages = {name.removeprefix("backbone."): value for name, value in exported.items() if "backbone.stages" in name}
    assert backbone.load_state_dict(stages, strict=False).missing_keys == ["head.weight", "head.bias"]
    backbone.eval()
    x = normalised(run, digits(run)[1]["image"])
    with torch.no_grad():
        features = backbone.stages[1](torch.nn.functional.max_pool2d(backbone.stages[0](x), 2))
        small = features.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))  # 4×4 → the teacher's 2×2
        projected = net.projector(small).mean((2, 3))
        by_hand = projected @ theirs["head.weight"].T + theirs["head.bias"]
        torch.testing.assert_close(net(x), by_hand)
    assert by_hand.argmax(1).unique().numel() > 2


def test_score_is_proved_from_the_folder_alone(run: Path, tmp_path: Path, teacher: Path) -> None:
    """The teacher and its folder are not needed."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("student.safetensors", "run.json"):
        (moved / name).write_bytes((run / name).read_bytes())
    there = (run / "config.yaml").read_text().replace(str(teacher), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(there)
    recorded = RunRecord.read(run).metrics["last"]["test_score"]
    assert verify_run(moved).score == recorded
    data, _ = digits(run)
    adapter = OmegaConf.load(run / "config.yaml").student.input
    network = Network(student_of(run), ImageAdapter(list(adapter.mean), list(adapter.std)))
    assert evaluate(network, data.test_dataloader(), Classification(), 10).score == recorded


def test_costs_are_those_of_the_whole(run: Path) -> None:
    cost = json.loads((run / "run.json").read_text())["cost"]
    backbone = 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32
    projector = 32 * 32 + 9 * 32 * 32 + 32 * 64 + 2 * (32 + 32 + 64)
    assert cost["params"] == backbone + projector + 64 * 10 + 10
    macs = 64 * 9 * 16 + 16 * 9 * 16 * 32 + 4 * (32 * 32 + 9 * 32 * 32 + 32 * 64) + 64 * 10
    assert cost["flops"] == 2 * macs


def test_training_moves_all_but_the_classifier(teacher: Path, tmp_path: Path) -> None:
    overrides = ["experiment=digits_demo", "min_teacher_score=0", f"teachers.main.weights='{teacher}'", *ALONE]
    fresh = build(config(tmp_path / "run", *overrides)).distiller
    trained = {name for name, _ in fresh.trainable()}
    parameters = {f"student.net.{name}" for name, _ in fresh.student.net.named_parameters()}
    assert parameters - trained == {"student.net.head.weight", "student.net.head.bias"}


def test_it_is_learnt(run: Path) -> None:
    """By the distance of features alone."""
    lines = (run / "metrics" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/simkd")
    values = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert values[-1] < 0.7 * values[0]
    assert RunRecord.read(run).metrics["last"]["test_score"] > 0.25


@pytest.mark.slow
def test_resumed_run_ends_bit_equal(run: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(Died):
        train_student(tmp_path / "again", teacher, *ALONE, callbacks=[Dies(55)])
    folder = train(resumed(tmp_path / "again", [])).folder
    assert sha256(folder / "student.safetensors") == sha256(run / "student.safetensors")


def test_it_teaches(run: Path, tmp_path: Path) -> None:
    parts = build(
        config(tmp_path / "next", "experiment=digits_demo", "min_teacher_score=0", f"teachers.main.weights='{run}'")
    )
    x = parts.example["image"]
    with torch.no_grad():
        expected = student_of(run)(normalised(run, x))
    torch.testing.assert_close(parts.distiller.teachers["main"](parts.example).logits, expected)


def test_no_teacher_is_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run", "experiment=digits_demo", "model/teacher=none", "model/student=simkd")
    with pytest.raises(
        UserError, match=r"reuses the classifier of teachers.main, and there is no such teacher that is frozen"
    ):
        build(cfg)


def test_other_teacher_is_refused(run: Path, tmp_path: Path) -> None:
    """With the network of a finished run, whose projector fits the classifier of its own teacher."""
    other = tmp_path / "other.safetensors"
    save_weights(SmallCNN(10, 1, (8, 16)), other)
    cfg = config(tmp_path / "run", "experiment=digits_demo", "model/teacher=cnn", f"teachers.main.weights='{other}'")
    cfg.teachers.main.net.widths = [8, 16]
    cfg.student = OmegaConf.load(run / "config.yaml").student
    with pytest.raises(UserError, match=r"a classifier \[10, 64\], and that of teachers.main is \[10, 16\]"):
        build(cfg)


def test_plain_student_is_refused(teacher: Path, tmp_path: Path) -> None:
    given = ("experiment=digits_demo", f"teachers.main.weights='{teacher}'", "min_teacher_score=0", *ALONE[1:])
    with pytest.raises(UserError, match=r"loss.simkd: .*cannot compare .*model/student=simkd"):
        build(config(tmp_path / "run", *given))


def simkd(**settings: object) -> SimKD:
    """On a wide ResNet, whose head averages more than its last stage gives."""
    torch.manual_seed(0)
    backbone = partial(create, "wrn_16_2")
    given = {"features": "act", "head": "head", "width": 128, "teacher_width": 24, "grid": [4, 4]} | settings
    return SimKD(10, backbone, **given)  # type: ignore[arg-type]


def test_copy_does_not_share_the_map() -> None:
    net = simkd().eval()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.backbone.stem.weight.zero_()
        x = torch.randn(2, 3, 32, 32)
        before, of_twin = net(x), twin(x)
        assert torch.equal(net(x), before)
        assert not torch.equal(of_twin, before)


@pytest.mark.parametrize("factor", [2, 8])
def test_projector(factor: int) -> None:
    net = simkd(factor=factor)
    middle = 24 // factor
    expected = 128 * middle + 9 * middle * middle + middle * 24 + 2 * (2 * middle + 24)
    assert sum(parameter.numel() for parameter in net.projector.parameters()) == expected
    assert net.projector(torch.randn(2, 128, 4, 4)).min() >= 0


def test_classifier_without_bias_is_reused() -> None:
    net, head = simkd(), torch.nn.Linear(24, 10, bias=False)
    net.reuse(head)
    assert torch.equal(net.head.weight, head.weight)
    assert not net.head.bias.any()
    assert not net.head.weight.requires_grad


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UserError, match=r"reuses a teacher's classifier, and there is none. Name the teacher"):
        SimKD(10, SmallCNN)
    with pytest.raises(UserError, match="factor=25: it must be from 1 to the teacher's width, 24"):
        simkd(factor=25)
