"""Finds transformers by model type, folder or name on the hub, and explains why one cannot be found."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.utils import logging

from distillery.core.errors import UserError, did_you_mean, did_you_mean_beside
from distillery.core.offline import read_cache_if_offline, why_offline

# transformers imports torchao where it is installed, which warns of itself in every process.
getLogger("torch.utils._pytree").setLevel(ERROR)
CONFIG = "config.json"
GGUF = ".gguf"  # a file with config, quantised weights and tokenizer of a language model, as llama.cpp reads it
# What transformers raises where a config or weights cannot be had, or do not fit.
FAILURES = (OSError, ValueError, TypeError, AssertionError, RuntimeError, KeyError, StrictDataclassError)


def is_type(model: str) -> bool:
    """Whether `model` is a model type ('bert'), an architecture without weights."""
    return model in CONFIG_MAPPING


def refuse_type(model: str) -> None:
    """Refuse a model type where pretrained weights are wanted."""
    if is_type(model):
        raise UserError(f"{model!r} is a model type, which has no weights. Name a model on the hub, or a folder.")


def find_config(model: str) -> dict[str, Any]:
    """What config.json says, `model_type` among it; of a model type nothing else: the rest is its class's default.

    Raises:
        UserError: it cannot be found or read, or is of a type that transformers does not have.
    """
    if is_type(model):
        return {"model_type": model}
    place, file = source_of(model)
    if file:
        _refuse_gguf(Path(place, file["gguf_file"]))
    elif _is_path(model):
        _refuse_folder(Path(model).expanduser())
    else:
        read_cache_if_offline()
    try:
        given, _ = PreTrainedConfig.get_config_dict(place, **file)  # runs no code from the repository
    except FAILURES as error:
        raise UserError(why_not(model, CONFIG, error)) from error
    kind = str(given.get("model_type")) if isinstance(given, dict) else "none"
    if not is_type(kind):
        raise UserError(
            f"{CONFIG} of {model!r}: transformers has no model type {kind!r}."
            + did_you_mean(kind, CONFIG_MAPPING.keys())
        )
    return given


def folder_or_name(model: str) -> str:
    """What transformers is given: a folder with `~` replaced, or the name itself."""
    return str(Path(model).expanduser()) if _is_path(model) else model


def source_of(model: str) -> tuple[str, dict[str, str]]:
    """What transformers is given: the folder or name, and by the name of the argument which GGUF file in the folder."""
    if model.endswith(GGUF):
        path = Path(model).expanduser()
        return str(path.parent), {"gguf_file": path.name}
    return folder_or_name(model), {}


def why_not(model: str, what: str, error: BaseException) -> str:
    """Why `what` (config.json, the weights) could not be loaded for `model`, and how to fix it."""
    if _is_path(model):
        return (
            f"{what} cannot be read from the folder {model} ({type(error).__name__}): {_first_line(error)} Copy or "
            "download it again, whole."
        )
    causes = list(_causes(error))
    folders = {path.parent.name for path in Path().glob(f"*/{CONFIG}")}
    near = did_you_mean(model, [*CONFIG_MAPPING.keys(), *folders])
    hint = "" if "/" in model else f" It is no folder here and no model type either.{near}"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f"The hub has no model {model!r}, or it is a private one.{hint} Check the name on the hub's page; for a "
            "private or gated model log in first: hf auth login"
        )
    constants = huggingface_hub.constants
    if constants.HF_HUB_OFFLINE or any(isinstance(cause, LocalEntryNotFoundError) for cause in causes):
        return (
            f"{what} of {model!r}: not in the hub's cache {constants.HF_HUB_CACHE}, and {why_offline()}, "
            f"set HF_HOME to the folder whose `hub` holds it, or name a folder with its {CONFIG} instead.{hint}"
        )
    return f"{what} of {model!r} cannot be loaded: {_first_line(error)}{hint}"


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report of transformers; afterwards everything is as it was."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    no_downloads = are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # those of downloads too
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        (disable_progress_bars if no_downloads else enable_progress_bars)()


def _is_path(model: str) -> bool:
    path = Path(model)
    beside = "/" in model and path.parent.is_dir()  # a folder misspelt, rather than a name `user/model`
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or path.exists() or beside


def _refuse_gguf(file: Path) -> None:
    if not file.is_file():
        near = did_you_mean(file.name, [path.name for path in file.parent.glob(f"*{GGUF}")])
        raise UserError(f"There is no file {file}.{near}")
    if find_spec("gguf") is None:
        raise UserError(f"{file}: transformers reads GGUF with a package that is not installed: pip install gguf")


def _refuse_folder(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder that it is in.")
    if not folder.is_dir():
        near = did_you_mean_beside(folder, Path.is_dir) or f" Nor is there a folder {folder.parent}."
        raise UserError(f"There is no folder {folder}.{near}")
    config = folder / CONFIG
    if not config.is_file():
        raise UserError(
            f"{folder} holds no {CONFIG}: a transformer's folder has one next to its weights, as written by "
            "`save_pretrained`. The folder of one of our runs goes into `weights` instead, with the `net` of that run."
        )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
