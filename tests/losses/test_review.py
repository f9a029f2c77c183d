import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.review import Fusion, Review
from distillery.losses.functional import hcl
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import review as reference

LAYERS = {"stages.0": "layer1", "stages.1": "layer2"}
STUDENT = {"stages.0": (3, 8, 8), "stages.1": (5, 4, 4), "embedding": (6,)}
TEACHER = {"layer1": (4, 8, 8), "layer2": (7, 2, 2), "embedding": (9,)}


@each_case("size", [(8, 8), (8, 4), (4, 4), (2, 2), (1, 1)])
def test_hcl_rows(size: tuple[int, int]) -> None:
    student, teacher = draw(3, 2, *size), draw(3, 2, *size, seed=1)
    expected = [reference.context(s.numpy(), t.numpy()) for s, t in zip(student, teacher, strict=True)]
    np.testing.assert_allclose(hcl(student, teacher, reduction="none").numpy(), expected, rtol=1e-12)


def test_hcl_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        hcl(draw(2, 2, 4, 4), draw(2, 2, 4, 1))


def signals(batch: int, shapes: dict[str, tuple[int, ...]], seed: int) -> Signals:
    return Signals(
        torch.zeros(batch, 2),
        {tap: draw(batch, *shape, seed=seed + i) for i, (tap, shape) in enumerate(shapes.items())},
    )


def built(**settings: Any) -> Review:
    torch.manual_seed(0)
    term = Review(**({"layers": LAYERS} | settings))
    term.build(*({tap: Size([2, *shape]) for tap, shape in shapes.items()} for shapes in (STUDENT, TEACHER)))
    return term.double()


def states(term: Review) -> list[dict[str, np.ndarray]]:
    return [{name: tensor.numpy() for name, tensor in fusion.state_dict().items()} for fusion in term.fusions]


def levels(given: Signals, taps: list[str], sample: int) -> list[np.ndarray]:
    found = (given.layers[tap][sample].numpy() for tap in taps)
    return [level[:, None, None] if level.ndim == 1 else level for level in found]


@each_case("pooled", [True, False])
@each_case("middle", [512, 2])
def test_rows(pooled: bool, middle: int) -> None:
    """The deepest level is 1×1, or one whose teacher is smaller than the student."""
    term = built(pooled=pooled, middle=middle).eval()
    student, teacher = signals(3, STUDENT, 0), signals(3, TEACHER, 10)
    taps = [*LAYERS, "embedding"] if pooled else [*LAYERS]
    assert term.student_taps == taps
    handed_on = {state["enter.0.weight"].shape[0] for state in states(term)}
    assert handed_on == {min(middle, 6 if pooled else 5)}
    expected = [
        reference.review(levels(student, taps, i), levels(teacher, term.teacher_taps, i), states(term))
        for i in range(3)
    ]
    np.testing.assert_allclose(term(student, teacher, {}).detach().numpy(), expected, rtol=1e-9)


def test_shallow_levels_are_fused_with_the_deeper_ones() -> None:
    """The teacher's first level alone, as a target, reaches every level of the student and every part but the tails."""
    term = built()
    student = signals(3, STUDENT, 0)
    for tensor in student.layers.values():
        tensor.requires_grad_()
    target: list[Tensor] = []
    term.fusions[0].register_forward_hook(lambda _, __, output: target.append(output[0]))
    term(student, signals(3, TEACHER, 10), {})
    target[0].square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in student.layers.values())
    silent = {name.split(".", 1)[1] for name, p in term.fusions.named_parameters() if p.grad is None}
    assert {name.partition(".")[0] for name in silent} == {"leave"}


def test_starts_as_the_authors_do() -> None:
    torch.manual_seed(0)
    weight = Fusion(64, 32, 16, fuse=True).enter[0].weight
    assert isinstance(weight, nn.Parameter)
    bound = (3 / 64) ** 0.5  # Kaiming, uniform, with a = 1
    assert 0.95 * bound < weight.abs().max() <= bound


def train(term: Review, student: Signals, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([*student.layers.values(), *term.parameters()], lr=0.03)
    teacher, values = signals(4, TEACHER, 10), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = term(student, teacher, {}).mean()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def learning() -> Signals:
    student = signals(4, STUDENT, 0)
    for tensor in student.layers.values():
        tensor.requires_grad_()
    return student


def test_overfits_a_batch_and_goes_on_bit_equal_after_saving() -> None:
    straight = built()
    expected = train(straight, learning(), 150)
    assert expected[-1] < 0.02 * expected[0]

    saved, student = built(), learning()
    assert train(saved, student, 1) == expected[:1]
    torch.save(saved.state_dict(), stored := io.BytesIO())
    stored.seek(0)
    resumed = built()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    given, again = signals(4, STUDENT, 0), signals(4, TEACHER, 10)
    assert torch.equal(resumed.eval()(given, again, {}), saved.eval()(given, again, {}))


def test_tokens_are_the_map_they_come_from() -> None:
    term = Review(layers={"blocks.0": "layer"}, pooled=False)
    term.build({"blocks.0": Size([2, 17, 6])}, {"layer": Size([2, 3, 8, 8])})
    student = Signals(torch.zeros(2, 2), {"blocks.0": torch.randn(2, 17, 6)})
    assert term(student, Signals(torch.zeros(2, 2), {"layer": torch.randn(2, 3, 8, 8)}), {}).shape == (2,)


def test_vector_beside_a_map_is_refused() -> None:
    with pytest.raises(UserError, match=r"review cannot compare .*pair vectors with vectors"):
        Review(layers={"a": "b"}, pooled=False).build({"a": Size([2, 4])}, {"b": Size([2, 4, 3, 3])})
    with pytest.raises(UserError, match="middle=0"):
        Review(middle=0)


@formulas.plain("hcl", "s_map", "t_map")
def plain_hcl(x: formulas.Inputs) -> Tensor:
    loss, weight, total = F.mse_loss(x["s_map"], x["t_map"]), 1.0, 1.0
    for size in (4, 2, 1):
        weight /= 2
        pooled = [F.adaptive_avg_pool2d(x[name], size) for name in ("s_map", "t_map")]
        loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


@terms.example_of(Review)
def example_review(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """A map and pooled features; in evaluation, where BatchNorm takes each sample alone."""
    made = terms.plain(term)
    student, teacher = (
        Signals(draw(batch, terms.CLASSES), {"x": draw(batch, 5, 4, 4), "embedding": draw(batch, 5)}) for _ in range(2)
    )
    terms.built(made, student, teacher)
    made.eval()
    return terms.Example(made, student, teacher, terms.labels(batch))
