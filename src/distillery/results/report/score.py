"""How a score is shown: fractions in percent, higher is better; or in a unit of its own, lower is better."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from distillery.results.record import RunRecord

GENERIC = "score"
OF_SCORES = (
    "score_mean", "score_std", "diff_mean", "diff_ci95",
    "score_best_mean", "score_best_std", "diff_best_mean", "diff_best_ci95",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """The score of a table of methods.

    A score of which lower is better has its own name in the columns, `bits_per_byte_mean`, `bits_per_byte_diff_mean`,
    and no retention, as the ratio of two of them means nothing. All others are fractions, in the columns `score_mean`,
    `diff_mean` and so on.

    Attributes:
        name: what the task calls it.
        lower: whether lower is better.
        plain: whether it is shown in its own unit, though higher is better.
    """

    name: str = GENERIC
    lower: bool = False
    plain: bool = False

    @classmethod
    def of_record(cls, data: Mapping[str, Any]) -> "Score":
        """That of a run, from `RunRecord.data`."""
        return cls(data["score_name"], True) if not data.get("higher_is_better", True) else cls()

    @classmethod
    def of_monitored(cls, record: RunRecord) -> "Score":
        """That by which students are chosen (`task.monitor`): metrics beside the score are shown as they are."""
        if record.monitored == GENERIC:
            return cls.of_record(record.data)
        return cls(record.monitored, not record.is_better_higher(record.monitored), plain=True)

    @classmethod
    def of_table(cls, table: pd.DataFrame) -> "Score":
        """That of a method table, also of one that was read back from report.csv."""
        if OF_SCORES[0] in table:
            return cls()
        ends = "_diff_mean"
        own = next((str(name).removesuffix(ends) for name in table.columns if str(name).endswith(ends)), None)
        return cls() if own is None else cls(own.replace("_", " "), True)

    @property
    def columns(self) -> dict[str, str]:
        """The name of each of `OF_SCORES` in a table of methods."""
        if not self.lower:
            return dict(zip(OF_SCORES, OF_SCORES, strict=True))
        own = re.sub(r"\W+", "_", self.name)
        return {column: f"{own}_{column.removeprefix('score_')}" for column in OF_SCORES}

    def generic(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns `OF_SCORES`."""
        return table.rename(columns={own: column for column, own in self.columns.items()})

    @property
    def sign(self) -> int:
        """What a difference is multiplied by to be positive where it is better."""
        return -1 if self.lower else 1

    @property
    def factor(self) -> int:
        """What a score is multiplied by to be shown: fractions are shown in percent."""
        return 1 if self.lower or self.plain else 100

    @property
    def validation(self) -> str:
        """The heading of a column of it on the validation split."""
        named = f"validation {self.name}" if self.plain else "validation"
        return named if self.lower or self.plain else f"{named} %"

    @property
    def digits(self) -> int:
        return 4 if self.lower or self.plain else 2

    @property
    def unit(self) -> str:
        """Of a difference."""
        return self.name if self.lower else "points"


FRACTION = Score()
PLAIN = Score(plain=True)
