"""Refuses what processes that share out parameters or optimizer states (`hardware=fsdp2`, `deepspeed`) cannot do."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig

from distillery.core.errors import UserError
from distillery.core.kinds import shown
from distillery.core.roles import ANSWERS, FROZEN, SERVED, STORED, role_of

# Optimizers that update each number by itself, but Adagrad, which DeepSpeed makes anew with one group.
ELEMENTWISE = "Adadelta Adam Adamax AdamW ASGD Lion NAdam RAdam RMSprop Rprop SGD".split()


def is_fsdp2(strategy: Any) -> bool:
    """Whether this `trainer.strategy` shards the parameters."""
    return _is(strategy, "FSDP2")


def refuse_strategy(plain: Mapping[str, Any]) -> None:
    """Refuse what the strategy does not allow.

    Raises:
        UserError: says what, and which hardware does.
    """
    strategy = plain["trainer"].get("strategy")
    if is_fsdp2(strategy):
        _refuse_sharded(plain)
    elif _is(strategy, "ZeRO"):
        _refuse_zero(plain)
    elif str(strategy).startswith("deepspeed"):
        raise UserError(
            f"trainer.strategy={strategy}: no run could be resumed from the checkpoints of Lightning's own strategy. "
            "Use hardware=deepspeed."
        )


def _is(strategy: Any, name: str) -> bool:
    return isinstance(strategy, Mapping | DictConfig) and str(strategy.get("_target_")).endswith(f".{name}")


def _refuse_sharded(plain: Mapping[str, Any]) -> None:
    fixed = (FROZEN, STORED, SERVED, ANSWERS)
    moving = [name for name, teacher in plain["teachers"].items() if role_of(teacher) not in fixed]
    if moving:
        raise UserError(f"hardware=fsdp2 takes frozen teachers only, and teachers.{moving[0]} moves. Use hardware=ddp.")
    if plain["optim"].get("ema") is not None:
        raise UserError("optim.ema: hardware=fsdp2 shards the student, but not its average. Use hardware=ddp.")
    if plain["student"].get("lora"):
        raise UserError("student.lora: hardware=fsdp2 would shard its matrices by themselves. Use hardware=ddp.")
    if plain["student"].get("qat"):
        raise UserError("student.qat: hardware=fsdp2 would shard the rows that have one scale. Use hardware=ddp.")
    if plain["objective"].get("balance"):
        raise UserError("objective.balance=auto goes backward several times a step, which hardware=fsdp2 cannot.")
    if plain.get("rollouts"):
        raise UserError("rollouts: a student that is sharded across processes cannot generate. Use hardware=ddp.")


def _refuse_zero(plain: Mapping[str, Any]) -> None:
    trainer, name = plain["trainer"], plain["optim"]["optimizer"]["_target_"].rpartition(".")[2]
    if (precision := trainer.get("precision", "32-true")) not in ("32-true", "bf16-mixed"):
        raise UserError(f"trainer.precision={precision}: hardware=deepspeed computes in bf16-mixed or 32-true.")
    if name not in ELEMENTWISE:
        raise UserError(
            f"optim.optimizer: {name} does not work with hardware=deepspeed, which joins all parameters to one vector. "
            f"Choose one that updates each number by itself ({', '.join(ELEMENTWISE)}), or hardware=ddp."
        )
    if trainer.get("gradient_clip_algorithm") == "value":
        raise UserError("trainer.gradient_clip_algorithm=value: hardware=deepspeed clips by norm. Use hardware=ddp.")
    if isinstance(devices := trainer.get("devices"), list) or "," in str(devices):
        raise UserError(
            f"trainer.devices={shown(devices)}: DeepSpeed takes the first GPUs that it sees. Name them in the "
            "environment variable CUDA_VISIBLE_DEVICES, and here give their number."
        )
    if find_spec("deepspeed") is None:
        raise UserError("hardware=deepspeed needs DeepSpeed: pip install -e '.[deepspeed]'")
