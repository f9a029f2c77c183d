"""What answers cost: a table of prices with its date, and a budget that is never passed."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy import stats

from distillery.core.paths import CONFIGS

TABLE = CONFIGS / "prices.yaml"
MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, and where the prices are from."""

    input: float = 0.0
    output: float = 0.0
    source: str = "no price is known, so it counts as free; price={input: …, output: …} sets one"

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens, in dollars."""
        return (self.input * prompt_tokens + self.output * completion_tokens) / MILLION

    @property
    def free(self) -> bool:
        return not (self.input or self.output)


def price_of(model: str, given: Mapping[str, Any] | None, table: Mapping[str, Any] | None = None) -> Price:
    """The price that is `given`, or that of the longest name in the table with which the model's name begins.

    Args:
        model: its name, as `gpt-4o-mini-2024-07-18`, perhaps behind that of a provider, `openai/gpt-4o-mini`.
        table: `date`, `source` and `models`; None: `configs/prices.yaml`.
    """
    if given is not None:
        return Price(float(given["input"]), float(given["output"]), "given by price=…")
    table = table or yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    name = model.rpartition("/")[2]
    known = [each for each in table["models"] if name == each or name.startswith(f"{each}-20")]
    if not known:
        return Price()
    own = table["models"][max(known, key=len)]
    return Price(own["input"], own["output"], f"{table['source']}, {table['date']}")


class Interval(NamedTuple):
    """A sum that is not known yet, and the bounds of its 95 % prediction interval."""

    expected: float
    low: float
    high: float


def expected_sum(seen: Sequence[float], more: int) -> Interval:
    """The sum of `more` further values of which some were seen, with its 95 % prediction interval.

    N·mean ± t · s · √(N²/n + N), for N further and n seen values that are drawn alike: the uncertainty of the mean, and
    the scatter of the further values. Not below 0. Of a single value nothing is known: the upper bound is infinite.
    """
    mean = float(np.mean(seen))
    if len(seen) < 2:
        return Interval(more * mean, 0.0, math.inf if more else 0.0)
    spread = float(np.std(seen, ddof=1)) * math.sqrt(more**2 / len(seen) + more)
    half = float(stats.t.ppf(0.975, len(seen) - 1)) * spread
    return Interval(more * mean, max(0.0, more * mean - half), more * mean + half)


class Budget:
    """Lets requests be sent as long as the money suffices, whatever their answers cost.

    A request reserves the most that it can cost. The reservation is replaced by the cost when the answer is there.

    Args:
        limit: in dollars; None: none.
        spent: before.
    """

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self.limit, self.spent, self._reserved = math.inf if limit is None else limit, spent, 0.0
        self._changed = threading.Condition()

    def reserve(self, most: float) -> bool:
        """Reserve what a request can cost at most; waits for answers that may leave enough. False: it is too much."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(most) or not self._reserved)
            if not self._fits(most):
                return False
            self._reserved += most
            return True

    def settle(self, most: float, cost: float) -> None:
        """An answer has come and has cost so much; or none will."""
        with self._changed:
            self._reserved = max(0.0, self._reserved - most)
            if self._reserved < 1e-12:  # what rounding leaves is not a request under way
                self._reserved = 0.0
            self.spent += cost
            self._changed.notify_all()

    def _fits(self, most: float) -> bool:
        return self.spent + self._reserved + most <= self.limit
