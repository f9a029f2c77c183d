"""What `distill-evaluate pictures=true` measures of a finished run: how alike the layers of student and teacher are."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from distillery.config.networks import build_teacher, complete, run_config
from distillery.config.stages import RUN_TEACHER
from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.data.text import TextData
from distillery.losses.patches import grid_of
from distillery.losses.signals import Attention
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.layer_pairs import all_stages, attention_layers, auto_layers
from distillery.models.taps.network import Network
from distillery.results.layers import NETWORKS, Layers
from distillery.results.layout import ATTENTION, LAYERS, SIMILARITY
from distillery.results.report.plot import STYLE
from distillery.results.report.plot_layers import plot_maps, plot_similarity
from distillery.runs.class_fidelity import sample
from distillery.runs.verify_run import rebuilt, teacher_of
from distillery.tasks.cka import gram, normalised, unbiased_hsic

PAIRS = 3  # of layers in the picture of maps: the first, the middle and the last one
IMAGES, TEXTS = 4, 1  # samples in it
TOKENS = 24  # of a text at most

Maps = dict[str, list[NDArray[np.float32]]]


def compare_layers(folder: Path, teacher: Path | None = None) -> list[Path]:
    """Write `layers.npz`, which a report reads, into the folder of a finished run, and draw what it holds.

    `similarity.png` has the CKA of each stage (of a transformer, each block) of the student and its teacher with each
    other, on up to 1,024 test samples; `attention.png` shows what layers of equal relative depth look at.

    Args:
        teacher: the run folder of the teacher; None: the run's own.

    Raises:
        UserError: see `verify_run` and `teacher_of`; the run has no such teacher that is a network here.
    """
    record, student, data, task = rebuilt(folder, "test")
    if teacher is None:
        own = teacher_of(folder, record, "main")
    else:
        cfg = run_config(str(folder), "run")
        given = OmegaConf.merge(cfg, {"teachers": {"main": {**RUN_TEACHER, "weights": str(teacher)}}}).teachers.main
        own = build_teacher(complete(given, data, task, "main"), "main")
    if own is None:
        raise UserError(
            f"The run in {folder} has no teacher 'main' with a network of its own. Name the teacher's run: teacher=…"
        )
    own.place(student.device)
    found = measured({"student": student, "teacher": own}, data)
    found.write(folder)
    written = [folder / LAYERS, folder / SIMILARITY]
    with rc_context(STYLE):
        plot_similarity(found).savefig(folder / SIMILARITY)
        if found.pairs:
            plot_maps({"student": found}).savefig(folder / ATTENTION)
            written.append(folder / ATTENTION)
    say("Written: " + "  ".join(map(str, written)))
    return written


def measured(networks: Mapping[str, Network], data: Data) -> Layers:
    """The similarity of all stages, and the maps of some pairs of layers: of attention, or else of activation."""
    stages, cka = layer_similarity(networks, data)
    batch = next(iter(sample(data)))
    some = {key: values[: IMAGES if data.kind == "images" else TEXTS] for key, values in batch.items()}
    pairs, maps, kind = _maps(networks, some, data)
    images = some["image"].movedim(1, -1).numpy() if data.kind == "images" else np.zeros((0, 0, 0, 0), np.float32)
    tokens: list[str] = []
    if isinstance(data, TextData):
        ids = some["input_ids"][0][some["attention_mask"][0].bool()][:TOKENS]
        tokens = data.loaded_tokenizer.convert_ids_to_tokens(ids.tolist())
    return Layers(stages, cka, pairs, maps, kind, images, tokens)


def layer_similarity(networks: Mapping[str, Network], data: Data) -> tuple[dict[str, list[str]], NDArray[np.float64]]:
    """The stages of each network, and the CKA of all of them with each other, in their order: [A + B, A + B].

    From means of unbiased estimates over batches (Nguyen et al. 2021). Features of tokens are means over the tokens
    that count.
    """
    layers: dict[str, list[str]] = {}
    total, batches = torch.zeros(()), 0
    for batch in sample(data):
        if len(batch["index"]) < 4:
            continue  # too few for an estimate
        kernels = []
        for name, network in networks.items():
            given = _to(batch, network)
            if name not in layers:
                layers[name] = all_stages(network.stages(given))
                network.tap(layers[name], given)
            with evaluating(network):
                signals = network(given)
            kernels += [gram(_features(signals.layers[layer], signals.mask)) for layer in layers[name]]
        stacked = torch.stack(kernels)
        total, batches = total + unbiased_hsic(stacked, stacked), batches + 1
    if not batches:
        raise UserError("The similarity of layers needs at least four test samples in a batch.")
    for network in networks.values():
        network.tap((), {})
    return layers, normalised(total, total, total).numpy()


def _features(output: Tensor, mask: Tensor | None) -> Tensor:
    """[N, …] on the CPU; of tokens that a mask knows the mean over those that count."""
    if mask is not None and output.dim() == 3:
        weight = mask[..., None].to(output)
        output = (output * weight).sum(1) / weight.sum(1)
    return output.float().cpu()


def _maps(
    networks: Mapping[str, Network], some: Mapping[str, Tensor], data: Data
) -> tuple[list[tuple[str, str]], Maps, str]:
    """Pairs of layers, what they look at in a few samples, and what kind of map that is.

    No pairs: attention is not between all tokens of a sample, as in windows, the tokens of the two differ, or one of
    them is a transformer and the other is not.
    """
    nothing: tuple[list[tuple[str, str]], Maps, str] = ([], {}, "")
    if any(network.adapter.own_tokenizer(some) for network in networks.values()):
        return nothing
    student, teacher = (networks[name] for name in NETWORKS)
    ours, theirs = (network.attention_modules(_to(some, network)) for network in (student, teacher))
    attention = bool(ours and theirs)
    if attention:
        layers = attention_layers(ours, theirs, "all")
    elif ours or theirs or data.kind != "images":
        return nothing
    else:
        layers = auto_layers(student.stages(_to(some, student)), teacher.stages(_to(some, teacher)), "all")
    pairs = [*layers.items()]
    pairs = [pairs[place] for place in sorted({0, len(pairs) // 2, len(pairs) - 1})][:PAIRS]
    maps: Maps = {}
    for name, own in zip(NETWORKS, zip(*pairs, strict=True), strict=True):
        network = networks[name]
        given = _to(some, network)
        if not attention:
            network.tap(own, given)
            with evaluating(network):
                signals = network(given)
            network.tap((), {})
            maps[name] = [_activation(signals.layers[layer]) for layer in own]
            continue
        network.tap_attention(own, given)
        with evaluating(network):
            signals = network(given)
        network.tap_attention((), {})
        found = [signals.attention[layer] for layer in own]
        if any(len(each.query) != len(given["index"]) for each in found):
            return nothing
        read = _patches if data.kind == "images" else _tokens
        maps[name] = [read(each, signals.mask) for each in found]
    return pairs, maps, "activation" if not attention else "patches" if data.kind == "images" else "attention"


def _activation(features: Tensor) -> NDArray[np.float32]:
    """The map that attention transfer compares: [B, H, W], the mean over channels of the squares."""
    return np.asarray(features.float().square().mean(1).cpu())


def _patches(attention: Attention, _: Tensor | None) -> NDArray[np.float32]:
    """What the class token, or the mean patch where there is none, attends to: [B, H, W], the mean over heads."""
    p = attention.masked_scores().softmax(-1).mean(1)
    grid = grid_of(p.shape[-1])
    before = p.shape[-1] - grid**2  # class token and registers
    seen = p[:, 0, before:] if before else p.mean(1)
    return np.asarray(seen.unflatten(-1, (grid, grid)).cpu())


def _tokens(attention: Attention, mask: Tensor | None) -> NDArray[np.float32]:
    """What each token of the first text attends to: [L, L], the mean over heads."""
    p = attention.masked_scores(mask).softmax(-1).mean(1)[0]
    length = min(TOKENS, len(p) if mask is None else int(mask[0].sum()))
    return np.asarray(p[:length, :length].cpu())


def _to(batch: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    return {name: values.to(network.device) for name, values in batch.items()}
