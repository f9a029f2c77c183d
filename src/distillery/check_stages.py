"""What stages can be refused for before their configs are made: `cfg.stages` itself."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from distillery.errors import UserError, did_you_mean
from distillery.names import NAME, PLACE

KEYS = frozenset("epochs steps until teacher teachers student loss task train optim data easiest".split())
SHARE = re.compile(r"\d+(\.\d+)?%")  # of the run's epochs
UNTIL = {"metric": "val/score", "mode": "max", "patience": 3, "min_delta": 0.0}


def check_stages(nodes: Mapping[Any, Any], losses: Mapping[str, Any]) -> None:
    """Refuse stages with unknown or contradicting settings, and what they ask for and is not there.

    Args:
        nodes: the resolved `cfg.stages`.
        losses: `cfg.loss`: those that a stage can name.

    Raises:
        UserError: the setting's full path and the nearest right name.
    """
    for place, (name, node) in enumerate(nodes.items()):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"stages.{name}: folders are called by it; use letters, digits and . _ + - only.")
        _refuse(f"stages.{name}", node, losses, [*nodes][:place])


def _refuse(path: str, node: Any, losses: Mapping[str, Any], earlier: Sequence[str]) -> None:
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={node}: here are settings, as {{epochs: 10, loss: {{kd: {{}}}}}}.")
    if unknown := [str(key) for key in node if key not in KEYS]:
        raise UserError(f"Unknown setting '{path}.{unknown[0]}'." + did_you_mean(unknown[0], KEYS))
    _refuse_length(path, node)
    _refuse_until(f"{path}.until", node.get("until"))
    if not isinstance(train := node.get("train"), list | None) or train == []:
        raise UserError(f"{path}.train={train}: give a list of wildcards for names of parameters, as ['layer1.*'].")
    part = node.get("easiest")
    if part is not None and (isinstance(part, bool) or not isinstance(part, int | float) or not 0 < part <= 1):
        raise UserError(f"{path}.easiest={part}: it must be a share of the training samples, above 0 and at most 1.")
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
    if isinstance(settings["min_delta"], bool) or not isinstance(settings["min_delta"], int | float):
        raise UserError(f"{path}.min_delta={settings['min_delta']}: it must be a number.")


def _sources(node: Any) -> list[str]:
    """The stages that are named anywhere in the settings."""
    if isinstance(node, Mapping):
        return [name for value in node.values() for name in _sources(value)]
    if isinstance(node, list):
        return [name for value in node for name in _sources(value)]
    return [node.removeprefix(PLACE)] if isinstance(node, str) and node.startswith(PLACE) else []
