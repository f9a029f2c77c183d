"""Fixtures for the tests of whole runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from distillery.compat import CONFIGS, HYDRA_VERSION, register_resolvers
from fixtures.composing import Compose
from fixtures.runs import train_teacher


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one thread, and two test processes do not disturb each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
