"""The roles that a teacher can have, and the settings of each."""

from collections.abc import Mapping
from typing import Any

FROZEN, EMA, PEER, SELF = "frozen", "ema", "peer", "self"  # the roles of a teacher; `self` is also a teacher's name
PLACE = "stage:"  # `stage:<name>`, wherever a stage's config wants weights: the student of that earlier stage
STAGE = "stage"  # the role on record of a teacher that is the student of an earlier stage of the same run
# What the config of each role says. `model/teacher=ema` takes the place of an experiment's teacher: what the experiment
# has said of that one (its weights, say) is then no setting of this one.
SETTINGS = {
    FROZEN: frozenset("net weights input bn_mode cache".split()),
    EMA: frozenset({"decay"}),
    PEER: frozenset({"net", "input"}),
    SELF: frozenset[str](),
}


def role_of(teacher: Mapping[str, Any]) -> str:
    """The role that a teacher's config gives it."""
    return str(teacher.get("role", FROZEN))
