"""The metrics that `task.metrics` may name, beside a task's own score.

`CATALOGUE` says what each is, which kinds of prediction it suits, its direction and its range. A new metric is one
entry there: a class of torchmetrics, or one of the classes below. What its `update` takes is given by name: `preds` and
`target` of each row, its `loss`, and every column that `Task.rows` adds to the batch, such as `index` and `position`.
"""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassStatScores,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from distillery.core.errors import UserError, did_you_mean
from distillery.tasks.answers import AnswerScore

SCORE, LOSS = "val/score", "val/loss"  # what every validation logs
TOP_K = re.compile(r"top(\d+)_accuracy")
UNIT = (0.0, 1.0)

Classes = Sequence[Any]  # the names of the data's classes; of answers the questions
Make = Callable[[int, Classes], Metric]  # of the number of outputs


@dataclass(frozen=True)
class Known:
    """A metric that can be chosen.

    Attributes:
        of: by the kind of prediction that it suits (`Task.prediction`), what makes it.
        per_token: whether it needs a task with one class for each token.
    """

    of: Mapping[str, Make]
    higher_is_better: bool = True
    range: tuple[float, float] = UNIT
    per_token: bool = False

    def suits(self, prediction: str, per_token: bool) -> bool:
        return prediction in self.of and (per_token or not self.per_token)


class BalancedAccuracy(MulticlassStatScores):
    """The mean recall of the classes that occur among the targets (as scikit-learn's `balanced_accuracy_score`)."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="none", validate_args=False)

    def compute(self) -> Tensor:
        hits, *_, support = super().compute().T
        occurs = support > 0
        return (hits[occurs] / support[occurs]).mean()


class OneVersusRest(Metric):
    """The mean over the classes of a ranking metric of each class against all others.

    Takes probabilities [N,C] and targets, [N] or [N,C] of 0 and 1, and keeps them until `compute`. Classes for which
    the metric is not defined are left out: those that never occur, and `with_negatives` those that always do. NaN if
    that leaves none.

    Args:
        metric: of torchmetrics, for several labels.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, metric: Callable[..., Tensor], with_negatives: bool) -> None:
        super().__init__()
        self.metric = metric
        self.with_negatives = with_negatives
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> Tensor:
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        if target.dim() == 1:
            target = nn.functional.one_hot(target, preds.shape[1])
        count = target.sum(0)
        defined = (count > 0) & (count < len(target) if self.with_negatives else True)
        if not defined.any():
            return preds.new_tensor(math.nan)
        number = int(defined.sum())
        found = self.metric(preds[:, defined], target[:, defined].long(), number, average="none", validate_args=False)
        return found.mean()


class RankCorrelation(SpearmanCorrCoef):
    """Spearman's; NaN if any prediction is. NaNs would be ranked by position: a broken network would score 1."""

    def __init__(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # it keeps all samples: two numbers each
            super().__init__()

    def compute(self) -> Tensor:
        return torch.where(dim_zero_cat(self.preds).isnan().any(), math.nan, super().compute())


class EntityF1(Metric):
    """Micro F1 of entities: an entity counts as found if its type, its beginning and its end are right.

    It is the default of seqeval (Nakayama 2018, https://github.com/chakki-works/seqeval), and what CoNLL-2003 reports
    (Tjong Kim Sang and De Meulder 2003); see `entities`. Takes the probabilities [N,C] and classes [N] of tokens, with
    the `index` of their text and their `position` in it, and keeps the classes until `compute`, as a text may be scored
    in parts. 0 where there are entities and none is found; NaN where there are none at all.

    Args:
        tags: the names of the classes, as `O`, `B-PER`, `I-PER`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    tokens: list[Tensor]

    def __init__(self, tags: Classes) -> None:
        super().__init__()
        self.tags = tags
        self.add_state("tokens", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, index: Tensor, position: Tensor) -> None:
        self.tokens.append(torch.stack([index, position, preds.argmax(-1), target], 1))

    def compute(self) -> Tensor:
        tokens = dim_zero_cat(self.tokens).cpu()
        texts: dict[int, list[tuple[int, int, int]]] = {}
        for index, *token in tokens.tolist():
            texts.setdefault(index, []).append((token[0], token[1], token[2]))
        found = known = right = 0
        for text in texts.values():
            own, theirs = (entities([self.tags[token[column]] for token in sorted(text)]) for column in (1, 2))
            found, known, right = found + len(own), known + len(theirs), right + len(own & theirs)
        return torch.tensor(2 * right / (found + known) if found + known else math.nan, device=self.device)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities of one text: their type, first and last place.

    As in seqeval's default mode, a tag that continues nothing begins an entity: `I-PER` after `O`, or after another
    type. Tags are `O`, or a prefix and a type: `B-` (begins), `I-` (goes on), `E-` (ends), `S-` (alone).
    """
    found, begin, before = set(), 0, ("O", "")
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        inside = before[0] != "O"
        goes_on = inside and prefix in "IE" and kind == before[1] and before[0] in "BI"
        if inside and not goes_on:
            found.add((before[1], begin, place - 1))
        if not goes_on:
            begin = place
        before = (prefix, kind)
    return found


def _entity_f1(_: int, tags: Classes) -> EntityF1:
    wrong = [tag for tag in tags if not re.fullmatch(r"O|[BIES]-.+", tag)]
    if wrong or not tags:
        raise UserError(
            f"task.metrics=entity_f1: it needs tags such as O, B-PER and I-PER, but the classes of these data are "
            f"{', '.join([*tags][:5]) or 'not known'}{', …' if len(tags) > 5 else ''}. Choose macro_f1."
        )
    return EntityF1(tags)


def _top_k(k: int) -> Known:
    def make(outputs: int, _: Classes) -> Metric:
        if not 0 < k < outputs:
            raise UserError(
                f"task.metrics=top{k}_accuracy: there are {outputs} classes; k must be from 1 to {outputs - 1}."
            )
        return MulticlassAccuracy(outputs, top_k=k, average="micro", validate_args=False)

    return Known({"class": make, "token": make})


def _sized(metric: Callable[..., Metric], **settings: Any) -> Make:
    return lambda outputs, _: metric(outputs, **settings)


def _plain(metric: Callable[[], Metric]) -> Make:
    return lambda *_: metric()


def _over_classes(metric: Callable[..., Tensor], with_negatives: bool) -> Known:
    make = _plain(partial(OneVersusRest, metric, with_negatives))
    return Known({"class": make, "labels": make})


_accuracy = _sized(MulticlassAccuracy, average="micro", validate_args=False)
CATALOGUE = {
    "accuracy": Known({"class": _accuracy, "token": _accuracy}),
    "top5_accuracy": _top_k(5),  # and any other k
    "balanced_accuracy": Known({"class": _sized(BalancedAccuracy)}),
    "macro_f1": Known(
        {
            "class": _sized(MulticlassF1Score, average="macro", validate_args=False),
            "labels": _sized(MultilabelF1Score, average="macro", validate_args=False),
        }
    ),
    "micro_f1": Known({"labels": _sized(MultilabelF1Score, average="micro", validate_args=False)}),
    "mcc": Known({"class": _sized(MulticlassMatthewsCorrCoef, validate_args=False)}, range=(-1.0, 1.0)),
    "auroc": _over_classes(multilabel_auroc, with_negatives=True),
    "mAP": _over_classes(multilabel_average_precision, with_negatives=False),
    "entity_f1": Known({"class": _entity_f1}, per_token=True),
    "spearman": Known({"number": _plain(RankCorrelation)}, range=(-1.0, 1.0)),
    "pearson": Known({"number": _plain(PearsonCorrCoef)}, range=(-1.0, 1.0)),
    "exact_match": Known({"position": lambda _, questions: AnswerScore(questions, exact=True)}),
    "mse": Known({"number": _plain(MeanSquaredError)}, higher_is_better=False, range=(0.0, math.inf)),
}


def known(name: str) -> Known | None:
    """The metric of this name; None: there is none."""
    top_k = TOP_K.fullmatch(name)
    return _top_k(int(top_k[1])) if top_k else CATALOGUE.get(name)


def check_metrics(metrics: Sequence[str], monitor: str, prediction: str, per_token: bool) -> None:
    """Refuse metrics that do not exist or do not suit the predictions, and a monitor that no validation logs.

    Args:
        prediction: see `Task`.
        per_token: whether the task has a label for each token.

    Raises:
        UserError: names the nearest metrics that suit.
    """
    suitable = [name for name, each in CATALOGUE.items() if each.suits(prediction, per_token)]
    for name in metrics:
        if (found := known(name)) is None:
            raise UserError(f"metrics={name}: there is no such metric." + did_you_mean(name, suitable))
        if not found.suits(prediction, per_token):
            of = "tokens with one class each" if found.per_token else " or ".join(found.of)
            raise UserError(
                f"metrics={name}: it is for predictions of another kind ({of}) than this task's ({prediction})."
                + (f" Choose from: {', '.join(suitable)}." if suitable else " This task has no other metrics.")
            )
    if twice := [name for name in metrics if [*metrics].count(name) > 1]:
        raise UserError(f"metrics={twice[0]}: it is named twice.")
    if monitor not in (logged := validated(metrics)):
        name = monitor.removeprefix("val/")
        fix = f" Add it to task.metrics: [{', '.join([*metrics, name])}]." if name in suitable else ""
        raise UserError(f"monitor={monitor}: no validation logs it." + (fix or did_you_mean(monitor, logged)))


def validated(metrics: Sequence[str]) -> tuple[str, ...]:
    """What a validation logs where a task has these metrics beside its score."""
    return SCORE, LOSS, *(f"val/{name}" for name in metrics)


def facts(name: str) -> dict[str, Any]:
    """What a record says of a metric."""
    found = known(name)
    assert found is not None
    return {"higher_is_better": found.higher_is_better, "range": [*found.range]}


def mode_of(logged: str, higher_is_better: bool) -> Literal["max", "min"]:
    """Whether the best value of what is logged, as `val/macro_f1`, is the greatest or the least.

    For a name that is not known it is the greatest.

    Args:
        higher_is_better: of the task's score.
    """
    if logged == SCORE:
        return "max" if higher_is_better else "min"
    if logged.rpartition("/")[2] == "loss":
        return "min"
    found = known(logged.removeprefix("val/"))
    return "min" if found and not found.higher_is_better else "max"


def make_metrics(metrics: Sequence[str], prediction: str, outputs: int | None, classes: Classes) -> MetricCollection:
    """The metrics by name.

    Args:
        prediction, outputs: see `Task`.
        classes: the names of the data's classes.

    Raises:
        UserError: one needs more classes, or classes of other names.
    """
    chosen = {name: known(name) for name in metrics}
    made = {name: each.of[prediction](outputs or 0, classes) for name, each in chosen.items() if each}
    return MetricCollection(made, compute_groups=False)  # type: ignore[arg-type]


def wrong_where_broken(logits: Tensor, target: Tensor) -> Tensor:
    """Rows of logits [N,C] in which rows with NaN or infinity are certain that the target is wrong.

    Otherwise the first of equally likely classes would be the prediction, which is often right where it is frequent.

    Args:
        target: classes [N], or 0 and 1 for each label, [N,C].
    """
    broken = (logits.isnan() | logits.isposinf()).any(-1, keepdim=True)
    if not broken.any():
        return logits
    if target.dim() == 1:
        wrong = torch.zeros_like(logits).scatter(-1, target.unsqueeze(-1), -math.inf)
    else:
        wrong = torch.where(target > 0, -math.inf, math.inf).to(logits)
    return torch.where(broken, wrong, logits)
