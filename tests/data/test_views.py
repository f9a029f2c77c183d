"""`data.views=K`: the epochs serve K versions of each image in turn, whatever is done to them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from distillery.data.images import TensorImages
from distillery.data.masks import MaskedImages, TensorMasks
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey
from distillery.data.vision import VisionData

SIZE = 24
AUGMENTS: Mapping[str, dict[str, Any]] = {
    "in whole batches": {"crop": 2, "flip": True},
    "image by image": {"resized_crop": [0.3, 1.0], "color_jitter": {"brightness": 0.5}, "random_erasing": {}},
    "mixed": {"crop": 2, "flip": True, "mixup": 1.0, "cutmix": 1.0},
}


def vision(augment: Mapping[str, Any] | None, masked: bool = False, **given: Any) -> VisionData:
    generator = torch.Generator().manual_seed(0)
    images: Any = TensorImages(torch.rand(SIZE, 3, 6, 6, generator=generator))
    if masked:
        images = MaskedImages(images, TensorMasks(torch.randint(0, 3, (SIZE, 6, 6), generator=generator).byte()))
    train = Split.whole(images, torch.arange(SIZE) % 3)
    raw = RawData("random", tuple("abc"), train, train)
    settings: dict[str, Any] = {"batch_size": 8, "eval_batch_size": 8, "seed": 3, "val_size": 0} | given
    return VisionData(lambda: raw, mean=[0.5] * 3, std=[0.5] * 3, augment=augment, **settings)


def served(data: VisionData, epoch: int) -> dict[str, Tensor]:
    return data.dataset("train")[BatchKey(epoch, [*range(SIZE)])]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in ("image", "target", "index"))


@pytest.mark.parametrize(("how", "masked"), [*((how, False) for how in AUGMENTS), ("in whole batches", True)])
def test_an_epoch_serves_what_the_epoch_of_its_view_does(how: str, masked: bool) -> None:
    """Images, masks, partners and λ: those of epoch e mod K without views. Other views differ."""
    online, data = (vision(AUGMENTS[how], masked, views=views) for views in (None, 3))
    for epoch in range(7):
        found = served(data, epoch)
        assert same(found, served(online, epoch % 3))
        assert found["view"].tolist() == [epoch % 3] * SIZE
    assert "view" not in served(online, 0)
    assert not same(served(data, 0), served(data, 1))


def test_the_order_is_that_of_the_epoch() -> None:
    sampler = vision(AUGMENTS["mixed"], views=2).sampler("train")
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append([key.positions for key in sampler])
    assert all(orders[a] != orders[b] for a in range(4) for b in range(a))


def test_a_seed_of_the_views_outlives_the_seed() -> None:
    """The same versions in another order."""
    one, two = (vision(AUGMENTS["mixed"], views=2, views_seed=5, seed=seed) for seed in (1, 2))
    for epoch in range(3):
        assert same(served(one, epoch), served(two, epoch))
    assert list(one.sampler("train")) != list(two.sampler("train"))
    assert not same(served(vision(AUGMENTS["mixed"], views=2, seed=1), 0), served(one, 0))


def test_what_the_views_depend_on() -> None:
    """By name: nothing without augmentation, and the other samples only where images are mixed with them."""
    crop, mixed = AUGMENTS["in whole batches"], AUGMENTS["mixed"]
    assert vision(None, views=4).views_key == {}
    assert vision(None).distinct_views == vision(None, views=4).distinct_views == 1
    assert vision(crop).distinct_views is None
    assert vision(crop, views=4).distinct_views == 4

    def differ(one: VisionData, two: VisionData) -> set[str]:
        return {name for name in one.views_key | two.views_key if one.views_key.get(name) != two.views_key.get(name)}

    data = vision(crop, views=4)
    assert differ(data, vision(crop, views=4, batch_size=3)) == set()
    assert differ(data, vision(crop, views=5)) == {"number of views (data.views)"}
    assert differ(data, vision(crop, views=4, seed=4)) == {"seed of the views"}
    assert differ(data, vision({"crop": 2}, views=4)) == {"augmentation"}
    assert differ(data, vision(crop, views=4, train_size=12)) == set()
    assert differ(vision(mixed), vision(mixed, train_size=12)) == {"set of samples to mix with"}
    assert "mean and deviation" in vision(AUGMENTS["image by image"]).views_key
