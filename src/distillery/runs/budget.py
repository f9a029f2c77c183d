"""The edge budget of a run, `target.latency_ms` and `target.size_mb`: what its exported student may take.

The untrained student is measured before anything is trained, see `over_budget.py`: size and latency do not depend
on the weights.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

from omegaconf import DictConfig

from distillery.config.spec import has_budget
from distillery.core.errors import UserError
from distillery.results.exports import Measured, size
from distillery.results.record import RunRecord

MEGABYTE = 1e6
FORMAT = "target.format"  # the setting of what is measured


@dataclass(frozen=True)
class Budget:
    """What an exported student may take.

    Attributes:
        format: what it is exported to.
        latency_ms: of a forward at batch 1 on one thread, in milliseconds; None: any.
        size_mb: in megabytes; None: any.
    """

    format: str
    latency_ms: float | None
    size_mb: float | None

    @classmethod
    def of(cls, cfg: DictConfig) -> Self | None:
        """That of a checked config; None: it has none."""
        return cls(**cfg.target) if has_budget(cfg.get("target")) else None

    def excess(self, taken: Measured) -> float:
        """How many times the budget is taken, of latency or size whichever is further over it; at most 1: within."""
        return max(
            taken.latency_ms / self.latency_ms if self.latency_ms else 0.0,
            taken.bytes / (MEGABYTE * self.size_mb) if self.size_mb else 0.0,
        )

    def noted(self, record: RunRecord) -> dict[str, Any]:
        """The budget, and what a record has of its format, for the summary of a sweep."""
        return {"budget": asdict(self), "measured": record.target[self.format]["measured"]}

    def compared(self, taken: Measured) -> str:
        """`latency 0.81 ms (over 0.5 ms), size 43 kB (within 100 kB), as onnx`."""
        latency, large = f"latency {taken.latency_ms:.3g} ms", f"size {size(taken.bytes)}"
        if self.latency_ms:
            latency += f" ({_side(taken.latency_ms, self.latency_ms)} {self.latency_ms:g} ms)"
        if self.size_mb:
            allowed = MEGABYTE * self.size_mb
            large += f" ({_side(taken.bytes, allowed)} {size(allowed)})"
        busy = " (the fastest forward of a busy machine)" if taken.busy else ""
        return f"{latency}{busy}, {large}, as {taken.format}"


def _side(taken: float, allowed: float) -> str:
    return "over" if taken > allowed else "within"


class OverBudget(UserError):
    """The student of a run takes more than its budget.

    Attributes:
        excess: see `Budget.excess`.
        said: what it takes, and what it may.
        target: see `Budget.noted`.
        record: of the run, with what was measured.
    """

    def __init__(self, budget: Budget, taken: Measured, record: RunRecord) -> None:
        self.excess, self.said, self.record = budget.excess(taken), budget.compared(taken), record
        self.target = budget.noted(record)
        super().__init__(
            f"The student is over its budget and is not trained: {self.said}. Make it narrower or shallower, or its "
            "input smaller; choose another target.format; or raise target.latency_ms and target.size_mb."
        )
