"""What `cfg.stages` is refused for before a config is made for each stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from distillery.config.names import NAME
from distillery.config.spec import StageSettings, Until, check_section
from distillery.config.targets import refuse_unknown
from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import shown
from distillery.core.roles import PLACE

WHOLE = "it must be a mapping of settings, for example {epochs: 10, loss: {kd: {}}}."


def check_stages(nodes: Mapping[Any, Any], losses: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The stages, each setting of the type that is wanted.

    Args:
        nodes: the resolved `cfg.stages`.
        losses: `cfg.loss`: those that a stage can name.
        trainer: `cfg.trainer`, that of the whole run.

    Raises:
        UserError: unknown or contradicting settings, and what a stage asks for and is not there; with the setting's
            full path and the nearest right name.
    """
    checked = {}
    for place, (name, node) in enumerate(nodes.items()):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"stages.{name}: use letters, digits and . _ + - only, because folders are named after it.")
        checked[name] = _stage(f"stages.{name}", node, losses, [*nodes][:place])
        if checked[name].get("until") and trainer.get("limit_val_batches") == 0:
            raise UserError(f"stages.{name}.until: with trainer.limit_val_batches=0 nothing is validated.")
    _refuse_shares(checked, trainer["max_epochs"])
    return checked


def _stage(path: str, node: Any, losses: Mapping[str, Any], earlier: Sequence[str]) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(f"{path}={shown(node)}: {WHOLE}")
    refuse_unknown(path, node, StageSettings.model_fields)
    _refuse_length(path, node)
    for group in ("loss", "teachers"):
        for name, value in (node[group] if isinstance(node.get(group), Mapping) else {}).items():
            _refuse_choice(f"{path}.{group}.{name}", value, group)
    checked = check_section(path, node, StageSettings)
    if checked.get("until") is not None:
        checked["until"] = check_section(f"{path}.until", checked["until"], Until)
    for loss in checked.get("loss") or {}:
        if loss not in losses:
            raise UserError(
                f"{path}.loss.{loss}: every loss of any stage is composed once, at the root."
                f"{did_you_mean(str(loss), losses)} Choose it there: loss/response=[…], loss/feature=[…]"
            )
    for source in _sources(node):
        if source not in earlier:
            raise UserError(f"{path}: there is no earlier stage {source!r}." + did_you_mean(source, earlier))
    return checked


def _refuse_choice(path: str, value: Any, group: str) -> None:
    """Something else than what a stage can say of one of its losses or teachers."""
    if group == "loss" and not isinstance(value, Mapping | None):
        raise UserError(f"{path}={shown(value)}: it must be a mapping, {{weight: 2}}; {{}} takes the loss as it is.")
    if group == "teachers" and not isinstance(value, Mapping | str):
        raise UserError(
            f"{path}={shown(value)}: it must be a run folder, 'stage:<name>', none, or a mapping of settings."
        )


def _refuse_length(path: str, node: Mapping[str, Any]) -> None:
    lengths = [key for key in ("epochs", "steps") if node.get(key) is not None]
    if len(lengths) != 1:
        more = " `until` ends it earlier." if "until" in node else ""
        raise UserError(f"{path}: give its length, either as epochs or as steps.{more}")


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
        given = " + ".join(f"{share:g}%" for share in shares.values())
        raise UserError(f"stages: their shares of trainer.max_epochs, {given}, add up to {whole}%: at most 100%.")


def _sources(node: Any) -> list[str]:
    """The stages that are named anywhere in the settings."""
    if isinstance(node, Mapping):
        return [name for value in node.values() for name in _sources(value)]
    if isinstance(node, list):
        return [name for value in node for name in _sources(value)]
    return [node.removeprefix(PLACE)] if isinstance(node, str) and node.startswith(PLACE) else []
