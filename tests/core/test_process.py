"""Which of the processes of a job this is, and how many there are."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from distillery.core.process import NUMBERS, is_main, processes


@pytest.mark.parametrize(
    ("variables", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "GROUP_RANK": "1", "RANK": "2"}, False),  # torchrun, the second machine's first
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_one_process_of_all_is_the_main_one(
    variables: dict[str, str], main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main() is main


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    [
        (1, "cpu", 1),
        (3, "cpu", 3),
        ("2", "gpu", 2),
        ("auto", "cpu", 1),
        ("auto", "gpu", 4),
        (-1, "gpu", 4),
        (None, "auto", 4),
        ([0, 2], "gpu", 2),
        ("0,2,3", "gpu", 3),
        ("3,", "gpu", 1),  # the GPU number 3
    ],
)
def test_a_process_a_device(devices: Any, accelerator: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes(OmegaConf.create({"devices": devices, "accelerator": accelerator})) == count
