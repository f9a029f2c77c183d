"""The LightningModule of every method: batch → signals of teachers and student → objective."""

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from distillery.core.roles import EMA, FROZEN, PEER
from distillery.data.loader import ResumableLoader
from distillery.models.taps.network import Network
from distillery.tasks.task import Task, labelled_rows
from distillery.teachers.ema import EMATeacher
from distillery.teachers.frozen import Teacher
from distillery.training.fsdp import shard, share_buffers, whole_state
from distillery.training.objective import Losses, Objective
from distillery.training.update_counts import UpdateCounts

TERMS = "objective.terms."  # prefix of the losses' parameters and buffers in the state dict
VALIDATED = ("val/score", "val/loss")  # the metrics that a validation logs


@dataclass
class Optim:
    """How the student is optimised.

    Attributes:
        optimizer: makes one of a list of parameters, or of parameter groups.
        scheduler: makes the learning-rate schedule of the optimizer; None: the rate is constant.
        interval: how often the scheduler steps, `epoch` or `step`.
        decay_biases_and_norms: whether weight decay applies to parameters of one dimension, too: biases, and the
            weights of normalisations. Transformers are trained without (Devlin et al. 2019, the authors' code).
        monitor: the metric that the scheduler is given, if it is a `ReduceLROnPlateau`.
        frequency: the scheduler steps after this many intervals; with a metric of the validation, after each of these.
    """

    optimizer: Callable[[Any], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None
    interval: str = "epoch"
    decay_biases_and_norms: bool = True
    monitor: str | None = None
    frequency: int = 1

    def groups(self, parameters: list[nn.Parameter]) -> list[Any]:
        """What the optimizer is made of: the parameters, or two groups of them where some are not decayed."""
        if self.decay_biases_and_norms:
            return parameters
        decayed = [parameter for parameter in parameters if parameter.dim() > 1]
        others = [parameter for parameter in parameters if parameter.dim() <= 1]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


class Distiller(L.LightningModule):
    """Trains `student` on the objective.

    Frozen teachers are not registered as submodules: nothing that walks modules or parameters (optimizer, checkpoint,
    DDP, `.train()`) reaches them. They follow the module's device at the start of every loop. The other teachers change
    with the student: an average of it, a peer that is trained beside it, or the student itself.

    Args:
        student: the network that is trained.
        teachers: by the names that the losses call them.
        task: what the labels mean.
        objective: the losses, whose layers have been tapped by `wire`.
        optim: optimizer and learning-rate schedule.
        outputs: the number of logits in a row (`Task.outputs`); None: any number.
    """

    def __init__(
        self,
        student: Network,
        teachers: Mapping[str, Network],
        task: Task,
        objective: Objective,
        optim: Optim,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.task = task
        self.optim = optim
        self.teachers = dict(teachers)  # a dict's values are not registered as submodules
        self.moving = nn.ModuleDict({name: each for name, each in teachers.items() if each.role in (EMA, PEER)})
        self.outputs = outputs  # of a row of logits; None: any number
        self.val_score = task.metric(outputs)
        self.losses: Losses | None = None  # between a forward and its backward
        self._counts: UpdateCounts | None = None  # of the update whose gradients are being accumulated
        self.stage = ""  # the name of the current stage; empty in a run without stages
        self.stage_start_step = 0  # the update at which it began
        self.stage_teachers: frozenset[str] = frozenset()  # names of teachers that are students of earlier stages

    def replace_parts(self, other: "Distiller", losses: Set[str] | None) -> None:
        """Replace the parts by those of `other`, for the next stage.

        Args:
            losses: if the stage continues with this student, the losses that keep their state (projectors, memory
                banks); the average of the student is kept, too. None: the stage has a student of its own.
        """
        before, after = whole_state(self), other.state_dict()
        if losses is not None:
            begun = tuple(f"{TERMS}{name}." for name in other.objective.terms.keys() - losses)
            same = (name for name in after if name in before and before[name].shape == after[name].shape)
            other.load_state_dict({name: before[name] for name in same if not name.startswith(begun)}, strict=False)
        self.student, self.teachers, self.moving = other.student, other.teachers, other.moving
        self.task, self.objective, self.optim = other.task, other.objective, other.optim
        self.outputs = other.outputs
        self.val_score = other.val_score.to(self.device)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name: those of the student, of peers and of the losses' projectors."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    @property
    def remarks(self) -> list[str]:
        """Remarks on the student and its teachers, for the user."""
        networks = {"student": self.student} | {
            f"teacher {name}": each for name, each in self.teachers.items() if each is not self.student
        }
        return [
            f"{name}: {remark}"
            for name, network in networks.items()
            for remark in (*network.remarks, network.about_classes)
            if remark
        ]

    @property
    def frozen(self) -> dict[str, Teacher]:
        """The frozen teachers, by name."""
        return {name: each for name, each in self.teachers.items() if isinstance(each, Teacher) and each.role == FROZEN}

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        if self.device_mesh is not None:
            share_buffers(self.student)
        batches, loader = self.trainer.accumulate_grad_batches, self.trainer.train_dataloader
        if batches == 1 or not isinstance(loader, ResumableLoader):  # others cannot look ahead: each batch counts alike
            self._counts = None
        elif batch_idx % batches == 0 or self._counts is None:
            left = min(batches - batch_idx % batches, int(self.trainer.num_training_batches) - batch_idx)
            self._counts = UpdateCounts.of(self.task, [batch, *loader.peek(left - 1)])

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> dict[str, Any]:
        others = {name: each(batch, training=True) for name, each in self.teachers.items() if each is not self.student}
        student = self.student(batch)
        signals = dict.fromkeys(self.teachers, student) | others  # the student may be among its teachers
        self.losses = losses = self.objective(student, signals, batch, self._counts)
        # Lightning divides by accumulate_grad_batches, even where an epoch ends after fewer batches.
        missing = self.trainer.accumulate_grad_batches / self._counts.batches if self._counts else 1
        return {"loss": losses.total if missing == 1 else losses.total * missing, "terms": losses.terms}

    def on_after_backward(self) -> None:
        self.losses = None  # it holds the graph

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        rows, labelled = labelled_rows(*self.task.rows(self.student(batch), batch), batch)
        loss = self.task.loss(rows.logits, labelled["target"])
        count = len(loss)
        if count:  # a batch of texts may have no labelled token
            self.task.score_rows(self.val_score, rows.logits, loss, labelled)
        # The attribute is named, since each stage has a metric of its own.
        self.log("val/score", self.val_score, prog_bar=True, metric_attribute="val_score")
        self.log("val/loss", loss.sum() / max(1, count), batch_size=count, sync_dist=True)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # FSDP2's
            shard(self.student, self.objective, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self.optim.groups([parameter for _, parameter in self.trainable()]))
        if self.optim.scheduler is None:
            return optimizer
        scheduler = {
            "scheduler": self.optim.scheduler(optimizer),
            "interval": self.optim.interval,
            "frequency": self.optim.frequency,
            "monitor": self.optim.monitor,
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for teacher in self.moving.values():
            if isinstance(teacher, EMATeacher):
                teacher.follow(self.student)

    def on_fit_start(self) -> None:
        for teacher in self.teachers.values():
            teacher.place(self.device, cast(torch.dtype, self.dtype))

    def on_validation_start(self) -> None:
        self.on_fit_start()
        if self.device_mesh is not None:
            share_buffers(self.student)
