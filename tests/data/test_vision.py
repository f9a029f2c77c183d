import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from distillery.core.errors import UserError
from distillery.core.random import uniforms
from distillery.data.loader import BatchDataset
from distillery.data.sources.digits import digits
from distillery.data.sources.image_folder import image_folder
from distillery.data.vision import VisionData
from distillery.data.whole_batches import CropFlip
from fixtures.composing import train_config
from fixtures.datasets import Raw, write_cifar10, write_cifar100, write_fashion_mnist, write_image_folder

Cifar = tuple[Path, dict[str, Raw]]
Make = Callable[..., VisionData]


def test_batches_hold_raw_images_under_their_index(cifar_data: Make, cifar_raw: Cifar) -> None:
    data = cifar_data(augment=None, train_size=200)
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for name, loader in loaders.items():
        images, targets = cifar_raw[1]["test" if name == "test" else "train"]
        found = []
        for batch in loader:
            assert batch["image"].dtype == torch.float32
            assert batch["target"].dtype == batch["index"].dtype == torch.int64
            index = batch["index"].numpy()
            assert np.allclose(batch["image"].numpy(), images[index] / 255)
            assert np.array_equal(batch["target"].numpy(), targets[index])
            found += index.tolist()
        assert len(found) == len(set(found)) == data.sizes[name]
    assert data.sizes == {"train": 200, "val": 100, "test": 100}
    assert (len(data.classes), data.raw.train.inputs.shape) == (100, (3, 32, 32))


def test_training_images_are_augmented_by_seed_epoch_and_index(cifar_data: Make, cifar_raw: Cifar) -> None:
    loader = cifar_data(seed=5).train_dataloader()
    loader.sampler.set_epoch(3)
    batch = next(iter(loader))
    raw = torch.from_numpy(cifar_raw[1]["train"][0])[batch["index"]]
    expected = CropFlip(4, True)(raw.float() / 255, uniforms(5, 3, batch["index"], 0, 3))
    assert torch.equal(batch["image"], expected)
    assert not torch.equal(batch["image"], raw.float() / 255)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"views": 2},
        {"labelled_size": 100},
        {"augment": {"crop": 4, "random_erasing": {"p": 0.5}}},
        {"augment": {"flip": True, "mixup": 0.8, "cutmix": 1.0}},
    ],
    ids=["crop", "views", "labels", "erased", "mixed"],
)
def test_small_batches_are_made_together_as_they_would_be_alone(
    given: dict[str, Any], cifar_data: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cifar_data(batch_size=6, train_size=100, **given)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    dataset, keys = data.dataset("train"), list(loader.sampler)
    alone = [dataset[key] for key in keys]
    made: list[int] = []
    whole = BatchDataset.__getitem__
    monkeypatch.setattr(
        BatchDataset, "__getitem__", lambda own, key: made.append(len(key.positions)) or whole(own, key)
    )
    served = list(loader)
    assert len(served) == len(alone) == 17
    assert len(made) < 10
    for batch, expected in zip(served, alone, strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_splits_are_disjoint_and_validation_stays_where_it_is(cifar_data: Make) -> None:
    splits = {seed: cifar_data(seed=seed, train_size=200).splits for seed in (0, 1)}
    for split in splits.values():
        train, val = set(split["train"].indices.tolist()), set(split["val"].indices.tolist())
        assert (len(train), len(val)) == (200, 100)
        assert not train & val
    assert torch.equal(splits[0]["val"].indices, splits[1]["val"].indices)
    assert not torch.equal(splits[0]["train"].indices, splits[1]["train"].indices)
    whole = cifar_data().splits
    assert set(splits[0]["train"].indices.tolist()) < set(whole["train"].indices.tolist())
    assert sorted(whole["train"].indices.tolist() + whole["val"].indices.tolist()) == list(range(500))


def test_subsets_are_stratified_and_equal_for_one_seed(cifar_data: Make) -> None:
    subset = cifar_data(train_fraction=0.5).splits["train"]
    assert torch.bincount(subset.targets[subset.indices]).tolist() == [2] * 100
    again = cifar_data(train_size=200, batch_size=32, augment=None).splits["train"]
    assert torch.equal(again.indices, subset.indices)
    one = cifar_data(train_size=100).splits["train"]
    assert torch.bincount(one.targets[one.indices]).tolist() == [1] * 100


def test_validation_sizes(cifar_data: Make) -> None:
    none = cifar_data(val_size=0)
    assert none.sizes == {"train": 500, "val": 0, "test": 100}
    assert none.val_dataloader() == []
    assert cifar_data(val_size=0.4).sizes["val"] == 200
    smallest = cifar_data(val_size=None).splits["val"]  # a tenth is too few for 100 classes
    assert torch.bincount(smallest.targets[smallest.indices]).tolist() == [1] * 100
    with pytest.raises(UserError, match=r"data\.val_size=50: Cannot draw 50 of 500"):
        cifar_data(val_size=50).setup()


def test_impossible_settings_are_refused_at_setup(cifar_data: Make) -> None:
    for given, words in [
        ({"train_size": 100, "train_fraction": 0.5}, "exclude each other"),
        ({"train_size": 100, "train_index": "x.txt"}, r"data\.train_size and data\.train_index exclude each other"),
        ({"train_size": 401}, r"data\.train_size=401: Cannot draw 401 of 400"),
        ({"train_size": 99}, r"data\.train_size=99"),
        ({"train_fraction": 0.1}, r"data\.train_fraction=0\.1"),
        ({"train_fraction": 1.5}, r"not in \(0, 1\]"),
        ({"val_size": 500}, r"data\.val_size=500 leaves none"),
        ({"mean": [0.5]}, r"data\.mean has 1 value.*3 channel"),
        ({"augment": {"crops": 4}}, r"no option 'crops'.*'crop'"),
    ]:
        with pytest.raises(UserError, match=words):
            cifar_data(**given).setup()


def test_a_subset_seed_of_its_own_outlives_the_seed(cifar_data: Make) -> None:
    def drawn(seed: int, subset_seed: int | None) -> list[int]:
        data = cifar_data(train_size=200, seed=seed, subset_seed=subset_seed)
        return data.splits["train"].indices.tolist()  # type: ignore[no-any-return]

    assert drawn(0, 5) == drawn(1, 5) == drawn(5, None)
    assert drawn(0, None) == drawn(7, 0) != drawn(0, 5)
    orders = [list(cifar_data(train_size=200, seed=seed, subset_seed=5).sampler("train")) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_an_own_validation_split_excludes_val_size(cifar_data: Make) -> None:
    given = {"source": digits, "root": None, "mean": [0.3], "std": [0.4], "augment": None}
    assert cifar_data(**given, val_size=None).sizes == {"train": 800, "val": 200, "test": 797}
    with pytest.raises(UserError, match=r"its own 200 validation samples"):
        cifar_data(**given, val_size=100).setup()


def test_processes_share_each_batch(cifar_data: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(cifar_data().train_dataloader())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        parts.append(list(cifar_data().train_dataloader()))
    for batch, first, second in zip(whole, *parts, strict=True):
        for key in ("image", "target", "index"):
            assert torch.equal(batch[key][0::2], first[key])
            assert torch.equal(batch[key][1::2], second[key])


def test_the_global_generator_is_left_alone(cifar_data: Make) -> None:
    data = cifar_data()
    state = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in loader:
            pass
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_serve_the_same_batches(cifar_data: Make) -> None:
    served = []
    for workers in (0, 2):
        loader = cifar_data(num_workers=workers).train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            served.append(list(loader))
    assert len(served[0]) == 7
    for alone, shared in ((served[0], served[2]), (served[1], served[3])):
        for a, b in zip(alone, shared, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("image", "target", "index"))


def test_workers_name_a_broken_image(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "bee" / "0001.png").write_text("not an image")
    data = VisionData(
        lambda: image_folder(tmp_path, size=28, check=False),
        [0.5] * 3,
        [0.5] * 3,
        batch_size=6,
        eval_batch_size=6,
        seed=0,
        num_workers=1,
    )
    loader = data.train_dataloader()
    with pytest.raises(UserError, match=r"bee/0001\.png' cannot be decoded"):
        list(loader)
    loader._iterator._shutdown_workers()  # the garbage collector would wait five seconds for them


def test_the_fingerprint_knows_images_targets_and_splits(cifar_data: Make, tmp_path: Path) -> None:
    base = cifar_data().fingerprint
    assert cifar_data(batch_size=32, augment=None, seed=1).fingerprint == base
    write_cifar100(tmp_path, train=500)
    assert cifar_data(root=str(tmp_path)).fingerprint == base
    others = {cifar_data(val_size=150).fingerprint}
    others |= {cifar_data(train_size=200, seed=seed).fingerprint for seed in (0, 1)}
    for part in ("images", "targets"):
        changed = cifar_data()
        values = changed.raw.train.targets if part == "targets" else changed.raw.train.inputs.values
        values.view(-1)[77] += 1
        others.add(changed.fingerprint)
    assert len(others | {base}) == 6


def test_the_fingerprint_of_a_folder_knows_names_and_sizes(tmp_path: Path) -> None:
    write_image_folder(tmp_path)

    def fingerprint() -> str:
        return VisionData(
            lambda: image_folder(tmp_path), [0.5] * 3, [0.5] * 3, batch_size=6, eval_batch_size=6, seed=0
        ).fingerprint

    base = fingerprint()
    assert fingerprint() == base
    path = tmp_path / "train" / "ant" / "0000.png"
    path.write_bytes(path.read_bytes() + b"\0")
    longer = fingerprint()
    path.rename(path.with_name("renamed.png"))
    assert len({base, longer, fingerprint()}) == 3


WRITERS = {
    "digits": lambda root: None,
    "fashion_mnist": lambda root: write_fashion_mnist(root, train=200),
    "cifar10": lambda root: write_cifar10(root, train=200),
    "cifar100": lambda root: write_cifar100(root, train=500),
    "image_folder": lambda root: write_image_folder(root, {"train": 12, "val": 4, "test": 5}),
}


def test_each_config_serves_training_batches(tmp_path: Path) -> None:
    for name in WRITERS:
        WRITERS[name](tmp_path)
        cfg = train_config(f"data={name}", "seed=3", f"paths.data={tmp_path}")
        if name != "digits":
            cfg.data.root = str(tmp_path)
        if cfg.data.val_size:
            cfg.data.val_size = 100
        cfg.data.num_workers = 0
        data = instantiate(cfg.data)
        assert isinstance(data, VisionData)
        data.setup()
        assert data.seed == 3
        batch = next(iter(data.train_dataloader()))
        size = min(data.batch_size, data.sizes["train"])
        assert batch["image"].shape == (size, *data.raw.train.inputs.shape)
        assert batch["image"].min() >= 0
        assert batch["image"].max() <= 1
        assert len(data.mean) == len(data.std) == data.channels
        assert all(data.sizes.values())


def test_the_mean_and_std_of_digits_are_those_of_the_training_images() -> None:
    cfg = train_config("data=digits").data
    train = digits().train
    pixels = train.inputs.batch(train.indices, None, 0, 0).double()
    assert cfg.mean == [pytest.approx(pixels.mean().item(), abs=5e-5)]
    assert cfg.std == [pytest.approx(pixels.std().item(), abs=1e-4)]


def test_there_are_no_more_workers_than_cpus(cifar_data: Make) -> None:
    """More are slower, and torch warns of them in every run."""
    assert cifar_data(num_workers=1000).train_dataloader().num_workers == len(os.sched_getaffinity(0))
