"""One class for each pixel."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from distillery.core.errors import UserError
from distillery.core.numerics import at_least_float32
from distillery.data.tokens import IGNORED
from distillery.losses.signals import Signals
from distillery.tasks.classification import Classification
from distillery.tasks.task import Batch, Labelled


class Segmentation(Classification):
    """One class for each pixel. Score: mIoU, in [0, 1].

    The mean over classes of the intersection over union of predicted and true pixels, true positives ÷ (true positives
    + false positives + false negatives), counted over all pixels of the split and not image by image (Everingham et al.
    2015). A class that neither occurs nor is predicted is left out of the mean; the background is a class like the
    others.

    Args:
        weight: weight of the hard-label loss in the objective.
        label_smoothing: probability mass taken from the label and spread over all classes (Szegedy et al. 2016).
        class_weights: see `Classification`.
        metrics, monitor: see `Task`; of pixels `accuracy` is the share that is right, `macro_f1` the mean Dice score.

    Raises:
        UserError: `label_smoothing` is outside [0, 1]; metrics that `Task` refuses.
    """

    score = "mIoU"
    rows_are = "pixels"
    head = "semantic_segmentation"
    pipeline_tag = "image-segmentation"

    def outputs(self, data: Labelled) -> int:
        if not data.classes:
            raise UserError(f"task=segmentation: the pixels of '{data.name}' have no classes.")
        self.classes = data.classes
        return len(data.classes)

    def rows(self, signals: Signals, batch: Batch) -> tuple[Signals, Batch]:
        """The pixels with a target, image by image and row by row: [B,H,W,C] and targets [B,H,W] → [N,C] and [N].

        Logits of another size are resized to that of the masks, bilinearly and without aligned corners, as SegFormer
        and MMSegmentation do: this is the one place. Each row's `index` is that of its image, and so is `labelled`.

        Raises:
            UserError: the batch has no masks, or the network gives no logits for pixels.
        """
        logits, target = signals.logits, batch["target"]
        if target.dim() != 3:
            raise UserError(
                f"task=segmentation: the targets of this batch, {list(target.shape)}, are not masks. Choose data that "
                "have them, or task=classification."
            )
        counts = target != IGNORED
        of_rows = {**batch, "target": target[counts]}
        for key in {"index", "labelled"} & batch.keys():
            of_rows[key] = batch[key][:, None, None].expand_as(target)[counts]
        if logits.dim() == 2 and logits.shape[1] == 0:
            return signals, of_rows
        if logits.dim() != 4:
            raise UserError(
                f"task=segmentation: the network returns logits {list(logits.shape)}, but this task needs some for "
                "each pixel, [B,H,W,C]. Choose a network that segments: model/student=fcn, hf_segmentation."
            )
        if logits.shape[1:3] != target.shape[1:]:
            maps = nn.functional.interpolate(at_least_float32(logits).movedim(-1, 1), target.shape[1:], mode="bilinear")
            signals = replace(signals, logits=maps.movedim(1, -1))
        return signals.rows(counts), of_rows

    def metric(self, outputs: int | None) -> MulticlassJaccardIndex:
        assert outputs is not None, "the number that `outputs` returns"
        return MulticlassJaccardIndex(outputs, validate_args=False)

    def predict(self, logits: Tensor) -> Tensor:
        """The class of each row, uint8 [N]: there are many."""
        return logits.argmax(-1).to(torch.uint8)
