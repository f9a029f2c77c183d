"""`teacher_stream=true`, as far as a CPU can show it: what waits for what. `test_on_a_gpu.py` has the rest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from distillery.config import check_cuda
from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.losses.levels import Headed
from distillery.losses.signals import Attention, Signals
from distillery.models.taps.network import Network
from distillery.runs.run import Result
from distillery.teachers.side_stream import SideStream
from fixtures.composing import Compose

ON = "teacher_stream=true"


class Stream:
    """In the place of a CUDA stream: notes what waits for it, and which network runs on it."""

    current = "main"
    log: list[str]

    def __init__(self, name: str = "side") -> None:
        self.name = name

    def wait_stream(self, other: "Stream") -> None:
        Stream.log.append(f"{self.name} waits for {other.name}")


class Recorded(dict[int, str]):
    """The stream that a tensor is recorded on, by the tensor's id."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []  # or an id would be given again

    def of(self, tensors: list[Tensor]) -> set[str | None]:
        return {self.get(id(tensor)) for tensor in tensors}

    def note(self, tensor: Tensor, stream: Stream) -> None:
        self._kept.append(tensor)
        self[id(tensor)] = stream.name


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What is recorded on a machine that has a CUDA device in name."""
    found = Recorded()

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        Stream.current = chosen.name
        yield
        Stream.current = "main"

    Stream.log = []
    monkeypatch.setattr(check_cuda, "has_cuda", lambda _: True)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(Stream.current))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, on: found.note(tensor, on))
    return found


class LastStep(L.Callback):
    """The batch of the last step, what was logged in it, and the signals of each network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.signals: dict[str, Signals] = {}
        forward = Network.observe

        def observe(network: Network, *given: Any, **named: Any) -> Signals:
            Stream.log.append(f"{network.name} on {Stream.current}")
            self.signals[network.name] = forward(network, *given, **named)
            return self.signals[network.name]

        monkeypatch.setattr(Network, "observe", observe)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        Stream.log, self.batch = [], batch

    def on_train_batch_end(self, *_: Any) -> None:
        self.log, self.given = [*Stream.log], dict(self.signals)


def test_the_teacher_runs_beside_the_student(
    recorded: Recorded, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two waits; the batch is recorded on its stream, and its signals on that of the losses."""
    own, step = ("loss/feature=[hint]", "trainer.max_epochs=1"), LastStep(monkeypatch)
    beside = run(*own, ON, callbacks=[step]).record
    assert step.log == ["side waits for main", "main on side", "student on main", "main waits for side"]
    assert recorded.of([*step.batch.values()]) == {"side"}
    teacher, student = step.given["main"], step.given["student"]
    assert recorded.of([teacher.logits, *teacher.layers.values()]) == {"main"}
    assert recorded.of([student.logits, *student.layers.values()]) == {None}
    alone = run(*own, callbacks=[step]).record
    assert step.log == ["main on main", "student on main"]
    assert (beside.student_sha256, beside.config_hash) == (alone.student_sha256, alone.config_hash)


def test_a_cached_teacher_runs_where_it_did(
    recorded: Recorded, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LastStep(monkeypatch)
    run(ON, "teachers.main.cache=true", "data.augment=null", "trainer.max_epochs=1", callbacks=[step])
    assert step.log == ["side waits for main", "student on main", "main waits for side"]


def test_every_tensor_of_the_signals_is_recorded(recorded: Recorded) -> None:
    logits, layer, query, key, value, allowed, mask, hidden, weight = (torch.zeros(1) for _ in range(9))
    attention = Attention(query, key, value, allowed, 1.0)
    SideStream().join({"main": Signals(logits, {"a": layer}, {"b": attention}, mask, Headed(hidden, weight))})
    assert recorded.of([logits, layer, query, key, value, allowed, mask, hidden, weight]) == {"main"}


def test_where_it_is_refused(compose_train: Compose, request: pytest.FixtureRequest) -> None:
    with pytest.raises(UserError, match=r"^teacher_stream=true .*no CUDA device\..* set teacher_stream=false"):
        check(compose_train("model/teacher=none", ON))
    request.getfixturevalue("recorded")
    check(compose_train("model/teacher=none", ON))
    with pytest.raises(UserError, match=r"^teacher_stream=true and compile=reduce-overhead: the CUDA graphs of"):
        check(compose_train("model/teacher=none", ON, "compile=reduce-overhead"))
