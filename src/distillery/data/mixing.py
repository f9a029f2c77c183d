"""Mixup and CutMix: training images that are mixed with another one, and their labels with them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.random import integers
from distillery.data.augmentation import of_samples
from distillery.data.images import Images, Transform
from distillery.data.sampler import BatchKey

STREAM = -2  # the `view` of these random numbers; those from 0 on belong to augmentation


@dataclass(frozen=True)
class MixedImages:
    """Makes the `image` [B,C,H,W] and the soft `target` [B,K] of a batch; a pure function of seed, epoch and index.

    Every sample has a partner and a λ of its own. The usual mixing within a batch, with one λ, would depend on how the
    batches are divided among processes. The partner is augmented as it is when it is served itself in that epoch. A
    labelled sample has a labelled partner; the target of an unlabelled one is NaN.

    Args:
        transform: of each image.
        mix: of a batch of images and their class probabilities: here a sample and its partner.
        targets: the classes of all samples [N], negative without a label.
        partners: positions [M] of the samples with which others are mixed.
        labelled: those of them that have a label.
        classes: their number, K.
    """

    images: Images
    transform: Transform
    mix: v2.Transform
    targets: Tensor
    partners: Tensor
    labelled: Tensor
    classes: int
    seed: int

    def __call__(self, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
        both = [index, self.partners_of(index, key.epoch)]
        images = [self.images.batch(each, self.transform, self.seed, key.epoch) for each in both]
        targets = [self._probabilities(self.targets[each]) for each in both]
        pairs = zip(torch.stack(images, 1), torch.stack(targets, 1), strict=True)
        mixed = of_samples(lambda pair: self.mix(*pair), pairs, self.seed, key.epoch, index, STREAM)
        # Torchvision mixes each row with the one before it: the first has the λ, the second has 1 - λ.
        image, target = (torch.stack([of_pair[0] for of_pair in each]) for each in zip(*mixed, strict=True))
        return {"image": image, "target": target}

    def partners_of(self, index: Tensor, epoch: int) -> Tensor:
        """The positions [B] of the partners of the samples at `index` [B]."""
        partner = self.partners[integers(self.seed, epoch, index, STREAM, len(self.partners))]
        if len(self.labelled) in (0, len(self.partners)):
            return partner
        labelled = self.labelled[integers(self.seed, epoch, index, STREAM, len(self.labelled))]
        return torch.where(self.targets[index] < 0, partner, labelled)

    def _probabilities(self, target: Tensor) -> Tensor:
        one_hot = F.one_hot(target.clamp_min(0), self.classes).float()
        return one_hot.masked_fill(target[:, None] < 0, torch.nan)
