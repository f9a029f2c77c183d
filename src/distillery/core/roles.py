"""The roles that a teacher can have."""

from collections.abc import Mapping
from typing import Any

FROZEN, EMA, PEER, SELF = "frozen", "ema", "peer", "self"  # the roles of a teacher; `self` is also a teacher's name
STORED = "stored"  # the role in a config of a frozen teacher whose outputs were stored before the run
SERVED = "served"  # the role in a config of a frozen teacher that a server runs
ANSWERS = "answers"  # the role in a config of a frozen teacher whose answers came with log-probabilities
PLACE = "stage:"  # `stage:<name>`, wherever a stage's config wants weights: the student of that earlier stage
STAGE = "stage"  # the role on record of a teacher that is the student of an earlier stage of the same run


def role_of(teacher: Mapping[str, Any]) -> str:
    """The role that a teacher's config gives it."""
    return str(teacher.get("role", FROZEN))
