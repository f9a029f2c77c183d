"""A teacher's `placement` is refused where the machine or the rest of the run does not allow it."""

import pytest
import torch

from distillery.config.check import check
from distillery.core.errors import UserError
from fixtures.cases import each_case
from fixtures.composing import Compose

SHARD = "teachers.main.placement=shard"
FSDP2 = "hardware=fsdp2"


@each_case(
    ("overrides", "told"),
    [
        (
            ["teachers.main.placement=cuda:2"],
            r"^teachers\.main\.placement=cuda:2: there is no such device .*cuda:1",
        ),
        (["teachers.main.placement=2"], r"Choose from: cpu, cuda, cuda:0, cuda:1, shard"),
        (["teachers.main.placement=[cpu]"], r"a device such as cpu or cuda:1, or shard"),
        ([SHARD], r"between the processes of hardware=fsdp2\. Choose that, or placement=cpu"),
        ([SHARD, "hardware=ddp"], r"between the processes of hardware=fsdp2"),
        ([SHARD, FSDP2, "teachers.main.precision=int8"], r"Set teachers\.main\.precision=bf16 or null"),
        ([SHARD, FSDP2, "teachers.main.cache=true"], r"does not run in each step"),
        ([SHARD, FSDP2, "compile=true"], r"Set compile=false"),
        (["teachers.main.placement=cuda:1", "compile=reduce-overhead", "hardware=gpu"], r"for networks on one device"),
    ],
)
def test_refused(overrides: list[str], told: str, compose_train: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=told):
        check(compose_train("experiment=digits_demo", "teachers.main.weights=x", *overrides), overrides)


def test_taken(compose_train: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("experiment=digits_demo", "teachers.main.weights=x")
    check(compose_train(*own, "teachers.main.placement=cpu"))
    check(compose_train(*own, SHARD, FSDP2, "teachers.main.precision=bf16"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for device in ("cuda", "cuda:1"):
        check(compose_train(*own, f"teachers.main.placement={device}"))
