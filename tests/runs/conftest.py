"""Fixtures of the tests of whole runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distillery.runs.run import Result, train
from fixtures.datasets import write_image_folder
from fixtures.runs import Once, config, train_student


@pytest.fixture(scope="session")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    """`run(overrides…)`: a small student's run in a folder of its own."""

    def trained(*overrides: str, callbacks: Any = ()) -> Result:
        return train_student(tmp_path_factory.mktemp("student") / "run", teacher, *overrides, callbacks=callbacks)

    return trained


@pytest.fixture
def wandb_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B writes only below `tmp_path`; no test leaves a run open."""
    import wandb  # half a second, which the other tests need not wait for

    for place in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{place}_DIR", str(tmp_path / "wandb" / place.lower()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    for variable in ("API_KEY", "MODE", "PROJECT", "RUN_GROUP", "RUN_ID", "RESUME"):
        monkeypatch.delenv(f"WANDB_{variable}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    assert wandb.run is None


@pytest.fixture
def pictures(once: Once, tmp_path: Path) -> Path:
    """A copy of the run of a student on pictures in three classes."""

    def make(folder: Path) -> None:
        write_image_folder(folder / "pictures", {"train": 12, "val": 4, "test": 4}, shape=(8, 8))
        own = ["data=image_folder", f"data.root='{folder / 'pictures'}'", "data.source.size=8", "data.num_workers=0"]
        few = [
            "data.train_size=30",
            "data.balanced=true",
            "data.batch_size=10",
            "trainer.max_epochs=4",
            "data.augment=null",
            "logger=none",
        ]
        train(config(folder / "run", "experiment=digits_teacher", *own, *few))

    return Path(shutil.copytree(once("pictures", make) / "run", tmp_path / "run"))
