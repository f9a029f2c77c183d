"""Refuses `cfg.stages` before a config is made for each stage."""

from collections.abc import Mapping, Sequence
from typing import Any

from distillery.config.names import NAME
from distillery.config.spec import LossChanges, StageSettings, TeacherChoice, Until, check_section, kinds
from distillery.config.targets import check_settings, refuse_unknown
from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import shown
from distillery.core.roles import PLACE
from distillery.results.record import leaves


def check_stages(nodes: Mapping[Any, Any], losses: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The stages, each setting of the type that is wanted.

    Args:
        nodes: the resolved `cfg.stages`.
        losses: the losses of `cfg.loss` that a stage can name.
        trainer: `cfg.trainer`, that of the whole run.

    Raises:
        UserError: unknown or contradicting settings, or a loss or stage that is not there; with the setting's full path
            and the nearest right name.
    """
    checked = {}
    for place, (name, node) in enumerate(nodes.items()):
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"stages.{name}: use letters, digits and . _ + - only, because folders are named after it.")
        checked[name] = _stage(f"stages.{name}", node, losses, [*nodes][:place])
        if checked[name].get("until") and trainer.get("limit_val_batches") == 0:
            raise UserError(f"stages.{name}.until: with trainer.limit_val_batches=0 nothing is validated.")
    return checked


def lengths_of(nodes: Mapping[str, Mapping[str, Any]], total: int) -> dict[str, int]:
    """Each stage's epochs by name. A share of the run's, as 40%, is rounded to whole epochs, at least one.

    Shares that make up 100% make up `total`, if it has an epoch for each of them. A stage that is given in steps has
    `total` until its length is known.

    Raises:
        UserError: there are no epochs to share, a share is 0%, or all of them exceed 100%.
    """
    lengths = {name: node.get("epochs") or total for name, node in nodes.items()}
    shares = {name: float(length[:-1]) for name, length in lengths.items() if isinstance(length, str)}
    if shares and total < 1:
        raise UserError(f"stages.{next(iter(shares))}.epochs: there is no share of trainer.max_epochs={total}.")
    if (whole := round(sum(shares.values()))) > 100:  # rounded: three times 33.34% are meant to be all
        given = " + ".join(f"{share:g}%" for share in shares.values())
        raise UserError(f"stages: their shares of trainer.max_epochs, {given}, add up to {whole}%: at most 100%.")
    passed, done = 0.0, 0
    for name, share in shares.items():
        if share == 0:
            raise UserError(f"stages.{name}.epochs=0%: it would not be trained at all.")
        passed += share / 100
        lengths[name] = max(1, round(passed * total) - done)
        done += lengths[name]
    return lengths


def _stage(path: str, node: Any, losses: Mapping[str, Any], earlier: Sequence[str]) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(
            f"{path}={shown(node)}: it must be a mapping of settings, for example {{epochs: 10, loss: {{kd: {{}}}}}}."
        )
    refuse_unknown(path, node, kinds(StageSettings))
    if (node.get("epochs") is None) == (node.get("steps") is None):
        more = " `until` ends it earlier." if "until" in node else ""
        raise UserError(f"{path}: give its length, either as epochs or as steps.{more}")
    for group, kind in {"loss": LossChanges, "teachers": TeacherChoice}.items():
        if isinstance(choices := node.get(group), Mapping):
            check_settings(f"{path}.{group}", choices, dict.fromkeys(choices, kind))
    checked = check_section(path, node, StageSettings)
    if checked.get("until") is not None:
        checked["until"] = check_section(f"{path}.until", checked["until"], Until)
    for loss in checked.get("loss") or {}:
        if loss not in losses:
            raise UserError(
                f"{path}.loss.{loss}: every loss of any stage is composed once, at the root."
                f"{did_you_mean(str(loss), losses)} Choose it there: loss/response=[…], loss/feature=[…]"
            )
    for _, value in leaves(node):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.startswith(PLACE) and (source := text.removeprefix(PLACE)) not in earlier:
                raise UserError(f"{path}: there is no earlier stage {source!r}." + did_you_mean(source, earlier))
    return checked
