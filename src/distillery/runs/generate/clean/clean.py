"""Rows that a model wrote → a folder with those worth learning from, and a report of the others. Read this first."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.progress import track

from distillery.core.errors import UserError
from distillery.core.files import atomic_writes
from distillery.core.terminal import plain_console
from distillery.runs.generate.clean.card import dataset_card
from distillery.runs.generate.clean.contamination import TestTexts
from distillery.runs.generate.clean.filters import REASONS, RowFilters
from distillery.runs.generate.clean.kept_rows import KeptRows
from distillery.runs.generate.clean.parquet import write_parquet
from distillery.runs.generate.clean.rows import Row, read_rows
from distillery.runs.generate.clean.settings import Filters
from distillery.runs.generate.clean.summary import Summary
from distillery.runs.generate.clean.test_sets import rows_of_test_sets

KEPT, PARQUET, DROPPED, CARD, SETTINGS = "clean.jsonl", "clean.parquet", "dropped.jsonl", "README.md", "settings.json"
FILES = (KEPT, PARQUET, DROPPED, CARD, SETTINGS)


def clean(
    path: Path,
    out: Path,
    filters: Filters,
    against: Sequence[str] = (),
    split: str = "test",
    encoding: str | None = None,
    replace: bool = False,
) -> tuple[Summary, list[str]]:
    """Write the folder `out`: the rows that are kept (JSON Lines and Parquet), the dropped ones, and a data set card.

    Rows are read one after another; of those that are kept memory holds hashes and MinHash signatures. The files appear
    together when all is done. Equal input and settings give equal files.

    Args:
        path: JSON Lines (or a JSON list) of conversations or instructions as `data=messages` reads them, or of texts.
        against: test sets that the rows must not share text with, see `rows_of_test_sets`.
        split: of those test sets that are data sets.
        encoding: of the JSON files; None: as the byte order mark says, else UTF-8.
        replace: overwrite files that were written with other settings.

    Returns: what was counted, and remarks.

    Raises:
        UserError: a file cannot be read, a row has another format, no row is left, or `out` cannot be written, holds
            other files or was made with other settings.
    """
    settings = {"path": str(path), "against": list(against), "against_split": split, "filters": asdict(filters)}
    _refuse_other(path, out, settings, replace)
    remarks: list[str] = []
    test_texts = None
    if against:
        test_texts = TestTexts(rows_of_test_sets(against, split, encoding, remarks), filters.contamination.ngram)
    try:
        with atomic_writes([out / name for name in FILES]) as unfinished:
            files = dict(zip(FILES, unfinished, strict=True))
            summary = _filter(_with_bar(path, encoding, remarks), files, filters, test_texts)
            remarks += summary.remarks()
            as_text = write_parquet(files[KEPT], files[PARQUET])
            if as_text:
                said = "values of different types are JSON text in clean.parquet"
                remarks.append(f"{', '.join(as_text)}: {said}; clean.jsonl has them as they are")
            columns = pq.read_schema(files[PARQUET]).names
            card = dataset_card(path.stem, summary, settings, columns, remarks, PARQUET)
            files[CARD].write_text(card, encoding="utf-8")
            files[SETTINGS].write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"'{out}' cannot be written: {error.strerror or error}. '{path}' is untouched, and so are the files that "
            "the folder had before. Make room or choose another folder, then repeat the command."
        ) from error
    return summary, remarks


def _filter(rows: Iterator[Row], files: Mapping[str, Path], filters: Filters, test_texts: TestTexts | None) -> Summary:
    """Write each row to the kept or to the dropped ones."""
    summary = Summary()
    with KeptRows(files[KEPT]) as kept, files[DROPPED].open("w", encoding="utf-8") as dropped:
        judge = RowFilters(filters, test_texts, kept)
        for row in rows:
            if (why := judge.keep_or_drop(row)) is None:
                summary.keep(row)
                continue
            reason, evidence = why
            summary.drop(row, reason, evidence)
            entry = {"reason": reason, "evidence": evidence, "line": row.line, "row": row.given}
            dropped.write(f"{json.dumps(entry, ensure_ascii=False)}\n")
    if not summary.kept:
        why_all = "; ".join(
            f"{count:,} because {REASONS[reason]} (line {summary.examples[reason][0][0]}: "
            f"{summary.examples[reason][0][1]})"
            for reason, count in summary.dropped.most_common()
        )
        raise UserError(f"No row is left of {summary.rows:,}: {why_all}. Nothing was written.")
    return summary


def _with_bar(path: Path, encoding: str | None, remarks: list[str]) -> Iterator[Row]:
    """The rows, with a bar on the terminal."""
    lines = None
    if path.suffix != ".json" and path.is_file():
        with path.open("rb") as file:
            lines = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))
    hidden = not plain_console().is_terminal
    yield from track(read_rows(path, encoding, remarks), "Cleaning", lines, transient=True, disable=hidden)


def _refuse_other(path: Path, out: Path, settings: Mapping[str, Any], replace: bool) -> None:
    """Refuse a folder whose files are not those of an earlier run with the same settings."""
    if path.resolve() in {(out / name).resolve() for name in FILES}:
        raise UserError(f"path={path} would be overwritten. Choose another out than {out}.")
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file. Name a folder.")
    before = out / SETTINGS
    present = [name for name in FILES if (out / name).exists()]
    if replace or not present:
        return
    if before.is_file():
        try:
            made_with: Any = json.loads(before.read_text(encoding="utf-8"))
        except ValueError:
            made_with = None
        differ = list(_differing(made_with, settings))
        if not differ:
            return
        what = f"was made with other settings: {differ[0]}"
    else:
        what = f"holds {present[0]}, which distill-clean did not write"
    raise UserError(f"out={out} {what}. Choose another folder, or set replace=true to overwrite {', '.join(present)}.")


def _differing(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two settings differ, as `length.min_words=1, not 2`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**now, **before}:
            inner = path if key == "filters" else f"{path}.{key}" if path else key
            yield from _differing(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{path}={before}, not {now}"
