"""Proves that a teacher is fit to teach, and that training has not changed it."""

import warnings
from functools import partial

import lightning as L
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from distillery.core.errors import UserError
from distillery.tasks.evaluate import Evaluation, evaluate
from distillery.teachers.cache import evaluated_once
from distillery.training.distiller import Distiller


class TeacherGuard(L.Callback):
    """Scores each teacher on the student's own validation batches before the first step; compares hashes at the end.

    The same in each stage.

    Only the frozen ones: the others change with the student, and know nothing at first.

    Args:
        min_score: refuse a teacher that scores less; one that is the student of an earlier stage may.

    Raises:
        UserError: a teacher below `min_score`.
        RuntimeError: a parameter or buffer of a teacher changed during the fit.
    """

    def __init__(self, min_score: float = 0.0) -> None:
        self.min_score = min_score
        self._fingerprints: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._fingerprints = {name: teacher.fingerprint() for name, teacher in module.frozen.items()}
        loader = trainer.datamodule.val_dataloader() or trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        data = trainer.datamodule  # type: ignore[attr-defined]
        classes = len(data.classes)
        for name, teacher in module.frozen.items():
            judge = partial(evaluate, teacher, loader, module.task, module.task.outputs(data))
            found = evaluated_once(teacher.cache, f"guard {type(module.task)} {vars(module.task)}", judge)
            chance = 1 / classes if found.predicted.shape == found.target.shape and classes else 0.0
            near_chance = chance > 0 and found.score < chance + 0.1 * (1 - chance)
            if found.score < self.min_score and name not in module.stage_teachers:
                raise UserError(
                    f"Teacher {name!r} scores {found.score:.3f} on the validation split, less than "
                    f"min_teacher_score={self.min_score}. "
                    + (likely_cause(found, classes) if near_chance else "Train it longer, or lower that bar.")
                )
            if near_chance:
                warnings.warn(
                    f"Teacher {name!r} scores {found.score:.3f} on the student's own validation batches, where chance "
                    f"gives {chance:.3f}. " + likely_cause(found, classes),
                    stacklevel=1,
                )

    def on_stage_start(self, trainer: L.Trainer, module: Distiller) -> None:
        self.on_train_start(trainer, module)

    def on_stage_end(self, trainer: L.Trainer, module: Distiller) -> None:
        self.on_fit_end(trainer, module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        for name, before in self._fingerprints.items():  # none, if the fit had no step left to train
            if module.frozen[name].fingerprint() != before:
                raise RuntimeError(f"Teacher {name!r} changed during the fit: its parameters or buffers differ.")


def likely_cause(found: Evaluation, classes: int) -> str:
    """Why a teacher may score badly: labels in another order, or inputs that it was not trained on."""
    confusion: Tensor = torch.zeros(classes, classes)
    confusion.index_put_((found.target, found.predicted), torch.ones(()), accumulate=True)
    rows, columns = linear_sum_assignment(-confusion.numpy())
    relabelled = confusion[rows, columns].sum().item() / len(found.target)
    used = int((confusion.sum(0) > 0).sum())
    if relabelled > max(0.5, 2 * found.score):
        return (
            f"Likely the labels: with the classes in another order it would score {relabelled:.3f}. "
            "Compare the class lists of the teacher's data set and of yours."
        )
    return (
        f"It predicts {used} of {classes} classes. Likely the inputs: check the teacher's normalisation and resolution "
        "(teachers.<name>.input: mean, std, size) and its weights."
    )
