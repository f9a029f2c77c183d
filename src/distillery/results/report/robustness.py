"""How a student stands corrupted pictures, as `distill-evaluate … corruptions=all` has found."""

import json
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from distillery.results.layout import CORRUPTIONS


class Robustness(NamedTuple):
    """The scores in a run's `corruptions.json`.

    Attributes:
        clean: on the pictures as they are.
        by_corruption: the mean over severities of each corruption, with `family` and `score`.
        by_severity: the mean over the corruptions of each family (columns) for each severity (rows).
    """

    clean: float
    by_corruption: pd.DataFrame
    by_severity: pd.DataFrame

    @property
    def families(self) -> pd.Series:
        """The mean over the corruptions of each family."""
        return self.by_corruption.groupby("family", sort=False)["score"].mean()

    @property
    def overall(self) -> dict[str, float]:
        """`clean`, the mean over all corruptions, `corrupted`, and `relative`, that ÷ clean."""
        mean = float(self.by_corruption["score"].mean())
        return {"clean": self.clean, "corrupted": mean, "relative": mean / self.clean}


def robustness_of(folder: Path, student_sha256: str | None) -> Robustness | None:
    """What is known of the student of a run; None: nothing, or of another student that was there before."""
    path = folder / CORRUPTIONS
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not content or content["student_sha256"] != student_sha256:
        return None
    scores = pd.DataFrame(content["scores"])
    by_corruption = scores.groupby("corruption", sort=False).agg(family=("family", "first"), score=("score", "mean"))
    by_severity = scores.pivot_table("score", "severity", "family", sort=False).sort_index()
    return Robustness(content["clean"]["score"], by_corruption, by_severity)
