"""The classes of a data set as those of a network, by name."""

import pytest
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import UNLABELLED, RawData, Split, Texts

OURS = ("ant", "bee", "cat")  # the network's


def test_classes_get_the_numbers_that_they_have_in_the_network() -> None:
    labelled = torch.tensor([True, False, True])
    train = Split.whole(None, torch.tensor([0, 1, 1]), labelled)
    raw = RawData("pets", ("cat", "ant"), train, Split.whole(None, torch.tensor([1, 0])))
    found = raw.with_classes(OURS)
    assert found.classes == OURS
    assert found.train.targets.tolist() == [2, UNLABELLED, 0]
    assert found.test.targets.tolist() == [0, 2]
    assert found.val is None
    assert found.with_classes(OURS) is found


def test_the_classes_of_words() -> None:
    texts = Texts([["a", "b"], ["c"], ["d"]], labels=[[1, 0], [0], [UNLABELLED]])
    raw = RawData("words", ("cat", "bee"), Split.whole(texts, torch.zeros(3)), Split.whole(texts, torch.zeros(3)))
    assert raw.with_classes(OURS).test.inputs.labels == [[1, 2], [2], [UNLABELLED]]


def test_strange_classes_are_listed() -> None:
    split = Split.whole(None, torch.tensor([0, 1]))
    with pytest.raises(
        UserError, match=r"lacks: Cat\. The run's: ant, bee, cat; .* lack bee, cat\. Did you mean 'cat'"
    ):
        RawData("pets", ("Cat", "ant"), split, split).with_classes(OURS)
