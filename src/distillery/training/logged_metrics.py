"""The metrics that a checkpoint, a stop or a schedule waits for: will there be such a one?"""

from collections.abc import Mapping
from typing import Any

from distillery.core.errors import UserError, did_you_mean
from distillery.training.distiller import VALIDATED
from distillery.training.schedules import Latch, Schedule

EVER = ("loss", "epoch", "step")  # without any validation: TermMonitor's, and what Lightning counts
OURS = ("distillery.", "lightning.")  # callbacks that log no metric of their own


def refuse_unlogged(
    callbacks: Mapping[str, Any],
    schedules: Mapping[str, Schedule],
    validated: bool,
    others: Mapping[str, str] | None = None,
) -> None:
    """Refuse a `monitor` or a schedule's `when` that nothing logs, which would show only after an epoch.

    A callback of the user's own may log what it likes: then nothing can be known, and nothing is refused.

    Args:
        callbacks: `cfg.callbacks`.
        schedules: by loss and attribute.
        validated: whether the data have a validation split.
        others: metrics by the setting that waits for them.
    """
    active = {name: callback for name, callback in callbacks.items() if callback is not None}
    if not all(str(callback.get("_target_")).startswith(OURS) for callback in active.values()):
        return
    waiting: dict[str, Any] = {
        f"callbacks.{name}.monitor": callback.get("monitor") for name, callback in active.items()
    }
    for path, schedule in schedules.items():
        if isinstance(schedule, Latch):
            waiting[f"{path if path.startswith('task.') else f'loss.{path}'}: when"] = schedule.metric
    waiting |= others or {}
    known = (*VALIDATED, *EVER) if validated else EVER
    for path, metric in waiting.items():
        if metric in VALIDATED and not validated:
            mend = f" {path.removesuffix('.monitor')}=null does without it." if path.endswith(".monitor") else ""
            raise UserError(f"{path}={metric}: the data have no validation split, so there is no such metric.{mend}")
        if metric is not None and metric not in known:
            raise UserError(f"{path}={metric}: nothing logs such a metric." + did_you_mean(str(metric), known))
