"""Logs what the student's own texts are like, and warns before they collapse."""

import time
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, cast

import lightning as L
import torch
from annotated_types import Ge, Le
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from distillery.core.numerics import kl, log_softmaxes
from distillery.losses.chunked import map_rows
from distillery.losses.on_policy import text_of_rows
from distillery.losses.signals import Signals
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.end_before_head import before_heads
from distillery.tasks.task import Batch
from distillery.training.distiller import Distiller
from distillery.training.rollouts import Round

Share = Annotated[float, Ge(0), Le(1)]
Factor = Annotated[float, Ge(1)]
NEGLIGIBLE = 0.01  # nats a token: a smaller divergence at the beginning of texts counts as this


class RolloutMonitor(L.Callback):
    """Logs, every `every_n_steps` and after each epoch, of the rounds on the student's own texts since the last line:

    - `rollouts/tokens`, `truncated`, `entropy` and `repeated`, see `Round`;
    - `rollouts/generating`: the share of the time that the drawing took, also shown in the bar;
    - `rollouts/kl_first`, `kl_last`: KL(student ‖ teacher), nats a token, in the first and the last quarter of the
      latest texts: errors that add up along a text make the latter larger. Only where all logits are known.

    A student that stops ending its texts, or repeats itself, has begun to collapse: it warns of that once a stage.

    Args:
        every_n_steps: steps between two lines; 0: a line after each epoch only.
        truncated, repeated: the shares of texts without an end, and of repeated sequences, above which it warns.
        entropy: nats a token, below which it warns.
        length: it warns of texts that many times longer or shorter than on the first line.
        kl: it warns if KL in the last quarter is that many times the one in the first.
    """

    def __init__(
        self,
        every_n_steps: NonNegativeInt = 50,
        truncated: Share = 0.5,
        repeated: Share = 0.5,
        entropy: NonNegativeFloat = 0.05,
        length: Factor = 5.0,
        kl: Factor = 5.0,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.truncated = truncated
        self.repeated = repeated
        self.entropy = entropy
        self.length = length
        self.kl = kl
        self._first: float | None = None  # tokens of a text on the first line
        self._rounds: list[Round] = []  # since the last line
        self._seen: Round | None = None
        self._warned: set[str] = set()
        self._since = time.monotonic()  # of the last line
        self._reported = 0  # the step of the last line

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = time.monotonic()

    def on_stage_end(self, trainer: L.Trainer, module: Distiller) -> None:
        self._rounds.clear()
        self._warned.clear()
        self._first = None

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "warned": sorted(self._warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first, self._warned = state_dict["first"], set(state_dict["warned"])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, Distiller)
        last = None if module.objective.rollouts is None else module.objective.rollouts.last
        if last is not None and last is not self._seen:
            self._rounds.append(last)
            self._seen = last
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._reported:
            self._report(trainer, module)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        self._report(trainer, module)

    def _report(self, trainer: L.Trainer, module: Distiller) -> None:
        """Log a line. The same rounds are the student's own on all processes."""
        if not self._rounds:
            return
        now = time.monotonic()
        own = torch.tensor([each[1:-1] for each in self._rounds], dtype=torch.float64).mean(0).tolist()
        values = dict(zip(Round._fields[1:-1], own, strict=True))
        values["generating"] = sum(each.seconds for each in self._rounds) / max(1e-9, now - self._since)
        if module.own is not None and (quarters := divergence_by_quarter(module, module.own)) is not None:
            values |= {"kl_first": quarters[0].item(), "kl_last": quarters[3].item()}
        mean = trainer.strategy.reduce(torch.tensor([*values.values()], device=module.device), reduce_op="mean")
        values = dict(zip(values, cast(Tensor, mean).tolist(), strict=True))
        self._rounds.clear()
        self._since, self._reported = now, trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({f"rollouts/{name}": value for name, value in values.items()}, step=trainer.global_step)
        module.log("generating", values["generating"], prog_bar=True, logger=False, sync_dist=True)
        if trainer.is_global_zero:
            self._warn(values, trainer.global_step)

    def _warn(self, values: Mapping[str, float], step: int) -> None:
        tokens, first, last = values["tokens"], values.get("kl_first", 0.0), values.get("kl_last", 0.0)
        self._first = before = self._first or tokens
        signs = {
            "truncated": (
                values["truncated"] > self.truncated,
                f"{values['truncated']:.0%} of the student's own texts have no end after rollouts.new_tokens",
            ),
            "repeated": (
                values["repeated"] > self.repeated,
                f"{values['repeated']:.0%} of the four-token sequences in the student's own texts are repetitions",
            ),
            "entropy": (
                values["entropy"] < self.entropy,
                f"the tokens of the student's own texts are drawn with an entropy of only {values['entropy']:.2g} nats",
            ),
            "length": (
                not before / self.length <= tokens <= before * self.length,
                f"the student's own texts have {tokens:.3g} tokens on average; at first they had {before:.3g}",
            ),
            "kl": (
                last > self.kl * max(first, NEGLIGIBLE),
                f"the divergence from the teacher grows along the student's own texts, from {first:.2g} to {last:.2g} "
                "nats a token",
            ),
        }
        for name, (reached, said) in signs.items():
            if reached and name not in self._warned:
                self._warned.add(name)
                warnings.warn(
                    f"Step {step}: {said}. A student that does not yet write well learns little from its own texts: "
                    "begin with the data's texts (stages=on_policy), or set a smaller rollouts.share.",
                    stacklevel=2,
                )


def divergence_by_quarter(module: Distiller, batch: Batch) -> Tensor | None:
    """KL(student ‖ teacher) in each quarter of the texts of a batch, nats a token [4].

    Of the first teacher that a loss names; None if it does not give all logits.
    """
    name = next(iter(next(iter(module.objective.terms.values())).by_teacher))  # type: ignore[arg-type]
    student, teacher = module.student, module.teachers[name]
    with evaluating(student), before_heads([student, teacher]):
        ours, of_rows = module.task.rows(student(batch), batch)
        theirs, _ = module.task.rows(teacher(batch, training=True), batch)
        if theirs.level != "logits" or theirs.tokenizer is not None or not len(of_rows["target"]):
            return None
        number = torch.arange(len(of_rows["target"]), device=of_rows["target"].device)

        def divergence(rows: Signals, part: Batch) -> dict[str, Tensor]:
            return {"kl": kl(*log_softmaxes(rows.logits, theirs.rows(part["number"]).computed().logits, 1.0))}

        rows = map_rows(divergence, ours, {"number": number}, module.task.rows_per_chunk)["kl"].double()
    text = text_of_rows(of_rows["index"], of_rows["position"])
    _, place, counts = text.unique_consecutive(return_inverse=True, return_counts=True)
    quarter = (number - (counts.cumsum(0) - counts)[place]) * 4 // counts[place]
    sums = torch.zeros(2, 4, dtype=torch.float64, device=rows.device)
    return sums.index_add_(1, quarter, torch.stack([rows, torch.ones_like(rows)]))[0] / sums[1].clamp_min(1)
