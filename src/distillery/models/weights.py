"""Weights of networks: read from files, written to files, hashed."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.models.classifier import classifier_paths
from distillery.models.weight_files import Found, find_state, read_weights, refuse_absent

# What is no part of a network: counters of profilers, of an average's updates and of positions; losses and metrics.
COUNTERS = frozenset("total_ops total_params n_averaged num_batches_tracked position_ids mask_token".split())
BESIDE = re.compile(r"criterion|objective|.*loss.*|.*metrics?|((train|val|valid|test)_)?(acc\w*|auroc|f1\w*)")
HEAD = re.compile(r"head\w*|fc|classifier|last_linear|project\w*|predictor|decoder\w*|prototypes?")


class OtherHead(UserError):
    """The weights fit but for the classifier."""


class Loaded(NamedTuple):
    """The weights as a file holds them, which may have other data types than the network's, by their names in it.

    `remarks` say what was removed from names, left out or newly initialised; none where the file is the network's.
    """

    tensors: dict[str, Tensor]
    remarks: list[str]


def load_weights(net: nn.Module, source: str | Path, new_head: bool = False) -> Loaded:
    """Fill every parameter and persistent buffer of `net` from a file (`weight_files.SUFFIXES`).

    Containers (`{"state_dict": ...}`), prefixes (`module.`, `backbone.`) and parts that belong to no network (a loss, a
    metric, a profiler's counters) are recognised. Nothing is loaded in part, but BatchNorm's `num_batches_tracked`,
    which old files lack, stays as it is.

    Args:
        new_head: leave the classifier as it is initialised if that of the file has other classes, or there is none.

    Raises:
        UserError: no such file, a corrupt file, or weights of another network; says which, and what the file holds.
    """
    path = Path(source)
    refuse_absent(path)
    wanted = net.state_dict()
    content = read_weights(path)
    try:
        found = find_state(content, wanted)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    given = found.tensors
    head = classifier_paths(net)
    tracked = [name for name in wanted if name.endswith("num_batches_tracked") and name not in given]
    missing = [name for name in wanted if name not in given and name not in tracked]
    other_shape = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    other_head = [name for name in (*missing, *other_shape) if name.rpartition(".")[0] in head]
    if new_head:
        missing, other_shape = ([n for n in names if n not in other_head] for names in (missing, other_shape))
    ignored = _ignored(given, wanted) if not missing else [name for name in given if _is_counter(name, wanted)]
    unexpected = [name for name in given if name not in wanted and name not in ignored]
    shapes = [
        f"{name} {list(given[name].shape)} in the file, {list(wanted[name].shape)} in the network"
        for name in other_shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if wrong := [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]:
        only_head = set(missing) | set(other_shape) == set(other_head)
        raise (OtherHead if only_head and not unexpected else UserError)(
            f"{path} does not fit the {type(net).__name__} ({len(wanted)} tensors): {'; '.join(wrong)}."
            f"{_contents(content, found)} {_cause(wanted, given, missing, unexpected, other_shape, only_head)}"
        )
    tensors = {name: given[name] for name in wanted if name in given and name not in (other_head if new_head else ())}
    net.load_state_dict(tensors, strict=False)  # what is missing has been found above
    remarks = _remarks(path, content, found, ignored, tracked)
    if new_head and other_head:
        remarks.append(f"{path.name}: new head ({_first(other_head)}), newly initialised")
    return Loaded(tensors, remarks)


def _is_counter(name: str, wanted: Mapping[str, Tensor]) -> bool:
    return name not in wanted and name.rpartition(".")[2] in COUNTERS


def _ignored(given: Iterable[str], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names of the file that no network of this kind needs; a whole network is there without them.

    A head is one of them only where the network has none.
    """
    parts = {name.partition(".")[0] for name in wanted}
    headless = not any(HEAD.fullmatch(part) for part in parts)

    def beside(name: str) -> bool:
        part = name.partition(".")[0]
        return part not in parts and bool(BESIDE.fullmatch(part) or (headless and HEAD.fullmatch(part)))

    return [name for name in given if name not in wanted and (_is_counter(name, wanted) or beside(name))]


def _contents(content: Mapping[str, Any], found: Found) -> str:
    """What is at the top of a file that is more than a state dict."""
    if all(isinstance(value, Tensor) for value in content.values()):
        return "" if content else " The file is empty."
    keys = [
        f"{key} ({len(value)} entries)" if isinstance(value, Mapping) else str(key) for key, value in content.items()
    ]
    weights = f"taken for weights: {found.where or 'its tensors'}" if found.tensors else "none of them holds tensors"
    return f" At its top the file has {_first(keys, 8)}; {weights}."


def _cause(
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    other_shape: Sequence[str],
    only_head: bool,
) -> str:
    """Why weights do not fit, and the mend."""
    choose = "Choose the network that the file was saved from, or another file."
    if not given:
        return "It holds no weights. Save them where it was made: torch.save(net.state_dict(), 'weights.pth')."
    if only_head and not unexpected:
        classes = f" ({len(given[other_shape[0]])} classes in the file)" if other_shape else ""
        return f"Only the head differs{classes}: the file was made for other classes, or for none."
    if not given.keys() & wanted.keys():
        return f"None of its names is one of the network's: the architecture is another one, or other code. {choose}"
    if not missing and not unexpected:
        name = other_shape[0]
        theirs, ours = given[name].shape, wanted[name].shape
        if len(theirs) > 2 and len(theirs) == len(ours) and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
            return f"Its input channels are others: {theirs[1]} in the file, {ours[1]} here (net.in_chans)."
        return f"The architecture is this one in other sizes (widths, input). {choose}"
    if unexpected and not missing and not other_shape:
        return f"The file has more layers than the network. {choose}"
    return f"The architecture is another one. {choose}"


def _remarks(
    path: Path, content: Mapping[str, Any], found: Found, ignored: Sequence[str], tracked: Sequence[str]
) -> list[str]:
    """What was done to a file's content to make the network's weights of it."""
    said = [f"weights of {found.place}"] if found.place else []
    if found.others:
        said[:] = [f"weights of {found.where or 'its top'}, not of {_first(list(found.others))}"]
    if removed := [*([found.prefix] if found.prefix else []), *(f"{part}." for part in found.inserted)]:
        said.append(f"removed from names: {', '.join(removed)}")
    top = found.place.partition(".")[0]
    rest = [str(key) for key, value in content.items() if key != top and not isinstance(value, Tensor)]
    if left := [*found.beside, *ignored, *rest]:
        said.append(f"left out: {_first(left)}")
    if tracked:
        said.append(f"num_batches_tracked is not in it ({len(tracked)} times)")
    return [f"{path.name}: {'; '.join(said)}"] if said else []


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

    A network that rounds them (`student.qat`) is another one than the same weights without.

    Args:
        stored: the weights as the file of the network holds them (see `load_weights`). They are hashed in place of
            the network's own, so that the hash is that of the network which was saved, whatever its data type.
    """
    digest = hashlib.sha256(str(getattr(net, "qat", "")).encode())
    stored = stored or {}
    dtype = next((tensor.dtype for tensor in stored.values() if tensor.is_floating_point()), None)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for name in sorted(tensors):
        tensor = stored[name] if name in stored else tensors[name].detach()
        if name not in stored and dtype and tensor.is_floating_point():  # a buffer that is never saved
            tensor = tensor.to(dtype)
        for part, plain in _parts(name, tensor):
            plain = plain.cpu().contiguous()
            digest.update(f"{part} {plain.dtype} {list(plain.shape)};".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensor by its name, or those that a quantised one of torchao is made of."""
    if not type(tensor).__module__.startswith("torchao."):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        if getattr(tensor, part) is not None:
            yield from _parts(f"{name}.{part}", getattr(tensor, part))


def unwrap(content: Mapping[str, Any], names: Iterable[str]) -> dict[str, Tensor]:
    """The state dict in a checkpoint: out of its containers, without prefixes that `names` do not have."""
    return find_state(content, list(names)).tensors


def _first(names: Sequence[str], number: int = 3) -> str:
    return ", ".join(names[:number]) + (", …" if len(names) > number else "")
