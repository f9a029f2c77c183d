"""The rows of a task that has one target for each token."""

import torch

from distillery.core.errors import UserError
from distillery.data.tokens import IGNORED
from distillery.losses.signals import Signals
from distillery.tasks.task import Batch


def own_columns(batch: Batch, tokenizer: str | None) -> Batch:
    """The batch with the columns of this tokenizer, `<tokenizer>/input_ids` and so on, in place of the data's own."""
    prefix = f"{tokenizer}/"
    return {**batch, **{key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}}


def token_rows(task: str, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
    """The tokens with a target, in the order of the batch: logits [B,L,C] and targets [B,L] → rows [N,C] and [N].

    Each row's `index` is that of its sample, and so is `labelled`; its `position` is its place in the sample. Logits
    [B,0], of a network that was stopped before its head, are returned as they are; of what stands for them, `headed`
    and `sparse`, the same rows are taken.

    Args:
        task: the name of the task in error messages.

    Raises:
        UserError: the batch has one target, or the network one row of logits, for each sample instead of each token.
    """
    logits, target = signals.logits, batch["target"]
    if target.dim() != 2:
        raise UserError(
            f"task={task}: the targets of this batch, {list(target.shape)}, are one for each sample, and this task "
            "needs one for each token. Choose other data, or task=classification (for numbers: task=regression)."
        )
    counts = target != IGNORED
    index = batch["index"].unsqueeze(1).expand_as(target)
    position = torch.arange(target.shape[1], device=target.device).expand_as(target)
    labelled = {**batch, "target": target[counts], "index": index[counts], "position": position[counts]}
    if "labelled" in batch:
        labelled["labelled"] = batch["labelled"].unsqueeze(1).expand_as(target)[counts]
    given = logits
    if logits.dim() == 2 and logits.shape[1] == 0:
        if signals.headed is not None:
            given = signals.headed.hidden
        elif signals.sparse is not None:
            given = signals.sparse.log_p
        else:
            return signals, labelled
    if given.dim() != 3 or given.shape[:2] != target.shape:
        raise UserError(
            f"task={task}: the network returns logits {list(given.shape)} for targets {list(target.shape)}, and this "
            f"task needs a row of logits for each token. Choose a network with the head {task}."
        )
    return signals.rows(counts), labelled
