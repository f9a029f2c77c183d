"""`compile=reduce-overhead`, as far as a CPU can show it; `test_on_a_gpu.py` has the rest."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.config import candidates, check_cuda
from distillery.config.check import check
from distillery.core.errors import UserError
from distillery.runs.run import Result
from distillery.runs.trainer import make_trainer
from fixtures.building import build
from fixtures.composing import Compose

GRAPHS = "compile=reduce-overhead"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are checked as on a machine with one CUDA device."""
    for module in (check_cuda, candidates):
        monkeypatch.setattr(module, "has_cuda", lambda _: True)


def test_no_device_is_told_before_anything_is_built(compose_train: Compose) -> None:
    cfg = compose_train("model/teacher=none", GRAPHS)
    with pytest.raises(UserError, match=r"^compile=reduce-overhead .*no CUDA device\. Choose hardware=gpu"):
        check(cfg)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=1, or compile=true"),
        ("trainer.devices=2", "is for one device"),
        ("trainer.num_nodes=2", "is for one device"),
        ("trainer.strategy=ddp", "is for one device"),
        ("hardware=fsdp2", "is for one device"),
    ],
)
def test_what_graphs_cannot_work_with(setting: str, message: str, compose_train: Compose) -> None:
    check(compose_train("model/teacher=none", GRAPHS))
    with pytest.raises(UserError, match=re.escape(message)):
        check(compose_train("model/teacher=none", GRAPHS, setting))


@pytest.mark.usefixtures("cuda")
def test_they_are_timed_after_all_else(compose_train: Compose) -> None:
    spec = check(compose_train("model/teacher=none", "hardware=auto"))
    last = {"teacher_stream": [False, True], "step_graph": [False, True], "compile": [False, True, "reduce-overhead"]}
    assert list(spec.open.items())[-3:] == list(last.items())


@pytest.mark.usefixtures("cuda")
def test_torch_is_given_its_own_mode(compose_train: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[dict[str, Any]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **mode: modes.append(mode))
    for setting, mode in {"compile=true": {}, GRAPHS: {"mode": "reduce-overhead"}}.items():
        parts = build(compose_train("model/teacher=none", setting, "logger=none"))
        assert modes.pop() == mode
        assert parts.distiller.student.replayed == bool(mode)
        assert make_trainer(parts.cfg, [], []).validate_loop.inference_mode == (not mode)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda")
def test_nothing_reads_what_a_replay_has_overwritten(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run is bit-equal to the plain one if each forward makes all earlier activations of all networks unreadable."""
    given: list[Tensor] = []

    def compiled(net: nn.Module, mode: str) -> None:
        as_it_is = net._call_impl

        def replay(*args: Any) -> Any:
            assert all(parameter.grad is None for parameter in net.parameters()), "gradients would be overwritten, too"
            for tensor in given:
                tensor.data.fill_(torch.nan)
            given.clear()
            return as_it_is(*args)

        def keep(*args: Any) -> None:
            given.append(args[-1])

        for module in net.modules():
            module.register_forward_hook(keep)
        net._compiled_call_impl = replay

    monkeypatch.setattr(nn.Module, "compile", compiled)
    own = ("loss/response=[kd]", "loss/feature=[hint,crd]", "task.metrics=[top5_accuracy]", "trainer.max_epochs=1")
    for more in ((), ("teachers.main.cache=true", "data.augment=null")):
        plain, replayed = (run(*own, *more, each).record for each in ("compile=false", GRAPHS))
        assert given
        assert replayed.student_sha256 == plain.student_sha256
        assert replayed.metrics == plain.metrics
