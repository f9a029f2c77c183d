"""`distill-export to=[…]`: a run's student in other formats, each proven in a fresh process before it is kept."""

import errno
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillery.core.errors import UserError
from distillery.core.files import atomic_folder, atomic_write
from distillery.core.hub import quiet
from distillery.core.terminal import say
from distillery.models.text.export import CARD
from distillery.results.exports import Export, read_exports, write_exports
from distillery.results.layout import EXPORT
from distillery.results.record import RunRecord
from distillery.runs.export.exportable import Exportable, exportable
from distillery.runs.export.formats.artefact import Artefact, Format
from distillery.runs.export.formats.registry import installed
from distillery.runs.export.model_card import model_card, snippet_of
from distillery.runs.export.preprocessing import PREPROCESSING
from distillery.runs.export.proof import prove
from distillery.runs.export.push import push, refuse_name
from distillery.runs.export.usage import usage

NO_SPACE = ("No space left", "code: 28", "PytorchStreamWriter failed writing")  # of libraries that raise no OSError


def export(
    run: Path,
    formats: Sequence[str],
    samples: int | None = None,
    batch_size: int = 32,
    repeats: int = 100,
    push_to_hub: str | None = None,
) -> list[Export]:
    """Write the student of the finished run in `run` to `<run>/export/<format>`, and what was measured to export.json.

    Each format is written to a folder of its own that takes its place when a fresh process has given the student's
    outputs from it; an earlier export in that format stays until then.

    Args:
        formats: keys of `FORMATS`.
        samples: the number of test samples that are compared and scored; None: all.
        batch_size: of the second latency; the first is at batch 1.
        repeats: forwards that are timed.
        push_to_hub: the repository that all formats of the run are uploaded to; None: none.

    Raises:
        UserError: before anything is written, no finished run, an unknown format, one whose packages are missing or
            that cannot hold this student; and later an export that does not compute what the student does, or a full
            disk. Formats that were finished before stay.
    """
    chosen = {name: installed(name, "to") for name in dict.fromkeys(formats)}
    if push_to_hub is not None:
        refuse_name(push_to_hub)
    with tempfile.TemporaryDirectory(prefix="distill-export") as scratch:
        model = exportable(run, Path(scratch))
        for name, each in chosen.items():
            if reason := each.refusal(model):
                raise UserError(f"to={name}: {reason}")
        done: list[Export] = []
        for name, each in chosen.items():
            say(f"{name}: writing")
            with _disk_errors(name, run), atomic_folder(run / EXPORT / name) as folder:
                artefact, size = write_artefact(each, model, folder)
                done.append(prove(name, artefact, size, model, samples, batch_size, repeats))
            write_exports(run, done[-1:])
            with atomic_write(run / EXPORT / CARD) as unfinished:
                unfinished.write_text(_card(run, model), encoding="utf-8")
        if push_to_hub is not None:
            say(f"Uploaded: {push(run / EXPORT, read_exports(run), push_to_hub, _card(run, model, push_to_hub))}")
    return done


def write_artefact(chosen: Format, model: Exportable, folder: Path) -> tuple[Artefact, int]:
    """Write the network, and beside it how its inputs are made; returns it with its size in bytes."""
    artefact = chosen.write(model, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    said = json.dumps(model.preprocessing(artefact.in_graph), indent=2, ensure_ascii=False)
    (folder / PREPROCESSING).write_text(f"{said}\n", encoding="utf-8")
    if model.tokenizer is not None:
        with quiet():
            model.tokenizer.save_pretrained(folder)
    return artefact, size


def _card(run: Path, model: Exportable, repo: str | None = None) -> str:
    """The model card of all formats that are there, in this folder or in a repository of the hub."""
    exports = read_exports(run)
    said = model.preprocessing(in_graph=True)
    place = "Paths are those of this folder" + (f': `huggingface_hub.snapshot_download("{repo}")`.' if repo else ".")
    parts = [f"### {each.format}\n\n{_usage(model, each, said, repo)}" for each in exports]
    snippet = "\n\n".join([place, *parts])
    return model_card(RunRecord.read(run), model.cfg, model.student.net, run, snippet, exports)


def _usage(model: Exportable, export: Export, said: Mapping[str, Any], repo: str | None) -> str:
    if export.loads_with("transformers") and model.tokenizer is not None:
        return snippet_of(model.cfg, model.student.net, model.tokenizer, repo or export.path)
    return usage(export, said, repo)


@contextmanager
def _disk_errors(name: str, run: Path) -> Iterator[None]:
    """Within: a full disk is an error that the user can fix."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, UserError) or not (full or any(words in str(error) for words in NO_SPACE)):
            raise
        raise UserError(
            f"to={name}: there is no space left on the disk of {run / EXPORT}. Nothing of this format was written; an "
            "earlier export is still there. Make room and export again."
        ) from error
