"""Whether training computes logits for a few rows at a time (`task.rows_per_chunk`), and never all at once."""

from collections.abc import Mapping

from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.roles import PEER
from distillery.losses.term import Term
from distillery.models.taps.end_before_head import find_head
from distillery.models.taps.network import Network
from distillery.tasks.task import Task

SETTING = "task.rows_per_chunk"


def end_before_heads(
    task: Task,
    terms: Mapping[str, Term],
    student: Network,
    teachers: Mapping[str, Network],
    batch: Mapping[str, Tensor],
    whole: str = "",
) -> None:
    """Let training end before the heads of student and teachers, and compute their logits in chunks of rows.

    Where that is not possible, all logits are computed at once, and a remark on the student says why. To be called when
    everything is tapped.

    Args:
        batch: a few samples, of which one is tried.
        whole: why the run itself needs all logits at once, if it does.
    """
    networks = [each for each in dict.fromkeys((student, *teachers.values())) if each.has_network or each.stored_head]
    for network in networks:
        network.known_head = None
    if task.rows_per_chunk is None:
        return
    few = {key: value[:1, :8] if value.dim() == 2 else value[:1] for key, value in batch.items()}
    whole = whole or _needs_all(terms, teachers, few)
    for network in networks:
        try:
            if whole:
                raise UserError(whole)
            network.known_head = network.stored_head
            if network.known_head is None:
                find_head(network, few)
        except UserError as why:
            remark = f"all logits of a batch are computed at once ({SETTING}): {why}"
            network.remarks += [remark] if remark not in network.remarks else []
            if network is student:  # its teachers' rows would have to be compared with all of its logits
                return


def _needs_all(terms: Mapping[str, Term], teachers: Mapping[str, Network], batch: Mapping[str, Tensor]) -> str:
    """The loss or teacher whose rows are not compared one by one with the student's; nothing, if there is none."""
    for name, term in terms.items():
        if term.contract.needs == "logits" and any(one.compares_rows for one in term.by_teacher.values()):
            return f"loss.{name} compares rows with each other"
        if term.contract.needs == "logits" and any(True for _ in term.parameters()):
            return f"loss.{name} has trained parameters"
    for name, teacher in teachers.items():
        if teacher.role == PEER:
            return f"teacher {name!r} is trained beside it"
        if teacher.adapter.own_tokenizer(batch) is not None:
            return f"teacher {name!r} has another tokenizer"
    return ""
