"""What does not go together with a task: data that ask for something else, losses that would say nothing."""

from collections.abc import Collection, Mapping

from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.models.taps.network import Network, probe
from distillery.tasks.embedding import Embedding
from distillery.tasks.masked_lm import MaskedLM
from distillery.tasks.regression import Regression
from distillery.tasks.task import Task
from distillery.tasks.token_classification import TokenClassification


def check_task(
    task: Task,
    data: Data,
    terms: Mapping[str, Term],
    schedules: Collection[str],
    student: Network,
    teachers: Mapping[str, Network],
    batch: Mapping[str, Tensor],
) -> None:
    """Refuse what cannot be meant.

    Raises:
        UserError: masked tokens that no task predicts; nothing to learn from; a loss on classes for numbers or
            vectors; a loss that sets a sample's own labels against those of its tokens; vectors of different widths.
    """
    if data.varies == "mask" and not isinstance(task, MaskedLM):
        raise UserError("data.mask masks tokens, and only task=masked_lm predicts them. Set data.mask=null.")
    if task.weight == 0 and not terms and "task.weight" not in schedules:
        raise UserError(
            "There is nothing to learn from: task.weight=0, and no distillation loss. Give the task a weight, or "
            "choose a loss and a teacher." + (" task=embedding has no baseline." if isinstance(task, Embedding) else "")
        )
    for name, term in terms.items():
        contract = term.contract
        on_logits = contract.needs == "logits"
        if isinstance(task, Regression | Embedding) and on_logits and "shift_invariant" in contract.properties:
            raise UserError(
                f"loss.{name} compares distributions over classes, and this task has numbers in their place. Use "
                "loss/response=[logit_mse], or a loss on layers."
            )
        if isinstance(task, TokenClassification | MaskedLM) and not on_logits:
            if contract.family == "response":
                raise UserError(
                    f"loss.{name} predicts one label for each sample, and this task has one for each token."
                )
            if isinstance(term, Several) and term.combine in ("confidence", "best"):
                raise UserError(
                    f"loss.{name}.combine={term.combine} weighs the teachers of a sample by their logits, and this "
                    "task has logits for each token. Use combine=mean or random for a loss on layers."
                )
        if isinstance(task, Embedding) and on_logits:
            ours = probe(student, batch).logits.shape[-1]
            for teacher in term.by_teacher:
                if (theirs := probe(teachers[teacher], batch).logits.shape[-1]) != ours:
                    raise UserError(
                        f"loss.{name}: the student's vectors have {ours} dimensions, those of teacher {teacher!r} "
                        f"{theirs}. Set student.net.config.hidden_size={theirs}, or use a loss on layers."
                    )
