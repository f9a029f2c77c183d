"""Which parameters are decayed: by a config, against a list written out by hand."""

import torch

from fixtures.building import build
from fixtures.composing import Compose

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
