"""Rows that are tokens: what token classification and masked LM share."""

from dataclasses import replace

from distillery.core.errors import UserError
from distillery.data.tokens import IGNORED
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch


def token_rows(task: str, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
    """The tokens with a target, in the order of the batch: logits [B,L,C] and targets [B,L] → rows [N,C] and [N].

    Each row's `index` is that of its sample. A network that has stopped at its last tap has no logits to take rows of,
    [B,0]: its signals stay as they are.

    Raises:
        UserError: the batch has one target a sample, or the network one row of logits; `task` is what errors call this.
    """
    logits, target = signals.logits, batch["target"]
    if target.dim() != 2:
        raise UserError(
            f"task={task}: the targets of this batch, {list(target.shape)}, are one for each sample, and there must be "
            "one for each token. Choose data that have these, or task=classification (of numbers: task=regression)."
        )
    counts = target != IGNORED
    index = batch["index"].unsqueeze(1).expand_as(target)
    labelled = {**batch, "target": target[counts], "index": index[counts]}
    if logits.dim() == 2 and logits.shape[1] == 0:
        return signals, labelled
    if logits.dim() != 3 or logits.shape[:2] != target.shape:
        raise UserError(
            f"task={task}: the network gives logits {list(logits.shape)} where the targets are {list(target.shape)}, "
            f"and there must be a row of logits for each token. Choose a network with the head {task}."
        )
    return replace(signals, logits=logits[counts]), labelled
