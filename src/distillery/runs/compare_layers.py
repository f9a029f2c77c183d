"""Pictures of a finished run: how alike the layers of student and teacher are, and what their attention looks at."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from distillery.core.errors import UserError
from distillery.core.terminal import say
from distillery.data.module import Data
from distillery.data.text import TextData
from distillery.losses.patches import grid_of
from distillery.losses.signals import Attention
from distillery.models.evaluation_mode import evaluating
from distillery.models.taps.layer_pairs import all_stages, attention_layers
from distillery.models.taps.network import Network
from distillery.results.layout import ATTENTION, SIMILARITY
from distillery.results.report.plot import STYLE
from distillery.results.report.plot_layers import plot_attention_of_images, plot_attention_of_texts, plot_similarity
from distillery.runs.class_fidelity import sample
from distillery.runs.verify_run import rebuilt, teacher_of
from distillery.tasks.cka import gram, normalised, unbiased_hsic

PAIRS = 3  # of attention layers in the picture: the first, the middle and the last one
IMAGES, TEXTS = 4, 1  # samples in it
TOKENS = 24  # of a text at most


def compare_layers(folder: Path, teacher: str = "main") -> list[Path]:
    """Draw `similarity.png` and, of two transformers, `attention.png` into the folder of a finished run.

    The first has the CKA of each stage (of a transformer, each block) of the student and its teacher with each other,
    on up to 1,024 test samples; the second what the attention of layers of equal relative depth looks at.

    Args:
        teacher: its name in the run.

    Raises:
        UserError: see `verify_run` and `teacher_of`; the run has no such teacher that is a network here.
    """
    record, student, data, _ = rebuilt(folder, "test")
    own = teacher_of(folder, record, teacher)
    if own is None:
        raise UserError(f"The run in {folder} has no teacher {teacher!r} with a network of its own: name another run.")
    networks = {"student": student, "teacher": own.to(student.device)}
    batch = next(iter(sample(data)))
    written = []
    with rc_context(STYLE):
        layers, matrix = layer_similarity(networks, data)
        plot_similarity(matrix, layers).savefig(folder / SIMILARITY)
        written.append(folder / SIMILARITY)
        ours, theirs = (network.attention_modules(_to(batch, network)) for network in networks.values())
        if ours and theirs:
            pairs = [*attention_layers(ours, theirs, "all").items()]
            pairs = [pairs[place] for place in sorted({0, len(pairs) // 2, len(pairs) - 1})][:PAIRS]
            figure = _attention(networks, pairs, batch, data)
            if figure is not None:
                figure.savefig(folder / ATTENTION)
                written.append(folder / ATTENTION)
    say("Written: " + "  ".join(map(str, written)))
    return written


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


def _attention(
    networks: Mapping[str, Network], pairs: list[tuple[str, str]], batch: Mapping[str, Tensor], data: Data
) -> Figure | None:
    """The picture; None where attention is not between all tokens of a sample, as in windows, or the tokens differ."""
    some = {key: values[: IMAGES if data.kind == "images" else TEXTS] for key, values in batch.items()}
    if any(network.adapter.own_tokenizer(some) for network in networks.values()):
        return None
    maps: dict[str, list[NDArray[np.float32]]] = {}
    for (name, network), layers in zip(networks.items(), zip(*pairs, strict=True), strict=True):
        given = _to(some, network)
        network.tap_attention(layers, given)
        with evaluating(network):
            signals = network(given)
        network.tap_attention((), {})
        found = [signals.attention[layer] for layer in layers]
        if any(len(each.query) != len(given["index"]) for each in found):
            return None
        read = _patches if data.kind == "images" else _tokens
        maps[name] = [read(each, signals.mask) for each in found]
    if data.kind == "images":
        return plot_attention_of_images(some["image"].movedim(1, -1).numpy(), maps, pairs)
    assert isinstance(data, TextData)
    ids = some["input_ids"][0][some["attention_mask"][0].bool()][:TOKENS]
    return plot_attention_of_texts(data.loaded_tokenizer.convert_ids_to_tokens(ids.tolist()), maps, pairs)


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
