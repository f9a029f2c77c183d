from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distillery.data.raw_data import RawData
from distillery.data.sources.cifar import cifar100
from distillery.data.vision import VisionData
from fixtures.datasets import Raw, write_cifar100


@pytest.fixture(scope="session")
def cifar_raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Raw]]:
    """A CIFAR-100 folder with 500 training images, and its arrays."""
    root = tmp_path_factory.mktemp("cifar")
    return root, write_cifar100(root, train=500)


@pytest.fixture
def cifar_data(cifar_raw: tuple[Path, dict[str, Raw]]) -> Callable[..., VisionData]:
    """Makes a `VisionData` of the small CIFAR-100; keywords replace the defaults."""

    def make(source: Callable[..., RawData] = cifar100, **given: Any) -> VisionData:
        defaults: dict[str, Any] = {
            "root": str(cifar_raw[0]),
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "batch_size": 64,
            "eval_batch_size": 64,
            "seed": 0,
            "val_size": 100,
            "augment": {"crop": 4, "flip": True},
        }
        return VisionData(source, **(defaults | given))

    return make
