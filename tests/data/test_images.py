import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from distillery.core.errors import UserError
from distillery.data import images as images_module
from distillery.data.images import FileImages
from distillery.data.sources.image_folder import image_folder
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder


def files(images: object) -> list[Path]:
    assert isinstance(images, FileImages)
    return images.paths


def test_split_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    data = image_folder(tmp_path, size=28)
    assert data.classes == ("ant", "bee", "cat")
    assert data.val is not None
    for part, split, each in (("train", data.train, 6), ("val", data.val, 2), ("test", data.test, 4)):
        assert files(split.inputs) == sorted((tmp_path / part).rglob("*.png"))
        assert split.targets.tolist() == [0] * each + [1] * each + [2] * each
        assert split.inputs.shape == (3, 28, 28)


def test_single_folder_is_split_by_class_always_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path, {"": 10})
    with caplog.at_level(logging.INFO):
        data = image_folder(tmp_path)
    assert "6 of its 30 images" in caplog.text
    assert torch.bincount(data.test.targets[data.test.indices]).tolist() == [2, 2, 2]
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(30))
    torch.manual_seed(9)
    assert torch.equal(image_folder(tmp_path).test.indices, data.test.indices)


def test_without_a_test_folder_val_is_the_test_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image_folder(tmp_path, {"train": 10, "val": 2})
    with caplog.at_level(logging.INFO):
        data = image_folder(tmp_path)
    assert "no test folder" in caplog.text
    assert data.val is None
    assert files(data.test.inputs) == sorted((tmp_path / "val").rglob("*.png"))


def make(root: Path, **given: object) -> VisionData:
    defaults = {"mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 6, "eval_batch_size": 5, "seed": 0}
    return VisionData(lambda root: image_folder(root, size=28), root=str(root), **defaults | given)


def test_evaluation_serves_the_centre(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    batches = list(make(tmp_path).test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(12))
    path = sorted((tmp_path / "test").rglob("*.png"))[7]
    resized = VF.resize(Image.open(path), [32])
    expected = np.asarray(VF.center_crop(resized, [28]), dtype=np.float32).transpose(2, 0, 1) / 255
    assert np.allclose(batches[1]["image"][2].numpy(), expected)
    assert batches[1]["target"][2] == 1


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    twin = sorted((tmp_path / "train").rglob("*.png"))
    twin[11].write_bytes(twin[3].read_bytes())
    augment = {"resized_crop": [0.2, 1.0], "flip": True}
    images = image_folder(tmp_path, size=28).train.inputs
    transform = images.augmentation(augment)
    index = torch.tensor([3, 11, 0])
    state = torch.get_rng_state()
    first = images.batch(index, transform, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(images.batch(index.flip(0), transform, 0, 0).flip(0), first)
    for other in (images.batch(index, transform, 1, 0), images.batch(index, transform, 0, 1)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(images.batch(index, None, 0, 0)[0], images.batch(index, None, 0, 0)[1])
    assert not torch.equal(first[0], first[1])  # equal pictures, but other positions


def test_augmentation_options(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    images = image_folder(tmp_path, size=28).train.inputs
    kinds = [type(step) for step in images.augmentation({"resized_crop": [0.5, 1.0], "flip": True}).transforms]
    assert kinds[:2] == [v2.RandomResizedCrop, v2.RandomHorizontalFlip]
    with pytest.raises(UserError, match="resized_crop"):
        images.augmentation({"resized_crops": [0.5, 1.0]})
    plain = images.batch(torch.tensor([2]), None, 0, 0)
    flipped = [images.batch(torch.tensor([2]), images.augmentation({"flip": True}), 0, epoch) for epoch in range(20)]
    same = sum(torch.equal(image, plain) for image in flipped)
    assert 0 < same < 20
    assert all(torch.equal(image, plain) or torch.equal(image.flip(-1), plain) for image in flipped)


def test_grey_and_transparent_pictures_are_served_in_rgb(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    Image.new("L", (30, 30), 51).save(tmp_path / "train" / "ant" / "0000.png")
    Image.new("RGBA", (30, 30), (51, 51, 51, 128)).save(tmp_path / "train" / "bee" / "0001.png")
    images = image_folder(tmp_path, size=28).train.inputs
    batch = images.batch(torch.tensor([0, 6]), None, 0, 0)
    assert batch.shape == (2, 3, 28, 28)
    assert torch.allclose(batch, torch.tensor(0.2))


def test_a_truncated_image_is_named_before_training(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    broken = tmp_path / "val" / "bee" / "0001.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"val/bee/0001\.png' cannot be decoded"):
        make(tmp_path).setup()


def test_every_truncated_format_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("jpg", "webp", "bmp", "tiff"):
        broken = tmp_path / "train" / "cat" / f"x.{kind}"
        Image.fromarray(noise).save(broken)
        broken.write_bytes(broken.read_bytes()[:3000])
        with pytest.raises(UserError, match=rf"x\.{kind}' cannot be decoded"):
            image_folder(tmp_path)
        broken.unlink()


def test_a_broken_image_that_no_check_found_is_named_when_it_is_served(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "bee" / "0001.png").write_text("not an image")
    data = image_folder(tmp_path, check=False)
    with pytest.raises(UserError, match=r"bee/0001\.png' cannot be decoded"):
        data.train.inputs.batch(torch.arange(18), None, 0, 0)


def test_of_many_images_a_sample_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path)
    seen: list[Path] = []
    monkeypatch.setattr(images_module, "CHECK_ALL", 17)
    monkeypatch.setattr(images_module, "CHECK_SAMPLE", 5)
    monkeypatch.setattr(images_module, "decode", seen.append)
    image_folder(tmp_path)
    assert len(seen) == len(set(seen)) == 5 + 6 + 12


def test_wrong_layouts_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist\. Expected: <root>/\{train,val,test\}"):
        image_folder(tmp_path / "no")
    with pytest.raises(UserError, match=r"no class folder"):
        image_folder(tmp_path)
    write_image_folder(tmp_path / "one", {"train": 2, "test": 2}, classes=["ant"])
    with pytest.raises(UserError, match=r"only the class folder 'ant'"):
        image_folder(tmp_path / "one")
    write_image_folder(tmp_path / "alone", {"train": 2})
    with pytest.raises(UserError, match=r"neither 'val' nor 'test'"):
        image_folder(tmp_path / "alone")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=r"train/bee' has no image"):
        image_folder(tmp_path)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    for part in ("val", "test"):
        root = tmp_path / f"{part}_differs"
        write_image_folder(root)
        (root / part / "bee").rename(root / part / "beee")
        with pytest.raises(UserError, match=rf"/{part}' lacks classes of .*: bee\."):
            image_folder(root)
        (root / part / "bee").mkdir()
        with pytest.raises(UserError, match=rf"/{part}' has classes that .* lacks: beee\. Did you mean 'bee'"):
            image_folder(root)
