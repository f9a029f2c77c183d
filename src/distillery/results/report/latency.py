"""One latency for each network of a report, out of the measurements of all runs that have it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distillery.results.record import RunRecord

Key = tuple[Any, ...]


class Measured(NamedTuple):
    """Milliseconds of a forward, and whether the machine was busy at each measurement."""

    ms: float
    busy: bool


def network_of(record: RunRecord, cost: Mapping[str, Any]) -> Key:
    """What networks share that are measured alike: the machine, parameters, FLOPs and the shape of an input."""
    machine = (record.environment.get(name) for name in ("cpu", "gpu", "scored_on"))
    counts = (cost.get(name) for name in ("params", "embedding_params", "flops"))
    return (*machine, *counts, input_of(cost))


def input_of(cost: Mapping[str, Any]) -> str | None:
    """What a network was given while it was measured: `3×32×32`, or `26 tokens` of a text; None: that is not known."""
    shape = (cost.get("latency") or {}).get("input") or ()
    return (f"{shape[0]} tokens" if len(shape) == 1 else "×".join(map(str, shape))) if shape else None


def latencies(records: Iterable[RunRecord]) -> dict[Key, Measured]:
    """The latency of each network, students and frozen teachers alike.

    It is the lowest median of the measurements on an idle machine. If there are none, it is the fastest single forward:
    on a busy machine, that is nearer than a median to what an idle machine takes.
    """
    found: dict[Key, Measured] = {}
    for record in records:
        for cost in (record.cost, *record.frozen_teachers.values()):
            median, more = cost.get("latency_ms"), cost.get("latency") or {}
            if median is None:
                continue
            busy = bool(more.get("busy"))
            own = Measured(more["minimum_ms"] if busy else median, busy)
            key = network_of(record, cost)
            found[key] = min(found.get(key, own), own, key=lambda each: (each.busy, each.ms))
    return found
