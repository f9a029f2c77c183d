"""Logs every loss and every number with a schedule, and stops a run whose losses are no longer finite."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pydantic import NonNegativeInt
from torch import Tensor
from torch.nn.utils import get_total_norm

from distillery.core.errors import UserError
from distillery.core.process import of_all_ranks, rank
from distillery.training.distiller import Distiller
from distillery.training.fsdp import local
from distillery.training.hits import AGREEMENT, Hits, add_hits


class TermMonitor(L.Callback):
    """Logs the mean of each loss over all ranks since the last line, every `every_n_steps` and after each epoch.

    `train/kd` is the loss itself and `weighted/kd` its share of `train/loss`, times its weight in each batch. After
    each epoch, `train/accuracy` and `train/agreement` (with several teachers `train/agreement.<name>`) follow, as
    shares of the epoch's rows on all ranks. They are computed from the predictions that the losses saw: in training
    mode, on augmented samples. Each rank counts for itself, and the counts are added up once an epoch, whatever labels
    the batches had. A run that is resumed within an epoch continues with the counts of its first rank.

    The numbers that change during training are logged with them, as of the last step: `train/kd.weight`. Losses stay
    on the device and are fetched together when a line is due; logging each of them in each step would take longer than
    the step of a small student. After one step that is not finite everything becomes NaN: the error names what was not
    finite in the first such step.

    Args:
        every_n_steps: steps between two lines; 0: a line after each epoch only.

    Raises:
        UserError: a loss or a parameter is NaN or infinite. It is raised before anything is saved, so that the last
            checkpoint is a good one.
    """

    def __init__(self, every_n_steps: NonNegativeInt) -> None:
        self.every_n_steps = every_n_steps
        self._names: list[str] = []
        self._rows: list[Tensor] = []  # one for each batch since the last line
        self._weights: list[dict[str, float]] = []  # the same
        self._hits: Hits = {}  # in this epoch, on this rank
        self._reported = 0  # the step of the last line
        self._checked = -1  # the step whose weights have last been seen to be finite

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._hits.clear()  # those of a checkpoint from the end of an epoch; not called where one is resumed within

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Mapping[str, Tensor], batch_idx: int
    ) -> None:
        terms: dict[str, Tensor] = outputs["terms"]
        self._names = list(terms)
        self._rows.append(torch.stack([value.float() for value in terms.values()]))
        self._weights.append(outputs["weights"])
        add_hits(self._hits, outputs["hits"])
        # with accumulated gradients, several batches belong to the same step
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._reported:
            self._report(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._report(trainer, module)  # before the callbacks that save by the validation score
        self._refuse_broken_weights(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.on_validation_start(trainer, module)
        self._report_hits(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"hits": self._counted()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if rank() == 0:
            self._hits = dict(state_dict["hits"])

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._rows:  # saved in mid-epoch, between two lines
            self._finite(trainer)
        self._refuse_broken_weights(trainer, module)

    def _report(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._rows:
            return
        rows = self._finite(trainer).cpu()
        means = dict(zip(self._names, rows.mean(0).tolist(), strict=True))
        assert isinstance(module, Distiller)
        line = {f"train/{name}": value for name, value in (means | module.objective.changing()).items()}
        for name in self._weights[-1]:
            weights = torch.tensor([each[name] for each in self._weights], dtype=rows.dtype)
            line[f"weighted/{name}"] = (weights * rows[:, self._names.index(name)]).mean().item()
        self._rows.clear()
        self._weights.clear()
        self._reported = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(line, step=trainer.global_step)
        # what `module.log` would do in several times the time of all else here
        trainer.callback_metrics["loss"] = torch.tensor(means["loss"])
        trainer.progress_bar_metrics["loss"] = means["loss"]

    def _counted(self) -> dict[str, tuple[int, int]]:
        return {name: (int(right), int(counted)) for name, (right, counted) in self._hits.items()}

    def _report_hits(self, trainer: L.Trainer) -> None:
        """Log the shares of the epoch. All ranks call this, also one that has nothing to add."""
        own = self._counted()
        self._hits.clear()
        totals: Hits = {}
        for found in of_all_ranks(own):
            add_hits(totals, found)
        shares = {name: float(right / counted) for name, (right, counted) in totals.items() if counted}
        agreements = [name for name in shares if name.startswith(AGREEMENT)]
        if len(agreements) == 1:
            shares[AGREEMENT.removesuffix(".")] = shares.pop(agreements[0])
        for logger in trainer.loggers if shares else ():
            logger.log_metrics({f"train/{name}": value for name, value in shares.items()}, step=trainer.global_step)

    def _finite(self, trainer: L.Trainer) -> Tensor:
        """The losses since the last line, as means over the ranks.

        Raises:
            UserError: one is not finite.
        """
        # one reduction for all; a mean is not finite on any rank if it is not on one: all ranks stop together
        rows = trainer.strategy.reduce(torch.stack(self._rows), reduce_op="mean")
        if not rows.isfinite().all():
            first = next(row for row in rows.tolist() if not all(map(math.isfinite, row)))
            broken = {name: value for name, value in zip(self._names, first, strict=True) if not math.isfinite(value)}
            named = [name for name in broken if name != "loss"] or broken
            raise _stopped(trainer, " and ".join(f"loss.{name} is {broken[name]}" for name in named))
        return cast(Tensor, rows)

    def _refuse_broken_weights(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        if self._checked == trainer.global_step:
            return
        parameters = {name: local(parameter) for name, parameter in module.trainable()}
        largest = get_total_norm(parameters.values(), norm_type=math.inf)  # in a few kernels for all of them
        finite = trainer.strategy.reduce(largest.isfinite().float(), reduce_op="mean")  # a rank sees only its shard
        if finite < 1:
            each = torch.stack([parameter.isfinite().all() for parameter in parameters.values()]).float()
            broken = [*parameters][int(trainer.strategy.reduce(each, reduce_op="mean").argmin())]
            raise _stopped(trainer, f"the weights {broken} are not finite after an update")
        self._checked = trainer.global_step


def _stopped(trainer: L.Trainer, what: str) -> UserError:
    checkpoints = [c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    saved = [path for path in checkpoints if Path(path).is_file()]  # and not about to be written for the first time
    return UserError(
        f"Training stopped in epoch {trainer.current_epoch + 1}, step {trainer.global_step}: {what}. "
        "Likely: a learning rate too high (optim.optimizer.lr), the term's weight, or half precision "
        "(trainer.precision=32-true). "
        + (f"The last good checkpoint is {saved[-1]}." if saved else "No checkpoint had been written yet.")
    )
