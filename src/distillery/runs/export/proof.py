"""The proof of an export: a fresh process loads it and gives the student's outputs; what that takes is measured."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from distillery.core import latency
from distillery.core.errors import UserError
from distillery.core.terminal import plain_console
from distillery.losses.signals import Signals
from distillery.results.environment import environment
from distillery.results.exports import Export, Measured
from distillery.runs.export import fresh_process
from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.graph import graph_inputs
from distillery.tasks.evaluate import evaluate

ROUNDING = 1e-3  # by how much, of the largest logit (at least 1), an exact export may differ


class FreshProcess:
    """A process that has loaded an artefact, see `fresh_process.py`.

    Args:
        setting: that asked for the format, for errors.
        repeats: forwards that are timed.

    Raises:
        UserError: it cannot load it, or fails later.
    """

    def __init__(self, setting: str, artefact: Artefact, repeats: int) -> None:
        self.setting = setting
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 – `__exit__` closes it
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(fresh_process.__file__)],  # -P: the files beside the script are no modules
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self.version = self.ask(
            {
                "needs": artefact.needs,
                "clock": str(latency.__file__),
                "torch": artefact.runtime not in ("onnxruntime", "openvino"),
                "loader": artefact.loader,
                "path": str(artefact.path),
                "options": dict(artefact.options),
                "runtime": artefact.runtime,
                "timed": {"repeats": repeats},
            }
        )

    def ask(self, request: object) -> Any:
        """What the process answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise UserError(
                f"{self.setting}: the exported student does not run in a process of its own: "
                f"{said[-1] if said else f'exit code {self.process.returncode}'}"
            ) from None

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The logits of a batch."""
        return torch.from_numpy(self.ask(("run", {name: values.numpy() for name, values in inputs.items()})))

    def time(self, model: Exportable, count: int) -> tuple[float, float, bool]:
        """Milliseconds of a forward of `count` samples, fastest and median, and whether the machine was busy."""
        minimum, median, busy = self.ask(("time", _samples(model, count)))
        return round(minimum, 4), round(median, 4), busy

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


class Compared(nn.Module):
    """Gives what an export makes of a batch, and keeps how that differs from what the student makes of it."""

    def __init__(self, model: Exportable, process: FreshProcess) -> None:
        super().__init__()
        self.student, self.process, self.task = model.student, process, model.task
        self.difference = self.scale = 0.0
        self.rows = self.same = 0
        self.comparable = model.task.prediction not in ("number", "vector")  # these differ by rounding

    def forward(self, batch: Mapping[str, Tensor]) -> Signals:
        ours = self.student(batch)
        logits = self._logits(batch)
        theirs = replace(ours, logits=logits.movedim(1, -1) if logits.dim() == 4 else logits)
        rows = [self.task.rows(each, batch)[0].logits.float() for each in (ours, theirs)]
        if len(rows[0]):
            difference = (rows[0] - rows[1]).abs().nan_to_num(nan=torch.inf)  # NaN is no small difference
            self.difference = max(self.difference, difference.max().item())
            self.scale = max(self.scale, rows[0].abs().max().item())
            self.rows += len(rows[0])
            if self.comparable:
                first, second = (self.task.predict(each).reshape(len(each), -1) for each in rows)
                self.same += int((first == second).all(1).sum())
        return theirs

    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = graph_inputs(self.student, batch)
        if "position_ids" not in batch:
            return self.process.run(inputs)
        # Several documents in a row: an exported network is given one in each.
        counts = batch["attention_mask"].bool()
        place = batch["position_ids"][counts]
        document = (place == 0).cumsum(0) - 1
        apart = {name: values.new_zeros(int(document[-1]) + 1, int(place.max()) + 1) for name, values in inputs.items()}
        for name, values in inputs.items():
            apart[name][document, place] = values[counts]
        found = self.process.run(apart)
        logits = found.new_zeros(*counts.shape, found.shape[-1])
        logits[counts] = found[document, place]
        return logits

    @property
    def agreement(self) -> float | None:
        return self.same / self.rows if self.comparable else None


def prove(
    name: str, artefact: Artefact, size: int, model: Exportable, samples: int | None, batch_size: int, repeats: int
) -> Export:
    """Run an artefact in a fresh process on the test samples.

    Args:
        name: of the format.
        size: of the artefact, in bytes.
        samples: how many of the test split; None: all.
        batch_size: of the second latency.
        repeats: forwards that are timed.

    Raises:
        UserError: it does not run, or should give the student's outputs and does not.
    """
    with FreshProcess(f"to={name}", artefact, repeats) as process:
        compared = Compared(model, process)
        batches = _progress(name, model, samples)
        found = evaluate(compared, batches, model.task, model.task.outputs(model.data))
        if artefact.exact and model.dtype == torch.float32 and compared.difference > ROUNDING * max(1, compared.scale):
            raise UserError(
                f"to={name}: the exported student does not compute what the student does: a logit differs by "
                f"{compared.difference:.3g}, where the largest is {compared.scale:.3g}. It is not written."
            )
        taken = measured(name, artefact, size, model, process)
        minimum, median, busy = process.time(model, batch_size)
        return Export(
            **asdict(replace(taken, busy=taken.busy or busy)),
            path=f"{name}/{artefact.path.name}" if artefact.path.is_file() else name,
            max_difference=compared.difference,
            agreement=compared.agreement,
            score=found.score,
            samples=len(found.index.unique()),
            batch_size=batch_size,
            batch_latency_ms_min=minimum,
            batch_latency_ms_median=median,
            peak_memory_bytes=process.ask(("memory", None)),
            verified_in_fresh_process=True,
            needs=list(artefact.needs),
            remarks=list(artefact.remarks),
        )


def measured(name: str, artefact: Artefact, size: int, model: Exportable, process: FreshProcess) -> Measured:
    """What an artefact of `size` bytes takes in the process that has loaded it."""
    minimum, median, busy = process.time(model, 1)
    return Measured(
        format=name,
        bytes=size,
        latency_ms_min=minimum,
        latency_ms_median=median,
        busy=busy,
        runtime=f"{artefact.runtime} {process.version}",
        cpu=str(environment()["cpu"]),
    )


def _samples(model: Exportable, count: int) -> dict[str, NDArray[Any]]:
    """Test samples as the graph takes them; if there are fewer in a batch, some of them twice."""
    inputs = graph_inputs(model.student, model.batch)
    return {name: values[torch.arange(count) % len(values)].numpy() for name, values in inputs.items()}


def _progress(name: str, model: Exportable, samples: int | None) -> Iterator[Mapping[str, Tensor]]:
    loader: Iterable[Mapping[str, Tensor]] = model.data.test_dataloader()
    console = plain_console(stderr=True)
    left = sys.maxsize if samples is None else samples
    for batch in track(
        loader, f"{name}: test samples", console=console, transient=True, disable=not console.is_terminal
    ):
        yield {key: values[:left] for key, values in batch.items()}
        left -= len(batch["index"])
        if left <= 0:
            return
