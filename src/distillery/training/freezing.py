"""Which parameters of the student a stage trains: those that it names and an active loss reaches."""

import copy
from collections.abc import Container, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.models.evaluation_mode import in_evaluation_mode
from distillery.teachers.frozen import BatchNorm
from distillery.training.distiller import Distiller


def freeze_rest(module: Distiller, wildcards: Sequence[str] | None, batch: Mapping[str, Tensor]) -> None:
    """Freeze the student's parameters that match none of the wildcards, and those that no active loss reaches.

    A BatchNorm whose parameters are frozen is put in evaluation mode, so that its statistics do not change either. A
    loss is active if its weight is not 0 or has a schedule.

    Args:
        wildcards: for the names of parameters, such as `layer1.*`; None: all.
        batch: a few samples, on which the losses are computed.

    Raises:
        UserError: a wildcard matches no parameter, or nothing is left to train.
    """
    net = module.student.net
    named = dict(net.named_parameters())
    for wildcard in wildcards or ():
        if not any(fnmatchcase(name, wildcard) for name in named):
            parts = [path for path, _ in net.named_modules() if path]
            raise UserError(
                f"train: no parameter of the student matches {wildcard!r}."
                + did_you_mean(wildcard.removesuffix(".*"), [*parts, *named])
                + " '<layer>.*' stands for all parameters of a layer."
            )
    reached = _reached(module, batch)
    for name, parameter in named.items():
        chosen = wildcards is None or any(fnmatchcase(name, wildcard) for wildcard in wildcards)
        parameter.requires_grad_(chosen and name in reached)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError(
            "Nothing of the student would be trained: no loss with a weight other than 0 reaches "
            + (f"the parameters of train={list(wildcards)}." if wildcards else "any of its parameters.")
        )
    for part in net.modules():
        own = list(part.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            for each in part.modules():
                if isinstance(each, BatchNorm):
                    each.eval()


def thaw(student: nn.Module, trainable: Container[str]) -> None:
    """Train the parameters of these names and no others, with every module in training mode."""
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in trainable)
    student.train()


def _reached(module: Distiller, batch: Mapping[str, Tensor]) -> set[str]:
    """The names of the student's parameters that get a gradient from an active loss. Changes nothing."""
    named = {name: each for name, each in module.student.net.named_parameters() if each.requires_grad}
    # New losses are not yet in the precision of the run, and the student of an earlier stage is. A copy of them, since
    # memory banks keep what they are given.
    objective = copy.deepcopy(module.objective).to(next(module.student.net.parameters()).dtype)
    with in_evaluation_mode(module.student), torch.random.fork_rng(devices=[]):
        student = module.student(batch)
        others = {name: each(batch) for name, each in module.teachers.items() if each is not module.student}
        losses = objective(student, dict.fromkeys(module.teachers, student) | others, batch)
        active = [
            loss
            for name, loss in losses.raw.items()
            if (losses.weights[name] != 0 or f"{name}.weight" in objective.schedules) and loss.requires_grad
        ]
        if not active:
            return set()
        found = torch.autograd.grad(sum(active, torch.zeros(())), list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is not None}
