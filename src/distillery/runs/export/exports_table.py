"""The exports of a student as a table, for the terminal and for the model card."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distillery.results.exports import Export, size
from distillery.results.record import RunRecord
from distillery.results.report.formats import NONE, in_unit
from distillery.results.report.score import Score


def columns(record: RunRecord, exports: Sequence[Export]) -> list[str]:
    """The titles of the table."""
    kind = Score.of_record(record.data)
    batch = exports[0].batch_size if exports else 1
    unit = record.data["score_name"] if kind.lower else f"{record.data['score_name']} %"
    return ["format", "size", unit, "agree %", "max diff", "ms ×1", f"ms ×{batch}", "memory"]


def row(record: RunRecord, export: Export) -> list[str]:
    """The cells of an export. A latency is the median, or of a busy machine the fastest forward, as in the report."""
    several = export.batch_latency_ms_min if export.busy else export.batch_latency_ms_median
    return [
        export.format,
        size(export.bytes),
        in_unit(math.nan if export.score is None else export.score, Score.of_record(record.data)),
        NONE if export.agreement is None else f"{100 * export.agreement:.2f}",
        f"{export.max_difference:.2g}",
        f"{export.latency_ms:.3g}",
        f"{several:.3g}",
        NONE if export.peak_memory_bytes is None else size(export.peak_memory_bytes),
    ]


def exports_table(record: RunRecord, exports: Sequence[Export]) -> Table:
    """The table for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(columns(record, exports)):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    for export in exports:
        table.add_row(*row(record, export))
    return table


def remarks(exports: Sequence[Export]) -> list[str]:
    """What the table does not say."""
    found = [f"{each.format}: {remark}" for each in exports for remark in each.remarks]
    if busy := [each.format for each in exports if each.busy]:
        found.append(f"The machine was busy while it timed {', '.join(busy)}: these are the fastest forwards.")
    return found
