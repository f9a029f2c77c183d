"""What strategies cannot do is refused before anything is built."""

from importlib.machinery import ModuleSpec

import pytest

from distillery.config import check_strategy
from distillery.config.check import check
from distillery.core.errors import UserError
from fixtures.cases import each_case
from fixtures.composing import Compose

JOB = ("experiment=digits_demo", "teachers.main.weights=x")


@each_case(
    ("override", "told"),
    [
        (
            "model/teacher=ema",
            r"hardware=fsdp2 takes frozen teachers only, and teachers\.main moves\. Use hardware=ddp",
        ),
        ("objective.balance=auto", r"which hardware=fsdp2 cannot"),
    ],
)
def test_what_sharded_networks_cannot_do_is_refused(override: str, told: str, compose_train: Compose) -> None:
    with pytest.raises(UserError, match=told):
        check(compose_train(*JOB, "hardware=fsdp2", override))


@each_case(
    ("override", "told"),
    [
        ("trainer.precision=16-mixed", r"^trainer\.precision=16-mixed: hardware=deepspeed computes in bf16-mixed or"),
        ("optim.optimizer._target_=torch.optim.Adagrad", r"^optim\.optimizer: Adagrad does not work with hardware=d"),
        ("+trainer.gradient_clip_algorithm=value", r"^trainer\.gradient_clip_algorithm=value: .*hardware=ddp"),
        ("trainer.devices=[1,3]", r"^trainer\.devices=\[1, 3\]: .* CUDA_VISIBLE_DEVICES, and"),
        ("trainer.strategy=deepspeed_stage_2", r"^trainer\.strategy=deepspeed_stage_2: .*hardware=deepspeed"),
        ("trainer.strategy.stage=3", r"^trainer\.strategy\.stage=3\. Choose from: 1, 2"),
    ],
)
def test_what_shared_out_optimizers_cannot_do_is_refused(
    override: str, told: str, compose_train: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_strategy, "find_spec", lambda name: ModuleSpec(name, None))
    check(compose_train(*JOB, "hardware=deepspeed", "optim.ema=0.9"))
    with pytest.raises(UserError, match=told):
        check(compose_train(*JOB, "hardware=deepspeed", override))


def test_deepspeed_must_be_installed(compose_train: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_strategy, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[deepspeed\]'"):
        check(compose_train(*JOB, "hardware=deepspeed"))
