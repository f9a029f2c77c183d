"""State dicts in files of any origin: read without running what is pickled in them, and found in their wrappers."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from distillery.core.errors import UserError, did_you_mean

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
# Components of names that DDP, torch.compile, FSDP and activation checkpointing insert, at any depth.
INSERTED = frozenset("module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module".split())
USUAL = frozenset("state_dict model_state_dict model net network student backbone encoder module".split())
AVERAGE = re.compile(r"(^|[._])ema([._]|$)|averaged|avg_model")
SAVE = "torch.save(net.state_dict(), 'weights.pth')"


class Opaque:
    """Stands in for a pickled object of a class that is not plain data: that class is never imported or run."""

    path = ""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def __setitem__(self, _: object, __: object) -> None: ...


class Found(NamedTuple):
    """A state dict, and where it was.

    Attributes:
        tensors: by the names that they may have in the network.
        place: the keys that lead to it, `checkpoint.model`; empty where the file itself is the state dict.
        prefix: what was removed from the start of each name.
        inserted: what wrappers had inserted into the names, and was removed.
        beside: names of tensors in the same mapping that do not have the prefix.
        others: the other places that would have done as well, and were not taken.
    """

    tensors: dict[str, Tensor]
    place: str = ""
    prefix: str = ""
    inserted: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Its place and the prefix of its names, as one path."""
        return f"{self.place}.{self.prefix}".strip(".")


def is_weights_file(path: Path) -> bool:
    """Whether it is called like one."""
    return path.name.endswith(SUFFIXES)


def refuse_absent(path: Path) -> None:
    """Raise UserError, with the nearest names, unless there is a file of weights."""
    if path.is_file() and is_weights_file(path):
        return
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UserError(f"There is no weights file {path}: the folder {folder} does not exist.")
    problem = (
        f"{path} is no weights file ({', '.join(SUFFIXES)}). If it holds PyTorch weights, rename it."
        if path.exists()
        else f"There is no file {path}."
    )
    files = [file.name for file in folder.iterdir() if is_weights_file(file)]
    raise UserError(problem + (did_you_mean(path.name, files) if files else f" {folder} holds no weights."))


def read_weights(path: Path) -> dict[str, Any]:
    """What a .safetensors or a PyTorch file holds, on the CPU; nothing pickled in it is run.

    Objects that are no plain data (the `args` of a training script, hyper-parameters) come as `Opaque`.

    Raises:
        UserError: a corrupt file, or one that holds a module or something else than a mapping.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as error:  # a damaged file makes the unpickler fail in many ways, including OSError
        if "Unsupported global" in str(error) or "blocklisted" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which could run any code and are not loaded. "
                f"Save the plain weights where it was made: {SAVE}."
            ) from error
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) cannot be read ({type(error).__name__}): "
            "it is corrupt or cut off. Copy or download it again."
        ) from error
    if isinstance(content, Opaque):
        raise UserError(
            f"{path} holds a whole pickled module ({content.path}), which would run its code when it is loaded. Save "
            f"its plain weights where that code is: net = torch.load({path.name!r}, weights_only=False); {SAVE}."
        )
    if isinstance(content, torch.ScriptModule):
        raise UserError(f"{path} holds a TorchScript module: save its weights, {SAVE}.")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict: save net.state_dict().")
    return content


def _unpickled(path: Path) -> Any:
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the format before PyTorch 1.6, a damaged file
        classes = []
    inert: list[Any] = [(type("Opaque", (Opaque,), {"path": name}), name) for name in classes]
    with torch.serialization.safe_globals(inert):
        return torch.load(path, map_location="cpu", weights_only=True)


def find_state(content: Mapping[str, Any], names: Collection[str]) -> Found:
    """The state dict in a checkpoint that has most of `names`, without wrappers and prefixes that `names` do not have.

    Of several that fit alike, DINO's `teacher` and our `averaged_student` are taken, then a student's, then an average
    of the weights (timm's `state_dict_ema`), then the one whose place is usual (`state_dict`, `model`, `net`, …).

    Raises:
        UserError: several networks of this architecture, none of which is preferred.
    """
    counted = {name for name in names if not name.endswith("num_batches_tracked")}
    own = INSERTED & {part for name in names for part in name.split(".")}
    states = list(_state_dicts(content))
    plain = [{_plain(name, own): value for name, value in state.items()} for _, state in states]
    matches = [_prefixes(state, counted) for state in plain]
    most = max((max(found.values(), default=0) for found in matches), default=0)
    if not most:  # of another network: the largest one, for the message
        place, state = max(states, key=lambda each: len(each[1]), default=("", {}))
        return Found(state, place)
    ranked: dict[int, list[Found]] = {}
    for (place, named), state, prefixes in zip(states, plain, matches, strict=True):
        inserted = sorted({part for name in named for part in name.split(".") if part in INSERTED - own})
        for prefix in (prefix for prefix, count in prefixes.items() if count == most):
            tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            beside = tuple(name for name in state if not name.startswith(prefix))
            found = Found(tensors, place, prefix, tuple(inserted), beside)
            ranked.setdefault(_rank(found), []).append(found)
    best, *rivals = ranked.pop(min(ranked))
    different = [other for other in rivals if not _same(other.tensors, best.tensors)]
    if different and most == len(counted):
        places = ", ".join(each.where or "its top" for each in (best, *different))
        raise UserError(f"it holds several networks of this architecture ({places}). Save the one you mean: {SAVE}.")
    others = (other.where for others in ranked.values() for other in others)
    return best._replace(others=tuple(others))


def _state_dicts(
    content: Mapping[str, Any], place: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in nested mappings, and the keys that lead to it."""
    if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and depth:
            yield from _state_dicts(value, f"{place}.{key}".lstrip("."), depth - 1)


def _plain(name: str, own: Collection[str]) -> str:
    """The name without the components that wrappers insert; the network has those in `own` itself."""
    return ".".join(part for part in name.split(".") if part not in INSERTED or part in own)


def _prefixes(state: Mapping[str, Tensor], names: Collection[str]) -> Counter[str]:
    """How many of `names` are in `state` behind each prefix."""
    found = Counter[str]()
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                found[".".join(parts[:start]) + ("." if start else "")] += 1
    return found


def _rank(found: Found) -> int:
    parts = [part for part in found.where.split(".") if part]
    if found.place == "teacher" or "averaged_student" in parts:  # the average, by which these are evaluated
        return 0
    if "student" in parts:
        return 1
    if AVERAGE.search(found.where):
        return 2
    return 3 if all(part in USUAL for part in parts) else 4


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
