"""Checks that losses and data suit the task, from what the task declares."""

from collections.abc import Collection, Mapping

from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.losses.discovery import losses_for
from distillery.losses.levels import Level
from distillery.losses.several import BY_LABEL, Several
from distillery.losses.term import Term
from distillery.models.taps.network import Network, probe
from distillery.tasks.task import Task

NEEDED: dict[Level, str] = {
    "logits": "its teacher's logits of all classes",
    "topk": "its teacher's likeliest classes and the mass of the others",
    "sampled": "classes that are drawn from its teacher",
    "token": "its teacher's probability of each target",
}


def check_task(
    task: Task,
    data: Data,
    terms: Mapping[str, Term],
    schedules: Collection[str],
    student: Network,
    teachers: Mapping[str, Network],
    batch: Mapping[str, Tensor],
) -> None:
    """Refuse data and losses that make no sense for the task.

    Args:
        schedules: the numbers that have a schedule, such as `task.weight`.
        batch: a few samples, on which the widths of vectors are found out.

    Raises:
        UserError: tokens are masked and the task does not predict them; words or pixels have labels, and the task
            is not about them, or the reverse; samples have any number of labels, and the task is about one class, or
            the reverse; there is nothing to learn from; no training sample has a label, and the task loss or another
            one reads labels; images are mixed, and the task or a loss takes no soft labels; a loss on distributions,
            for labels, numbers or vectors; a loss on labels of samples, for tokens or pixels; vectors of different
            widths.
    """
    if data.varies == "mask" and not task.masked:
        raise UserError("data.mask masks tokens, and this task does not predict them. Set data.mask=null.")
    if task.rows_are == "samples" and data.multi_label != (task.prediction == "labels"):
        if data.multi_label:
            raise UserError(f"The samples of '{data.name}' have any number of labels each. Set task=multi_label")
        raise UserError(
            f"task=multi_label: the samples of '{data.name}' have one class each. Set task=classification, or "
            "data.source.multi_label=true if the column of the labels has lists."
        )
    if "image" in batch and (batch["target"].ndim == 3) != (task.rows_are == "pixels"):
        if task.rows_are == "pixels":
            raise UserError(
                f"This task has a class for each pixel, but the images of '{data.name}' have one each. Choose data "
                "with masks: data=mask_folder, fashion_mnist_masks."
            )
        raise UserError(
            f"The images of '{data.name}' have a class for each pixel, but this task has one for each image. Set "
            "task=segmentation"
        )
    if "input_ids" in batch and ("question" in batch) != (task.rows_are == "spans"):
        if task.rows_are == "spans":
            raise UserError(f"This task needs questions with contexts, and '{data.name}' has none. Choose data=squad.")
        raise UserError(f"'{data.name}' has questions and their answers. Set task=question_answering")
    per_token = batch["target"].ndim > 1 and not data.multi_label
    if "input_ids" in batch and per_token != (task.rows_are in ("tokens", "spans")):
        if task.rows_are == "tokens":
            raise UserError(
                f"This task has a label for each token, and the texts of '{data.name}' have one each. Set task="
                "classification, or data.source.words to the column of the lists of words (task=masked_lm: data.mask)."
            )
        raise UserError(
            f"The words of '{data.name}' have a label each (data.source.words), and this task has one for each text. "
            "Set task=token_classification"
        )
    if task.weight == 0 and not terms and "task.weight" not in schedules:
        raise UserError(
            "There is nothing to learn from: task.weight=0 and there is no distillation loss. Choose a loss and a "
            "teacher, or give the task a weight if it has a hard-label loss."
        )
    if not data.labelled:
        _refuse_without_labels(data, terms, task.weight != 0 or "task.weight" in schedules)
    if data.mixes:
        _refuse_hard_labels(task, terms)
    for name, term in terms.items():
        if task.prediction == "labels" and term.reads_labels:
            raise UserError(
                f"loss.{name} needs one class for each sample, but these have any number of labels. Use "
                "loss/response=[bernoulli_kd], or another loss that reads no labels."
            )
        responses = [one for one in term.by_teacher.values() if one.family == "response"]
        if not task.is_distribution() and any(_of_a_softmax(one) for one in responses):
            predicts = "labels" if task.prediction == "labels" else f"a {task.prediction}"
            others = "[bernoulli_kd] or [logit_mse]" if task.prediction == "labels" else "[logit_mse]"
            raise UserError(
                f"loss.{name} compares distributions over classes, but this task predicts {predicts}. Use "
                f"loss/response={others}, or a loss on layers."
            )
        if term.contract.needs == "logits":
            if term.contract.of_labels and task.prediction != "labels":
                raise UserError(
                    f"loss.{name} compares the probabilities of independent labels, but this task predicts a "
                    f"{task.prediction}. It is for task=multi_label; for classes use loss/response=[kd]."
                )
            if task.prediction == "vector":
                _refuse_other_widths(name, term, student, teachers, batch)
        elif task.rows_are == "samples":
            continue
        elif responses or any(each.reads_labels for each in term.by_teacher.values()):
            raise UserError(
                f"loss.{name} reads or predicts one label for each sample, but this task has one for each "
                f"{task.rows_are[:-1]}. Choose another loss."
            )
        elif isinstance(term, Several) and term.combine in BY_LABEL:
            raise UserError(
                f"loss.{name}.combine={term.combine} weights the teachers of each sample by their logits, and this "
                f"task has logits for each {task.rows_are[:-1]}. Use combine=mean or combine=random for a loss on "
                "layers."
            )


def _of_a_softmax(response: Term) -> bool:
    """Whether a loss on logits, or on those of a distillation head, compares their softmax."""
    return response.contract.needs != "logits" or "shift_invariant" in response.contract.properties


def check_levels(terms: Mapping[str, Term], teachers: Mapping[str, Network]) -> None:
    """Refuse losses that must know more of a teacher's distributions than it gives of training batches.

    To be called when the teachers have their caches.

    Raises:
        UserError: names the losses that would do.
    """
    for name, term in terms.items():
        for teacher in term.by_teacher:
            available, least = teachers[teacher].available, term.least_level
            if least is not None and least not in available.levels:
                others = losses_for(available.levels)
                raise UserError(
                    f"loss.{name} needs {NEEDED[least]}, and teacher {teacher!r} gives {available}."
                    + (f" Choose {' or '.join(others)}." if others else " Choose a loss on layers.")
                )
            try:
                term.check_available(available)
            except UserError as error:
                raise UserError(f"loss.{name}: {error}") from None


def _refuse_without_labels(data: Data, terms: Mapping[str, Term], by_task: bool) -> None:
    none = f"none of the {data.unlabelled:,} training samples of '{data.name}' has a label"
    if by_task:
        fix = "Set task.weight=0, so that the student learns from its teacher alone" if terms else "Choose a teacher"
        raise UserError(f"task.weight: the task loss reads labels, but {none}. {fix}, or add labelled samples.")
    for name, term in terms.items():
        if term.reads_labels:
            raise UserError(
                f"loss.{name} reads labels, but {none}. Choose a loss that does not, as loss/response=[kd], or add "
                "labelled samples."
            )


def _refuse_hard_labels(task: Task, terms: Mapping[str, Term]) -> None:
    mend = "Set data.augment.mixup=0 and data.augment.cutmix=0"
    if task.prediction != "class":
        raise UserError(f"data.augment mixes images of one class each, but this task is about none. {mend}.")
    for name, term in terms.items():
        for one in term.by_teacher.values():
            if one.reads_labels and not one.contract.takes_soft_labels:
                raise UserError(
                    f"loss.{name} needs one class for each image, and data.augment mixes images and their classes. "
                    f"{mend}, or choose a loss that reads no labels, as loss/response=[kd]."
                )


def _refuse_other_widths(
    name: str, term: Term, student: Network, teachers: Mapping[str, Network], batch: Mapping[str, Tensor]
) -> None:
    ours = probe(student, batch).logits.shape[-1]
    for teacher in term.by_teacher:
        if (theirs := probe(teachers[teacher], batch).logits.shape[-1]) != ours:
            raise UserError(
                f"loss.{name}: the student's vectors have {ours} dimensions, those of teacher {teacher!r} {theirs}. "
                f"Set student.net.config.hidden_size={theirs}, or learn through a projector: loss/response=[] "
                "loss/feature=[hint] loss.hint.layers={output: output}"
            )
