"""`export/export.json` in a run folder: what was measured of each format that its student was exported to."""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.results.layout import EXPORT, EXPORTS
from distillery.results.record import RunRecord, finite

VERSION = 1
UNITS = ("B", "kB", "MB", "GB")
ExportFormat = Literal[  # each is made by an entry of runs/export/formats/registry.py
    "safetensors", "onnx", "onnx_int8", "onnx_int8_static", "torch_export", "executorch", "gguf", "openvino"
]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one exported network takes, as it was measured in a fresh process on one thread.

    Attributes:
        format: `onnx`, `safetensors`, …
        bytes: of all that it needs of its folder.
        latency_ms_min, latency_ms_median: of a forward at batch 1.
        busy: whether something else took the machine's time, so that the medians say little (see `core/latency.py`).
        runtime: what ran it, with its version: `onnxruntime 1.23.2`.
        cpu: the machine.
    """

    format: str
    bytes: int
    latency_ms_min: float
    latency_ms_median: float
    busy: bool
    runtime: str
    cpu: str

    @property
    def latency_ms(self) -> float:
        """The median or, of a busy machine, the fastest forward, as in the report."""
        return self.latency_ms_min if self.busy else self.latency_ms_median


@dataclass(frozen=True, kw_only=True)
class Export(Measured):
    """One exported student, proven to compute what the student does.

    Attributes:
        path: of the file or folder that is loaded, relative to the folder `export`.
        max_difference: the largest absolute difference of a logit from the student's own, on the test samples.
        agreement: the share of rows (samples, tokens or pixels) with the student's own prediction; None: they are
            numbers or vectors.
        score: on the test samples, in the unit and direction of the run's record.
        samples: how many test samples these are from; fewer than the test split has, if so many were asked for.
        batch_size, batch_latency_ms_min, batch_latency_ms_median: the latency of a larger batch.
        peak_memory_bytes: of the process that loaded and ran it, with Python and the libraries it needs.
        verified_in_fresh_process: whether another process loaded it and gave these outputs.
        needs: the Python packages that load it; `distillery` is one of them only where the network is built by it.
        remarks: for the user, such as which layers are quantised.
    """

    path: str
    max_difference: float
    agreement: float | None
    score: float
    samples: int
    batch_size: int
    batch_latency_ms_min: float
    batch_latency_ms_median: float
    peak_memory_bytes: int | None
    verified_in_fresh_process: bool
    needs: list[str]
    remarks: list[str] = field(default_factory=list)

    def loads_with(self, library: str) -> bool:
        """Whether `safetensors` is in the form that this library loads."""
        return self.format == "safetensors" and self.needs[0] == library


def read_exports(run: Path) -> list[Export]:
    """The exports of a run's student, in the order of their names; none if there are none of its present weights.

    Raises:
        UserError: a torn file, or one of another version.
    """
    path = run / EXPORT / EXPORTS
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError(
                f"{path} has version {content['version']}, and this Distillery reads version {VERSION}. "
                "Export the student again."
            )
        if content["student_sha256"] != RunRecord.read(run).student_sha256:
            return []  # of the run that was in this folder before
        return [Export(**entry) for entry in content["exports"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is torn ({error!r}). Export the student again.") from None


def write_exports(run: Path, exports: Iterable[Export]) -> None:
    """Add them to those that are recorded; one of the same format is replaced."""
    known: dict[str, Export] = {each.format: each for each in (*read_exports(run), *exports)}
    content: dict[str, Any] = {
        "version": VERSION,
        "student_sha256": RunRecord.read(run).student_sha256,
        "exports": [dataclasses.asdict(known[name]) for name in sorted(known)],
    }
    with atomic_write(run / EXPORT / EXPORTS) as unfinished:
        unfinished.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def size(count: float) -> str:
    """A number of bytes, in powers of 1000."""
    power = min(int(math.log10(max(count, 1)) / 3), len(UNITS) - 1)
    return f"{count / 1000**power:.3g} {UNITS[power]}"
