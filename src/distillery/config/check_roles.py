"""What a teacher's config can be refused for by its role: settings that this role does not read, or cannot be had."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import EMA, FROZEN, PEER, SELF, SETTINGS, role_of

WHY = {
    EMA: "An ema teacher is an average of the student, and starts as a copy of it",
    PEER: "A peer is trained beside the student from the start",
    SELF: "This teacher is the student itself",
}
SIXTEEN = re.compile(r"(16|bf16|transformer-engine\S*)-true|transformer-engine\S*")  # precisions of the weights


def check_role(name: str, teacher: Mapping[str, Any], precision: object, overrides: Sequence[str]) -> None:
    """Refuse what `teachers.<name>` cannot be.

    What an experiment has said of the frozen teacher whose place it takes is no reason; what the command line says is.

    Raises:
        UserError: says which setting, and how to mend it.
    """
    role = role_of(teacher)
    if role not in SETTINGS:
        raise UserError(f"teachers.{name}.role={role}: there is no such role." + did_you_mean(role, SETTINGS))
    if name == SELF:
        raise UserError(
            f"teachers.{name}: a loss with teacher={SELF} learns from the student itself, without any setting here. "
            "Give this teacher another name."
        )
    if role == FROZEN:
        return
    for override in overrides:
        path, _, value = override.lstrip("+").partition("=")
        setting = path.removeprefix(f"teachers.{name}.").split(".")[0]
        if path.startswith(f"teachers.{name}.") and setting in SETTINGS[FROZEN] - SETTINGS[role] and value != "null":
            raise UserError(
                f"{override}: {WHY[role]}: it takes no {setting}. Leave it out, or choose a frozen teacher "
                "(model/teacher=run)."
            )
    if role == EMA:
        _check_decay(f"teachers.{name}.decay", teacher.get("decay"))
        if SIXTEEN.fullmatch(str(precision)):
            raise UserError(
                f"teachers.{name}: an ema teacher would stand still with trainer.precision={precision}: the steps of "
                "an average are smaller than 16 bits can tell. Use trainer.precision=bf16-mixed."
            )


def _check_decay(path: str, decay: object) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise UserError(f"{path}={decay}: it must be a number from 0 up to, and without, 1; the usual one is 0.999.")
