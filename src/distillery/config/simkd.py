"""A student that reuses the teacher's classifier (SimKD): its config completed, and the classifier handed over."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from distillery.config.loaded_teachers import LoadedTeachers
from distillery.config.networks import adapter
from distillery.core.errors import UserError
from distillery.core.numerics import common_size
from distillery.core.roles import FROZEN, role_of
from distillery.models.simkd import SimKD
from distillery.models.taps.network import Network
from distillery.models.taps.pooled_map import pooled_map
from distillery.teachers.frozen import Teacher

TEACHER = "main"  # whose classifier it is
TARGET = f"{SimKD.__module__}.{SimKD.__qualname__}"


def complete_reuse(
    cfg: DictConfig, teachers: Mapping[str, Any], batch: Mapping[str, Tensor], loaded: LoadedTeachers
) -> tuple[DictConfig, dict[str, Callable[..., nn.Module]]]:
    """The student's config with the shapes that SimKD takes from teacher and backbone; any other student's as it is.

    The teacher leaves no trace in the random numbers, so that the backbone begins as it would without one.

    Args:
        cfg, teachers: completed configs.

    Returns: the config, and the backbone that was made for it, as the setting `backbone` of the student's network.

    Raises:
        UserError: there is no teacher to take the classifier from, or a network's head averages no map.
    """
    if cfg.net._target_ != TARGET or cfg.net.get("features") is not None:
        return cfg, {}
    if TEACHER not in teachers or role_of(teachers[TEACHER]) != FROZEN:
        raise UserError(
            f"The student reuses the classifier of teachers.{TEACHER}, and there is no such teacher that is frozen. "
            "Name one with model/teacher, or choose another student."
        )
    with torch.random.fork_rng(devices=[]):
        teacher = loaded.load(teachers[TEACHER], TEACHER)
    net = instantiate(cfg.net.backbone)(num_classes=cfg.net.num_classes, in_chans=cfg.net.in_chans)
    backbone = Network(net, adapter(cfg, net), name="student")
    ours, theirs = pooled_map(backbone, batch), pooled_map(teacher, batch)
    own, other = backbone.layers(batch)[ours], teacher.layers(batch)[theirs]
    cfg = cfg.copy()
    size = common_size(own, other)
    with open_dict(cfg):
        cfg.net.features, cfg.net.head, cfg.net.width = ours, backbone.head(batch), own[1]
        cfg.net.teacher_width, cfg.net.grid = other[1], None if size == own[2:] else list(size)
    return cfg, {"backbone": lambda **_: net}


def reuse_classifier(student: Network, teachers: Mapping[str, Teacher], batch: Mapping[str, Tensor]) -> None:
    """Copy the teacher's classifier into a SimKD student. Does nothing to other students, or without a teacher.

    Raises:
        UserError: the student comes from a finished run and was made for another teacher's classifier.
    """
    if not isinstance(student.net, SimKD) or TEACHER not in teachers:
        return
    teacher = teachers[TEACHER]
    head = teacher.net.get_submodule(teacher.head(batch))
    assert isinstance(head, nn.Linear)
    if head.weight.shape != student.net.head.weight.shape:
        raise UserError(
            f"The student has a place for a classifier {list(student.net.head.weight.shape)}, and that of "
            f"teachers.{TEACHER} is {list(head.weight.shape)}. Name the teacher that the student was made for, or set "
            "student.net.features and what follows it to null."
        )
    student.net.reuse(head)
