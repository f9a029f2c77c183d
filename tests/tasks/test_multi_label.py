"""Any number of labels: loss, score and metrics against scikit-learn, and which losses compare such rows."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.discovery import loss_modules, term_of
from distillery.models.adapters import ImageAdapter
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.tasks.multi_label import MultiLabel
from distillery.tasks.regression import Regression
from distillery.training.check_task import check_task

N, LABELS = 97, 5


@pytest.fixture
def rows() -> dict[str, Tensor]:
    """The last label never occurs."""
    draw = torch.Generator().manual_seed(0)
    target = (torch.rand(N, LABELS, generator=draw) < torch.tensor([0.5, 0.3, 0.1, 0.05, 0.0])).float()
    return {"logits": 2 * torch.randn(N, LABELS, generator=draw) + 2 * target - 1, "target": target}


def scored(task: MultiLabel, rows: dict[str, Tensor], size: int) -> dict[str, float]:
    metric, chosen = task.metric(LABELS), task.chosen_metrics(LABELS)
    for start in range(0, N, size):
        part = {name: values[start : start + size] for name, values in rows.items()}
        loss = task.loss(part["logits"], part["target"])
        task.score_rows(metric, part["logits"], loss, part)
        task.update_metrics(chosen, part["logits"], loss, part)
    return {"score": metric.compute().item(), **{name: chosen[name].compute().item() for name in task.metrics}}


def test_the_loss_is_the_mean_cross_entropy_of_the_labels(rows: dict[str, Tensor]) -> None:
    loss = MultiLabel().loss(**rows)
    p = rows["logits"].double().sigmoid().numpy()
    expected = [sk.log_loss(rows["target"][row], p[row], labels=[0, 1]) for row in range(N)]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)
    assert MultiLabel().loss(torch.full((1, 2), 1e4).half(), torch.zeros(1, 2)).item() == pytest.approx(1e4, rel=1e-3)


@pytest.mark.parametrize("size", [N, 10])
def test_score_and_metrics_are_those_of_scikit_learn(rows: dict[str, Tensor], size: int) -> None:
    target, p = rows["target"].numpy(), rows["logits"].double().sigmoid().numpy()
    found = scored(MultiLabel(metrics=["mAP", "auroc", "micro_f1", "macro_f1"]), rows, size)
    there = target.any(0)
    assert there.tolist() == [True] * 4 + [False]
    expected = {
        "mAP": sk.average_precision_score(target[:, there], p[:, there]),
        "auroc": sk.roc_auc_score(target[:, there], p[:, there]),
        "micro_f1": sk.f1_score(target, p > 0.5, average="micro"),
        "macro_f1": sk.f1_score(target, p > 0.5, average="macro", zero_division=0),
    }
    assert found == pytest.approx({"score": expected["mAP"], **expected}, abs=1e-6)
    assert torch.equal(MultiLabel().predict(rows["logits"]), torch.from_numpy((p > 0.5).astype(np.int64)))


def test_a_network_that_gives_nan_scores_as_badly_as_can_be(rows: dict[str, Tensor]) -> None:
    worst = {**rows, "logits": 0.5 - rows["target"]}
    rows["logits"] = torch.full_like(rows["logits"], math.nan)
    task = MultiLabel(metrics=["micro_f1", "auroc"])
    found = scored(task, rows, N)
    assert found == scored(task, worst, N)
    assert found["micro_f1"] == found["auroc"] == 0


# Which losses, and which data


def network() -> Network:
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(4, LABELS)), ImageAdapter([0.5], [0.5]))


def checked(task: Any, terms: dict[str, Any], multi_label: bool = True, **batch: Tensor) -> None:
    data: Any = SimpleNamespace(varies=None, labelled=2, mixes=False, name="own", multi_label=multi_label)
    batch = {"image": torch.rand(2, 1, 2, 2), "target": torch.zeros(2, LABELS)} | batch
    check_task(task, data, terms, (), network(), {"main": network()}, batch)


def test_losses_that_need_a_softmax_or_one_class_are_refused() -> None:
    """Of all losses on logits two do without."""
    suit = set()
    for module in loss_modules():
        term = term_of(module)()
        try:
            checked(MultiLabel(), {term.name: term})
            suit.add(term.name)
        except UserError as error:
            told = str(error)
            assert "bernoulli_kd" in told, term.name
    of_logits = {
        name for name in suit if any(name == each.__name__.split(".")[-1] for each in loss_modules(["response"]))
    }
    assert of_logits == {"bernoulli_kd", "logit_mse"}
    assert {"hint", "attention_transfer", "rkd", "similarity_preserving"} < suit


def test_labels_are_compared_for_this_task_alone() -> None:
    term = {"bernoulli_kd": next(term_of(m)() for m in loss_modules() if m.__name__.endswith("bernoulli_kd"))}
    one = torch.zeros(2).long()
    with pytest.raises(UserError, match=r"independent labels, but this task predicts a class\. .*\[kd\]"):
        checked(Classification(), term, multi_label=False, target=one)
    with pytest.raises(UserError, match=r"independent labels, but this task predicts a number"):
        checked(Regression(), term, multi_label=False, target=one)


def test_data_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"'own' have any number of labels each\. Set task=multi_label"):
        checked(Classification(), {})
    with pytest.raises(UserError, match=r"one class each\. Set task=classification, or data\.source\.multi_label=true"):
        checked(MultiLabel(), {}, multi_label=False, target=torch.zeros(2).long())
