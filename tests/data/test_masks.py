"""Masks are augmented as their images are; masks in files, in the layouts in which people keep them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.masks import MaskedImages, TensorMasks
from distillery.data.module import Data
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey
from distillery.data.sources.fashion_mnist import fashion_mnist_masks
from distillery.data.sources.mask_folder import mask_folder
from distillery.data.vision import VisionData
from fixtures.composing import train_config
from fixtures.datasets import write_fashion_mnist

SIDE, NUMBER, BRIGHT = 12, 9, 80  # a pixel of class c is c · 80 bright: the image shows its mask


def shown_masks() -> Tensor:
    """uint8 [N,H,W] of classes 0 to 2, some left out, of which every row and column differs."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (NUMBER, SIDE, SIDE), generator=generator)
    return torch.where(torch.rand(masks.shape, generator=generator) < 0.1, 255, masks).to(torch.uint8)


def data_of(changed: bool = False, **options: object) -> Data:
    """`changed`: one pixel of a mask has another class."""
    masks = shown_masks()
    images = torch.where(masks == 255, 0, masks * BRIGHT)[:, None]
    masks[0, 0, 0] = (masks[0, 0, 0] + changed) % 3
    split = Split.whole(MaskedImages(TensorImages(images), TensorMasks(masks)), torch.zeros(NUMBER, dtype=torch.int64))

    def source() -> RawData:
        return RawData("shown", ("a", "b", "c"), split, split)

    settings = {"batch_size": 3, "eval_batch_size": 3, "seed": 5, "mean": [0.0], "std": [1.0], "val_size": 0}
    return VisionData(source, **{**settings, **options})


@pytest.mark.parametrize(
    "options", [{"crop": 3, "flip": True}, {"resized_crop": [0.3, 1.0], "flip": True, "interpolation": "nearest"}]
)
def test_an_image_moves_with_its_mask(options: dict[str, object]) -> None:
    data = data_of(augment=options)
    found = data.dataset("train")[BatchKey(2, [4, 0, 7])]
    target, image = found["target"], (found["image"][:, 0] * 255 / BRIGHT).round().long()
    counts = target != -100
    assert torch.equal(target[counts], image[counts])
    assert not torch.equal(target, data_of().dataset("train")[BatchKey(2, [4, 0, 7])]["target"])
    if "crop" in options:  # what the padding brings in counts nowhere
        assert (~counts).sum() > 3 * SIDE
    alone = data.dataset("train")[BatchKey(2, [7])]
    assert torch.equal(alone["target"][0], target[2])
    assert torch.equal(alone["image"][0], found["image"][2])
    other = data.dataset("train")[BatchKey(3, [4, 0, 7])]["target"]
    assert not torch.equal(other, target)


def test_evaluation_and_hidden_labels() -> None:
    data = data_of(labelled_size=4)
    masks = shown_masks().long()
    expected = torch.where(masks == 255, -100, masks)
    assert torch.equal(data.dataset("test")[BatchKey(0, [*range(NUMBER)])]["target"], expected)
    train = data.dataset("train")[BatchKey(0, [*range(NUMBER)])]
    assert train["labelled"].sum() == 4
    hidden = ~train["labelled"]
    assert torch.equal(train["target"][~hidden], expected[~hidden])
    assert torch.equal(train["target"][hidden] == -100, expected[hidden] == -100)
    assert set(train["target"][hidden].unique().tolist()) == {-100, -1}
    assert data_of().fingerprint == data_of().fingerprint != data_of(changed=True).fingerprint


@pytest.mark.parametrize("option", [{"mixup": 0.2}, {"trivial_augment": True}, {"random_erasing": {"p": 0.5}}])
def test_what_changes_images_alone_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"data\.augment\.{next(iter(option))}: it changes images but not their masks"):
        data_of(augment=option).setup()


def test_fashion_mnist_has_the_class_of_the_garment_at_its_pixels(tmp_path: Path) -> None:
    raw = write_fashion_mnist(tmp_path, train=20, test=10)
    found = fashion_mnist_masks(tmp_path, threshold=100)
    assert found.classes[:3] == ("background", "T-shirt/top", "Trouser")
    for part, split in {"train": found.train, "test": found.test}.items():
        images, classes = raw[part]
        image, target = split.inputs.batch(torch.arange(10), None, 0, 0)
        expected = [
            [(label + 1 if pixel >= 100 else 0) for pixel in x.ravel()]
            for x, label in zip(images, classes, strict=True)
        ]
        assert target.flatten(1).tolist() == expected[:10]
        assert torch.equal(image, torch.from_numpy(images[:10]).float() / 255)
        assert split.targets.tolist() == classes.tolist()


def pair(
    root: Path, images: str, masks: str, name: str, mask: NDArray[np.uint8], image: int = 0, palette: bool = False
) -> None:
    """A picture of the brightness `image` and its mask."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*mask.shape, 3), image, dtype=np.uint8)).save(root / images / f"{name}.jpg")
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette([value for colour in range(256) for value in (255 - colour, 7, 0)])
    picture.save(root / masks / f"{name}.png")


def halves(low: int = 0, high: int = 1, size: tuple[int, int] = (8, 16)) -> NDArray[np.uint8]:
    """The upper half of one class, the lower of another."""
    mask = np.full(size, low, dtype=np.uint8)
    mask[size[0] // 2 :] = high
    return mask


@pytest.mark.parametrize(
    "layout", [("{}/images", "{}/masks"), ("JPEGImages/{}", "annotations/{}"), ("{}/imgs", "{}/SegmentationClass")]
)
def test_layouts_and_values(tmp_path: Path, layout: tuple[str, str]) -> None:
    """Also a palette, a pixel that counts nowhere, and a class that no mask has."""
    for part, number in {"train": 4, "Validation": 2, "test": 1}.items():
        for each in range(number):
            mask = halves(0, 3)
            mask[0, 0] = 255
            pair(
                tmp_path,
                *(folder.format(part) for folder in layout),
                f"{each}",
                mask,
                image=10 * number + each,
                palette=True,
            )
    raw = mask_folder(tmp_path, size=4)
    assert raw.classes == ("0", "1", "2", "3")
    assert raw.val is not None
    assert [len(split.indices) for split in (raw.train, raw.val, raw.test)] == [4, 2, 1]
    image, target = raw.val.inputs.batch(torch.tensor([1]), None, 0, 0)
    assert image.shape == (1, 3, 4, 4)
    assert image.mean().item() * 255 == pytest.approx(21, abs=2)
    assert target[0].tolist() == [[-100, 0, 0, 0], [0] * 4, [3] * 4, [3] * 4]  # all of the picture, squeezed


def test_one_folder_with_unlabelled_pictures_and_repeated_ones(tmp_path: Path) -> None:
    """Of two equal pictures with one mask the second goes; with two masks both go; one of train that is in no other."""
    for each in range(10):
        pair(tmp_path, "images", "masks", f"{each}", halves(), image=20 * each)
    pair(tmp_path, "images", "masks", "twice", halves(), image=0)
    pair(tmp_path, "images", "masks", "other", halves(1, 0), image=20)
    (tmp_path / "unlabelled").mkdir()
    Image.new("RGB", (16, 8), (250, 250, 250)).save(tmp_path / "unlabelled" / "a.png")
    data = instantiate(train_config("data=mask_folder", f"data.root='{tmp_path}'", "data.source.size=8").data)
    assert data.sizes == {"train": 7, "val": 1, "test": 2}  # 9 with masks, of which a fifth is for test; 1 without
    assert (data.labelled, data.unlabelled) == (6, 1)
    batch = data.dataset("train")[BatchKey(0, data.splits["train"].indices.tolist())]
    assert batch["image"].shape == (7, 3, 8, 8)
    assert set(batch["target"][~batch["labelled"]].unique().tolist()) == {-1}
    assert set(batch["target"][batch["labelled"]].unique().tolist()) <= {0, 1}
    assert any("1 repeated pictures and 2 with contradictory labels" in remark for remark in data.remarks)


def test_foreground_masks_and_masks_without_class_0(tmp_path: Path) -> None:
    pair(tmp_path / "one", "images", "masks", "a", halves(0, 255))
    pair(tmp_path / "one", "images", "masks", "b", halves(0, 255), image=9)
    with pytest.raises(UserError, match=r"only the values 0 and 255.*data\.source\.values=\[0,255\]"):
        mask_folder(tmp_path / "one")
    raw = mask_folder(tmp_path / "one", size=8, values=[0, 255], classes=["background", "road"], test_fraction=0.5)
    assert raw.classes == ("background", "road")
    assert raw.train.inputs.batch(torch.tensor([0]), None, 0, 0)[1].float().mean() == 0.5
    for name in "ab":
        pair(tmp_path / "two", "images", "masks", name, np.vstack([halves(0, 1), halves(2, 2)]), image=ord(name))
    raw = mask_folder(tmp_path / "two", size=16, ignore=0, test_fraction=0.5)  # as ADE20K: 0 counts nowhere
    target = raw.train.inputs.batch(torch.tensor([0]), None, 0, 0)[1]
    assert raw.classes == ("1", "2")
    assert [int(target[0, row, 0]) for row in (0, 5, 12)] == [-100, 0, 1]


def test_classes_are_renumbered_by_their_names(tmp_path: Path) -> None:
    """In memory and in files; what is left out stays so."""
    data = data_of()
    before = data.raw.test.inputs.batch(torch.arange(NUMBER), None, 0, 0)[1]
    after = data.raw.with_classes(["c", "x", "a", "b"]).test.inputs.batch(torch.arange(NUMBER), None, 0, 0)[1]
    assert torch.equal(after, torch.tensor([2, 3, 0, -100])[before.where(before >= 0, 3)])
    for name in "ab":
        pair(tmp_path, "images", "masks", name, halves(), image=ord(name))
    raw = mask_folder(tmp_path, size=8, classes=["sky", "road"], test_fraction=0.5).with_classes(["road", "x", "sky"])
    assert raw.train.inputs.batch(torch.tensor([0]), None, 0, 0)[1][0, :, 0].tolist() == [2] * 4 + [0] * 4


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", "a", halves())
    pair(tmp_path, "images", "masks", "b", halves(), image=9)
    mask_folder(tmp_path)
    with pytest.raises(UserError, match=r"value 1, which is none of the 2 classes \(0 to 7\)"):
        mask_folder(tmp_path, values=[0, 7])
    with pytest.raises(UserError, match=r"classes has 3 names, and data\.source\.values 2"):
        mask_folder(tmp_path, values=[0, 1], classes=["x", "y", "z"])
    Image.fromarray(halves(size=(4, 4))).save(tmp_path / "masks" / "b.png")
    with pytest.raises(UserError, match=r"b\.jpg' has 16x8 pixels, and its mask 4x4"):
        mask_folder(tmp_path)
    Image.new("RGB", (16, 8)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(UserError, match=r"b\.png' is a picture of mode RGB"):
        mask_folder(tmp_path)
    (tmp_path / "masks" / "b.png").rename(tmp_path / "masks" / "c.png")
    with pytest.raises(UserError, match=r"1 of 2 files in '.*images' have no file .* instance 'b'"):
        mask_folder(tmp_path)
    with pytest.raises(UserError, match=r"no images with masks to train on\. Expected"):
        mask_folder(tmp_path / "masks")
    with pytest.raises(UserError, match=r"does not exist\. Did you mean 'masks'"):
        mask_folder(tmp_path / "mask")
