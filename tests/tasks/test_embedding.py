"""Sentence embeddings: the score against a loop, the loss of their distillation against the field's."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import LeaveOneOut, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.response.logit_mse import LogitMSE
from distillery.losses.signals import Signals
from distillery.tasks import embedding
from distillery.tasks.embedding import Embedding, NearestNeighbour

BATCH = {"target": torch.tensor([2, 0, 1]), "index": torch.arange(3)}


def clusters(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Directions around three centres, of very different lengths: the nearest by distance are others."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (samples,), generator=generator)
    directions = torch.eye(3)[target].repeat(1, 2) + 0.7 * torch.randn(samples, 6, generator=generator)
    return directions * torch.exp(2 * torch.randn(samples, 1, generator=generator)), target


def by_hand(vectors: list[list[float]], classes: list[int]) -> float:
    """Each sample against every other, one at a time."""

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    right = 0
    for i, vector in enumerate(vectors):
        nearest = max((j for j in range(len(vectors)) if j != i), key=lambda j: cosine(vector, vectors[j]))
        right += classes[nearest] == classes[i]
    return right / len(vectors)


@pytest.mark.parametrize(("seed", "chunk"), [(0, 1), (1, 7), (2, 1000)])
def test_score_is_the_leave_one_out_accuracy_of_the_nearest(
    seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK", chunk)
    vectors, target = clusters(60, seed)
    metric = Embedding().metric(None)
    for part in torch.arange(60).split(13):
        metric.update(vectors[part], target[part])
    found = metric.compute().item()
    assert found == pytest.approx(by_hand(vectors.tolist(), target.tolist()), abs=1e-6)
    judge = KNeighborsClassifier(1, metric="cosine")
    assert found == pytest.approx(cross_val_score(judge, vectors.numpy(), target.numpy(), cv=LeaveOneOut()).mean())
    by_distance = cross_val_score(KNeighborsClassifier(1), vectors.numpy(), target.numpy(), cv=LeaveOneOut()).mean()
    assert abs(found - by_distance) > 0.01


def test_a_sample_is_no_neighbour_of_its_own() -> None:
    for samples in (4, 1):
        metric = NearestNeighbour()
        metric.update(torch.eye(samples), torch.arange(samples))
        assert metric.compute().item() == 0.0


@pytest.mark.parametrize(("samples", "chunk"), [(40, 7), (6, 1000), (1, 1000)])
def test_agreement_is_the_share_of_common_neighbours(samples: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of vectors of different widths, in batches; scikit-learn finds the neighbours. Fewer others than ten are all."""
    monkeypatch.setattr(embedding, "CHUNK", chunk)
    data: Any = SimpleNamespace(name="x", classes=())
    task = Embedding()
    assert task.outputs(data) is None
    assert task.score == "neighbour agreement"
    assert Embedding().score == "nearest-neighbour accuracy"
    metric = task.metric(None)
    theirs, _ = clusters(samples, 0)
    ours = torch.cat([theirs[:, :3], torch.randn(samples, 1, generator=torch.Generator().manual_seed(1))], 1)
    for part in torch.arange(samples).split(13):
        rows, of_rows = task.rows(Signals(ours[part]), {"target": theirs[part], "index": part})
        task.score_rows(metric, rows.logits, torch.empty(0), of_rows)
    k = min(10, samples - 1)
    shared = 0.0
    if k:
        found = [
            NearestNeighbors(n_neighbors=k, metric="cosine").fit(each.numpy()).kneighbors(return_distance=False)
            for each in (ours, theirs)
        ]
        shared = float(np.mean([len({*own} & {*other}) / k for own, other in zip(*found, strict=True)]))
        assert (shared == 1.0) == (k == samples - 1)
    assert metric.compute().item() == pytest.approx(shared, abs=1e-6)


def test_the_next_epoch_begins_with_nothing() -> None:
    metric = NearestNeighbour()
    metric.update(*clusters(20, 0))
    metric.reset()
    metric.update(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1]]), torch.tensor([0, 0, 1]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_distillation_is_that_of_sentence_embeddings() -> None:
    """`nn.MSELoss` of the embeddings, as in sentence-transformers' `MSELoss`: a mean over samples and dimensions."""
    task, term = Embedding(), LogitMSE()
    student, teacher = (task.rows(Signals(torch.randn(3, 8, dtype=torch.float64)), BATCH)[0] for _ in range(2))
    student.logits.requires_grad_()
    loss = term(student, teacher, BATCH).mean()
    torch.testing.assert_close(loss, nn.MSELoss()(student.logits, teacher.logits))
    (found,) = torch.autograd.grad(loss, student.logits)
    expected = 2 * (student.logits - teacher.logits).detach().numpy() / (3 * 8)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_labels_teach_nothing(dtype: torch.dtype) -> None:
    loss = Embedding().loss(torch.randn(3, 8).to(dtype), BATCH["target"])
    assert loss.tolist() == [0.0, 0.0, 0.0]
    assert loss.dtype == torch.promote_types(dtype, torch.float32)


def test_prediction_is_the_vector_itself() -> None:
    vectors = torch.randn(3, 8).bfloat16()
    assert torch.equal(Embedding().predict(vectors), vectors.float())


def test_any_number_of_dimensions() -> None:
    data = SimpleNamespace(name="x", classes=("a", "b"))
    assert Embedding().outputs(data) is None


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"^weight=0.5: .* Set task.weight=0 and .* loss/response=\[logit_mse\]"):
        Embedding(weight=0.5)
    with pytest.raises(UserError, match=r"returns \[3, 5, 8\], not one vector .* head sentence_embedding"):
        Embedding().rows(Signals(torch.randn(3, 5, 8)), BATCH)
    Embedding().rows(Signals(torch.randn(3, 8)), {**BATCH, "target": torch.randn(3, 5)})
    with pytest.raises(UserError, match=r"\[3\] of torch.float32, are not one class for each sample"):
        Embedding().rows(Signals(torch.randn(3, 8)), {**BATCH, "target": torch.randn(3)})
    with pytest.raises(UserError, match=r"\[3, 5\] of torch.int64, are not one class for each sample"):
        Embedding().rows(Signals(torch.randn(3, 8)), {**BATCH, "target": torch.zeros(3, 5, dtype=torch.long)})
