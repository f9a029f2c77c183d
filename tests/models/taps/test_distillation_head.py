"""Students with a second head (timm's distilled DeiT): one head learns from labels, the other from the teacher."""

import pytest
import timm
import torch
from torch import nn

from distillery.core.errors import UserError
from distillery.losses.response.deit_hard import DeiTHard
from distillery.losses.response.kd import KD
from distillery.losses.term import Term
from distillery.models.adapters import ImageAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.network import Network
from distillery.tasks.classification import Classification
from distillery.teachers.frozen import Teacher
from distillery.training.objective import Losses, Objective
from distillery.training.wiring import wire

BATCH = {
    "image": torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0)),
    "target": torch.tensor([0, 1, 2, 3, 4, 5]),
    "index": torch.arange(6),
}


def deit() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=64,
        patch_size=16,
        in_chans=1,
        num_classes=10,
        embed_dim=24,
        depth=2,
        num_heads=2,
    )
    for head in (net.head, net.head_dist):
        nn.init.normal_(head.weight)  # timm's start at 0, where the two could not be told apart
    return net


def levit() -> nn.Module:
    """Its heads are a BatchNorm and a linear layer each."""
    torch.manual_seed(0)
    net: nn.Module = timm.create_model(
        "levit_128s",
        img_size=64,
        in_chans=1,
        num_classes=10,
        embed_dim=(16, 16, 16),
        key_dim=8,
        num_heads=(1, 1, 1),
    )
    for head in (net.head, net.head_dist):
        nn.init.normal_(head.linear.weight)
    return net


def network(net: nn.Module) -> Network:
    return Network(net, ImageAdapter([0.5], [0.25]), name="student")


@pytest.fixture(params=[deit, levit])
def student(request: pytest.FixtureRequest) -> Network:
    return network(request.param())


def test_heads_are_told_apart(student: Network) -> None:
    assert student.tap(["head", "distillation_logits", "embedding"], BATCH)["distillation_logits"] == (6, 10)
    assert student.head(BATCH) in ("head", "head.linear")
    net = student.net
    assert isinstance(net, nn.Module)
    student.eval()
    given = student(BATCH)
    torch.testing.assert_close(given.logits, (given.layers["head"] + given.layers["distillation_logits"]) / 2)
    torch.testing.assert_close(net(student.adapter(BATCH)[0][0]), given.logits)


def test_in_training_the_task_sees_the_class_head_alone(student: Network) -> None:
    student.tap(["head", "distillation_logits"], BATCH)
    given = student.train()(BATCH)
    torch.testing.assert_close(given.logits, given.layers["head"], rtol=0, atol=0)
    assert (given.layers["head"] - given.layers["distillation_logits"]).abs().max() > 0.1


def test_without_a_loss_on_the_second_head_the_task_trains_both(student: Network) -> None:
    """Else the mean that is given in evaluation would be half untrained."""
    for taps in ([], ["head"], ["distillation_logits"], ["embedding"], []):
        student.tap(taps, BATCH)
        student.zero_grad()
        student.train()(BATCH).logits.square().sum().backward()
        trained = {name for name, p in student.net.named_parameters() if p.grad is not None and p.grad.any()}
        assert any(name.startswith("head.") for name in trained)
        assert any(name.startswith("head_dist.") for name in trained) == (taps != ["distillation_logits"])


def losses(student: Network, term: Term) -> Losses:
    torch.manual_seed(1)
    teacher = Teacher(SmallCNN(10, 1, widths=[4]), ImageAdapter([0.5], [0.25]), name="main")
    wire({"loss": term}, student, {"main": teacher}, BATCH)
    objective = Objective(Classification(weight=0.0), {"it": term})
    return objective(student.train()(BATCH), {"main": teacher(BATCH)}, BATCH)


def test_distillation_reaches_the_distillation_token_and_no_class_token() -> None:
    student = network(deit())
    losses(student, DeiTHard()).total.backward()
    net = student.net
    assert net.head_dist.weight.grad.any()
    assert net.dist_token.grad.any()
    assert net.head.weight.grad is None or not net.head.weight.grad.any()


def test_kd_beside_it_reaches_the_class_head() -> None:
    student = network(deit())
    losses(student, KD()).total.backward()
    assert student.net.head.weight.grad.any()


def test_network_with_one_head_is_refused() -> None:
    with pytest.raises(UserError, match=r"student network has no second head.*distilled.*or name its `head`"):
        network(SmallCNN(10, 1, widths=[4])).tap(["distillation_logits"], BATCH)
