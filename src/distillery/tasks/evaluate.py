"""Scores a network on a split: one plain loop that visits each sample exactly once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from distillery.losses.chunked import map_rows
from distillery.losses.signals import Signals
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.end_before_head import before_heads
from distillery.tasks.task import Batch, Task, labelled_rows


@dataclass
class Evaluation:
    """`score` and mean hard-label `loss` on a split, and the `index`, `target` and prediction of each row, [N].

    `metrics`: the figures that `Task.metrics` names. `probabilities`: of each row's classes, [N,C] in float32, where
    they were asked for and the task predicts classes.
    """

    score: float
    loss: float
    index: Tensor
    target: Tensor
    predicted: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    probabilities: Tensor | None = None

    @property
    def exact_match(self) -> float:
        """The share of samples of which every row is predicted rightly.

        Of continued prompts these are the ones whose likeliest continuation, token by token, is exactly the given one:
        as long as it is, the network is asked for the next token of the same text.
        """
        samples, place = self.index.unique(return_inverse=True)
        wrong = torch.zeros(len(samples)).index_add_(0, place, (self.predicted != self.target).float())
        return (wrong == 0).double().mean().item()


def evaluate(
    network: nn.Module,
    loader: Iterable[Mapping[str, Tensor]],
    task: Task,
    outputs: int | None,
    probabilities: bool = False,
) -> Evaluation:
    """Score `network` in evaluation mode, on the device of its parameters and buffers.

    It is not run by a Trainer, whose distributed loaders may count a sample twice to fill a batch.

    Args:
        network: maps a batch to `Signals`.
        loader: batches with `target` and `index`.
        outputs: see `Task.outputs`.
        probabilities: whether to keep those of all classes; of pixels, which are too many, they are not kept.
    """
    probabilities = probabilities and task.rows_are != "pixels"
    device = next(chain(network.parameters(), network.buffers())).device
    metric, chosen = task.metric(outputs).to(device), task.chosen_metrics(outputs).to(device)
    found: dict[str, list[Tensor]] = {"index": [], "target": [], "predicted": [], "loss": [], "probabilities": []}

    def figures(rows: Signals, labelled: Batch) -> dict[str, Tensor]:
        loss = task.loss(rows.logits, labelled["target"])
        task.score_rows(metric, rows.logits, loss, labelled)
        task.update_metrics(chosen, rows.logits, loss, labelled)
        of_classes = task.probabilities(rows.logits) if probabilities else None
        kept = {} if of_classes is None else {"probabilities": of_classes.float()}
        return {"predicted": task.predict(rows.logits), "loss": loss, **kept}

    with evaluating(network), before_heads(network.modules()):
        for batch in loader:
            batch = {key: value.to(device) for key, value in batch.items()}
            rows, labelled = labelled_rows(*task.rows(network(batch), batch), batch)
            if not len(labelled["target"]):
                continue  # no token that counts, or no label
            known = {**labelled, **map_rows(figures, rows, labelled, task.rows_per_chunk)}
            for key, values in found.items():
                values += [known[key]] if key in known else []
    joined = {key: torch.cat(parts).cpu() for key, parts in found.items() if parts or key != "probabilities"}
    mean = joined.pop("loss").mean().item()
    metrics = {name: chosen[name].compute().item() for name in task.metrics}
    return Evaluation(metric.compute().item(), mean, **joined, metrics=metrics)
