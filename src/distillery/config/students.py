"""Config → the student, with the weights that it begins with."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from distillery.config.networks import adapter, built, fill, initialised, other_statistics, trained_config
from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.models.lora import add_lora, merged_state
from distillery.models.qat import simulate
from distillery.models.taps.network import Network
from distillery.results.layout import CONFIG

SOURCE = "student.initialise.source"
AT_ONCE = 4  # texts on which activations are taken


def build_student(cfg: DictConfig, data: Data | None = None, **parts: Any) -> Network:
    """The student of a completed config, with new weights unless `weights` or `initialise` says otherwise.

    Args:
        data: the data that it will be trained on. Factorised embeddings depend on how often each word occurs, and the
            choice of units by their activation on the texts.
        parts: parts of its network that exist already, by the names of their settings in `cfg.net`.

    Raises:
        UserError: the network cannot be made, or its weights cannot be loaded.
    """
    net = initialised(cfg, "student", **parts)
    _, remarks = fill(net, cfg, "student")
    if settings := cfg.get("initialise"):
        remarks = _initialise(net, cfg, settings, data)
    if settings := cfg.get("lora"):
        add_lora(net, **settings)
    if scheme := cfg.get("qat"):
        remarks = [*remarks, simulate(net, scheme)]
    if cfg.get("gradient_checkpointing"):
        _checkpoint_activations(net)
    student = Network(net, adapter(cfg, net), name="student")
    student.remarks += [*remarks, *other_statistics(cfg, net)]
    return student


def blank_student(cfg: DictConfig, dtype: torch.dtype) -> Network:
    """The student of a completed config, in this data type and without its weights, which are loaded afterwards."""
    own = cfg.copy()
    own.weights = None
    for key in ("initialise", "lora", "gradient_checkpointing"):
        own.pop(key, None)
    return build_student(own).to(dtype)


def exported_student(cfg: DictConfig, student: Network) -> Network:
    """The student as it leaves training: one with LoRA's matrices merged, if it has any, else the student itself."""
    state = merged_state(student.net)
    if state is None:
        return student
    whole = blank_student(cfg, next(student.parameters()).dtype).to(student.device)
    whole.net.load_state_dict(state)
    whole.known_head = student.known_head
    return whole


def source_tokenizer(source: str) -> str:
    """The tokenizer of the network that a student is initialised from."""
    if (Path(source) / CONFIG).is_file():
        return str(trained_config(source, SOURCE).student.input.tokenizer)
    return source


def _checkpoint_activations(net: nn.Module) -> None:
    """Keep no activations inside of layers for the backward, which computes them again: less memory, more time.

    Nothing changes in evaluation mode, and without gradients.
    """
    inner: Any = getattr(net, "encoder", net)
    if hasattr(inner, "gradient_checkpointing_enable"):  # of transformers
        with suppress(ValueError), warnings.catch_warnings(action="ignore"):  # not all can; the name is an old one
            inner.gradient_checkpointing_enable({"use_reentrant": False})
            return
    elif hasattr(inner, "set_grad_checkpointing"):  # of timm
        inner.set_grad_checkpointing()
        return
    raise UserError(
        f"student.gradient_checkpointing=true: a {type(inner).__name__} cannot compute its activations again. Set "
        "false."
    )


def _initialise(net: nn.Module, cfg: DictConfig, settings: DictConfig, data: Data | None) -> list[str]:
    """Fill the student with weights of another network; returns what was kept of it."""
    # transformers takes seconds: only where it is asked for
    from distillery.models.text.initialise import initialise

    if cfg.weights is not None:
        raise UserError(
            "student.weights and student.initialise both set the student's weights: set one of them to null."
        )
    given = {str(key): value for key, value in settings.items() if key not in ("source", "samples")}
    factorised = given.get("embeddings") == "factorise"  # nothing else reads the counts
    counts = data.word_counts() if data is not None and factorised else None
    source = _source(settings.source, cfg)
    batches = _batches(source, cfg, data, settings.get("samples", 64)) if data is not None else ()
    return initialise(net, source, counts=counts, batches=batches, **given).remarks


def _batches(source: nn.Module, cfg: DictConfig, data: Data, samples: int) -> Iterator[tuple[Any, Any]]:
    """Training texts as `by_activation` is given them; made only if they are asked for."""
    inputs, batch = adapter(cfg, source), data.example(samples)
    for at in range(0, len(batch["index"]), AT_ONCE):
        some = {key: value[at : at + AT_ONCE] for key, value in batch.items()}
        yield inputs(some)[1], inputs.mask(some)


def _source(source: str, cfg: DictConfig) -> nn.Module:
    """The network that the student is initialised from: a run's student, or a pretrained one by its name or folder."""
    if (Path(source) / CONFIG).is_file():
        own = trained_config(source, SOURCE).student.copy()
        own.weights = source
        own.pop("initialise", None)
        return built(own, SOURCE)
    net = OmegaConf.create({"_target_": cfg.net._target_, "model": source, "head": cfg.net.head})
    if cfg.net.head != "causal_lm":  # whose vocabulary may be padded beyond the tokenizer's
        net.num_classes = cfg.net.get("num_classes")
    return instantiate(net, pretrained=True)
