"""Whole batches of images in memory, against torchvision's transforms of one image at a time; on any device."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from distillery.core.random import hash_key, integers, uniforms
from distillery.data import vision as vision_module
from distillery.data.augmentation import augment_options
from distillery.data.images import TensorImages
from distillery.data.masks import MaskedImages, TensorMasks
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey
from distillery.data.vision import VisionData
from distillery.data.whole_batches import CropFlip

SIZE, CLASSES, SEED, EPOCH = 40, 3, 2, 4
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
META = torch.device("meta")  # has no values, and refuses tensors of the CPU beside its own
EVERYTHING: Mapping[str, Any] = {
    **{"crop": 2, "flip": True, "random_erasing": {"p": 0.7, "value": "random"}},
    **{"mixup": 0.4, "cutmix": 1.0, "mix_prob": 0.8, "switch_prob": 0.3},
}


def images(dtype: torch.dtype = torch.uint8) -> TensorImages:
    values = torch.randint(0, 256, (SIZE, 3, 10, 7), generator=torch.Generator().manual_seed(0))
    return TensorImages(values.byte() if dtype == torch.uint8 else values / 255)


def data(augment: Mapping[str, Any] | None, masked: bool = False, **given: Any) -> VisionData:
    inputs: Any = MaskedImages(images(), TensorMasks(torch.zeros(SIZE, 10, 7).byte())) if masked else images()
    train = Split.whole(inputs, torch.arange(SIZE) % CLASSES)
    raw = RawData("random", tuple("abc"), train, train)
    settings: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 8, "seed": SEED, "val_size": 0} | given
    return VisionData(lambda: raw, mean=MEAN, std=STD, augment=augment, **settings)


def seeded(stream: int, position: int) -> None:
    torch.manual_seed(hash_key(SEED, EPOCH, stream, position) >> 1)


@pytest.mark.parametrize(
    ("moves", "value", "dtype"),
    [
        ({"crop": 2, "flip": True}, 0.25, torch.uint8),
        ({"crop": 2, "flip": True}, "random", torch.float32),
        ({"crop": 3}, "random", torch.uint8),
        ({"flip": True}, 0.25, torch.float32),
    ],
)
def test_erasing_equals_torchvisions_of_single_images(moves: dict[str, Any], value: Any, dtype: torch.dtype) -> None:
    """Bit for bit, with its draws, also where the box does not fit into the image."""
    erasing = {"p": 0.6, "scale": [0.1, 1.0], "value": value}
    steps: list[Any] = [v2.RandomCrop((10, 7), padding=moves["crop"])] if "crop" in moves else []
    steps += [v2.RandomHorizontalFlip()] if "flip" in moves else []
    steps += [v2.ToDtype(torch.float32, scale=True)]
    erase = v2.RandomErasing(0.6, (0.1, 1.0), value=value)
    back = v2.Normalize([-m / s for m, s in zip(MEAN, STD, strict=True)], [1 / s for s in STD])
    steps += [v2.Normalize(MEAN, STD), erase, back, lambda image: image.clamp(0, 1)] if value == "random" else [erase]
    expected = []
    for position, image in enumerate(images(dtype).values):
        seeded(0, position)
        expected.append(v2.Compose(steps)(image))
    given, index = images(dtype), torch.arange(SIZE)
    transform = given.transform(augment_options({**moves, "random_erasing": erasing}), MEAN, STD)
    state = torch.get_rng_state()
    assert torch.equal(given.batch(index, transform, SEED, EPOCH), torch.stack(expected))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kinds", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "switch_prob": 0.3}])
def test_mixing_equals_torchvisions_of_single_pairs(kinds: dict[str, Any]) -> None:
    """Bit for bit: images and targets, each the first row of a batch of two that torchvision mixes."""
    index = torch.arange(SIZE)
    found = data({"crop": 2, "flip": True, "mix_prob": 0.8, **kinds}).dataset("train")[BatchKey(EPOCH, index.tolist())]
    views = CropFlip(2, True)(images().values, uniforms(SEED, EPOCH, index, 0, 3)).float() / 255
    labels = torch.eye(CLASSES)[index % CLASSES]
    partner = integers(SEED, EPOCH, index, -2, SIZE)
    made = {"cutmix": v2.CutMix, "mixup": v2.MixUp}
    choices: list[Any] = [make(alpha=kinds[name]) for name, make in made.items() if name in kinds]
    mix = v2.RandomApply([v2.RandomChoice(choices, p=[0.3, 0.7] if len(choices) > 1 else None)], p=0.8)
    for position in index.tolist():
        pair = [position, int(partner[position])]
        seeded(-2, position)
        image, target = mix(views[pair], labels[pair])
        assert torch.equal(found["image"][position], image[0])
        assert torch.equal(found["target"][position], target[0])


def on_meta(given: VisionData, monkeypatch: pytest.MonkeyPatch, free: int = 2**30) -> VisionData:
    monkeypatch.setattr(vision_module, "free_memory", lambda device: free if device == META else 0)
    return given.on(META)


@pytest.mark.parametrize(
    ("augment", "masked"), [(None, False), ({"crop": 2, "flip": True}, True), (EVERYTHING, False), (None, True)]
)
def test_batches_are_made_where_the_images_live(
    augment: Mapping[str, Any] | None, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = data(augment, masked, views=2 if augment else None)
    other = on_meta(data(augment, masked, views=2 if augment else None, num_workers=2), monkeypatch)
    assert other.workers == 0
    for name in ("train_dataloader", "test_dataloader"):
        here, there = (next(iter(getattr(each, name)())) for each in (given, other))
        assert there["image"].device == META
        assert here["image"].device.type == here["index"].device.type == there["index"].device.type == "cpu"
        for key, value in here.items():
            assert (there[key].shape, there[key].dtype) == (value.shape, value.dtype)
    assert given.on(torch.device("cpu")) is given
    assert other.fingerprint == given.fingerprint


def test_images_stay_where_they_cannot_be_augmented_or_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for augment in ({"resized_crop": [0.5, 1.0]}, {"crop": 2, "trivial_augment": True}, {"color_jitter": {"hue": 0.1}}):
        given = data(augment)
        assert on_meta(given, monkeypatch) is given
    size = SIZE * 3 * 10 * 7  # bytes; the splits share the images
    given = data({"crop": 2})
    assert on_meta(given, monkeypatch, free=4 * size - 1) is given
    assert on_meta(given, monkeypatch, free=4 * size) is not given


def test_a_copy_on_a_device_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = data({"crop": 2})
    one, two = (on_meta(given, monkeypatch).splits for _ in range(2))
    stores: list[Tensor] = [splits[name].inputs.values for splits in (one, two) for name in ("train", "test")]
    assert all(store is stores[0] for store in stores)
