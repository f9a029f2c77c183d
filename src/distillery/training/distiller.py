"""The LightningModule of every method: batch → signals of teachers and student → objective."""

from collections import deque
from collections.abc import Iterator, Mapping, Set
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from distillery.core.process import of_all_ranks
from distillery.core.roles import EMA, FROZEN, PEER
from distillery.data.loader import ResumableLoader
from distillery.losses.chunked import map_rows
from distillery.losses.signals import Signals
from distillery.models.taps.end_before_head import before_heads
from distillery.models.taps.network import Network
from distillery.tasks.metrics import LOSS, SCORE
from distillery.tasks.task import Batch, Task, labelled_rows
from distillery.teachers.ema import EMATeacher
from distillery.teachers.frozen import Teacher
from distillery.teachers.side_stream import SideStream
from distillery.training.fsdp import shard, share_buffers, whole_state
from distillery.training.objective import Losses, Objective
from distillery.training.optim import Optim, step
from distillery.training.rollouts import Rollouts, given, scored
from distillery.training.step_graph import StepGraph
from distillery.training.update_counts import UpdateCounts

OWN = "own_texts"  # in a checkpoint: the batches that are left of a round, of each process
TERMS = "objective.terms."  # prefix of the losses' parameters and buffers in the state dict


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
        averaged_student: an average of the student that is validated in its place; None: the student itself is.
        side_stream: where frozen teachers run beside the student; None: they run before it.
        step_graph: replays steps as a CUDA graph; None: all run as they are.
    """

    def __init__(
        self,
        student: Network,
        teachers: Mapping[str, Network],
        task: Task,
        objective: Objective,
        optim: Optim,
        outputs: int | None = None,
        averaged_student: EMATeacher | None = None,
        side_stream: SideStream | None = None,
        step_graph: StepGraph | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.task = task
        self.optim = optim
        self.teachers = dict(teachers)  # a dict's values are not registered as submodules
        self.moving = nn.ModuleDict({name: each for name, each in teachers.items() if each.role in (EMA, PEER)})
        self.averaged_student = averaged_student
        self.side_stream = side_stream
        self.step_graph = step_graph
        self._replayed = False  # whether the gradients of this step are there already
        self.outputs = outputs  # of a row of logits; None: any number
        self.val_score = task.metric(outputs)
        self.val_metrics = task.chosen_metrics(outputs)
        self.losses: Losses | None = None  # between a forward and its backward
        self._counts: UpdateCounts | None = None  # of the update whose gradients are being accumulated
        self.own: Batch | None = None  # the batch of this step, if it is of the student's own texts
        self._own: deque[Batch] = deque()  # what is left of a round on them
        self.stage = ""  # the name of the current stage; empty in a run without stages
        self.stage_start_epoch = self.stage_start_step = 0  # the epoch and the update at which it began
        self.stage_teachers: frozenset[str] = frozenset()  # names of teachers that are students of earlier stages

    def replace_parts(self, other: "Distiller", losses: Set[str] | None) -> None:
        """Replace the parts by those of `other`, for the next stage.

        Args:
            losses: if the stage continues with this student, the losses that keep their state (projectors, memory
                banks); averages of the student are kept, too. None: the stage has a student of its own.
        """
        before, after = whole_state(self), other.state_dict()
        if losses is not None:
            begun = tuple(f"{TERMS}{name}." for name in other.objective.terms.keys() - losses)
            same = (name for name in after if name in before and before[name].shape == after[name].shape)
            other.load_state_dict({name: before[name] for name in same if not name.startswith(begun)}, strict=False)
        self.student, self.teachers, self.moving = other.student, other.teachers, other.moving
        self.averaged_student = other.averaged_student
        self.task, self.objective, self.optim = other.task, other.objective, other.optim
        self.outputs, self.step_graph = other.outputs, other.step_graph
        self._own.clear()
        self.val_score, self.val_metrics = other.val_score.to(self.device), other.val_metrics.to(self.device)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by name: those of the student, of peers and of the losses' projectors."""
        return ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)

    @property
    def evaluated(self) -> Network:
        """What is validated, scored and exported: the student, or its average if there is one."""
        return self.averaged_student or self.student

    @property
    def remarks(self) -> list[str]:
        """Remarks on the student and its teachers, for the user."""
        networks = {"student": self.student} | {
            f"teacher {name}": each for name, each in self.teachers.items() if each is not self.student
        }
        own = [] if self.objective.rollouts is None else [f"student: {self.objective.rollouts.remark}"]
        if self.averaged_student is not None:
            own.append(f"student: validated, scored and exported is an {self.averaged_student.source}")
        return own + [
            f"{name}: {remark}"
            for name, network in networks.items()
            for remark in (*network.remarks, network.about_classes)
            if remark
        ]

    @property
    def frozen(self) -> dict[str, Teacher]:
        """The frozen teachers, by name."""
        return {name: each for name, each in self.teachers.items() if isinstance(each, Teacher) and each.role == FROZEN}

    def on_train_epoch_start(self) -> None:
        if self.step_graph is not None:
            self.step_graph.forget()  # callbacks may have frozen layers or changed losses

    def on_train_batch_start(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        if self.device_mesh is not None:
            share_buffers(self.student)
        if self.objective.rollouts is not None:
            self._roll_out(self.objective.rollouts, batch, batch_idx)
        batches = self.trainer.accumulate_grad_batches
        if batches == 1 or not isinstance(self.trainer.train_dataloader, ResumableLoader):
            self._counts = None  # other loaders cannot look ahead: each batch counts alike
        elif batch_idx % batches == 0 or self._counts is None:
            ahead = self._batches_until(batches, batch, batch_idx)
            self._counts = UpdateCounts.of(self.task, [*self._own][: len(ahead)] or ahead)

    def _batches_until(self, multiple: int, batch: Batch, batch_idx: int) -> list[Batch]:
        """This batch and those that follow it, up to a multiple in their number, or the end of the epoch."""
        loader = self.trainer.train_dataloader
        if not isinstance(loader, ResumableLoader):
            return [batch]
        left = min(multiple - batch_idx % multiple, int(self.trainer.num_training_batches) - batch_idx)
        return [batch, *loader.peek(left - 1)]

    def _roll_out(self, rollouts: Rollouts, batch: Batch, batch_idx: int) -> None:
        """Draw the student's own texts, at the beginning of a round that is on them."""
        accumulated = self.trainer.accumulate_grad_batches
        done = batch_idx // accumulated % rollouts.updates
        if self._own or not rollouts.own(self.trainer.global_step - done):
            return
        batches = self._batches_until(accumulated * rollouts.updates, batch, batch_idx)
        here = [{key: value.to(self.device) for key, value in each.items()} for each in batches]
        with self.trainer.strategy.precision_plugin.forward_context():  # the law is that of the student in training
            drawn = rollouts.draw(self.student.net, here, self.trainer.global_step)
            if self.objective.reads_samples:
                drawn = [scored(rollouts, self.student, self.task, each) for each in drawn]
        self._own.extend(drawn)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> dict[str, Any]:
        if self.objective.rollouts is not None:
            self.own = self._own.popleft() if self._own else None
            batch = given(batch) if self.own is None else self.own
        with before_heads([self.student, *self.teachers.values()]):
            looked_up = {name: each(batch, training=True) for name, each in self.teachers.items() if each.is_looked_up}
            if self.step_graph is not None:
                numbers = tuple(self.objective.changing().values())
                parameters = (parameter for _, parameter in self.trainable())
                output = self.step_graph(self._with_gradients, batch, looked_up, numbers, parameters)
                self._replayed = output is not None
                if output is not None:
                    return output
            return self._step(batch, looked_up)

    def _with_gradients(self, batch: Batch, looked_up: Mapping[str, Signals]) -> dict[str, Any]:
        """A step up to the gradients, without Lightning."""
        output = self._step(batch, looked_up)
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # of float16
        with torch.autocast(self.device.type, enabled=False):  # as Lightning, which leaves it before the backward
            (scaler.scale(output["loss"]) if scaler else output["loss"]).backward()
        self.losses = None  # it holds the graph
        return {**output, "loss": output["loss"].detach()}

    def _step(self, batch: Batch, looked_up: Mapping[str, Signals]) -> dict[str, Any]:
        student, signals = self._signals(batch, looked_up)
        self.losses = losses = self.objective(student, signals, batch, self._counts)
        # Lightning divides by accumulate_grad_batches, even where an epoch ends after fewer batches.
        missing = self.trainer.accumulate_grad_batches / self._counts.batches if self._counts else 1
        total = losses.total if missing == 1 else losses.total * missing
        return {"loss": total, "terms": losses.terms, "weights": losses.weights, "hits": losses.hits}

    def _signals(self, batch: Batch, known: Mapping[str, Signals]) -> tuple[Signals, dict[str, Signals]]:
        """Those of the student, and of its teachers, among which it may be itself."""
        teachers = {name: each for name, each in self.teachers.items() if each is not self.student}
        beside: dict[str, Signals] = {}
        if self.side_stream is not None:
            beside = self.side_stream.start({n: each for n, each in self.frozen.items() if n not in known}, batch)
        known = {**known, **beside}
        others = {name: each(batch, training=True) for name, each in teachers.items() if name not in known}
        student = self.student(batch)
        if self.side_stream is not None:
            self.side_stream.join(beside)
        return student, {**dict.fromkeys(self.teachers, student), **others, **known}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._own:  # in the middle of a round: the student that drew these is no more
            checkpoint[OWN] = of_all_ranks([dict(batch) for batch in self._own])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        of_ranks = checkpoint.get(OWN, ())
        if len(of_ranks) == self.trainer.world_size:  # otherwise the rest of the round is drawn anew
            self._own = deque(of_ranks[self.trainer.global_rank])

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        if not self._replayed:
            super().optimizer_zero_grad(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._replayed:
            super().backward(loss, *args, **kwargs)

    def on_after_backward(self) -> None:
        self.losses = None  # it holds the graph

    def on_train_batch_end(self, *_: Any) -> None:
        if self.student.replayed:  # gradients lie in the memory of CUDA graphs, which are overwritten or go
            self.zero_grad()

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        with before_heads([self.evaluated]):
            whole = labelled_rows(*self.task.rows(self.evaluated(batch), batch), batch)

        def scored(rows: Signals, labelled: Batch) -> dict[str, Tensor]:
            loss = self.task.loss(rows.logits, labelled["target"])
            if len(loss):  # a batch of texts may have no labelled token
                self.task.score_rows(self.val_score, rows.logits, loss, labelled)
                self.task.update_metrics(self.val_metrics, rows.logits, loss, labelled)
            return {"loss": loss}

        loss = map_rows(scored, *whole, self.task.rows_per_chunk)["loss"]
        count = len(loss)
        # The attributes are named, since each stage has metrics of its own.
        self.log(SCORE, self.val_score, prog_bar=True, metric_attribute="val_score")
        for name in self.task.metrics:
            self.log(f"val/{name}", self.val_metrics[name], metric_attribute=f"val_metrics.{name}")
        self.log(LOSS, loss.sum() / max(1, count), batch_size=count, sync_dist=True)

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # FSDP2's
            shard(self.student, self.objective, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.make_optimizer(self.trainable())
        scheduler = self.optim.make_scheduler(optimizer)
        if scheduler is None:
            return optimizer
        when = {"interval": self.optim.interval, "frequency": self.optim.frequency, "monitor": self.optim.monitor}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **when}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if metric is not None:
            scheduler.step(metric)
        else:  # within an epoch, its number is that of the epochs before it
            epochs, updates = self.current_epoch + 1, self.trainer.global_step
            step(scheduler, epochs - self.stage_start_epoch, updates - self.stage_start_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        for average in (self.averaged_student, *self.moving.values()):
            if isinstance(average, EMATeacher):
                average.follow(self.student)

    def on_fit_start(self) -> None:
        for teacher in self.teachers.values():
            teacher.place(self.device, cast(torch.dtype, self.dtype))

    def on_validation_start(self) -> None:
        self.on_fit_start()
        if self.device_mesh is not None:
            share_buffers(self.student)
