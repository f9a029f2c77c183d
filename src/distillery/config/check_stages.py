"""What stages can be refused for before their configs are made: `cfg.stages` itself."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distillery.config.names import NAME
from distillery.core.errors import UserError, did_you_mean
from distillery.core.roles import PLACE

KEYS = frozenset("epochs steps until teacher teachers student loss task train optim data easiest".split())
SHARE = re.compile(r"\d+(\.\d+)?%")  # of the run's epochs
UNTIL = {"metric": "val/score", "mode": "max", "patience": 3, "min_delta": 0.0}


def check_stages(nodes: Mapping[Any, Any], losses: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
    """Refuse stages with unknown or contradicting settings, and what they ask for and is not there.

    Args:
        nodes: the resolved `cfg.stages`.
        losses: `cfg.loss`: those that a stage can name.
        trainer: `cfg.trainer`, that of the whole run.

    Raises:
        UserError: the setting's full path and the nearest right name.
    """
    for place, (name, node) in enumerate(nodes.items()):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"stages.{name}: folders are called by it; use letters, digits and . _ + - only.")
        _refuse(f"stages.{name}", node, losses, [*nodes][:place])
        if node.get("until") and trainer.get("limit_val_batches") == 0:
            raise UserError(f"stages.{name}.until: with trainer.limit_val_batches=0 nothing is validated.")
    _refuse_shares(nodes, trainer["max_epochs"])


def _refuse(path: str, node: Any, losses: Mapping[str, Any], earlier: Sequence[str]) -> None:
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={node}: here are settings, as {{epochs: 10, loss: {{kd: {{}}}}}}.")
    if unknown := [str(key) for key in node if key not in KEYS]:
        raise UserError(f"Unknown setting '{path}.{unknown[0]}'." + did_you_mean(unknown[0], KEYS))
    _refuse_length(path, node)
    _refuse_until(f"{path}.until", node.get("until"))
    train = node.get("train")
    if train is not None and (not isinstance(train, list) or not train or not all(isinstance(e, str) for e in train)):
        raise UserError(f"{path}.train={train}: give a list of wildcards for names of parameters, as ['layer1.*'].")
    part = node.get("easiest")
    if part is not None and (isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1):
        raise UserError(f"{path}.easiest={part}: it must be a share of the training samples, above 0 and at most 1.")
    for key in ("teachers", "student", "loss", "task", "optim", "data"):
        if not isinstance(settings := node.get(key), Mapping | None):
            raise UserError(f"{path}.{key}={settings}: here are settings, {{name: value}}; null takes back the run's.")
    for key, teacher in {"teacher": node.get("teacher"), **_named(node, "teachers")}.items():
        if not isinstance(teacher, Mapping | str | None) or (teacher is None and key != "teacher"):
            raise UserError(f"{path}.{key}={teacher}: give a run folder, 'stage:<name>', none, or settings of it.")
    for key, changes in _named(node, "loss").items():
        if not isinstance(changes, Mapping | None):
            raise UserError(f"{path}.{key}={changes}: give its settings, as {{weight: 2}}; {{}} takes it as it is.")
    for loss in node.get("loss") or {}:
        if loss not in losses:
            raise UserError(
                f"{path}.loss.{loss}: every loss of any stage is composed once, at the root."
                f"{did_you_mean(str(loss), losses)} Choose it there: loss/response=[…], loss/feature=[…]"
            )
    for source in _sources(node):
        if source not in earlier:
            raise UserError(f"{path}: there is no earlier stage {source!r}." + did_you_mean(source, earlier))


def _refuse_length(path: str, node: Mapping[str, Any]) -> None:
    lengths = [key for key in ("epochs", "steps") if node.get(key) is not None]
    if len(lengths) != 1:
        more = " `until` ends it earlier." if "until" in node else ""
        raise UserError(f"{path}: give its length, either as epochs or as steps.{more}")
    length = node[lengths[0]]
    is_share = lengths == ["epochs"] and isinstance(length, str) and SHARE.fullmatch(length)
    if not is_share and (type(length) is not int or length < 1):
        share = ", or a share of trainer.max_epochs, as 40%" if lengths == ["epochs"] else ""
        raise UserError(f"{path}.{lengths[0]}={length}: it must be a whole number from 1 on{share}.")


def _refuse_shares(nodes: Mapping[str, Any], total: int) -> None:
    shares = {name: float(length[:-1]) for name, node in nodes.items() if isinstance(length := node.get("epochs"), str)}
    if not shares:
        return
    if total < 1:
        raise UserError(f"stages.{next(iter(shares))}.epochs: there is no share of trainer.max_epochs={total}.")
    for name, share in shares.items():
        if share == 0:
            raise UserError(f"stages.{name}.epochs=0%: it would not be trained at all.")
    if (whole := round(sum(shares.values()))) > 100:  # rounded: three times 33.34% are meant to be all
        said = " + ".join(f"{share:g}%" for share in shares.values())
        raise UserError(f"stages: their shares of trainer.max_epochs, {said}, make up {whole}%: at most 100%.")


def _named(node: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Each part of a setting with settings of its own, by its path."""
    return {f"{key}.{name}": part for name, part in (node.get(key) or {}).items()}


def _refuse_until(path: str, until: Any) -> None:
    if until is None:
        return
    if not isinstance(until, Mapping):
        raise UserError(f"{path}={until}: give {{metric: val/score, patience: 3}}.")
    if unknown := [str(key) for key in until if key not in UNTIL]:
        raise UserError(f"Unknown setting '{path}.{unknown[0]}'." + did_you_mean(unknown[0], UNTIL))
    settings = {**UNTIL, **until}
    if settings["mode"] not in ("max", "min"):
        raise UserError(f"{path}.mode={settings['mode']}: max, if greater is better, or min.")
    if type(settings["patience"]) is not int or settings["patience"] < 1:
        raise UserError(f"{path}.patience={settings['patience']}: it must be a whole number from 1 on.")
    delta = settings["min_delta"]
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 <= delta < math.inf:
        raise UserError(f"{path}.min_delta={delta}: it must be a number, 0 or greater.")


def _sources(node: Any) -> list[str]:
    """The stages that are named anywhere in the settings."""
    if isinstance(node, Mapping):
        return [name for value in node.values() for name in _sources(value)]
    if isinstance(node, list):
        return [name for value in node for name in _sources(value)]
    return [node.removeprefix(PLACE)] if isinstance(node, str) and node.startswith(PLACE) else []
