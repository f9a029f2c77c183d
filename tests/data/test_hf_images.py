"""Images through `datasets`: Parquet files that declare classes, and tar files; no network."""

import io
import tarfile
from pathlib import Path

import datasets
import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData
from distillery.data.sources.hf_images import hf_images
from distillery.data.sources.image_folder import image_folder
from distillery.data.vision import VisionData
from fixtures.datasets import write_image_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of the machine is read or written, nor the hub asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def pictures(root: Path, part: str) -> list[Path]:
    return sorted((root / part).rglob("*.png"))


def test_parquet_files_that_declare_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 4, "test": 2}, shape=(28, 28))
    repeated = pictures(tmp_path, "train")[0]
    pictures(tmp_path, "test")[3].write_bytes(repeated.read_bytes())  # a bee's
    feature = datasets.ClassLabel(names=["cat", "bee", "ant"])
    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        rows = [
            {"img": {"bytes": p.read_bytes(), "path": None}, "label": p.parent.name} for p in pictures(tmp_path, part)
        ]
        rows[1]["label"] = None if part == "train" else rows[1]["label"]
        data = datasets.Dataset.from_list(rows).cast_column("img", datasets.Image()).cast_column("label", feature)
        data.to_parquet(str(tmp_path / "set" / f"{part}.parquet"))
    raw = hf_images(str(tmp_path / "set"), size=28, image="img", val=None)
    assert raw.classes == ("cat", "bee", "ant")
    assert raw.remarks[0] == "train: 1 pictures that are also in test left out"
    assert raw.train.targets.tolist() == [2] * 2 + [1] * 4 + [0] * 4
    every = hf_images(str(tmp_path / "set"), size=28, image="img", val=None, drop_duplicates=False).train
    assert every.targets.tolist() == [2] * 3 + [1] * 4 + [0] * 4 + [-1]
    assert every.unlabelled_indices.tolist() == [11]
    made = VisionData(lambda: raw, mean=[0.5] * 3, std=[0.5] * 3, batch_size=4, eval_batch_size=6, seed=0, val_size=0)
    from_folder = image_folder(tmp_path, size=28, drop_duplicates=False).test.inputs
    assert torch.equal(next(iter(made.test_dataloader()))["image"], from_folder.batch(torch.arange(6), None, 0, 0))
    assert made.fingerprint


def test_tar_files(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": 3, "test": 2}, shape=(28, 28))
    for part in ("train", "test"):
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for path in pictures(tmp_path, part):
                number = ("ant", "bee", "cat").index(path.parent.name)
                for suffix, content in (("png", path.read_bytes()), ("cls", str(number).encode())):
                    info = tarfile.TarInfo(f"{path.parent.name}{path.stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    files = {part: str(tmp_path / f"{part}.tar") for part in ("train", "test")}
    raw = hf_images("webdataset", size=28, image="png", label="cls", val=None, data_files=files)
    assert raw.classes == ("0", "1", "2")
    assert (len(raw.train.inputs), len(raw.test.inputs)) == (9, 6)
    assert raw.train.inputs.batch(torch.arange(9), None, 0, 0).shape == (9, 3, 28, 28)
    with pytest.raises(UserError, match=r"data\.source\.image=jpg: 'webdataset', split train has no such column"):
        hf_images("webdataset", image="jpg", label="cls", val=None, data_files=files)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"no picture", "path": "a.png"}, "label": str(number % 2)} for number in range(4)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "x.parquet"))
    files = {"train": str(tmp_path / "x.parquet"), "test": str(tmp_path / "x.parquet")}
    raw = hf_images("parquet", val=None, data_files=files, drop_duplicates=False)
    with pytest.raises(UserError, match=r"'parquet', split train, row 2 a\.png' cannot be decoded"):
        raw.train.inputs.batch(torch.tensor([2]), None, 0, 0)


def test_a_train_split_without_labels(tmp_path: Path) -> None:
    """They are unlabelled images, if the test split has labels; a set without any is refused."""
    write_image_folder(tmp_path, {"train": 4, "test": 2}, shape=(28, 28))
    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        rows = [
            {"image": {"bytes": p.read_bytes(), "path": None}, "label": p.parent.name} for p in pictures(tmp_path, part)
        ]
        data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        data = data.remove_columns("label") if part == "train" else data
        data.to_parquet(str(tmp_path / "set" / f"{part}.parquet"))
    files = {part: str(tmp_path / "set" / f"{part}.parquet") for part in ("train", "test")}
    raw = hf_images("parquet", size=28, val=None, data_files=files)
    assert raw.classes == ("ant", "bee", "cat")
    assert (len(raw.train.inputs), raw.train.unlabelled_indices.tolist()) == (12, list(range(12)))
    assert len(raw.test.unlabelled_indices) == 0
    assert raw.remarks == ("train: without a column 'label', so that none of its pictures has a label",)
    with pytest.raises(UserError, match=r"source\.label=label: .*no such column. Choose from: image.* test split do"):
        hf_images("parquet", val=None, data_files={**files, "test": files["train"]})
    with pytest.raises(UserError, match=r"files of its splits have different columns.*source\.data_files={train: "):
        hf_images(str(tmp_path / "set"), val=None)


def test_labels_that_cannot_work(tmp_path: Path) -> None:
    """And pictures that are files beside the table, and rows of test without a label."""
    write_image_folder(tmp_path, {"train": 3, "test": 2}, shape=(28, 28))
    own = {part: [(str(p), p.parent.name) for p in pictures(tmp_path, part)] for part in ("train", "test")}

    def read(**rows: list[tuple[str, str | None]]) -> RawData:
        files = {}
        for part, each in rows.items():
            table = [{"image": {"bytes": None, "path": path}, "label": label} for path, label in each]
            files[part] = str(tmp_path / f"{part}.parquet")
            datasets.Dataset.from_list(table).to_parquet(files[part])
        return hf_images("parquet", size=28, val=None, data_files=files)

    raw = read(train=own["train"], test=[(own["test"][0][0], None), *own["test"][1:]])
    assert (len(raw.train.inputs), len(raw.test.inputs)) == (9, 5)
    assert raw.remarks == ("test: 1 rows without a label left out",)
    index = torch.arange(9)
    expected = image_folder(tmp_path, size=28, drop_duplicates=False).train.inputs.batch(index, None, 0, 0)
    assert torch.equal(raw.train.inputs.batch(index, None, 0, 0), expected)
    with pytest.raises(UserError, match=r"the labels are all \['ant'\]; at least two classes are needed"):
        read(train=own["train"][:3], test=own["test"])
    with pytest.raises(UserError, match=r"split test: train lacks the class 'be'\. Did you mean 'bee'"):
        read(train=own["train"], test=[(own["test"][0][0], "be"), *own["test"]])
