"""The handwritten digits that are part of scikit-learn."""

import torch
from sklearn.datasets import load_digits

from distillery.data.images import TensorImages
from distillery.data.raw_data import RawData, Split
from distillery.data.splits import SPLIT_SEED, stratified

TEST_SIZE = 797
VAL_SIZE = 200


def digits() -> RawData:
    """1,797 grayscale digits of 8×8 pixels: 800 for training, 200 for validation, 797 for test, always the same ones.

    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI.
    """
    bunch = load_digits()
    images = TensorImages(torch.from_numpy(bunch.images / 16).float()[:, None])
    targets = torch.from_numpy(bunch.target).long()
    test, rest = stratified(targets, torch.arange(len(targets)), TEST_SIZE, SPLIT_SEED)
    val, train = stratified(targets, rest, VAL_SIZE, SPLIT_SEED)
    classes = tuple(str(name) for name in bunch.target_names)
    return RawData(
        "digits",
        classes,
        train=Split(images, targets, train),
        val=Split(images, targets, val),
        test=Split(images, targets, test),
    )
