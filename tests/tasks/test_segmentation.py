"""Classes of pixels: rows, resized logits, mIoU and losses, each against a loop."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.attention.attention_transfer import AttentionTransfer
from distillery.losses.feature.cwd import CWD
from distillery.losses.response.kd import KD
from distillery.losses.signals import Signals
from distillery.tasks.segmentation import Segmentation
from distillery.training.objective import Objective

CLASSES = 4
Array = NDArray[np.float64]


def batch(
    images: int, height: int = 6, width: int = 8, seed: int = 0, stride: int = 1
) -> tuple[Signals, dict[str, Tensor]]:
    """A third of the pixels count nowhere; no pixel is of the last class, and none is predicted to be."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (images, height, width), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = -100
    logits = torch.randn(images, height // stride, width // stride, CLASSES, generator=generator, dtype=torch.float64)
    logits[..., 3] -= 99
    return Signals(logits), {"image": torch.zeros(images, 1), "target": target, "index": 100 + torch.arange(images)}


def softmax(logits: Array) -> Array:
    return np.exp(logits) / np.exp(logits).sum()


def kl(of: Array, by: Array) -> float:
    return float((of * np.log(of / by)).sum())


def bilinear(grid: Array, height: int, width: int) -> Array:
    """[h,w,C] → [height,width,C]: pixels are areas, and what lies beyond the border is as at the border."""
    found = np.zeros((height, width, grid.shape[2]))
    for y in range(height):
        for x in range(width):
            at = [
                (place + 0.5) * own / other - 0.5
                for place, own, other in zip((y, x), grid.shape, (height, width), strict=False)
            ]
            at = [min(max(each, 0), own - 1) for each, own in zip(at, grid.shape, strict=False)]
            for dy in (0, 1):
                for dx in (0, 1):
                    corner = [
                        min(int(each) + step, own - 1)
                        for each, step, own in zip(at, (dy, dx), grid.shape, strict=False)
                    ]
                    share = [(each % 1) if step else 1 - (each % 1) for each, step in zip(at, (dy, dx), strict=True)]
                    found[y, x] += share[0] * share[1] * grid[corner[0], corner[1]]
    return found


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_are_the_pixels_that_count_in_their_order(stride: int) -> None:
    signals, given = batch(3, stride=stride)
    whole = [bilinear(each.numpy(), 6, 8) for each in signals.logits]
    expected = [
        (*whole[image][y, x], int(given["target"][image, y, x]), 100 + image, image < 2)
        for image in range(3)
        for y in range(6)
        for x in range(8)
        if given["target"][image, y, x] != -100
    ]
    assert 0 < len(expected) < 3 * 48
    rows, of_rows = Segmentation().rows(signals, {**given, "labelled": torch.tensor([True, True, False])})
    found = zip(rows.logits.tolist(), *(of_rows[key].tolist() for key in ("target", "index", "labelled")), strict=True)
    np.testing.assert_allclose([(*logits, *rest) for logits, *rest in found], expected, atol=1e-12)
    stopped = Signals(torch.empty(3, 0))
    assert Segmentation().rows(stopped, given)[0] is stopped


def test_score_is_the_mean_iou_of_the_classes_over_all_batches() -> None:
    """A class that is nowhere does not count; one that is only predicted counts 0. The batches' own mean is another."""
    task = Segmentation()
    metric = task.metric(5)
    counts, scores = np.zeros((5, 5)), []

    def mean_iou(counts: Array) -> float:
        found = []
        for each in range(5):
            union = counts[each].sum() + counts[:, each].sum() - counts[each, each]
            found += [counts[each, each] / union] if union else []
        return float(np.mean(found))

    for seed, images in enumerate((1, 3, 2)):
        signals, given = batch(images, seed=seed)
        logits = torch.cat([signals.logits, torch.full((*signals.logits.shape[:3], 1), -99.0)], -1)
        logits[0, 0, 0, 4] = 99.0
        rows, of_rows = task.rows(Signals(logits), given)
        own = np.zeros((5, 5))
        for true, predicted in zip(of_rows["target"].tolist(), task.predict(rows.logits).tolist(), strict=True):
            own[true, predicted] += 1
        task.score_rows(metric, rows.logits, torch.empty(0), of_rows)
        counts += own
        scores.append(mean_iou(own))
    assert counts[:, 3].sum() == counts[3].sum() == counts[4].sum() == 0 < counts[:, 4].sum()
    assert metric.compute().item() == pytest.approx(mean_iou(counts), abs=1e-6)
    assert abs(mean_iou(counts) - np.mean(scores)) > 0.01
    assert task.predict(rows.logits).dtype == torch.uint8


def test_losses_agree_with_loops_over_pixels_and_maps() -> None:
    """kd: mean over the pixels that count, from logits of different strides. cwd and at: over maps, all pixels."""
    student, given = batch(3, stride=1)
    teacher, _ = batch(3, stride=2, seed=7)
    generator = torch.Generator().manual_seed(3)
    maps = {
        "s": torch.rand(3, 2, 6, 8, generator=generator).double(),
        "t": torch.rand(3, 2, 3, 4, generator=generator).double(),
    }
    student.layers, teacher.layers = {"s": maps["s"]}, {"t": maps["t"]}
    pairs = {"layers": {"s": "t"}}
    terms = {"kd": KD(temperature=2.0), "cwd": CWD(projector=None, **pairs), "at": AttentionTransfer(**pairs)}
    for term in terms.values():
        term.build({"s": maps["s"].shape}, {"t": maps["t"].shape})
    losses = Objective(Segmentation(), terms)(student, {"main": teacher}, given)

    ours, theirs = student.logits.numpy(), [bilinear(each.numpy(), 6, 8) for each in teacher.logits]
    counting = [place for place in np.ndindex(3, 6, 8) if given["target"][place] != -100]
    hard = [-np.log(softmax(ours[place])[given["target"][place]]) for place in counting]
    soft = [4 * kl(softmax(theirs[image][y, x] / 2), softmax(ours[image, y, x] / 2)) for image, y, x in counting]
    pooled = maps["s"].numpy().reshape(3, 2, 3, 2, 4, 2).mean((3, 5))
    flat = [each.reshape(3, 2, 12) for each in (pooled, maps["t"].numpy())]
    by_channel = [kl(softmax(flat[1][i, c]), softmax(flat[0][i, c])) for i in range(3) for c in range(2)]
    where = [(each**2).mean(1) for each in flat]
    where = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in where]
    expected = {
        "task": np.mean(hard),
        "kd": np.mean(soft),
        "cwd": np.mean(by_channel),
        "at": ((where[0] - where[1]) ** 2).mean(),
    }
    found = {name: losses.terms[name].item() for name in expected}
    assert found == pytest.approx(expected, rel=1e-6)
    assert min(found.values()) > 1e-4


def test_refusals() -> None:
    signals, given = batch(2)
    task = Segmentation()
    with pytest.raises(UserError, match=r"\[2\], are not masks"):
        task.rows(signals, {**given, "target": torch.zeros(2, dtype=torch.long)})
    with pytest.raises(UserError, match=r"logits \[2, 4\].*model/student=fcn"):
        task.rows(Signals(signals.logits[:, 0, 0]), given)
    with pytest.raises(UserError, match="the pixels of 'x' have no classes"):
        task.outputs(SimpleNamespace(name="x", classes=()))
