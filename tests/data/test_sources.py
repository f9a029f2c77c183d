import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST, VisionDataset

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData
from distillery.data.sources import fashion_mnist
from distillery.data.sources.cifar import cifar10, cifar100
from distillery.data.sources.digits import digits
from fixtures.datasets import Raw, write_cifar10, write_cifar100, write_fashion_mnist

read_fashion = fashion_mnist.fashion_mnist


def assert_equal(data: RawData, raw: dict[str, Raw]) -> None:
    assert data.val is None
    for part, split in (("train", data.train), ("test", data.test)):
        images, targets = raw[part]
        assert isinstance(split.inputs, TensorImages)
        assert np.array_equal(split.inputs.values.numpy(), images)
        assert np.array_equal(split.targets.numpy(), targets)
        assert split.indices.tolist() == list(range(len(targets)))


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")


@pytest.fixture
def debian() -> Path:
    """The folder of the real Fashion-MNIST; a test that wants it is skipped where it isn't installed."""
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    return fashion_mnist.DEBIAN


def test_digits() -> None:
    data, bunch = digits(), load_digits()
    assert data.val is not None
    parts = {"train": data.train, "val": data.val, "test": data.test}
    assert {name: len(part.indices) for name, part in parts.items()} == {"train": 800, "val": 200, "test": 797}
    assert sorted(i for part in parts.values() for i in part.indices.tolist()) == list(range(1797))
    shares = np.bincount(bunch.target) / 1797
    for part in parts.values():
        counts = np.bincount(part.targets[part.indices])
        assert np.abs(counts - shares * len(part.indices)).max() < 2
    assert isinstance(data.train.inputs, TensorImages)
    assert np.array_equal(data.train.inputs.values[:, 0].double().numpy() * 16, bunch.images)
    assert np.array_equal(data.train.targets.numpy(), bunch.target)
    assert torch.equal(digits().train.indices, data.train.indices)


def test_fashion_mnist_folder(tmp_path: Path) -> None:
    for zipped in [True, False]:
        for nested in ["", "FashionMNIST/raw"]:
            raw = write_fashion_mnist(tmp_path / nested, zipped=zipped)
            data = read_fashion(tmp_path)
            assert_equal(data, raw)
            assert data.classes[9] == "Ankle boot"


def test_fashion_mnist_of_debian(debian: Path, tmp_path: Path) -> None:
    data = read_fashion(tmp_path)
    assert isinstance(data.train.inputs, TensorImages)
    assert data.train.inputs.values.shape == (60_000, 1, 28, 28)
    for split, each in ((data.train, 6000), (data.test, 1000)):
        assert torch.bincount(split.targets).tolist() == [each] * 10
    pixels = data.train.inputs.values.float() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3530, abs=1e-4)


def test_cifar(tmp_path: Path) -> None:
    raw = write_cifar10(tmp_path)
    assert_equal(cifar10(tmp_path), raw)
    assert_equal(cifar10(tmp_path / "cifar-10-batches-py"), raw)
    raw = write_cifar100(tmp_path)
    data = cifar100(tmp_path)
    assert_equal(data, raw)
    assert data.classes[:2] == ("class0", "class1")
    assert_equal(cifar100(tmp_path / "cifar-100-python"), raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_inside(path: Path) -> None:
    """Damage a gzipped file that still unpacks."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20]))


def to_html(path: Path) -> None:
    path.write_bytes(gzip.compress(b"<html>"))


def to_test_labels(path: Path) -> None:
    shutil.copy(path.with_name("t10k-labels-idx1-ubyte.gz"), path)


def test_damaged_files_of_fashion_mnist_are_named(tmp_path: Path) -> None:
    for number, (name, damage, words) in enumerate(
        [
            ("train-images-idx3-ubyte", truncate, "is damaged or of another format"),
            ("t10k-images-idx3-ubyte", cut_inside, "is damaged or of another format"),
            ("t10k-labels-idx1-ubyte", to_html, "is damaged or of another format"),
            ("t10k-images-idx3-ubyte", to_test_labels, "is damaged or of another format"),
            ("t10k-labels-idx1-ubyte", Path.unlink, "'t10k-labels-idx1-ubyte.gz'. Fetch the file, or set data.root"),
            ("train-labels-idx1-ubyte", to_test_labels, "has 100 train images, but 40 labels"),
        ]
    ):
        root = tmp_path / str(number)
        write_fashion_mnist(root)
        damage(root / f"{name}.gz")
        with pytest.raises(UserError) as caught:
            read_fashion(root)
        assert words in str(caught.value)
        assert (name if "train images" not in words else str(root)) in str(caught.value)


def test_damaged_files_of_cifar_are_named(tmp_path: Path) -> None:
    for number, damage in enumerate((truncate, Path.unlink, lambda path: path.write_bytes(b"<html>"))):
        root = tmp_path / str(number)
        write_cifar100(root)
        damage(root / "cifar-100-python" / "test")
        with pytest.raises(UserError, match=r"cifar-100-python(/test' is missing|' is damaged)"):
            cifar100(root)


@pytest.mark.usefixtures("no_debian")
def test_missing_files_are_downloaded_and_a_failure_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def offline(dataset: VisionDataset) -> None:
        asked.append(Path(dataset.root))
        raise OSError("Network is unreachable")

    for number, (source, dataset) in enumerate(
        [(read_fashion, FashionMNIST), (cifar10, CIFAR10), (cifar100, CIFAR100)]
    ):
        monkeypatch.setattr(dataset, "download", offline)
        with pytest.raises(UserError, match=r"Network is unreachable.*data\.root"):
            source(tmp_path / str(number))
        assert asked.pop() == tmp_path / str(number)


@pytest.mark.usefixtures("no_debian")
def test_a_download_lands_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw: dict[str, Raw] = {}

    def fetch(dataset: FashionMNIST) -> None:
        raw.update(write_fashion_mnist(Path(dataset.raw_folder), zipped=False))

    monkeypatch.setattr(FashionMNIST, "download", fetch)
    assert_equal(read_fashion(tmp_path), raw)
