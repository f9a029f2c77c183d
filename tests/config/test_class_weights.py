"""Class weights that follow from the training samples, against counting by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from distillery.config.build import build
from distillery.config.check import check
from distillery.config.class_weights import class_counts
from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split, Texts
from distillery.tasks.token_classification import TokenClassification
from fixtures.composing import train_config
from fixtures.texts import text_data, write_tokenizer

DIGITS = ("experiment=digits_teacher", "data.train_size=60", "data.labelled_size=50")


def test_the_weights_of_a_run_are_in_its_config_and_its_loss() -> None:
    cfg = train_config(*DIGITS, "task.class_weights=balanced", "paths.run=run")
    parts = build(check(cfg).stages[0])
    train = parts.data.splits["train"]
    target = train.targets[train.labelled_indices].numpy()
    assert len(target) == 50
    expected = compute_class_weight("balanced", classes=np.arange(10), y=target)
    assert np.allclose(parts.cfg.task.class_weights, expected)
    logits, labels = torch.zeros(10, 10), torch.arange(10)
    assert np.allclose(parts.distiller.task.loss(logits, labels), expected * np.log(10), rtol=1e-5)


def test_words_are_counted_once_each(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    words = Texts([["films", "was", "dull"], ["the", "coldly"]], labels=[[0, 1, 1], [0, 2]])  # two have two tokens
    split = Split.whole(words, torch.zeros(2, dtype=torch.int64))
    data = text_data(tokenizer, RawData("words", ("a", "b", "c", "d"), split, split))
    assert class_counts(data, TokenClassification()).tolist() == [2, 2, 1, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[1,2]", r"task\.class_weights has 2 numbers, but 'digits' has 10 classes: one for each, in this order: 0, 1"),
        (
            "[-1]",
            r"task\.class_weights=\[-1\]: it must be a list, each entry a finite number of at least 0",
        ),
        ("balance", r"task\.class_weights=balance: it must be"),
    ],
)
def test_refusals(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(check(train_config(*DIGITS, f"task.class_weights={given}", "paths.run=run")).stages[0])
