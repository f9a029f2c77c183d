"""Checks that the metrics which checkpoints, early stopping, schedules and schedulers wait for are logged."""

from collections.abc import Mapping, Sequence
from typing import Any

from distillery.core.errors import UserError, did_you_mean
from distillery.training.callbacks.term_monitor import TermMonitor
from distillery.training.schedules import Latch, Schedule

COUNTED = ("epoch", "step")  # which Lightning gives a ModelCheckpoint, and nothing else
OURS = ("distillery.", "lightning.")  # callbacks that log no metric of their own
CHECKPOINTS = ("ModelCheckpoint", "LastCheckpoint")


def refuse_unlogged(
    callbacks: Mapping[str, Any],
    schedules: Mapping[str, Schedule],
    validations: Sequence[str],
    others: Mapping[str, str | None] | None = None,
) -> None:
    """Refuse a metric that something waits for but nothing logs, which would otherwise show only after an epoch.

    A callback of the user's own may log anything: then nothing is refused but what Lightning counts.

    Args:
        callbacks: `cfg.callbacks`.
        schedules: by loss and attribute.
        validations: what the validations log; empty without any.
        others: further metrics by the setting that names them.

    Raises:
        UserError: names the setting, the metric, and those that there are.
    """
    active = {name: callback for name, callback in callbacks.items() if callback is not None}
    targets = {name: str(callback.get("_target_")) for name, callback in active.items()}
    waiting: dict[str, Any] = {path: metric for path, metric in (others or {}).items() if metric is not None}
    for path, schedule in schedules.items():
        if isinstance(schedule, Latch):
            where = f"{path if path.startswith('task.') else f'loss.{path}'}: when"
            if schedule.metric in COUNTED:
                raise UserError(
                    f"{where}={schedule.metric}: this is no metric. For a change at a given place: `from` and "
                    f"`until`, with unit={schedule.metric}s."
                )
            waiting[where] = schedule.metric
    for name, callback in active.items():
        metric = callback.get("monitor")
        counted = metric in COUNTED and targets[name].endswith(CHECKPOINTS)
        if metric is not None and targets[name].startswith(OURS) and not counted:
            waiting[f"callbacks.{name}.monitor"] = metric
    logged = ("loss",) if any(target.endswith(TermMonitor.__name__) for target in targets.values()) else ()
    known = (*validations, *logged)
    anything = not all(target.startswith(OURS) for target in targets.values())
    for path, metric in waiting.items():
        if metric in known or (anything and metric not in COUNTED):
            continue
        if str(metric).startswith("val/") and not validations:
            fix = f" {path.removesuffix('.monitor')}=null does without it." if path.startswith("callbacks.") else ""
            raise UserError(
                f"{path}={metric}: there is no such metric without validation (no validation split, or "
                f"trainer.limit_val_batches=0).{fix}"
            )
        raise UserError(f"{path}={metric}: nothing logs such a metric." + did_you_mean(str(metric), known))
