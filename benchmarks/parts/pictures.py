"""Random pictures in the files of a known set, for the costs of a set of its size."""

import pickle
from pathlib import Path

import numpy as np


def write_cifar10(root: Path, train: int, test: int) -> None:
    """`root`/cifar-10-batches-py, with noise for pictures; `train` is a multiple of 5."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        number = test if name == "test_batch" else train // 5
        content = {
            "data": rng.integers(256, size=(number, 3072), dtype=np.uint8),
            "labels": [*range(10)] * (number // 10),
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"0123456789"]}))
