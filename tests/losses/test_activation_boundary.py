import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.connector import Connectors
from distillery.losses.feature.activation_boundary import ActivationBoundary
from distillery.losses.functional import activation_boundary
from distillery.losses.signals import Signals
from distillery.losses.term import Pair
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw


def by_hand(student: Tensor, teacher: Tensor, margin: float) -> list[float]:
    """The sum of each sample, by the paper's equation 4."""
    values = []
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        total = 0.0
        for ours, theirs in zip(s, t, strict=True):
            if theirs > 0 and ours <= margin:
                total += (margin - ours) ** 2
            if theirs <= 0 and ours > -margin:
                total += (ours + margin) ** 2
        values.append(total)
    return values


@each_case(("margin", "factor"), [(1.0, 0.003), (0.4, 0.003), (1.0, 1.0)])
def test_rows(margin: float, factor: float) -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1)
    values = activation_boundary(student, teacher, margin, factor, reduction="none")
    np.testing.assert_allclose(values.numpy(), factor * np.array(by_hand(student, teacher, margin)), rtol=1e-12)


def test_teacher_counts_by_its_sign_alone() -> None:
    student, teacher = draw(4, 3, 2, 5), draw(4, 3, 2, 5, seed=1)
    torch.testing.assert_close(activation_boundary(student, teacher.relu()), activation_boundary(student, teacher))


def test_connector_projects_and_normalises() -> None:
    pair = Pair("block", "stage", torch.Size((4, 3, 6, 6)), torch.Size((4, 5, 3, 3)))
    connectors = Connectors("auto", [pair]).double()
    (connected,) = connectors([(3 + 7 * draw(4, 3, 6, 6), draw(4, 5, 3, 3))])
    assert [features.shape for features in connected] == [(4, 5, 3, 3)] * 2
    at_full_size = connectors.norms[0](connectors.projectors[0](3 + 7 * draw(4, 3, 6, 6)))
    torch.testing.assert_close(at_full_size.mean((0, 2, 3)), torch.zeros(5).double(), rtol=0, atol=1e-9)
    pooled = at_full_size.detach().numpy().reshape(4, 5, 3, 2, 3, 2).mean((3, 5))
    np.testing.assert_allclose(connected[0].detach().numpy(), pooled, rtol=1e-9, atol=1e-12)


@each_case("kind", ["none", None])
def test_without_projector_the_features_are_compared_as_they_are(kind: str | None) -> None:
    pair = Pair("block", "stage", torch.Size((4, 3, 6, 6)), torch.Size((4, 3, 6, 6)))
    connectors = Connectors(kind, [pair])
    assert not list(connectors.parameters())
    (connected,) = connectors([(draw(4, 3, 6, 6), draw(4, 3, 6, 6, seed=1))])
    torch.testing.assert_close(connected, (draw(4, 3, 6, 6), draw(4, 3, 6, 6, seed=1)), rtol=0, atol=0)


def test_term_halves_each_layer_down() -> None:
    taps = {"a": "x", "b": "y", "c": "z"}
    student, teacher = ({tap: draw(4, 3, 4, 4, seed=ord(tap)) for tap in tapped} for tapped in (taps, taps.values()))
    term = ActivationBoundary(layers=taps, projector=None, margin=0.5, factor=0.1)
    term.build({k: v.shape for k, v in student.items()}, {k: v.shape for k, v in teacher.items()})
    first, second, third = (activation_boundary(student[s], teacher[t], 0.5, 0.1, "none") for s, t in taps.items())
    value = term(Signals(draw(4, 2), student), Signals(draw(4, 2), teacher), {})
    torch.testing.assert_close(value, first / 4 + second / 2 + third)


def test_term_overfits_a_batch() -> None:
    """With more channels than samples and positions the connector can put every neuron on the teacher's side."""
    student, teacher = draw(4, 32, 2, 2).float(), draw(4, 5, 2, 2, seed=1).float()
    term = ActivationBoundary(layers={"block": "stage"})
    term.build({"block": student.shape}, {"stage": teacher.shape})
    signals = Signals(draw(4, 2), {"block": student}), Signals(draw(4, 2), {"stage": teacher})
    start = term(*signals, {}).mean().item()
    optimizer = torch.optim.Adam(term.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        term(*signals, {}).mean().backward()
        optimizer.step()
    assert term(*signals, {}).mean().item() < 0.02 * start
    (projector,), (norm,) = term.connectors.projectors, term.connectors.norms
    assert isinstance(norm, nn.BatchNorm2d)
    on = norm(projector(student)) > 0
    assert torch.equal(on, teacher > 0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"layer 'pooled' \[4, 8\].*no positions"):
        ActivationBoundary(layers={"block": "pooled"}).build(
            {"block": torch.Size((4, 8))}, {"pooled": torch.Size((4, 8))}
        )
    with pytest.raises(ValueError, match="differ in shape"):
        activation_boundary(draw(2, 1, 4, 4), draw(2, 3, 4, 4))


@formulas.plain("activation_boundary", "s_map", "t_map")
def plain_activation_boundary(x: formulas.Inputs) -> Tensor:
    s, t = x["s_map"], x["t_map"]
    off, on = (s > -1).float() * (t <= 0).float(), (s <= 1).float() * (t > 0).float()
    return 3 / 1000 * ((s + 1).pow(2) * off + (s - 1).pow(2) * on).sum() / len(s)
