"""A student that reuses the teacher's classifier (SimKD): its config completed, and the classifier handed over."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor, nn

from distillery.config.networks import adapter, build_teacher
from distillery.core.errors import UserError
from distillery.core.numerics import common_size
from distillery.core.roles import FROZEN, role_of
from distillery.models.simkd import SimKD
from distillery.models.taps.network import Network
from distillery.models.taps.pooled_map import pooled_map
from distillery.teachers.frozen import Teacher

TEACHER = "main"  # whose classifier it is
TARGET = f"{SimKD.__module__}.{SimKD.__qualname__}"


def complete_reuse(cfg: DictConfig, teachers: Mapping[str, Any], batch: Mapping[str, Tensor]) -> DictConfig:
    """The student's config with what SimKD takes from teacher and backbone; any other student's as it is.

    Both are built for that, and thrown away.

    Raises:
        UserError: no teacher to take the classifier from; a network without a map that its head averages.
    """
    if cfg.net._target_ != TARGET or cfg.net.get("features") is not None:
        return cfg
    if TEACHER not in teachers or role_of(teachers[TEACHER]) != FROZEN:
        raise UserError(
            f"The student reuses the classifier of teachers.{TEACHER}, and there is no such teacher that is frozen. "
            "Name one with model/teacher, or take another student."
        )
    teacher = build_teacher(teachers[TEACHER], TEACHER)
    net = instantiate(cfg.net.backbone)(num_classes=cfg.net.num_classes, in_chans=cfg.net.in_chans)
    backbone = Network(net, adapter(cfg, net), name="student")
    ours, theirs = pooled_map(backbone, batch), pooled_map(teacher, batch)
    own, other = backbone.layers(batch)[ours], teacher.layers(batch)[theirs]
    cfg = cfg.copy()
    size = common_size(own, other)
    with open_dict(cfg):
        cfg.net.features, cfg.net.head, cfg.net.width = ours, backbone.head(batch), own[1]
        cfg.net.teacher_width, cfg.net.grid = other[1], None if size == own[2:] else list(size)
    return cfg


def reuse_classifier(student: Network, teachers: Mapping[str, Teacher], batch: Mapping[str, Tensor]) -> None:
    """Give SimKD the teacher's classifier; nothing to any other student, nor where no teacher is left.

    Raises:
        UserError: the student, of a finished run, was made for another teacher's classifier.
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
