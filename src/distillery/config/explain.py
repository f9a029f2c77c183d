"""Explains why a config does not compose: Hydra's errors in words that lead to the fix."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distillery.config.command_line import quoted, shell_quoted
from distillery.config.hydra_support import HYDRA_VERSION
from distillery.core.errors import UserError, did_you_mean
from distillery.core.paths import CONFIGS

PLUGINS = {  # options that Hydra has once a package is there
    "hydra/launcher/joblib": "pip install -e '.[sweep]'",
    "hydra/launcher/submitit_local": "pip install -e '.[cluster]'",
    "hydra/launcher/submitit_slurm": "pip install -e '.[cluster]'",
    "hydra/launcher/ray": "pip install hydra-ray-launcher",
    "hydra/sweeper/optuna": "pip install -e '.[sweep]'",
}
OF_A_RUN = ("train", "cache")  # configs that hold all settings of a run, each of which is checked: see `check`


def user_message(error: Exception, config_name: str) -> str | None:
    """What the user is told about an error that is theirs to fix; None for any other error.

    For an unknown option or setting this names the nearest right ones, in place of Hydra's search path.
    """
    if isinstance(error, UserError):
        return str(error)
    if "srun" in str(error) and isinstance(error, RuntimeError):  # submitit's
        return (
            "hydra/launcher=submitit_slurm: there is no srun here, so this is no machine of a Slurm cluster. Start the "
            "sweep on one, or with hydra/launcher=submitit_local or joblib."
        )
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_null(error) if isinstance(error, ValueError) else None
    if isinstance(error.__cause__, UserError):  # raised by what Hydra was making
        return str(error.__cause__)
    message = str(error)
    if unread := _explain_grammar():
        return unread
    if option := re.search(r"Could not (?:find|load) '([^']+)/([^/']+)'", message):
        group, name = option[1], option[2]
        if install := PLUGINS.get(f"{group}/{name}"):
            return f"{group}={name} is not installed: {install}"
        return f"Unknown option {name!r} for {group}." + did_you_mean(name, _options(group))
    if setting := re.search(r"Could not override '([^']+)'", message):
        if config_name == "study" and (told := _of_runs(setting[1], _composed(config_name, ["study"]))):
            return told
        # `experiment/glue=mrpc`, where no experiment chooses one of them
        if setting[1] in _groups() and config_name in OF_A_RUN:
            return f"Nothing of {setting[1]} is chosen here that this could replace. +{setting[1]}=… adds it."
        key = getattr(error.__cause__, "full_key", None) or setting[1]  # in `data.augment={crap: 1}` the inner one
        groups = [group for group in _groups() if group != key]
        cfg = _composed(config_name, groups)
        groups = [group for group in groups if config_name in OF_A_RUN or _first(group) in cfg]
        return f"Unknown setting {key!r}." + _nearest(cfg, key, groups)
    return message if error.__cause__ is None else f"{message}\n{error.__cause__}"


def _explain_grammar() -> str | None:
    """How to write the first argument that Hydra cannot read; None if it can read all."""
    sweeps = bool({"-m", "--multirun"} & {*sys.argv})
    for argument in sys.argv[1:]:
        key, equals, value = argument.partition("=")
        text = shell_quoted(f"{key}={quoted(value)}")
        try:
            parsed = OverridesParser.create().parse_override(argument) if equals else None
        except HydraException:
            fix = "Put the texts in it between quotes." if value[:1] in "[{" else f"Write {text}"
            return f"{argument}: Hydra cannot read this value. {fix}"
        if parsed and parsed.is_choice_sweep() and not sweeps:
            listed = shell_quoted(f"{key}=[{value}]")
            return f"{argument}: several values are a sweep, with -m. Write {listed} for a list, {text} for a text."
    return None


def _explain_null(error: ValueError) -> str | None:
    """Of `logger=null`, which Hydra meets with a ValueError without the name; None if it is another error."""
    nulls = [name for name, _, value in (arg.partition("=") for arg in sys.argv[1:]) if value in ("null", "")]
    groups = [name for name in nulls if name in _groups()]
    if "Config group override" not in str(error) or not groups:
        return None
    return f"{groups[0]}=null: name one of its options." + did_you_mean("none", _options(groups[0]))


def _groups() -> list[str]:
    return sorted({str(path.parent.relative_to(CONFIGS)) for path in CONFIGS.glob("*/**/*.yaml")})


def _options(group: str) -> list[str]:
    if group in ("hydra/launcher", "hydra/sweeper"):
        stored = {f"{group}/{Path(file).stem}" for file in ConfigStore.instance().list(group) if "." in file}
        return [name.rpartition("/")[2] for name in stored | PLUGINS.keys() if name.startswith(group)]
    folder = CONFIGS / group
    files = folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")  # optim/scheduler is a group
    return [str(path.relative_to(folder).with_suffix("")) for path in files]


def refuse_added(config_name: str) -> None:
    """Refuse a setting behind a `+` of which the command has no section, so that nothing would read it.

    Raises:
        UserError: names the nearest right one.
    """
    given = [] if config_name in OF_A_RUN else HydraConfig.get().overrides.task
    if not (added := [override for override in given if override.startswith("+")]):
        return
    known = hydra.compose(config_name, [override for override in given if override not in added])
    for override in added:
        key = re.split("[@=]", override.lstrip("+"))[0]
        if (section := _first(key)) not in known:
            told = _of_runs(key, known) if config_name == "study" else None
            raise UserError(told or f"Unknown setting {section!r}." + did_you_mean(section, map(str, known)))


def _of_runs(key: str, study: DictConfig) -> str | None:
    """How a study is told a setting of its runs; None if `key` is no such setting."""
    sections = {_first(group) for group in _groups()} | OmegaConf.load(CONFIGS / "train.yaml").keys()
    if _first(key) not in sections or get_close_matches(_first(key), map(str, study), cutoff=0.8):
        return None
    given = next((each for each in sys.argv[1:] if re.match(rf"\+*{re.escape(key)}[@=]", each)), f"{key}=…")
    return f"{key} is a setting of the study's runs. Write {shlex.quote(f'overrides=[{json.dumps(given)}]')}"


def _composed(config_name: str, groups: Sequence[str]) -> DictConfig:
    """The config with the command line's choices of these groups, and without its settings."""
    choices = [override for override in sys.argv[1:] if re.split("[@=]", override)[0] in groups]
    with hydra.initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        return hydra.compose(config_name, overrides=[choice for choice in choices if not _is_sweep(choice)])


def _is_sweep(choice: str) -> bool:
    return "," in re.sub(r"\[.*?\]", "", choice)


def _nearest(cfg: DictConfig, key: str, groups: list[str]) -> str:
    if left_out := sorted(CONFIGS.glob(f"{key.split('.')[0]}/**/{_last(key)}.yaml")):  # `loss.hint` without hint
        return f" Choose it first: {left_out[0].parent.relative_to(CONFIGS)}={left_out[0].stem}"
    if re.fullmatch(r"loss\.\w+\.combine", key):
        return f" Losses with several teachers can have it, behind a plus: +{key}=mean"
    group, _, name = key.rpartition(".")
    having = (each for each in _options(group) if name in OmegaConf.load(CONFIGS / group / f"{each}.yaml"))
    if group and (others := sorted(having)):
        return f" It is a setting of {group}={', '.join(others)}."
    paths = [path for path in _paths(OmegaConf.to_container(cfg, resolve=False)) if "._" not in path]
    near = [group for group in groups if key in group.split("/")]  # `teacher=none` for `model/teacher=none`
    near = near or get_close_matches(key, groups + paths, n=1, cutoff=0.8)
    near = near or [path for path in paths if get_close_matches(_last(key), [_last(path)], cutoff=0.7)]
    if open_ended := key.startswith(("stages.", "data.augment.")):
        near = [path for path in near if not key.startswith(f"{path}.")]
    said = " Did you mean " + " or ".join(map(repr, near[:4])) + "?" if near else ""
    if open_ended:
        return f"{said} What a recipe does not set is added behind a plus: +{key}=…"
    return said or " `--cfg job` shows all there are."


def _first(path: str) -> str:
    return re.split("[./]", path)[0]


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _paths(node: object, path: str = "") -> list[str]:
    """The dotted path of every key below `node`."""
    if not isinstance(node, dict):
        return []
    own = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    return [deeper for full, value in own for deeper in (full, *_paths(value, full))]
