"""distill-evaluate pictures=true: the similarity of layers by hooks of our own, and what attention is drawn."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.commands import evaluate
from distillery.losses.signals import Attention
from distillery.results.layers import Layers
from distillery.runs.compare_layers import _patches, _tokens, layer_similarity
from distillery.runs.run import Result
from distillery.tasks.cka import cka
from fixtures.command_line import Command


def test_the_matrix_has_the_cka_of_all_layers(run: Callable[..., Result], command: Command) -> None:
    finished = run()
    parts = finished.parts
    networks = {"student": parts.distiller.student, "teacher": parts.distiller.teachers["main"]}
    layers, matrix = layer_similarity(networks, parts.data)
    assert len(layers["student"]) > 1
    (batch,) = parts.data.test_dataloader()
    found: list[torch.Tensor] = []
    for name, network in networks.items():
        hooks = [
            network.net.get_submodule(layer).register_forward_hook(lambda _, __, output: found.append(output.clone()))
            for layer in layers[name]
        ]
        with torch.no_grad():
            network.eval()(batch)
        for hook in hooks:
            hook.remove()
    wanted = [[cka(one, other) for other in found] for one in found]
    np.testing.assert_allclose(matrix, wanted, atol=1e-4)

    answer = command(evaluate, f"run='{finished.folder}'", "pictures=true")
    assert (answer.code, answer.err) == (0, "")
    assert (finished.folder / "similarity.png").read_bytes().startswith(b"\x89PNG")
    (image, *_) = batch["image"]
    found.clear()
    kept = Layers.read(finished.folder)
    assert kept is not None
    assert (kept.kind, kept.stages) == ("activation", layers)
    np.testing.assert_allclose(kept.cka, matrix, atol=1e-6)
    np.testing.assert_array_equal(kept.images[0], image.movedim(0, -1))
    hook = (
        networks["student"]
        .net.get_submodule(kept.pairs[0][0])
        .register_forward_hook(lambda _, __, output: found.append(output.clone()))
    )
    with torch.no_grad():
        networks["student"].eval()(batch)
    hook.remove()
    np.testing.assert_allclose(kept.maps["student"][0], found[0][:4].square().mean(1), rtol=1e-4, atol=1e-6)


def test_a_run_without_a_teacher_is_given_one(teacher: Path, command: Command, tmp_path: Path) -> None:
    answer = command(evaluate, f"run='{teacher}'", "pictures=true")
    assert answer.code == 2
    assert "no teacher 'main' with a network of its own. Name the teacher's run: teacher=" in " ".join(
        answer.err.split()
    )
    own = shutil.copytree(teacher, tmp_path / "own")
    answer = command(evaluate, f"run='{own}'", "pictures=true", f"teacher='{teacher}'")
    assert (answer.code, answer.err) == (0, "")
    kept = Layers.read(own)
    assert kept is not None
    number = len(kept.stages["student"])
    np.testing.assert_allclose(kept.cka[:number, :number], kept.cka[:number, number:], atol=1e-4)


@pytest.mark.parametrize("registers", [0, 1, 2])
def test_attention_of_images_is_that_of_the_class_token_to_the_patches(registers: int) -> None:
    length = registers + 9
    query, key = (torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    found = _patches(Attention(query, key, key, None, 0.5), None)
    scores = 0.5 * np.einsum("bhqd,bhkd->bhqk", query.numpy(), key.numpy())
    odds = np.exp(scores)
    p = (odds / odds.sum(-1, keepdims=True)).mean(1)
    wanted = p[:, 0, registers:] if registers else p.mean(1)
    np.testing.assert_allclose(found, wanted.reshape(2, 3, 3), rtol=1e-4)


def test_attention_of_texts_leaves_out_padding() -> None:
    query, key = (torch.randn(1, 2, 6, 4, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    found = _tokens(Attention(query, key, key, None, 1.0), torch.tensor([[1, 1, 1, 1, 0, 0]]))
    odds = np.exp(np.einsum("hqd,hkd->hqk", query[0, :, :4].numpy(), key[0, :, :4].numpy()))
    np.testing.assert_allclose(found, (odds / odds.sum(-1, keepdims=True)).mean(0), rtol=1e-4)
