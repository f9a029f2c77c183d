"""Checks that a teacher is good enough before training, and that training has not changed it."""

import warnings
from typing import Any

import lightning as L
import torch
from scipy.optimize import linear_sum_assignment

from distillery.core.errors import UserError
from distillery.core.terminal import say, telling
from distillery.data.module import Data
from distillery.tasks.evaluate import Evaluation
from distillery.teachers.frozen import Teacher
from distillery.teachers.linear_probe import LinearProbe, probe_of
from distillery.training.distiller import Distiller

FEW = 1000  # classes: finding the best order of more takes too long


class TeacherGuard(L.Callback):
    """Scores each frozen teacher on the student's validation batches before the first step of each stage.

    Without a validation split, or stored targets for it, it is scored on the labelled training samples, and where there
    are none not at all. A teacher that several stages share is scored once for each task and data set. One with other
    classes than the data is scored by a linear probe, and not at all where the task predicts no class. At the end of a
    stage the teachers' hashes are compared. Other teachers change with the student and know nothing at first: they are
    left alone.

    Args:
        min_score: refuse a teacher whose score is worse; 0: refuse none. The student of an earlier stage may have any
            score.

    Raises:
        UserError: a teacher's score is worse than `min_score`.
        RuntimeError: a parameter or buffer of a teacher changed during training.
    """

    def __init__(self, min_score: float = 0.0) -> None:
        self.min_score = min_score
        self._fingerprints: dict[str, str] = {}
        self._scored: set[tuple[Teacher, str]] = set()  # each with the task and the data

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._fingerprints = {name: teacher.expected_fingerprint() for name, teacher in module.frozen.items()}
        own_data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data: Data = getattr(own_data, "now", own_data)  # of a run with stages: that of the stage
        if not data.sizes["val"] and not data.labelled:
            if trainer.is_global_zero and telling():
                limit = f", and min_teacher_score={self.min_score:g} is not checked" if self.min_score else ""
                say(f"The teachers are not scored before training{limit}: only the test samples have labels.")
            return
        task, outputs = module.task, module.outputs
        asked = f"{type(task)} {vars(task) | {'weight': None}} {data.fingerprint}"  # the weight changes no score
        for name, teacher in module.frozen.items():
            if (teacher, asked) in self._scored:
                continue
            self._scored.add((teacher, asked))
            judged = probe_of(teacher, data, task) if teacher.other_classes else teacher
            found: Evaluation | str = f"it {teacher.other_classes}"
            split = "validation split"
            if judged is not None:
                found = teacher.evaluation(data, "val", task, outputs, judged)
                if isinstance(found, str):
                    trained = teacher.evaluation(data, "train", task, outputs, judged)
                    if data.sizes["val"] == 0 or not isinstance(trained, str):
                        found, split = trained, _name(data)
            if isinstance(found, str):
                if trainer.is_global_zero:
                    say(f"Teacher {name!r} is not scored: {found}")
                continue
            by = f" ({judged.name})" if isinstance(judged, LinearProbe) else ""
            if trainer.is_global_zero and telling():
                say(f"Teacher {name!r}: {task.score} {found.score:.4f} on the {split}{by}")
            accuracy = (found.predicted == found.target).double().mean().item() if task.is_distribution() else 1.0
            chance = 1 / outputs if outputs else 0.0
            near_chance = accuracy < chance + 0.1 * (1 - chance)
            cause = f" {likely_cause(found, name in data.targets)}" if near_chance and not by else ""
            worse = found.score < self.min_score if task.higher_is_better else found.score > self.min_score
            if self.min_score and worse and name not in module.stage_teachers:
                raise UserError(
                    f"Teacher {name!r} scores {found.score:.3f} on the {split}, worse than "
                    f"min_teacher_score={self.min_score}." + (cause or " Train it longer, or change min_teacher_score.")
                )
            if near_chance:
                warnings.warn(
                    f"Teacher {name!r} scores {found.score:.3f} on the {split} of the student: it predicts "
                    f"{accuracy:.1%} of the labels{by}, where chance predicts {chance:.1%}.{cause}",
                    stacklevel=1,
                )

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        for name, before in self._fingerprints.items():  # none, if the fit had no step left to train
            if module.frozen[name].fingerprint() != before:
                raise RuntimeError(f"Teacher {name!r} changed during training: its parameters or buffers differ.")

    on_stage_start = on_train_start
    on_stage_end = on_fit_end


def _name(data: Data) -> str:
    return f"{data.labelled:,} labelled training samples" if data.unlabelled else "training split"


def likely_cause(found: Evaluation, stored: bool = False) -> str:
    """Why a teacher may predict few labels: its classes are in another order, or its inputs are not what it expects.

    Args:
        stored: whether its outputs were stored before the run.
    """
    labels, places = torch.cat([found.target, found.predicted]).unique(return_inverse=True)
    if len(labels) <= FEW:
        confusion = torch.zeros(len(labels), len(labels))
        confusion.index_put_((*places.chunk(2),), torch.ones(()), accumulate=True)
        rows, columns = linear_sum_assignment(-confusion.numpy())
        accuracy, relabelled = (
            each.sum().item() / len(found.target) for each in (confusion.diag(), confusion[rows, columns])
        )
        if relabelled > max(0.5, 2 * accuracy):
            return (
                f"Likely the labels: with the classes in another order it would predict {relabelled:.1%}. "
                "Compare the class lists of the teacher's data set and of yours."
            )
    if stored:
        return "Likely its rows are of other samples: compare their order, or the array `index`, with the data."
    return (
        f"Of {len(labels):,} labels it predicts {len(found.predicted.unique()):,}. Either it was trained too little, "
        "or its inputs or weights are not those that it was trained with: check its normalisation and resolution, or "
        "its tokenizer (teachers.<name>.input)."
    )
