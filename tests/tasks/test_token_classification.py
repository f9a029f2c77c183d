"""Classes of tokens: rows against a loop, the score against scikit-learn's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.tasks.token_classification import TokenClassification

CLASSES = 4


def batch(texts: int, length: int, seed: int = 0) -> tuple[Signals, dict[str, Tensor]]:
    """Half of the tokens count, most of them of class 0; no token is of the last class."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2, texts, length, generator=generator)
    target = torch.where(draw[0] < 0.7, 0, torch.where(draw[0] < 0.9, 1, 2))
    target = torch.where(draw[1] < 0.5, -100, target)
    logits = torch.randn(texts, length, CLASSES, generator=generator) + torch.tensor([2.0, 0, 0, -9])
    mask = torch.ones(texts, length)
    signals = Signals(logits, {"x": torch.randn(texts, length, 3, generator=generator)}, mask=mask)
    return signals, {"input_ids": target.abs(), "target": target, "index": 100 + torch.arange(texts)}


def test_rows_are_the_tokens_with_a_class_in_their_order() -> None:
    signals, given = batch(3, 7)
    expected = [
        (signals.logits[sample, token].tolist(), int(given["target"][sample, token]), 100 + sample)
        for sample in range(3)
        for token in range(7)
        if given["target"][sample, token] != -100
    ]
    assert 0 < len(expected) < 21
    rows, labelled = TokenClassification().rows(signals, given)
    parts = rows.logits.tolist(), labelled["target"].tolist(), labelled["index"].tolist()
    assert list(zip(*parts, strict=True)) == expected


def test_everything_but_the_rows_stays_as_it_is() -> None:
    signals, given = batch(3, 7)
    rows, labelled = TokenClassification().rows(signals, given)
    assert rows.layers is signals.layers
    assert rows.mask is signals.mask
    assert labelled["input_ids"] is given["input_ids"]
    assert given["target"].shape == signals.logits.shape[:2] == (3, 7)


def test_gradient_reaches_only_the_tokens_that_count() -> None:
    signals, given = batch(3, 7)
    signals.logits.requires_grad_()
    task = TokenClassification()
    rows, labelled = task.rows(signals, given)
    task.loss(rows.logits, labelled["target"]).sum().backward()
    assert signals.logits.grad is not None
    assert torch.equal(signals.logits.grad.abs().sum(-1) > 0, given["target"] != -100)


def test_a_teacher_that_stops_before_its_logits_has_no_rows_of_them() -> None:
    """It gives logits [B,0]; the rows of labels are the same for all."""
    signals, given = batch(3, 7)
    stopped = Signals(torch.empty(3, 0), signals.layers)
    rows, labelled = TokenClassification().rows(stopped, given)
    assert rows is stopped
    assert torch.equal(labelled["target"], given["target"][given["target"] != -100])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_is_the_smoothed_cross_entropy_of_each_row(smoothing: float) -> None:
    logits, target = torch.randn(6, CLASSES, dtype=torch.float64), torch.arange(6) % CLASSES
    label = np.eye(CLASSES)[target] * (1 - smoothing) + smoothing / CLASSES
    expected = -(label * np.log(np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True))).sum(1)
    found = TokenClassification(label_smoothing=smoothing).loss(logits, target)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_score_is_the_macro_f1_of_all_batches_together() -> None:
    """A class that is nowhere does not count; the mean of the batches' own scores and accuracy are other numbers."""
    task = TokenClassification()
    metric = task.metric(CLASSES)
    predicted, target, scores = [], [], []
    for seed, length in enumerate((5, 9, 12)):
        rows, labelled = task.rows(*batch(4, length, seed))
        metric.update(rows.logits, labelled["target"])
        predicted.append(task.predict(rows.logits).numpy())
        target.append(labelled["target"].numpy())
        scores.append(f1_score(target[-1], predicted[-1], average="macro"))
    whole = np.concatenate(target), np.concatenate(predicted)
    expected = f1_score(*whole, average="macro")
    assert 3 not in np.concatenate(whole)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    assert abs(expected - np.mean(scores)) > 0.01
    assert abs(expected - accuracy_score(*whole)) > 0.01


def test_outputs_are_the_classes() -> None:
    assert TokenClassification().outputs(SimpleNamespace(name="x", classes=("O", "B", "I"))) == 3
    with pytest.raises(UserError, match="token_classification: the tokens of 'x' have no classes"):
        TokenClassification().outputs(SimpleNamespace(name="x", classes=()))


def test_refusals() -> None:
    signals, given = batch(3, 7)
    task = TokenClassification()
    with pytest.raises(UserError, match=r"\[3\], are one for each sample.* task=classification"):
        task.rows(signals, {**given, "target": torch.zeros(3, dtype=torch.long)})
    with pytest.raises(UserError, match=r"logits \[3, 4\] for targets \[3, 7\].* head token_classification"):
        task.rows(Signals(signals.logits[:, 0]), given)
    with pytest.raises(UserError, match=r"logits \[3, 6, 4\] for targets \[3, 7\]"):
        task.rows(Signals(signals.logits[:, 1:]), given)
    with pytest.raises(UserError, match=r"^label_smoothing=1\.5"):
        TokenClassification(label_smoothing=1.5)
