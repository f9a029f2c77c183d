"""Each student and teacher file for images composes at its place, and its `_target_` builds by timm's convention."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs"
# Those of texts: tests/models/text/test_text_model_configs.py
TEXTS = {"transformer", "encoder", "bilstm", "causal_lm", "pretrained_lm"}
STUDENTS = sorted({path.stem for path in (CONFIGS / "model" / "student").glob("*.yaml")} - TEXTS)
TEACHERS = sorted({path.stem for path in (CONFIGS / "model" / "teacher").glob("*.yaml")} - TEXTS)
NAMES = {  # files that leave the name open
    "timm": {"model_name": "resnet10t"},
    "hf_vision": {"model": "convnext"},
    "hf_segmentation": {"model": "segformer"},
}
MAPS = {"fcn": (32, 32), "hf_segmentation": (8, 8)}  # logits of pixels
WHOLE = {"clip_zero_shot"}  # built from weights alone: tests/models/test_hf_vision.py
# What a student takes from its teacher, which there is none of here.
REUSED = {"simkd": {"features": "stages.1", "head": "head", "width": 32, "teacher_width": 8}}
WITHOUT_WEIGHTS = {
    "ema": {"role", "decay"},
    "peer": {"role", "net", "input"},
    "self": {"role"},
    "stored": {"role", "path", "classes", "temperature", "missing"},
    "served": {"role", "url", "model", "k", "cache", "client"},
    "answers": {"role", "path", "k"},
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=list(overrides))


@pytest.mark.parametrize("choice", STUDENTS)
def test_student(choice: str) -> None:
    student = composed(f"+model/student={choice}").student
    assert student.keys() - {"new_head", "qat"} == {"net", "weights", "input"}
    build(student.net, choice)


@pytest.mark.parametrize("choice", TEACHERS)
def test_teacher(choice: str) -> None:
    teachers = composed(f"+model/teacher={choice}").teachers
    if choice == "none":
        assert teachers.main == {"none": True}  # leaves no network, whatever an experiment adds beside it
        return
    assert list(teachers) == ["main"]
    if choice in WITHOUT_WEIGHTS:
        assert teachers.main.keys() == WITHOUT_WEIGHTS[choice]
        assert teachers.main.role == choice
        return
    settings = {"net", "weights", "input", "bn_mode", "classes", "precision", "placement", "cache"}
    assert teachers.main.keys() - {"prompt"} == settings
    assert teachers.main.bn_mode == "eval"
    assert OmegaConf.is_missing(teachers.main, "weights") or teachers.main.weights == "pretrained"
    if choice not in WHOLE | {"run"}:
        build(teachers.main.net, choice)


def build(net: DictConfig, choice: str) -> None:
    if choice in NAMES:
        assert all(OmegaConf.is_missing(net, name) for name in NAMES[choice])
        net.update(NAMES[choice])
    net.update(REUSED.get(choice, {}))
    with torch.device("meta"):
        built = instantiate(net, num_classes=7, in_chans=1)
        output = built.eval()(torch.empty(2, 1, 32, 32))
        assert getattr(output, "logits", output).shape == (2, 7, *MAPS.get(choice, ()))
