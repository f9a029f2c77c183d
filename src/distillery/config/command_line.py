"""Overrides as they are typed: a path may hold characters that mean something to Hydra or to the shell."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf


def pasteable(command: str, key: str, value: str) -> str:
    """`<command> <key>=<value>`, quoted so that it can be pasted into a shell, whatever is in `value`."""
    return f"{command} {shell_quoted(f'{key}={quoted(value)}')}"


def shell_quoted(override: str) -> str:
    """One word of a shell command. `shlex.quote` makes Hydra's single quotes hard to read."""
    readable = "'" in override and not set(override) & set('"$`\\!')
    return f'"{override}"' if readable else shlex.quote(override)


def quoted(value: object) -> str:
    """`value`, in quotes where Hydra would read it as something else than this text."""
    value = str(value)
    try:
        plain = OverridesParser.create().parse_override(f"k={value}").value()
    except HydraException:
        plain = None
    if plain == value and isinstance(plain, str) and "${" not in value:
        return value
    # In Hydra's quotes a backslash means something before a quote or `${` only.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return "'" + escaped.replace("${", "\\${") + "'"


def settings_in(overrides: Sequence[str]) -> set[str]:
    """The paths of the settings that overrides give: of `a={b: 1}` it is `a.b`."""
    parsed = OverridesParser.create().parse_overrides([*overrides])
    return {path for each in parsed for path in _paths(each.key_or_group, each.value())}


def _paths(path: str, value: Any) -> set[str]:
    if isinstance(value, dict):
        return {inner for key, item in value.items() for inner in _paths(f"{path}.{key}", item)}
    return {path}


def expand_home(cfg: DictConfig) -> DictConfig:
    """The config with the home folder for the `~` that begins a path: a shell does not expand it after `key=`."""
    return OmegaConf.create(_at_home(OmegaConf.to_container(cfg, resolve=False)))


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _at_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    is_path = isinstance(value, str) and (value == "~" or value.startswith("~/"))
    return str(Path(value).expanduser()) if is_path else value
