"""Knowledge review: student levels are fused with the deeper ones (Chen et al., CVPR 2021)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.numerics import Reduction, at_least_float32, comparable, reduce_rows
from distillery.losses.alignment import align_maps, as_map
from distillery.losses.layer_terms import EMBEDDING
from distillery.losses.projectors import aligned, run
from distillery.losses.settings import PositiveInt
from distillery.losses.signals import Signals
from distillery.losses.term import Contract, Layers, Pair, Term

GRIDS = (4, 2, 1)  # of the pooled levels


def hcl(student_features: Tensor, teacher_features: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Hierarchical context loss: mean squared error of two maps, and of the maps pooled to 4×4, 2×2 and 1×1.

    The levels have the weights 1, 1/2, 1/4, ..., normalised by their sum. Levels that are not smaller than the map's
    height are left out.

    Args:
        student_features: [B,C,H,W].
        teacher_features: the same shape.
        reduction: 'mean' over samples, or 'none': [B].

    Paper: Distilling Knowledge via Knowledge Review, https://arxiv.org/abs/2104.09044, section 3.4. Values equal
    those of the authors' code and of mdistiller.
    """
    student, teacher = comparable(student_features, teacher_features)
    gap = student - teacher  # pooling is linear
    levels = [gap] + [F.adaptive_avg_pool2d(gap, grid) for grid in GRIDS if grid < gap.shape[2]]
    weights = [0.5**depth for depth in range(len(levels))]
    errors = [weight * level.square().mean((1, 2, 3)) for weight, level in zip(weights, levels, strict=True)]
    return reduce_rows(torch.stack(errors).sum(0) / sum(weights), reduction)


class Fusion(nn.Module):
    """Attention-based fusion of a level with the deeper ones (the paper's ABF).

    Args:
        width_in: channels of the student's level.
        middle: channels of the fused features that are passed on.
        width_out: of the teacher's level.
        fuse: whether there is a deeper level.
    """

    def __init__(self, width_in: int, middle: int, width_out: int, fuse: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(width_in, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(nn.Conv2d(middle, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out))
        self.attend = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuse else None
        for conv in (self.enter[0], self.leave[0]):
            assert isinstance(conv, nn.Conv2d)
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The features to compare with the teacher's, [B, width_out, *size], and those that are passed on."""
        x = run(self.enter, x)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            of_this, of_deeper = run(self.attend, torch.cat([x, deeper], 1)).split(1, 1)
            x = x * of_this + deeper * of_deeper
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return run(self.leave, x), x


class Review(Term, function=hcl):
    """`hcl` of the student's features, fused from the deepest level upwards, and the teacher's, summed over the levels.

    Order `layers` from shallow to deep. mdistiller takes the teacher's features before the ReLU that ends each stage
    (`stages.0.2.act2:input` and the like, if the network has such a layer); 'auto' takes the outputs of the stages.

    Args:
        pooled: use the pooled features before each head as the deepest level, as mdistiller does.
        middle: greatest number of channels passed from level to level; fewer if the deepest level has fewer.
    """

    auto = "all"
    contract = Contract(
        short_name="review",
        form="learned",
        reduction="mean over elements of each pooled level, weighted mean over these, sum over levels",
        scale="the variance of the teacher's features plus 1, a level: 1 to 10",
        needs="maps",
        properties=frozenset({"non_negative", "batch_permutation"}),
        paper="https://arxiv.org/abs/2104.09044",
        formula=r"\sum_i \mathrm{HCL}(\mathrm{ABF}_i(F_s^i, F_s^{i+1}, \dots), F_t^i), \quad"
        r" \mathrm{HCL}(a, b) \propto \sum_{l} 2^{-l} \overline{(\mathrm{pool}_l(a) - \mathrm{pool}_l(b))^2}",
        values_of="mdistiller",
    )

    layers: Layers | None = "auto"
    pooled: bool = True
    middle: PositiveInt = 512

    @property
    def taps(self) -> dict[str, str]:
        return {**super().taps, **(EMBEDDING if self.pooled else {})}

    def build(self, student: Mapping[str, torch.Size], teacher: Mapping[str, torch.Size]) -> None:
        pairs = [self._as_maps(pair) for pair in self.pairs(student, teacher)]
        middle = min(self.middle, pairs[-1].student[1])
        self.fusions = nn.ModuleList(
            Fusion(pair.student[1], middle, pair.teacher[1], pair is not pairs[-1]) for pair in pairs
        )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Tensor]) -> Tensor:
        levels = zip(self.fusions, self.features(student, teacher), strict=True)
        rows, deeper = [], None
        for fusion, (s, t) in reversed([*levels]):
            target = _level(t)
            fused, deeper = fusion(_level(s), deeper, target.shape[2:])
            rows.append(self.loss(fused, target))
        return torch.stack(rows).sum(0)

    def _as_maps(self, pair: Pair) -> Pair:
        if len(pair.student) == len(pair.teacher) == 2:
            student, teacher = (torch.Size([*shape, 1, 1]) for shape in (pair.student, pair.teacher))
            return Pair(pair.student_tap, pair.teacher_tap, student, teacher)
        if 2 in (len(pair.student), len(pair.teacher)):
            raise UserError(f"review cannot compare {pair}: pair vectors with vectors, and maps with maps.")
        return Pair(pair.student_tap, pair.teacher_tap, *aligned(pair, align_maps))


def _level(features: Tensor) -> Tensor:
    """Vectors [B,D] as maps [B,D,1,1], and tokens as the map of their grid."""
    features = at_least_float32(features)
    return features[:, :, None, None] if features.dim() == 2 else as_map(features)
