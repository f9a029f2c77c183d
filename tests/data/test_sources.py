import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.raw import RawData
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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", ["", "FashionMNIST/raw"])
def test_fashion_mnist_folder(tmp_path: Path, zipped: bool, nested: str) -> None:
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
    """A gzip file that unpacks, of an IDX file that is too short."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-20]))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train-images-idx3-ubyte.gz", truncate, "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", cut_inside, r"damaged: its header says 40 × 28 × 28 bytes, but 31340"),
        ("t10k-labels-idx1-ubyte.gz", lambda path: path.write_bytes(gzip.compress(b"<html>")), "not an IDX file"),
        ("t10k-labels-idx1-ubyte.gz", Path.unlink, "has no 't10k-labels-idx1-ubyte'"),
        (
            "train-labels-idx1-ubyte.gz",
            lambda path: shutil.copy(path.with_name("t10k-labels-idx1-ubyte.gz"), path),
            "don't belong together",
        ),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    write_fashion_mnist(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        read_fashion(tmp_path)
    assert name.removesuffix(".gz") in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda path: path.write_bytes(b"<html>")])
def test_damaged_pickles_are_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_cifar100(tmp_path)
    damage(tmp_path / "cifar-100-python" / "test")
    with pytest.raises(UserError, match=r"cifar-100-python/test'"):
        cifar100(tmp_path)


def test_a_pickle_of_the_other_cifar_is_refused(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    write_cifar100(tmp_path)
    shutil.copy(tmp_path / "cifar-10-batches-py" / "test_batch", tmp_path / "cifar-100-python" / "test")
    with pytest.raises(UserError, match="fine_labels"):
        cifar100(tmp_path)


@pytest.mark.usefixtures("no_debian")
@pytest.mark.parametrize(
    ("source", "name"), [(read_fashion, "FashionMNIST"), (cifar10, "CIFAR10"), (cifar100, "CIFAR100")]
)
def test_missing_files_are_downloaded_and_a_failure_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[[Path], RawData], name: str
) -> None:
    """The network is replaced: torchvision's own constructors aren't called."""
    asked: list[tuple[Path, bool]] = []

    def offline(root: Path, download: bool) -> None:
        asked.append((root, download))
        raise OSError("Network is unreachable")

    module = "fashion_mnist" if name == "FashionMNIST" else "cifar"
    monkeypatch.setattr(f"distillery.data.sources.{module}.{name}", offline)
    with pytest.raises(UserError, match=r"Network is unreachable.*data\.root"):
        source(tmp_path / "new")
    assert asked == [(tmp_path / "new", True)]


def test_a_download_lands_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw: dict[str, Raw] = {}

    def fetch(root: Path, download: bool) -> None:
        raw.update(write_cifar100(root))

    monkeypatch.setattr("distillery.data.sources.cifar.CIFAR100", fetch)
    assert_equal(cifar100(tmp_path), raw)
