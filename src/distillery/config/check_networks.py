"""Refuses the config of a student or a teacher."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distillery.config.check_placement import refuse_device
from distillery.config.spec import (
    AnswersTeacher,
    EmaTeacher,
    FrozenTeacher,
    ImageInput,
    Initialise,
    Lora,
    PeerTeacher,
    SelfTeacher,
    ServedClient,
    ServedTeacher,
    StoredTeacher,
    Student,
    TextInput,
    check_section,
    kinds,
)
from distillery.config.targets import Kinds, check_settings, check_target, refuse_unknown
from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import shown
from distillery.core.roles import ANSWERS, EMA, FROZEN, PEER, SELF, SERVED, STORED, role_of

ROLES = {
    FROZEN: kinds(FrozenTeacher),
    STORED: kinds(StoredTeacher),
    SERVED: kinds(ServedTeacher),
    ANSWERS: kinds(AnswersTeacher),
    EMA: kinds(EmaTeacher),
    PEER: kinds(PeerTeacher),
    SELF: kinds(SelfTeacher),
}
WHY = {
    STORED: "The outputs of this teacher were stored before the run, and there is no network",
    ANSWERS: "This teacher has answered before, and there is no network",
    SERVED: "A server runs this teacher, and there is no network here",
    EMA: "An ema teacher is an average of the student, and starts as a copy of it",
    PEER: "A peer is trained beside the student from the start",
    SELF: "This teacher is the student itself",
}
FILLED_IN = {"head": Any, "vocab_size": Any, "classes": Any}  # of `net`: null until the data and the task are known
PREDICTIONS = frozenset("index target student".split())  # arrays of predictions.npz that belong to no teacher
SIXTEEN = re.compile(r"(16|bf16|transformer-engine\S*)-true|transformer-engine\S*")  # precisions of the weights


def check_student(node: Mapping[str, Any]) -> dict[str, Any]:
    """The student's settings, each as its annotation admits it.

    Raises:
        UserError: with the full path of the setting.
    """
    refuse_unknown("student", node, kinds(Student))
    if "net" not in node:
        raise UserError("student has no network. Choose one with model/student=…")
    checked = _network("student", node, kinds(Student))
    if checked.get("initialise") is not None:
        path = "student.initialise"
        checked["initialise"] = check_section(path, checked["initialise"], Initialise)
        if not checked["initialise"].get("source"):
            raise UserError(f"{path}.source: name the network that the student begins with, a run folder for instance.")
    if checked.get("lora") is not None:
        checked["lora"] = check_section("student.lora", checked["lora"], Lora)
        if not (checked["lora"] and (checked.get("weights") or checked.get("initialise"))):
            raise UserError(
                "student.lora: give its settings, as {r: 8, alpha: 16}, and a student that is trained already "
                "(student.weights or student.initialise): of a new one nothing else would be learnt."
            )
        if checked.get("qat"):
            raise UserError(
                "student.qat rounds the weights that are trained, and with student.lora others are. Train with LoRA "
                "first, and start from that run: student.weights=<its folder>"
            )
    return checked


def check_teachers(
    nodes: Mapping[str, Any], precision: object, overrides: Sequence[str], chosen: bool
) -> dict[str, Any]:
    """The settings that each teacher's role reads, each as its annotation admits it.

    Args:
        precision: `trainer.precision`.
        overrides: the command line. A setting there that the teacher's role does not read is refused; one that an
            experiment made for another teacher is not.
        chosen: whether the run has teachers at all.

    Raises:
        UserError: with the full path of the setting.
    """
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise UserError(
                f"teachers.{name}={shown(node)}: it must be a mapping. model/teacher=none is the baseline without any "
                "teacher."
            )
    if not chosen:
        return {}
    if taken := sorted(PREDICTIONS & nodes.keys()):
        raise UserError(
            f"teachers.{taken[0]}: a teacher cannot have this name, because predictions.npz has another array "
            f"{taken[0]!r}."
        )
    return {name: _teacher(name, node, nodes, precision, overrides) for name, node in nodes.items()}


def _teacher(
    name: str, node: Mapping[str, Any], all_nodes: Mapping[str, Any], precision: object, overrides: Sequence[str]
) -> dict[str, Any]:
    path, role = f"teachers.{name}", role_of(node)
    if role not in ROLES:
        raise UserError(f"{path}.role={role}: there is no such role." + did_you_mean(role, ROLES))
    if name == SELF:
        raise UserError(
            f"{path}: a loss with teacher={SELF} learns from the student itself and needs no settings here. Give this "
            "teacher another name."
        )
    known = ROLES[role]
    if role != FROZEN:
        unread = ROLES[FROZEN].keys() - known.keys()
        refuse_unknown(path, node, known.keys() | unread)
        _refuse_unread(path, role, unread, overrides)
        node = {key: value for key, value in node.items() if key in known}
    elif "net" not in node:  # a misspelt name behind a `+`
        others = [f"teachers.{other}" for other, each in all_nodes.items() if "net" in each]
        raise UserError(
            f"{path} has no network.{did_you_mean(path, others)} Another teacher: +model/teacher@{path}=run"
        )
    if role == EMA:
        refuse_sixteen(path, precision)
    checked = _network(path, node, known)
    refuse_device(path, checked)
    return checked


def refuse_sixteen(path: str, precision: object) -> None:
    """Refuse an average of the student, the setting at `path`, where weights have 16 bits."""
    if SIXTEEN.fullmatch(str(precision)):
        raise UserError(
            f"{path}: an average of the student would stand still with trainer.precision={precision}: its steps are "
            "smaller than 16 bits can represent. Use trainer.precision=bf16-mixed."
        )


def _refuse_unread(path: str, role: str, unread: Collection[str], overrides: Sequence[str]) -> None:
    """Refuse an override of a setting that a teacher of this role does not read."""
    for override in overrides:
        named, _, value = override.lstrip("+").partition("=")
        setting = named.removeprefix(f"{path}.").split(".")[0]
        if named.startswith(f"{path}.") and setting in unread and value != "null":
            raise UserError(
                f"{override}: {WHY[role]}: it takes no {setting}. Leave it out, or choose a frozen teacher "
                "(model/teacher=run)."
            )


def _network(path: str, node: Mapping[str, Any], known: Kinds) -> dict[str, Any]:
    refuse_unknown(path, node, known)
    checked = {}
    if isinstance(net := node.get("net"), Mapping) and "_target_" in net:
        open_places = {key: kind for key, kind in FILLED_IN.items() if net.get(key, "") is None}
        checked["net"] = check_target(f"{path}.net", net, open_places)
    if "input" in known:
        given = node.get("input")
        of_texts = isinstance(given, Mapping) and "tokenizer" in given
        checked["input"] = check_section(f"{path}.input", given, TextInput if of_texts else ImageInput)
    if "client" in known:
        checked["client"] = check_section(f"{path}.client", node.get("client"), ServedClient)
    rest = {key: value for key, value in node.items() if key not in checked}
    return {**node, **checked, **check_settings(path, rest, known)}
