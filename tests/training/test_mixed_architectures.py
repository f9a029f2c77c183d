"""Convolutional networks and vision transformers teach each other: maps, tokens, other grids, widths and heads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import DictConfig
from torch import nn

from distillery.config.build import Parts
from distillery.core.errors import UserError
from distillery.losses.feature.hint import Hint
from distillery.losses.term import Term
from distillery.models.cnn import SmallCNN
from distillery.models.weights import save_weights
from distillery.runs.plan import term_table
from fixtures.building import build
from fixtures.composing import Compose

VIT = {
    "model_name": "vit_tiny_patch16_224",
    "img_size": 28,
    "patch_size": 7,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}
DEEP_VIT = {**VIT, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 4}  # 7 × 7 patches in place of 4 × 4
LOSSES = ("loss/feature=[hint]", "loss/attention=[attention_transfer]")
RELATIONS = "loss/relation=[similarity_preserving,ickd,pkt,correlation_congruence]"


def net_of(role: str, kind: str) -> list[str]:
    if kind == "cnn":
        return [f"{role}.net.widths=[4,6,8]"]
    settings = ",".join(f"{key}:{value}" for key, value in (DEEP_VIT if kind == "deep_vit" else VIT).items())
    return [f"++{role}.net={{{settings}}}", f"{role}.input.size=28"]


Made = Callable[..., Parts]


@pytest.fixture
def made(compose_train: Compose, tmp_path: Path) -> Made:
    """`made(student kind, teacher kind, *overrides)`: a run on the digits."""

    def parts(student: str, teacher: str, *overrides: str) -> Parts:
        torch.manual_seed(0)
        settings = DEEP_VIT if teacher == "deep_vit" else VIT
        net: nn.Module = SmallCNN(10, 1, (4, 6, 8))
        if teacher != "cnn":
            net = timm.create_model(**settings, in_chans=1, num_classes=10)
        save_weights(net, tmp_path / "teacher.safetensors")
        groups = {kind: "cnn" if kind == "cnn" else "timm" for kind in (student, teacher)}
        cfg: DictConfig = compose_train(
            f"model/student={groups[student]}",
            f"model/teacher={groups[teacher]}",
            *net_of("student", student),
            *net_of("teachers.main", teacher),
            f"teachers.main.weights='{tmp_path / 'teacher.safetensors'}'",
            *overrides,
        )
        return build(cfg)

    return parts


def term(parts: Parts, name: str) -> Term:
    found = parts.distiller.objective.terms[name]
    assert isinstance(found, Term)
    return found


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("cnn", "vit", {"stages.1": "blocks.0", "stages.2": "blocks.1"}),
        ("vit", "cnn", {"blocks.0": "stages.1", "blocks.1": "stages.2"}),
        ("vit", "deep_vit", {"blocks.0": "blocks.2", "blocks.1": "blocks.5"}),
        ("deep_vit", "vit", {"blocks.2": "blocks.0", "blocks.5": "blocks.1"}),
        ("cnn", "deep_vit", {f"stages.{i}": f"blocks.{2 * i + 1}" for i in range(3)}),
    ],
)
def test_every_loss_on_layers_teaches(student: str, teacher: str, pairs: dict[str, str], made: Made) -> None:
    parts = made(student, teacher, *LOSSES, RELATIONS)
    assert term(parts, "attention_transfer").taps == pairs
    last = list(pairs.items())[-1:]
    for name in ("similarity_preserving", "ickd"):
        assert term(parts, name).taps == dict(last)
    distiller = parts.distiller
    for name in ("hint", "attention_transfer", "similarity_preserving", "ickd", "pkt", "correlation_congruence"):
        signals = {"main": distiller.teachers["main"](parts.example)}
        losses = distiller.objective(distiller.student(parts.example), signals, parts.example)
        assert losses.terms[name].isfinite()
        assert losses.terms[name] > 0
        distiller.zero_grad()
        losses.raw[name].backward()
        (tap,) = list(term(parts, name).taps)[-1:]
        first = next(distiller.student.net.parameters())
        assert first.grad is not None, (name, tap)
        assert first.grad.isfinite().all()
        assert first.grad.any()
        assert all(p.grad is not None and p.grad.any() for p in term(parts, name).parameters())


@pytest.mark.parametrize("kind", ["auto", "mlp", "none"])
@pytest.mark.parametrize(("student", "teacher"), [("cnn", "vit"), ("vit", "cnn"), ("vit", "deep_vit")])
def test_projectors_between_them(student: str, teacher: str, kind: str, made: Made) -> None:
    parts = made(student, teacher, "loss/feature=[hint]", f"loss.hint.projector={kind}")
    hint = term(parts, "hint")
    assert isinstance(hint, Hint)
    layers = {"auto": 1, "mlp": 2, "none": 0}[kind]
    kinds = (nn.Conv2d,) if student == "cnn" else (nn.Linear,)
    assert sum(isinstance(module, kinds) for module in hint.projectors.modules()) == layers
    losses = parts.distiller.training_step(parts.example, 0)
    assert losses["terms"]["hint"] > 0
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in hint.parameters())


def test_wildcards_are_settled_on_the_networks(made: Made) -> None:
    parts = made("vit", "vit", "loss/feature=[hint]", "loss.hint.layers={blocks.*.attn:blocks.*}")
    assert term(parts, "hint").taps == {"blocks.0.attn": "blocks.0", "blocks.1.attn": "blocks.1"}
    words = r"^loss\.hint: `layers: \{blocks\.\*: stages\.\*\}` pairs 2 of the student's .* with 3 of the teacher's"
    with pytest.raises(UserError, match=words):
        made("vit", "cnn", "loss/feature=[hint]", "loss.hint.layers={blocks.*:stages.*}")


def test_the_plan_shows_the_map(made: Made) -> None:
    table = term_table(made("cnn", "deep_vit", "loss/attention=[attention_transfer]"))
    cells = list(zip(table.columns[2].cells, table.columns[3].cells, strict=True))
    assert cells[-3:] == [
        ("stages.0 4×8×8", "main: blocks.1 50×48"),
        ("stages.1 6×4×4", "main: blocks.3 50×48"),
        ("stages.2 8×2×2", "main: blocks.5 50×48"),
    ]
