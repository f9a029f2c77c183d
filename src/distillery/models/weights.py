"""Weights of networks: read from files, written to files, hashed."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distillery.core.errors import UserError, did_you_mean
from distillery.core.files import atomic_write

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
CONTAINERS = ("state_dict", "model", "student")
WRAPPERS = ("module.", "_orig_mod.", "net.", "model.")  # DDP, torch.compile, and classes around a network
STUDENTS = ("student.net.", "student.")  # beside other parts, which are not the network's


def load_weights(net: nn.Module, source: str | Path) -> dict[str, Tensor]:
    """Fill every parameter and persistent buffer of `net` from a .safetensors, .pth, .pt or .ckpt file.

    Containers (`{"state_dict": ...}`, `{"model": ...}`), prefixes of DDP and torch.compile and checkpoints
    of Distillery are unpacked; nothing is loaded in part.

    Returns: the weights as the file holds them, which may have other data types than `net`, by their names in `net`.

    Raises:
        UserError: no such file, a corrupt file, or weights of another network.
    """
    path = Path(source)
    _refuse_absent(path)
    wanted = net.state_dict()
    given = unwrap(read_weights(path), wanted)
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {list(given[name].shape)} in the file, {list(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if wrong := [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]:
        raise UserError(
            f"{path} does not fit the {type(net).__name__} ({len(wanted)} tensors): {'; '.join(wrong)}. "
            "The architecture, the number of classes or of input channels is probably another one: "
            "choose the network that the file was saved from, or another file."
        )
    net.load_state_dict(given)
    return given


def load_in_order(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fill `net` with the values of `state` in their order, for weights whose names are those of other code.

    Raises:
        UserError: the number of tensors or any shape differs.
    """
    try:
        net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The {len(state)} weights are of another network than the {type(net).__name__}, which has "
            f"{len(net.state_dict())}: {error}"
        ) from error


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write the state dict as safetensors, whole or not at all: readers never see half a file.

    Tied weights are written under each of their names, so that the file loads without knowing the network.
    """
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    with atomic_write(Path(path)) as unfinished:
        save_file(state, unfinished, metadata={"format": "pt"})


def weights_hash(net: nn.Module, stored: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over name, dtype, shape and bytes of each parameter and buffer, in the order of their names.

    Args:
        stored: the weights as the file of the network holds them (see `load_weights`). They are hashed in place of
            the network's own, so that the hash is that of the network which was saved, whatever its data type.
    """
    digest = hashlib.sha256()
    stored = stored or {}
    dtype = next((tensor.dtype for tensor in stored.values() if tensor.is_floating_point()), None)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name in sorted(tensors):
        tensor = stored[name] if name in stored else tensors[name].detach()
        if name not in stored and dtype and tensor.is_floating_point():  # a buffer that is never saved
            tensor = tensor.to(dtype)
        tensor = tensor.cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Any]:
    """What a .safetensors or a PyTorch file holds, on the CPU; nothing pickled in it is executed.

    Raises:
        UserError: a corrupt file, or one that holds more than plain data.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler fail in many ways, including OSError
        if "Unsupported global" in str(error):
            raise UserError(
                f"{path} holds pickled Python objects, which could run any code and are not loaded. "
                "Save the plain weights where it was made: torch.save(net.state_dict(), 'weights.pth')."
            ) from error
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) cannot be read ({type(error).__name__}): "
            "it is corrupt or cut off. Copy or download it again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict: save net.state_dict().")
    return content


def unwrap(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint: out of its containers, without prefixes that `names` do not have."""
    names = list(names)
    while inner := next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    foreign = [p for p in (*STUDENTS, *WRAPPERS) if not any(name.startswith(p) for name in names)]
    while prefix := next((p for p in foreign if _carries(state, p)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def _carries(state: Mapping[str, Tensor], prefix: str) -> bool:
    """A wrapper's prefix is on every name; the student's is on its own, beside a teacher's or projectors'."""
    found = [name.startswith(prefix) for name in state]
    return any(found) if prefix in STUDENTS else bool(found) and all(found)


def _refuse_absent(path: Path) -> None:
    if path.is_file() and path.suffix in SUFFIXES:
        return
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        raise UserError(f"There is no weights file {path}: the folder {folder} does not exist.")
    problem = f"{path} is no weights file ({', '.join(SUFFIXES)})." if path.exists() else f"There is no file {path}."
    files = [file.name for file in folder.iterdir() if file.suffix in SUFFIXES]
    raise UserError(problem + (did_you_mean(path.name, files) if files else f" {folder} holds no weights."))


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
