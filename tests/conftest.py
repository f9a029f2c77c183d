"""Fixtures for the tests of whole runs."""

import logging
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from fixtures.command_line import Cli
from fixtures.composing import Compose
from fixtures.runs import train_teacher


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one thread, and two test processes do not disturb each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and this process would start its own so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a teacher of the digits. Not to be written to."""
    return train_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture
def compose_train(tmp_path: Path) -> Iterator[Compose]:
    """`compose_train("experiment=…", …)`: the config of `distill-train`, its run folder under `tmp_path`."""
    register_resolvers()

    def composed(*overrides: str, run: str = "run") -> DictConfig:
        return compose(
            "train", overrides=[*overrides, f"paths.run='{tmp_path / run}'", "trainer.enable_progress_bar=false"]
        )

    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        yield composed


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("train", "seed=1", …)` in an empty folder: exit code, and all that was printed.

    In this process, since importing torch anew takes seconds. An error that is no `UserError` is raised.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it: to be put back
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    monkeypatch.setattr(logging.root, "handlers", [*logging.root.handlers])
    monkeypatch.setattr(logging.root, "level", logging.root.level)

    def run(command: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"distill-{command}", *arguments])
        capfd.readouterr()
        try:
            import_module(f"distillery.commands.{command}").main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        printed = capfd.readouterr()
        return int(code or 0), printed.out + printed.err

    return run
