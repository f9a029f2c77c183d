"""Curriculum learning: the training samples of whose class a teacher is most confident."""

import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.network import Network
from distillery.tasks.task import Task


def easiest(confidence: Tensor, targets: Tensor, share: float) -> Tensor:
    """The positions of the most confident `share` of each class (at least one sample), in ascending order.

    Args:
        confidence: [N], greater for easier samples; equal ones keep their order.
        targets: the class of each sample, [N].
        share: in (0, 1].
    """
    places = []
    for label in targets.unique():
        own = (targets == label).nonzero().flatten()
        order = confidence[own].argsort(descending=True, stable=True)
        places.append(own[order[: max(1, round(share * len(own)))]])
    return torch.cat(places).sort().values


def confidences(teacher: Network, data: Data, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """The teacher's probability of the class of each training sample, as the sample is in the first epoch.

    The class of an unlabelled sample is the one that the teacher predicts.

    Returns: positions in the raw data, confidences and classes, each [N].

    Raises:
        UserError: the samples do not have one class each.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    keys, batches = data.plain(data.eval_batch_size)
    with evaluating(teacher):
        for key in keys:
            batch = {name: value.to(teacher.device) for name, value in batches[key].items()}
            rows, labelled = task.rows(teacher(batch), batch)
            target = labelled["target"]
            if target.is_floating_point() or len(target) != len(batch["index"]):
                unmixed = ", or set data.augment.mixup=0 and data.augment.cutmix=0" if data.mixes else ""
                raise UserError(
                    f"easiest: the samples of '{data.name}' do not have one class each, of which a teacher could be "
                    f"confident. Leave out easiest{unmixed}."
                )
            if "labelled" in labelled:
                target = torch.where(labelled["labelled"], target, rows.logits.argmax(-1))
            own = rows.logits.float().softmax(-1).gather(1, target[:, None]).squeeze(1)
            found.append((labelled["index"].cpu(), own.cpu(), target.cpu()))
    index, confidence, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    return index, confidence, target
