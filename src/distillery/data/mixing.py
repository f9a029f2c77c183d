"""Mixup and CutMix: training images that are mixed with another one, and their labels with them."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.random import integers
from distillery.data.augmentation import Augmentation, of_samples
from distillery.data.images import Images, Transform
from distillery.data.sampler import BatchKey
from distillery.data.whole_batches import NOWHERE, Box, inside, sent

STREAM = -2  # the `view` of these random numbers; those from 0 on belong to augmentation


class Drawn(NamedTuple):
    """A sample's share in the pixels of a box (outside of it they are all its own), and in the label."""

    box: Box = NOWHERE
    pixels: float = 1.0
    label: float = 1.0


class Mix:
    """Draws for single images how they are mixed, as `v2.RandomApply` of a `v2.RandomChoice` of both kinds does."""

    def __init__(self, options: Augmentation) -> None:
        kinds = {v2.CutMix: options.cutmix, v2.MixUp: options.mixup}
        self._kinds = [kind(alpha=float(alpha)) for kind, alpha in kinds.items() if alpha]  # float: Beta needs it
        both = len(self._kinds) > 1
        self._shares = torch.tensor([options.switch_prob, 1 - options.switch_prob] if both else [1.0])
        self._prob = options.mix_prob

    def draw(self, image: Tensor) -> Drawn:
        """For an image [C,H,W], from torch's generator."""
        if torch.rand(1) >= self._prob:
            return Drawn()
        kind = self._kinds[int(torch.multinomial(self._shares, 1))]
        drawn = kind.make_params([image])
        if isinstance(kind, v2.CutMix):
            return Drawn(drawn["box"], 0.0, drawn["lam_adjusted"])
        return Drawn((0, 0, image.shape[2], image.shape[1]), drawn["lam"], drawn["lam"])


@dataclass(frozen=True)
class MixedImages:
    """Makes the `image` [B,C,H,W] and the soft `target` [B,K] of a batch; a pure function of seed, epoch and index.

    Every sample has a partner and a λ of its own. The usual mixing within a batch, with one λ, would depend on how the
    batches are divided among processes. The partner is augmented as it is when it is served itself in that epoch. A
    labelled sample has a labelled partner; the target of an unlabelled one is NaN.

    Args:
        transform: of each image.
        mix: draws how each image is mixed.
        targets: the classes of all samples [N], negative without a label.
        partners: positions [M] of the samples with which others are mixed.
        labelled: those of them that have a label.
        classes: their number, K.
    """

    images: Images
    transform: Transform
    mix: Mix
    targets: Tensor
    partners: Tensor
    labelled: Tensor
    classes: int
    seed: int

    def __call__(self, index: Tensor, key: BatchKey) -> dict[str, Tensor]:
        both = torch.cat([index, self.partners_of(index, key.epoch)])
        images, others = self.images.batch(both, self.transform, self.seed, key.epoch).chunk(2)
        own, of_others = self._probabilities(self.targets[both]).chunk(2)
        drawn = of_samples(self.mix.draw, images, self.seed, key.epoch, index, STREAM)
        within = inside([each.box for each in drawn], images)
        # 1 - λ is rounded to float32 once.
        pixels, rest = _columns([(each.pixels, 1 - each.pixels) for each in drawn], images)
        image = others.mul_(rest.where(within, 0)).add_(images.mul_(pixels.where(within, 1)))
        label, rest = _columns([(each.label, 1 - each.label) for each in drawn], own)
        return {"image": image, "target": of_others.mul_(rest).add_(own.mul_(label))}

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


def _columns(rows: list[tuple[float, float]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Both numbers of each row, [B,1,...], to be multiplied with a tensor [B,...]."""
    first, second = sent(torch.tensor(rows), like.device).T.reshape(2, -1, *[1] * (like.dim() - 1))
    return first, second
