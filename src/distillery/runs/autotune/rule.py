"""When a setting is kept: the rule alone, on timings."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

PLAINLY = 0.97  # a step with the setting takes at most this share of one without
WON = 0.8  # in at least this share of the rounds it is the faster one


@dataclass(frozen=True)
class Timing:
    """What steps of a job take under some settings, in seconds.

    Attributes:
        first: from the start of the training to the end of the first step, with a batch of validation if the run has
            any: networks are compiled there.
        rounds: a later step, once in each round.
    """

    first: float
    rounds: Sequence[float]

    @property
    def step(self) -> float:
        """A later step."""
        return median(self.rounds)

    def run(self, steps: float) -> float:
        """All steps of a run."""
        return self.first + (steps - 1) * self.step


@dataclass(frozen=True)
class Tried:
    """What became of a value of a setting.

    Attributes:
        setting: as on the command line, `compile=true`.
        kept: whether the run has it.
        why: the reason.
        step_ms, first_s, run_s: a step, the time to the first step, and all steps of the run, each without and with it;
            None if it was not timed.
    """

    setting: str
    kept: bool
    why: str
    step_ms: tuple[float, float] | None = None
    first_s: tuple[float, float] | None = None
    run_s: tuple[float, float] | None = None

    @classmethod
    def timed(cls, setting: str, without: Timing, with_it: Timing, steps: float) -> Self:
        """The entry of a value that was timed."""
        kept, why = verdict(without, with_it, steps)
        both = without, with_it
        figures: dict[str, Any] = {
            "step_ms": tuple(round(1e3 * each.step, 3) for each in both),
            "first_s": tuple(round(each.first, 3) for each in both),
            "run_s": tuple(round(each.run(steps), 3) for each in both),
        }
        return cls(setting, kept, why, **figures)


def verdict(without: Timing, with_it: Timing, steps: float) -> tuple[bool, str]:
    """Whether a setting is kept, and why.

    It is if a step is plainly faster with it (the median over the rounds, and in most of them), and the whole run is
    faster, the time to the first step included.

    Args:
        without, with_it: timed in turn: rounds of one number belong together.
        steps: of the run; infinite for one without end.
    """
    ratios = [b / a for a, b in zip(without.rounds, with_it.rounds, strict=True)]
    ratio, won = median(ratios), sum(each < 1 for each in ratios)
    change = f"a step takes {abs(1 - ratio):.0%} {'less' if ratio < 1 else 'more'} time"
    if ratio > PLAINLY or with_it.step >= without.step:
        return False, f"{change}: not plainly faster"
    if won < WON * len(ratios):
        return False, f"{change}, but it was faster in {won} of {len(ratios)} rounds only"
    pays_from = (with_it.first - without.first) / (without.step - with_it.step) + 1  # where both runs take as long
    if steps <= pays_from:
        return False, f"{change}, but the first takes longer: it pays from {pays_from:,.0f} steps on"
    return True, change + (f"; it pays from {pays_from:,.0f} steps on" if pays_from > 2 else "")
