"""What Hydra says of a config that doesn't compose, in words that lead to the mend."""

import re
import sys
from difflib import get_close_matches

import hydra
from omegaconf import DictConfig, OmegaConf

from distillery.compat import CONFIGS, HYDRA_VERSION
from distillery.errors import did_you_mean


def explain(error: Exception, config_name: str) -> str:
    """Hydra's message; for an unknown option or setting the nearest right ones instead of its search path."""
    message = str(error)
    if option := re.search(r"Could not (?:find|load) '([^']+)/([^/']+)'", message):
        group, name = option[1], option[2]
        return f"Unknown option {name!r} for {group}." + did_you_mean(name, _options(group))
    if setting := re.search(r"Could not override '([^']+)'", message):
        return f"Unknown setting {setting[1]!r}." + _nearest(_composed(config_name), setting[1])
    return message if error.__cause__ is None else f"{message}\n{error.__cause__}"


def _options(group: str) -> list[str]:
    folder = CONFIGS / group
    return [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]


def _composed(config_name: str) -> DictConfig:
    """The config with the command line's choices and without its settings."""
    choices = [override for override in sys.argv[1:] if (CONFIGS / re.split("[@=]", override)[0]).is_dir()]
    with hydra.initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        return hydra.compose(config_name, overrides=[choice for choice in choices if not _is_sweep(choice)])


def _is_sweep(choice: str) -> bool:
    return "," in re.sub(r"\[.*?\]", "", choice)


def _nearest(cfg: DictConfig, key: str) -> str:
    paths = [path for path in _paths(OmegaConf.to_container(cfg, resolve=False)) if "._" not in path]
    last = {path: path.rsplit(".", 1)[-1] for path in paths}
    near = get_close_matches(key, paths, n=1, cutoff=0.8)
    near = near or [path for path in paths if get_close_matches(key.rsplit(".", 1)[-1], [last[path]], cutoff=0.7)][:3]
    return " Did you mean " + " or ".join(map(repr, near)) + "?" if near else " `--cfg job` shows all there are."


def _paths(node: object, path: str = "") -> list[str]:
    """The dotted path of every key below `node`."""
    if not isinstance(node, dict):
        return []
    own = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    return [deeper for full, value in own for deeper in (full, *_paths(value, full))]
