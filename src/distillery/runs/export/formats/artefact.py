"""What a format is, and what it leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distillery.runs.export.exportable import Exportable


@dataclass(frozen=True)
class Artefact:
    """A written network, and how a fresh process loads it.

    Attributes:
        path: the file or folder that is loaded.
        loader: a function of `fresh_process.py`.
        runtime: the distribution that runs it.
        needs: the distributions that load it.
        options: of the loader.
        exact: whether it computes what the student does, up to rounding.
        in_graph: whether it normalises images by itself.
        remarks: for the user.
    """

    path: Path
    loader: str
    runtime: str
    needs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    in_graph: bool = True
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A format by its name in `to=`.

    Attributes:
        write: writes a student's network to a folder.
        extra: of this package, which brings `modules`; empty: nothing is needed.
        modules: what must be importable.
        unfit: why it cannot hold a student, with the mend; None: it can.
        integers: whether it can hold one that was trained with `student.qat`.
    """

    write: Callable[[Exportable, Path], Artefact]
    extra: str = ""
    modules: tuple[str, ...] = ()
    unfit: Callable[[Exportable], str | None] = lambda _: None
    integers: bool = False

    def refusal(self, model: Exportable) -> str | None:
        """Why it cannot hold this student, with the mend; None: it can."""
        if model.qat and not self.integers:
            return (
                f"the student is trained with student.qat={model.qat}, and this format would round otherwise, or not "
                "at all. Use [torch_export] or [executorch]."
            )
        return self.unfit(model)
