"""The handwritten digits that are part of scikit-learn."""

from functools import cache

import torch
from sklearn.datasets import load_digits

from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData, Split

TEST_SIZE = 797
VAL_SIZE = 200

_load_digits = cache(load_digits)  # parses a text file: once for all runs of a study


def digits() -> RawData:
    """1,797 grayscale digits of 8×8 pixels: 800 for training, 200 for validation, 797 for test, always the same ones.

    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI.
    """
    bunch = _load_digits()
    images = TensorImages(torch.from_numpy(bunch.images / 16).float()[:, None])
    targets = torch.from_numpy(bunch.target).long()
    test, rest = Split.whole(images, targets).divided(TEST_SIZE)
    val, train = rest.divided(VAL_SIZE)
    return RawData("digits", tuple(map(str, bunch.target_names)), train=train, val=val, test=test)
