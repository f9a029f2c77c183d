"""The exits of OFA-KD; its loss itself is tested in test_soft_labels.py."""

from pathlib import Path

import pytest
import torch
from torch import Size, Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import ofa
from distillery.losses.response.ofa import OFA
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case

LAYERS = {"maps": "head", "tokens": "head", "vectors": "head"}
TARGET = torch.tensor([0, 1, 2, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def signals() -> tuple[Signals, Signals]:
    layers = {"maps": draw(4, 3, 5, 6), "tokens": draw(4, 7, 8), "vectors": draw(4, 9)}
    logits = draw(4, 5, seed=1)
    return Signals(draw(4, 5, seed=2), layers), Signals(logits, {"head": logits})


def built(student: Signals, teacher: Signals) -> OFA:
    torch.manual_seed(0)
    term = OFA(layers=LAYERS, eps=1.5, temperature=2.0)
    shapes = ({tap: tensor.shape for tap, tensor in given.layers.items()} for given in (student, teacher))
    term.build(*shapes)
    return term


def test_each_exit_and_the_logits_learn_from_the_teacher(signals: tuple[Signals, Signals]) -> None:
    student, teacher = signals
    term = built(student, teacher)
    pooled = [student.layers["maps"].mean((2, 3)), student.layers["tokens"].mean(1), student.layers["vectors"]]
    exits = [x @ branch.linear.weight.T + branch.linear.bias for x, branch in zip(pooled, term.branches, strict=True)]
    expected = sum(
        ofa(logits, teacher.logits, TARGET, 1.5, 2.0, reduction="none") for logits in (student.logits, *exits)
    )
    value = term(student, teacher, {"target": TARGET})
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in term.parameters())


def test_an_exit_learns_from_the_layer_that_it_is_given(signals: tuple[Signals, Signals]) -> None:
    """{stage: another layer of logits}: not from the teacher's logits."""
    student, teacher = signals
    term = built(student, teacher)
    value = term(student, teacher, {"target": TARGET})
    other = Signals(teacher.logits, {"head": teacher.logits.flip(1)})
    assert (term(student, other, {"target": TARGET}) - value).abs().min() > 1e-3


def test_overfits_one_batch_and_survives_saving(signals: tuple[Signals, Signals], tmp_path: Path) -> None:
    student, teacher = signals
    batch = {"target": TARGET}
    term = built(student, teacher)
    optimizer = torch.optim.Adam(term.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        term(student, teacher, batch).mean().backward()
        optimizer.step()
    after = term(student, teacher, batch)
    # The least that a cross-entropy to labels q can be: that of a student with the probabilities q / sum(q).
    hot = torch.nn.functional.one_hot(TARGET, 5)
    labels = ((teacher.logits / 2).softmax(-1) + hot) ** 1.5 - hot
    best = -(labels * (labels / labels.sum(1, keepdim=True)).log()).sum(1)
    on_logits = ofa(student.logits, teacher.logits, TARGET, 1.5, 2.0, reduction="none")
    torch.testing.assert_close(after, on_logits + 3 * best, rtol=1e-3, atol=0)
    torch.save(term.state_dict(), tmp_path / "term.pt")
    again = built(student, teacher)
    assert not torch.equal(again(student, teacher, batch), after)
    again.load_state_dict(torch.load(tmp_path / "term.pt", weights_only=True))
    torch.testing.assert_close(again(student, teacher, batch), after, rtol=0, atol=0)


def test_exits_of_a_network_of_16_bits_are_in_float32() -> None:
    features = torch.full((4, 2, 30, 20), 300.0)
    teacher = Signals(draw(4, 5), {"head": draw(4, 5)})
    term = OFA(layers={"maps": "head"})
    term.build({"maps": features.shape}, {"head": Size([4, 5])})
    values = [term(Signals(draw(4, 5), {"maps": x}), teacher, {"target": TARGET}) for x in (features, features.half())]
    torch.testing.assert_close(*values)


@each_case(("student", "teacher"), [((4, 3, 5, 5), (4, 5, 2, 2)), ((4,), (4, 5)), ((4, 3), (4, 7, 5))])
def test_layers_that_cannot_be_compared_are_refused(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"student layer 'stage' .*Use `layers: \{student layer: head\}`, or auto"):
        OFA(layers={"stage": "x"}).build({"stage": Size(student)}, {"x": Size(teacher)})


def test_without_layers_there_are_no_parameters() -> None:
    term = OFA()
    term.build({}, {})
    assert not list(term.parameters())
    assert term.needs_logits


@formulas.plain("ofa", "s_logits", "t_logits", "target")
def plain_ofa(x: formulas.Inputs) -> Tensor:
    return (
        -((formulas.p(x["t_logits"]) + formulas.one_hot(x) - formulas.one_hot(x)) * formulas.p(x["s_logits"]).log())
        .sum(1)
        .mean()
    )


@terms.example_of(OFA)
def example_ofa(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Without exits from layers, whose branches are of random weights and favour some classes."""
    student, teacher = Signals(draw(batch, terms.CLASSES)), Signals(draw(batch, terms.CLASSES))
    return terms.Example(terms.plain(term, layers=None), student, teacher, terms.labels(batch))
