"""The data set card of cleaned rows: Markdown with the metadata that the Hugging Face hub and `datasets` read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from distillery.core.kinds import shown
from distillery.runs.generate.clean.filters import REASONS
from distillery.runs.generate.clean.summary import WRITERS, Summary, one_line

TEMPLATE = Path(__file__).with_suffix(".md.jinja")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))  # the hub's
LARGER = "n>1M"
MOST = 3  # values of one kind that are listed


def dataset_card(
    name: str,
    summary: Summary,
    settings: Mapping[str, Any],
    columns: Sequence[str],
    remarks: Sequence[str],
    data_file: str,
) -> str:
    """The card.

    Args:
        settings: of the command, with `filters`.
        columns: of the data file.
        data_file: what `load_dataset(<folder>)` reads.
    """
    languages = settings["filters"]["language"]["allowed"]
    metadata = DatasetCardData(
        language=languages,
        task_categories=["text-generation"],
        size_categories=[next((size for most, size in SIZES if summary.kept < most), LARGER)],
        pretty_name=name,
        tags=["synthetic", "knowledge-distillation"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": data_file}]}],
    )
    card = DatasetCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        name=name,
        summary=summary,
        source=Path(settings["path"]).name,
        against=[Path(each).name for each in settings["against"]],
        columns=columns,
        remarks=remarks,
        reasons=REASONS,
        shown={key: _shown(key, settings["filters"]) for key in REASONS},
        examples={
            reason: [_quoted(*each) for each in summary.examples[reason]]
            for reason in REASONS
            if summary.dropped[reason]
        },
        written_by={WRITERS[key]: _counted(counts) for key, counts in summary.written_by.items()},
    )
    return f"{card}\n"


def _shown(reason: str, filters: Mapping[str, Any]) -> str:
    """The settings of a filter as on the command line, patterns by their names."""
    key = next((key for key in (reason, f"{reason}s") if key in filters), None)
    if key is None:
        return ""
    given = filters[key]
    each = given.items() if isinstance(given, Mapping) else ((key, given),)
    return ", ".join(
        f"`{name}={shown(list(value) if isinstance(value, Mapping) else value)}`"
        for name, value in each
        if value is not None
    )


def _quoted(line: int, why: str, answer: str) -> str:
    return f"line {line}: {_code(why)}" + (f" in {_code(answer)}" if answer else "")


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _counted(counts: Mapping[str, int]) -> str:
    """The most frequent values, each with the number of rows that have it."""
    most = sorted(counts.items(), key=lambda item: -item[1])[:MOST]
    others = [f"{len(counts) - MOST:,} others"] if len(counts) > MOST else []
    return ", ".join([f"{_code(one_line(value))} ({count:,})" for value, count in most] + others)
