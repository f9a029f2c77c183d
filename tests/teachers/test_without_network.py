"""A teacher of which only logits are known, whatever gives them: as a server would."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distillery import Classification, Distiller, Network, Objective, Optim, Teacher, wire
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.kd import KD
from distillery.losses.signals import Signals
from distillery.teachers.frozen import SignalSource
from distillery.teachers.without_network import InBatch, TeacherWithoutNetwork


class Served(SignalSource):
    """Computes elsewhere."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def signals(self, batch: Mapping[str, Tensor]) -> Signals:
        with torch.no_grad():
            return Signals(self.net(batch["image"]))


def test_losses_and_gradients_are_those_of_the_network_itself() -> None:
    torch.manual_seed(0)
    theirs, ours = (nn.Sequential(nn.Flatten(), nn.Linear(16, 5)) for _ in range(2))
    batch = {"image": torch.rand(8, 1, 4, 4), "target": torch.arange(8) % 5}
    batch["logits"] = theirs(batch["image"]).detach()
    found = {}
    for name, teacher in {
        "network": Teacher(theirs),
        "served": TeacherWithoutNetwork(Served(theirs), outputs=5),
        "in the batch": TeacherWithoutNetwork(InBatch("logits"), outputs=5),
    }.items():
        terms = {"kd": KD(weight=0.9), "rkd": RKD(weight=0.5)}
        terms["rkd"].layers = {"head": "head"}
        student = Network(ours)
        wire(terms, student, {"main": teacher}, batch)
        task = Classification(weight=0.1)
        distiller = Distiller(student, {"main": teacher}, task, Objective(task, terms), Optim(torch.optim.SGD))
        assert len(list(distiller.parameters())) == 2
        signals = {"main": teacher(batch, training=True)}
        total = distiller.objective(student(batch), signals, batch).total
        found[name] = total.item(), torch.autograd.grad(total, ours[1].weight)[0]
        assert teacher.fingerprint() == teacher.expected_fingerprint()
    for name, (total, gradient) in found.items():
        assert total == found["network"][0], name
        assert torch.equal(gradient, found["network"][1]), name
