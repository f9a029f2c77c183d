"""FSDP2's parts on two ranks: what is sharded, and what the shards compute together."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.training.fsdp import is_sharded, local, shard, share_buffers, whole_state
from fixtures.random import draw
from fixtures.thread_ranks import SEEDED, on_ranks

IMAGES = draw(4, 1, 8, 8).float()


def parts() -> tuple[Network, nn.Module]:
    """A student, and a projector in the place of the losses."""
    with SEEDED:
        torch.manual_seed(0)
        net = SmallCNN(10, 1, (4, 6), norm="group")
        return Network(net), nn.Sequential(nn.Linear(10, 3))


def output(student: Network, objective: nn.Module, images: Tensor) -> Tensor:
    result: Tensor = objective(student({"image": images}).logits)
    return result


def test_shards_compute_what_the_whole_does() -> None:
    """Each rank has half of the images; a gradient is the mean over the ranks, as that of the whole batch."""
    student, objective = parts()
    expected = output(student, objective, IMAGES)
    expected.square().mean().backward()
    before = student.state_dict()
    gradients = {name: value.grad for name, value in student.named_parameters()}

    def work(rank: int) -> None:
        student, objective = parts()
        assert not is_sharded(student)
        assert whole_state(student).keys() == before.keys()
        shard(student, objective, init_device_mesh("cpu", (2,)))
        assert is_sharded(student)
        assert is_sharded(objective)
        blocks = [name for name, module in student.net.named_modules() if isinstance(module, FSDPModule)]
        assert blocks == ["stages.0", "stages.1"]  # gathered one by one; the rest with the student
        weight = student.net.head.weight
        assert isinstance(weight, DTensor)
        assert local(weight).shape == (5, 6)
        found = output(student, objective, IMAGES[rank::2])
        torch.testing.assert_close(found, expected.detach()[rank::2])
        found.square().mean().backward()
        for name, parameter in student.named_parameters():
            half = gradients[name].chunk(2)[rank : rank + 1]  # type: ignore[union-attr]
            torch.testing.assert_close(local(parameter.grad), *half)  # type: ignore[arg-type]
        for name, value in whole_state(student).items():
            assert torch.equal(local(value), before[name]), name
            assert not isinstance(value, DTensor)

    on_ranks(work)


def test_every_rank_gets_the_buffers_of_the_first() -> None:
    def work(rank: int) -> nn.Module:
        with SEEDED:
            torch.manual_seed(rank)
            norms = nn.Sequential(nn.BatchNorm1d(3), nn.Identity(), nn.BatchNorm2d(2))
            for module in (norms[0], norms[2]):
                module.running_mean = torch.randn(module.num_features)
                module.running_var = torch.rand(module.num_features)
                module.num_batches_tracked += rank
        share_buffers(norms)
        share_buffers(nn.Linear(2, 2))  # has none
        return norms

    first, second = (norms.state_dict() for norms in on_ranks(work))
    assert first["0.running_mean"].std() > 0
    assert {name for name in first if not torch.equal(first[name], second[name])} == {
        "0.num_batches_tracked",  # counted by each rank, and the same where they train
        "2.num_batches_tracked",
    }
