"""What the students of a method are as exported files: the measurements of `export/export.json` over its runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from distillery.results.exports import Export, read_exports
from distillery.results.report.collect import Run


@dataclass(frozen=True)
class Exported:
    """A format to which students of a method were exported; figures are those of its verified files.

    Attributes:
        format: as `distill-export` names it.
        scores: by seed, on the whole test split.
        bytes: mean over seeds.
        latency_ms: of a forward at batch 1 on one thread, the median over seeds; NaN where it was never measured on an
            idle machine.
        cpu: the machine of the latency; None: there are several.
        runtime: what ran it, with its version.
    """

    format: str
    scores: pd.Series
    bytes: float
    latency_ms: float
    cpu: str | None
    runtime: str


def exported(runs: Sequence[Run]) -> list[Exported]:
    """Every format of a method's students, in order of appearance; those scored on a part of the data are left out."""
    found: dict[str, dict[int, Export]] = {}
    for run in runs:
        for export in read_exports(run.folder):
            if export.verified_in_fresh_process and export.samples == run.record.data["test"]:
                found.setdefault(export.format, {})[run.record.seed] = export
    return [_over_seeds(name, exports) for name, exports in found.items()]


def _over_seeds(name: str, exports: dict[int, Export]) -> Exported:
    idle = [export for export in exports.values() if not export.busy]
    machines = {export.cpu for export in idle}
    return Exported(
        format=name,
        scores=pd.Series({seed: export.score for seed, export in exports.items()}, dtype="float64"),
        bytes=sum(export.bytes for export in exports.values()) / len(exports),
        latency_ms=float(pd.Series([each.latency_ms_median for each in idle], dtype="float64").median()),
        cpu=machines.pop() if len(machines) == 1 else None,
        runtime=next(iter(exports.values())).runtime,
    )


def fastest(formats: Sequence[Exported], cpu: str | None) -> Exported | None:
    """The fastest on a machine; where none was measured there, the smallest; None: there are none."""
    return min(
        formats,
        key=lambda each: (each.cpu != cpu or math.isnan(each.latency_ms), each.latency_ms, each.bytes),
        default=None,
    )
