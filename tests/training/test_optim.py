"""Parameter groups: which parameters are decayed and how fast each learns, against timm and lists written by hand."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, OneCycleLR

from distillery.core.errors import UserError
from distillery.models.adapters import TextAdapter
from distillery.models.cifar.resnet import ResNet
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.training.lr_scales import layer_numbers, lr_scales
from distillery.training.objective import Objective
from distillery.training.optim import Optim
from fixtures.building import build
from fixtures.composing import Compose, with_hint
from fixtures.small_transformers import made

SMALL = ("model/teacher=none", "data.train_size=100", "model/student=cnn", "student.net.widths=[4,4]", "logger=none")


def test_biases_and_norms_are_not_decayed_by_adamw_linear(compose_train: Compose) -> None:
    """With a learning rate and a gradient of 0, AdamW only shrinks what it decays."""
    for overrides, decayed in (
        (["optim=adamw_linear"], False),
        (["optim=adamw_linear", "optim.decay_biases_and_norms=true"], True),
        (["optim=adamw"], True),
    ):
        distiller = build(compose_train(*SMALL, *overrides)).distiller
        made = distiller.configure_optimizers()
        optimizer = made["optimizer"]
        for group in optimizer.param_groups:
            group.update(lr=0.5, weight_decay=0.1 if group["weight_decay"] else 0.0)
        before = {name: parameter.detach().clone().fill_(1.0) for name, parameter in distiller.trainable()}
        for _, parameter in distiller.trainable():
            parameter.data.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        shrunk = {name for name, parameter in distiller.trainable() if not torch.equal(parameter, before[name])}
        names = [name for name, _ in distiller.trainable()]
        matrices = {
            name for name, parameter in distiller.trainable() if name.endswith("weight") and parameter.dim() > 1
        }
        assert shrunk == (set(names) if decayed else matrices)
        assert 0 < len(matrices) < len(names)


def test_every_parameter_is_optimised_once(compose_train: Compose) -> None:
    distiller = build(compose_train(*SMALL, "optim=adamw_linear")).distiller
    groups = distiller.configure_optimizers()["optimizer"].param_groups
    optimised = [parameter for group in groups for parameter in group["params"]]
    assert len(optimised) == len(set(optimised)) == len([*distiller.trainable()])


LR, DECAY = 0.1, 0.05
IMAGES = {"image": torch.zeros(2, 3, 32, 32)}
TOKENS = {"input_ids": torch.ones(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def rates(network: Network, batch: Any, **scales: float) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter of a student, in the optimizer of `Optim`."""
    factors = lr_scales(network, Objective(Classification(), {}), batch, **scales)
    make = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY)
    named = {f"student.net.{name}": parameter for name, parameter in network.net.named_parameters()}
    optimizer = Optim(make, decay_biases_and_norms=False, lr_scales=factors).make_optimizer(named.items())
    return of_parameters(network.net, optimizer.param_groups)


def of_parameters(net: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The same by the groups that timm makes, whose schedulers multiply by `lr_scale`."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    found = [(names[one], group) for group in groups for one in group["params"]]
    assert len(found) == len(names)  # each is in one group
    return {name: (group.get("lr", LR) * group.get("lr_scale", 1.0), group["weight_decay"]) for name, group in found}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 12, "num_heads": 2}),
        ("resnet10t", {"num_classes": 5}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}),
    ],
)
def test_layer_decay_of_a_network_of_timm_is_timms(name: str, settings: dict[str, Any]) -> None:
    net = timm.create_model(name, **settings)
    expected = of_parameters(net, param_groups_layer_decay(net, weight_decay=DECAY, layer_decay=0.65))
    assert rates(Network(net), IMAGES, layer_decay=0.65) == expected
    assert len(set(expected.values())) > 6  # layers, decayed or not


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_layer_decay_of_a_transformer(kind: str) -> None:
    """Embeddings, two layers, and what follows: each learns half as fast as the one after it."""
    net = made(kind, layers=2)
    found = rates(Network(net, TextAdapter(net)), TOKENS, layer_decay=0.5)
    for name, (rate, decay) in found.items():
        depth = 1 if "layer.0." in name else 2 if "layer.1." in name else 0 if "embeddings" in name else 3
        assert rate == LR * 0.5 ** (3 - depth), name
        assert (decay == 0) == (net.get_parameter(name).dim() == 1), name


def test_layers_of_a_network_of_feature_maps() -> None:
    network = Network(ResNet(5, depth=8, stem=4, widths=(4, 4, 8)))
    numbers = layer_numbers(network, IMAGES)
    expected = {"stem": 0, "stages.0": 0, "stages.1": 1, "stages.2": 2, "head": 3}
    assert all(
        [number] == [each for part, each in expected.items() if name.startswith(part)]
        for name, number in numbers.items()
    )


def test_without_an_order_of_layers_their_decay_is_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"^optim\.layer_decay: in which order .*optim\.layer_decay=null"):
        rates(Network(flat), IMAGES, layer_decay=0.5)


def test_a_head_has_a_rate_of_its_own() -> None:
    settings = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 12, "num_heads": 2}
    network = Network(timm.create_model("deit_tiny_distilled_patch16_224", **settings))
    fast = {name for name, (rate, _) in rates(network, IMAGES, head=10.0).items() if rate == LR * 10}
    assert fast == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    tied = made("bert", layers=1, head="masked_lm", classes=50)
    with pytest.raises(UserError, match=r"^optim\.lr_scale\.head=10: the student's head .* shares its weights"):
        rates(Network(tied, TextAdapter(tied)), TOKENS, head=10.0)


SCHEDULERS = {
    CosineAnnealingLR: {"T_max": 6},
    OneCycleLR: {"max_lr": LR, "total_steps": 7},
    CyclicLR: {"base_lr": LR / 4, "max_lr": LR, "step_size_up": 2},
}


def test_schedulers_keep_the_ratios() -> None:
    network = Network(ResNet(5, depth=8, stem=4, widths=(4, 4, 8)))
    factors = lr_scales(network, Objective(Classification(), {}), IMAGES, layer_decay=0.5, head=10)
    named = [(f"student.net.{name}", parameter) for name, parameter in network.net.named_parameters()]
    for kind, settings in SCHEDULERS.items():
        optim = Optim(partial(torch.optim.SGD, lr=LR, momentum=0.9), partial(kind, **settings), lr_scales=factors)
        optimizer = optim.make_optimizer(named)
        scheduler = optim.make_scheduler(optimizer)
        alone = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
        by_itself = kind(alone, **settings)
        assert scheduler is not None
        for _ in range(6):
            now = {group["factor"]: group["lr"] for group in optimizer.param_groups}
            assert now == pytest.approx(
                {share: share * alone.param_groups[0]["lr"] for share in (0.125, 0.25, 0.5, 10)}
            )
            for each in (optimizer, scheduler, alone, by_itself):
                each.step()


def test_a_config_names_the_rates_of_projectors_head_and_layers(compose_train: Compose, tmp_path: Path) -> None:
    scales = ["optim.layer_decay=0.5", "optim.lr_scale.projectors=3", "optim.lr_scale.head=10"]
    distiller = build(with_hint(compose_train, tmp_path, 1)("optim=adamw_linear", *scales)).distiller
    optimizer = distiller.configure_optimizers()["optimizer"]
    names = {parameter: name for name, parameter in distiller.trainable()}
    factors = {names[one]: group["factor"] for group in optimizer.param_groups for one in group["params"]}
    expected = {"student.net.stages.0": 0.25, "student.net.stages.1": 0.5, "student.net.head": 10.0, "objective": 3.0}
    assert factors.keys() == {*names.values()}
    for name, factor in factors.items():
        assert [factor] == [each for prefix, each in expected.items() if name.startswith(prefix)], name
    peaks = [group["max_lr"] / group["factor"] for group in optimizer.param_groups]
    assert all(one == pytest.approx(other) for one, other in pairwise([5e-5, *peaks]))
