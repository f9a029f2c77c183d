import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as VF

from distillery.core.errors import UserError
from distillery.data.augmentation import augment_options
from distillery.data.decoding import decode
from distillery.data.images import EncodedImages
from distillery.data.sources.image_folder import image_folder
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder

GREY = [0.5] * 3  # the mean and std of every channel


def files(images: object) -> list[Path]:
    assert isinstance(images, EncodedImages)
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


def test_single_folder_is_split_by_class_always_alike(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"": 10})
    data = image_folder(tmp_path)
    assert data.remarks == ("test: 6 pictures drawn from all, always the same ones",)
    assert torch.bincount(data.test.targets[data.test.indices]).tolist() == [2, 2, 2]
    assert sorted(data.train.indices.tolist() + data.test.indices.tolist()) == list(range(30))
    torch.manual_seed(9)
    assert torch.equal(image_folder(tmp_path).test.indices, data.test.indices)


def test_without_a_test_folder_val_is_the_test_split(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 10, "val": 2})
    data = image_folder(tmp_path)
    assert data.remarks == ("no test folder: val is the test split, validation is cut from train",)
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
    assert np.allclose(batches[1]["image"][2].numpy(), expected, atol=1.01 / 255)  # Pillow rounds in another place
    assert batches[1]["target"][2] == 1


def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    twin = sorted((tmp_path / "train").rglob("*.png"))
    twin[11].write_bytes(twin[3].read_bytes())
    augment = {"resized_crop": [0.2, 1.0], "flip": True}
    images = image_folder(tmp_path, size=28, drop_duplicates=False).train.inputs
    transform = images.transform(augment_options(augment), GREY, GREY)
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


def test_flips_alone_take_the_centre(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    images = image_folder(tmp_path, size=28).train.inputs
    transform = images.transform(augment_options({"flip": True}), GREY, GREY)
    plain = images.batch(torch.tensor([2]), None, 0, 0)
    flipped = [images.batch(torch.tensor([2]), transform, 0, epoch) for epoch in range(20)]
    same = sum(torch.equal(image, plain) for image in flipped)
    assert 0 < same < 20
    assert all(torch.equal(image, plain) or torch.equal(image.flip(-1), plain) for image in flipped)


def served(path: Path, background: str = "white") -> torch.Tensor:
    return decode(path, str(path), background).permute(1, 2, 0).double() / 255


def test_every_depth_gives_the_same_picture(tmp_path: Path) -> None:
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray((grey.astype(np.uint16) * 257).astype(">u2")).save(tmp_path / "16b.tif")
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "32.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    modes = set()
    for name in ("8.png", "16.png", "16b.tif", "32.tif", "float.tif"):
        with Image.open(tmp_path / name) as image:
            modes.add(image.mode)
        expected = torch.from_numpy(grey / 255.0)[..., None].expand(16, 16, 3)
        assert torch.allclose(served(tmp_path / name), expected), name
    assert modes == {"L", "I;16", "I;16B", "I", "F"}


def test_values_that_no_picture_holds_are_refused(tmp_path: Path) -> None:
    for values, words in (
        (np.full((4, 4), 70_000, np.int32), "70000, and a picture of this kind holds integers from 0 to 65,535"),
        (np.full((4, 4), 200.0, np.float32), "200.0, and a picture of this kind holds floats from 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "floats from 0 to 1"),
    ):
        path = tmp_path / "x.tif"
        Image.fromarray(values).save(path)
        with pytest.raises(UserError, match=words):
            served(path)


def test_transparent_pixels_show_the_background(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for picture in (
        Image.new("RGBA", (2, 2), (51, 51, 51, 128)),
        Image.new("LA", (2, 2), (51, 128)),
        Image.new("RGBA", (2, 2), (51, 51, 51, 128)).quantize(),
    ):
        picture.save(path)
        share = 128 / 255
        for background, value in (("white", 1.0), ("#000000", 0.0)):
            expected = torch.full((2, 2, 3), share * 0.2 + (1 - share) * value, dtype=torch.float64)
            assert torch.allclose(served(path, background), expected, atol=1 / 255)
    write_image_folder(tmp_path / "folder")
    with pytest.raises(UserError, match=r"data\.source\.background=blanc: it must be a colour"):
        image_folder(tmp_path / "folder", background="blanc")


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    picture.save(tmp_path / "x.png", exif=exif)
    turned = np.rot90(np.asarray(picture), -1)
    assert np.allclose(served(tmp_path / "x.png")[..., 0], turned / 255)


def test_of_an_animation_the_first_picture_is_served(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert served(tmp_path / "x.gif")[0, 0].tolist() == [1.0, 0.0, 0.0]


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


def test_broken_pictures_can_be_left_out(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    for name in ("ant/0000.png", "bee/0001.png"):
        (tmp_path / "train" / name).write_text("not an image")
    with pytest.raises(UserError, match=r"ant/0000\.png' cannot be decoded.*There are 1 more, such as .*bee/0001\.png"):
        image_folder(tmp_path)
    data = image_folder(tmp_path, size=28, broken="skip")
    assert data.remarks == ("train: 2 broken pictures left out (ant/0000.png, bee/0001.png)",)
    assert data.train.targets.tolist() == [0] * 5 + [1] * 5 + [2] * 6
    assert len(data.train.inputs.batch(torch.arange(16), None, 0, 0)) == 16


def test_pictures_are_checked_once_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image_folder(tmp_path)
    seen: list[Path] = []
    source = sys.modules[image_folder.__module__]

    def decoded(path: Path, name: str) -> None:
        seen.append(path)

    monkeypatch.setattr(source, "decode", decoded)
    image_folder(tmp_path)
    assert len(seen) == 36
    image_folder(tmp_path)
    assert len(seen) == 36
    changed = tmp_path / "val" / "bee" / "0001.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    image_folder(tmp_path)
    assert seen[36:] == [changed]
    monkeypatch.setenv("DISTILLERY_CACHE", str(changed))  # a file, no folder: nothing can be kept there
    image_folder(tmp_path)
    assert len(seen) == 37 + 36


def test_what_programs_leave_in_folders_is_no_picture(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 3, "test": 2})
    picture = next((tmp_path / "train" / "ant").iterdir())
    for other in ("train/ant/._0000.png", "train/ant/.ipynb_checkpoints/0000.png", "__MACOSX/ant/0000.png"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_bytes(picture.read_bytes() + b"\0")
    for name in ("notes.txt", "list.txt", "face.heic"):
        (tmp_path / "train" / "bee" / name).write_text("")
    (tmp_path / "masks").mkdir()
    data = image_folder(tmp_path)
    assert (len(data.train.inputs), len(data.test.inputs)) == (9, 6)
    assert data.remarks == (
        "folders that are no split were ignored: masks",
        "train: 3 files that are no pictures left out (2 .txt, 1 .heic)",
    )


def test_a_class_without_training_pictures_is_named(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"": 10})
    write_image_folder(tmp_path, {"": 1}, classes=["owl"])
    assert make(tmp_path, val_size=0).remarks[-1] == "train: no sample of owl"


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "root", {"": 5})
    write_image_folder(tmp_path / "elsewhere", {"": 2, "more": 2}, classes=["x", "y"])
    (tmp_path / "root" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root" / "ant")
    data = image_folder(tmp_path / "root", drop_duplicates=False)
    assert torch.bincount(data.train.targets).tolist() == [5 + 8, 5, 5]


def test_the_same_picture_is_served_once(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 6, "val": 2, "test": 2})

    def copy(source: str, target: str) -> None:
        (tmp_path / target).write_bytes((tmp_path / source).read_bytes())

    pictures = sorted((tmp_path / "train").rglob("*.png"))
    names = [str(path.relative_to(tmp_path)) for path in pictures]
    copy(names[0], "train/ant/copy.png")  # repeated
    copy(names[6], "train/cat/copy.png")  # with two labels
    copy(names[1], "test/ant/copy.png")
    copy(names[2], "val/ant/copy.png")
    same_length = tmp_path / "train" / "ant" / "length.png"
    content = bytearray(pictures[0].read_bytes())
    content[len(content) // 2] ^= 1  # in the middle, so that both edges agree
    same_length.write_bytes(content)
    data = image_folder(tmp_path, check=False)
    left = [str(path.relative_to(tmp_path)) for path in files(data.train.inputs)]
    assert left == sorted({*names, "train/ant/length.png"} - {names[1], names[2], names[6]})
    assert data.remarks == (
        "train: 1 repeated pictures and 2 with contradictory labels left out",
        "train: 1 pictures that are also in test left out",
        "train: 1 pictures that are also in val left out",
    )
    kept = image_folder(tmp_path, check=False, drop_duplicates=False)
    assert len(kept.train.inputs) == 21
    assert all("found and kept" in remark for remark in kept.remarks)


def test_splits_are_known_by_their_usual_names(tmp_path: Path) -> None:
    for number, names in enumerate(
        (("Training", "Testing", None), ("TRAIN", "TEST", "valid"), ("train_set", "Test-Images", "dev"))
    ):
        root = tmp_path / str(number)
        parts = {name: count for name, count in zip(names, (6, 2, 3), strict=True) if name}
        write_image_folder(root, parts)
        data = image_folder(root)
        assert data.classes == ("ant", "bee", "cat")
        assert (len(data.train.inputs), len(data.test.inputs)) == (18, 6)
        assert (data.val is None) == (names[2] is None)
    write_image_folder(tmp_path / "both", {"val": 2, "valid": 2, "train": 2})
    with pytest.raises(UserError, match="val and valid are both the val split"):
        image_folder(tmp_path / "both")
    write_image_folder(tmp_path / "own", {"fold1": 2, "fold2": 2})
    with pytest.raises(UserError, match="the folders fold1, fold2 hold the same folders each"):
        image_folder(tmp_path / "own")
    write_image_folder(tmp_path / "vehicles", {"": 5}, classes=["bus", "train"])
    assert image_folder(tmp_path / "vehicles").classes == ("bus", "train")
    write_image_folder(tmp_path / "unpacked" / "archive", {"train": 5, "test": 2})
    with pytest.raises(UserError, match=r"only the class folder 'archive'.*data\.root=.*unpacked/archive\?"):
        image_folder(tmp_path / "unpacked")


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
