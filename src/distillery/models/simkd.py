"""The student of SimKD: a backbone, a projector, and the teacher's own classifier (Chen et al., CVPR 2022)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.bottleneck import bottleneck


class SimKD(nn.Module):
    """Backbone → projector → mean over positions → the teacher's classifier, which is not trained.

    Everything from `features` on is taken from a run's teacher and backbone when it is built (`reuse.py`), and kept
    in its config, so that the network is rebuilt without either.

    Args:
        num_classes, in_chans: as timm's.
        backbone: `backbone(num_classes=, in_chans=)` makes the network whose last map is projected.
        factor: the middle of the projector has teacher_width / factor channels; the authors: 2 (and 4, 8).
        features: path of the backbone's last map, which it averages for its own classifier.
        head: path of that classifier; it is left out.
        width: channels of the backbone's last map.
        teacher_width: features that the teacher's classifier takes.
        grid: height and width that the backbone's map is averaged to first; None: its own.

    Raises:
        UserError: `features` and what follows are not known.

    Paper: Knowledge Distillation with the Reused Teacher Classifier, https://arxiv.org/abs/2203.14001.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Callable[..., nn.Module],
        in_chans: int = 3,
        factor: int = 2,
        features: str | None = None,
        head: str | None = None,
        width: int | None = None,
        teacher_width: int | None = None,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if features is None or head is None or width is None or teacher_width is None:
            raise UserError(
                "SimKD reuses a teacher's classifier, and there is none. Name the teacher with model/teacher, "
                "or the folder of a finished run of SimKD."
            )
        if not 1 <= factor <= teacher_width:
            raise UserError(f"factor={factor}: it must be from 1 to the teacher's width, {teacher_width}.")
        self.backbone = backbone(num_classes=num_classes, in_chans=in_chans)
        self.backbone.set_submodule(head, nn.Identity())
        self.backbone.get_submodule(features).register_forward_hook(self._keep)
        self.pool = nn.Identity() if grid is None else nn.AdaptiveAvgPool2d(tuple(grid))
        middle = teacher_width // factor
        self.projector = nn.Sequential(
            *bottleneck(width, middle, teacher_width), nn.BatchNorm2d(teacher_width), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(teacher_width, num_classes).requires_grad_(False)
        self._map: Tensor | None = None
        stages = [
            {**stage, "module": f"backbone.{stage['module']}"} for stage in getattr(self.backbone, "feature_info", [])
        ]
        self.feature_info = [*stages, {"num_chs": teacher_width, "module": "projector"}]

    # A method, so that a copy of the network has a hook that keeps the copy's map.
    def _keep(self, _: nn.Module, __: object, output: Tensor) -> None:
        self._map = output

    def forward(self, x: Tensor) -> Tensor:
        self.backbone(x)
        features, self._map = self._map, None
        assert features is not None
        return self.head(self.projector(self.pool(features)).mean((2, 3)))

    def reuse(self, head: nn.Linear) -> None:
        """Take over the values of a teacher's classifier, which may have no bias."""
        self.head.load_state_dict({"bias": torch.zeros_like(self.head.bias), **head.state_dict()})
