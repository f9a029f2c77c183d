"""Mixup and CutMix: values and targets against NumPy, and what they depend on."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.random import hash_key, integers
from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey
from distillery.data.sources.image_folder import image_folder
from distillery.data.vision import VisionData
from distillery.data.whole_batches import CropFlip
from fixtures.datasets import write_image_folder

CLASSES, SIZE, SEED, EPOCH = 5, 200, 1, 3
STREAM = -2  # no other draw of a sample has this view
EVERYTHING = {
    "resized_crop": [0.2, 1.0],
    "flip": True,
    "rand_augment": {"num_ops": 1},
    "random_erasing": {"value": "random"},
    "mixup": 0.8,
    "cutmix": 1.0,
}


def vision(augment: dict[str, Any], known: Tensor | None = None, **given: Any) -> VisionData:
    """Random float images, 6×6 in RGB, of five classes by turns; `known` says which have their label."""
    images = TensorImages(torch.rand(SIZE + 10, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    train = Split.whole(images, torch.arange(SIZE + 10) % CLASSES, known)
    settings: dict[str, Any] = {"batch_size": 40, "eval_batch_size": 40, "seed": SEED, "val_size": 0} | given
    raw = RawData("random", tuple("abcde"), train, train)
    return VisionData(lambda: raw, mean=[0.5] * 3, std=[0.5] * 3, augment=augment, **settings)


def whole(data: VisionData) -> dict[str, np.ndarray[Any, Any]]:
    """Every sample as it is served in the epoch, and the images and labels it is made of, in order."""
    index = data.splits["train"].indices
    batch = {name: value.numpy() for name, value in data.dataset("train")[BatchKey(EPOCH, index.tolist())].items()}
    partner = index[integers(SEED, EPOCH, index, STREAM, len(index))].numpy()
    return batch | {
        "raw": data.raw.train.inputs.values.numpy(),
        "labels": data.raw.train.targets.numpy(),
        "of": partner,
    }


def one_hot(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.eye(CLASSES, dtype=np.float32)[labels]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_mixup_equals_numpy(alpha: float) -> None:
    found = whole(vision({"mixup": alpha}, train_size=SIZE))
    index, partner, raw, labels = (found[name] for name in ("index", "of", "raw", "labels"))
    other = labels[index] != labels[partner]
    assert other.mean() > 0.7
    share = found["target"][np.arange(SIZE), labels[index]]  # λ, where the classes differ
    assert stats.kstest(share[other], stats.beta(alpha, alpha).cdf).pvalue > 0.001
    for row, position in enumerate(index.tolist()):
        torch.manual_seed(hash_key(SEED, EPOCH, STREAM, position) >> 1)
        torch.rand(1), torch.multinomial(torch.ones(1), 1)  # whether it is mixed, and how
        drawn = torch.distributions.Beta(torch.tensor([alpha]), torch.tensor([alpha])).sample().item()
        assert share[row] == pytest.approx(drawn, abs=1e-6) or not other[row]
        image = drawn * raw[position] + (1 - drawn) * raw[partner[row]]
        target = drawn * one_hot(labels[position]) + (1 - drawn) * one_hot(labels[partner[row]])
        assert np.allclose(found["image"][row], image, atol=1e-6)
        assert np.allclose(found["target"][row], target, atol=1e-6)


def test_cutmix_puts_a_rectangle_of_the_partner_in_and_counts_its_pixels() -> None:
    found = whole(vision({"cutmix": 1.0}, train_size=SIZE))
    index, partner, raw, labels = (found[name] for name in ("index", "of", "raw", "labels"))
    areas = []
    for row, (position, other) in enumerate(zip(index, partner, strict=True)):
        if position == other:
            continue
        inside = (found["image"][row] != raw[position]).any(0)
        assert np.array_equal(found["image"][row], np.where(inside, raw[other], raw[position]))
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert inside.sum() == len(rows) * len(columns)
        assert not len(rows) or np.ptp(rows) + 1 == len(rows)
        share = 1 - inside.mean()
        target = share * one_hot(labels[position]) + (1 - share) * one_hot(labels[other])
        assert np.allclose(found["target"][row], target, atol=1e-6)
        areas.append(inside.mean())
    assert min(areas) == 0
    assert max(areas) > 0.4


def test_as_many_are_mixed_and_switched_as_asked() -> None:
    half = whole(vision({"mixup": 1.0, "mix_prob": 0.5}, train_size=SIZE))
    as_they_are = (half["image"] == half["raw"][half["index"]]).all((1, 2, 3))
    assert 0.4 < as_they_are.mean() < 0.6
    assert np.array_equal(half["target"][as_they_are], one_hot(half["labels"][half["index"]])[as_they_are])
    both = whole(vision({"mixup": 1.0, "cutmix": 1.0, "switch_prob": 0.2}, train_size=SIZE))
    pixels = np.isin(both["image"], both["raw"]).all((1, 2, 3))  # CutMix makes no new values
    assert 0.12 < pixels.mean() < 0.28


def test_partners_are_all_training_samples_and_augmented_as_they_are_themselves() -> None:
    data = vision({"mixup": 1.0, "crop": 2, "flip": True}, train_size=100)
    own = data.splits["train"].indices
    transform = data.inputs_of("train").transform  # type: ignore[attr-defined]
    assert transform == CropFlip(2, True)
    views = data.raw.train.inputs.batch(own, transform, SEED, EPOCH)
    found, places = whole(data), {position: row for row, position in enumerate(own.tolist())}
    for image, view, partner in zip(found["image"], views.numpy(), found["of"].tolist(), strict=True):
        other = views[places[partner]].numpy()  # a KeyError if it is no training sample
        share = ((image - other) * (view - other)).sum() / max(((view - other) ** 2).sum(), 1e-9)
        assert np.allclose(image, share * view + (1 - share) * other, atol=1e-5)
    partners = torch.cat([data.inputs_of("train").partners_of(own, epoch) for epoch in range(50)])  # type: ignore[attr-defined]
    counts = np.array([(partners == position).sum() for position in own.tolist()])
    assert stats.chisquare(counts).pvalue > 0.001


def test_labelled_samples_have_labelled_partners() -> None:
    known = torch.arange(SIZE + 10) % 3 == 0
    data = vision({"mixup": 1.0}, known)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch["labelled"], known[batch["index"]])
    assert torch.equal(batch["target"].isnan().all(1), ~batch["labelled"])
    assert torch.allclose(batch["target"][batch["labelled"]].sum(1), torch.ones(int(batch["labelled"].sum())))
    make = data.inputs_of("train")
    partners = make.partners_of(data.splits["train"].indices, 0)  # type: ignore[attr-defined]
    assert known[partners[known]].all()
    assert not known[partners[~known]].all()
    assert known[partners[~known]].any()
    without = vision({"mixup": 1.0}, torch.zeros(SIZE + 10, dtype=torch.bool))
    assert next(iter(without.train_dataloader()))["target"].isnan().all()


def served(data: VisionData, epoch: int = 1, done: int = 0) -> list[dict[str, Tensor]]:
    loader: Any = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    if done:
        loader.load_state_dict(loader.state_dict() | {"served": done})
    return list(loader)


def by_position(batches: list[dict[str, Tensor]]) -> dict[int, Tensor]:
    return {at: image for batch in batches for at, image in zip(batch["index"].tolist(), batch["image"], strict=True)}


def same(one: dict[str, Tensor], other: dict[str, Tensor], rows: slice = slice(None)) -> bool:
    return all(torch.equal(one[name][rows], other[name]) for name in ("image", "target", "index"))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_batches_depend_on_seed_epoch_and_index_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on workers, ranks, an interruption or torch's generator, which is left alone."""
    write_image_folder(tmp_path)

    def make(**given: Any) -> VisionData:
        if kind == "memory":
            return vision(EVERYTHING, train_size=60, batch_size=20, **given)
        settings: dict[str, Any] = {"batch_size": 6, "eval_batch_size": 6, "seed": SEED} | given
        source = partial(image_folder, tmp_path, size=16)
        return VisionData(source, mean=[0.5] * 3, std=[0.5] * 3, augment=EVERYTHING, **settings)
        settings = {"batch_size": 6, "eval_batch_size": 6, "seed": SEED} | given
        source = lambda: image_folder(tmp_path, size=16)  # noqa: E731
        return VisionData(source, mean=[0.5] * 3, std=[0.5] * 3, augment=EVERYTHING, **settings)

    state = torch.get_rng_state()
    batches = served(make())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(batches) == 3
    assert all(batch["target"].dtype == torch.float32 and len(batch["target"].shape) == 2 for batch in batches)
    torch.manual_seed(8)
    for one, other in zip(batches, served(make(num_workers=2)), strict=True):
        assert same(one, other)
    for one, other in zip(batches[1:], served(make(), done=1), strict=True):
        assert same(one, other)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        for one, other in zip(batches, served(make()), strict=True):
            assert same(one, other, slice(rank, None, 2))
    monkeypatch.undo()
    first = by_position(batches)
    for other in (by_position(served(make(), epoch=2)), by_position(served(make(seed=SEED + 1)))):
        both = first.keys() & other.keys()
        assert len(both) >= 6
        assert not any(torch.equal(first[position], other[position]) for position in both)


def test_data_without_classes_are_refused() -> None:
    data = vision({"cutmix": 1.0})
    data.raw = RawData("plain", (), data.raw.train, data.raw.test)
    with pytest.raises(UserError, match=r"those of 'plain' have none\. Set data\.augment\.mixup=0"):
        data.setup()
