import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from distillery.core.errors import UserError
from distillery.losses.feature.semckd import SemCKD
from distillery.losses.functional import semckd
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import semckd as reference

LAYERS = {"a": "x", "b": "y"}
STUDENT = {"a": (3, 4, 4), "b": (5, 2, 2)}
TEACHER = {"x": (4, 4, 4), "y": (6, 2, 2), "z": (7, 1, 1)}


def signals(batch: int, shapes: dict[str, tuple[int, ...]], seed: int) -> Signals:
    return Signals(
        torch.zeros(batch, 2),
        {tap: draw(batch, *shape, seed=seed + i) for i, (tap, shape) in enumerate(shapes.items())},
    )


def built(**settings: Any) -> SemCKD:
    torch.manual_seed(0)
    term = SemCKD(**({"layers": LAYERS, "teacher_layers": ["z", "y"], "batch_size": 8} | settings))
    term.build(*({tap: Size([2, *shape]) for tap, shape in shapes.items()} for shapes in (STUDENT, TEACHER)))
    return term.double()


@each_case("softness", [1.0, 0.2])
def test_rows(softness: float) -> None:
    query, key, distances = draw(4, 2, 3), draw(4, 5, 3, seed=1), draw(4, 2, 5, seed=2).square()
    expected = reference.semckd(query.numpy(), key.numpy(), distances.numpy(), softness)
    np.testing.assert_allclose(semckd(query, key, distances, softness, "none").numpy(), expected, rtol=1e-12)
    assert semckd(query, key, distances, softness).item() == pytest.approx(np.mean(expected), rel=1e-12)


@each_case("batch", [8, 5])
@each_case(("factor", "softness"), [(4, 1.0), (2, 0.3)])
def test_term(batch: int, factor: int, softness: float) -> None:
    """Each student layer with each of three teacher layers, the larger map pooled before its projector."""
    term = built(factor=factor, softness=softness).eval()
    assert term.teacher_taps == ["x", "y", "z"]
    student, teacher = signals(batch, STUDENT, 0), signals(batch, TEACHER, 10)

    def embedded(embeddings: nn.Module, layers: dict[str, Tensor]) -> np.ndarray:
        assert isinstance(embeddings, nn.ModuleList)
        found = []
        for module, features in zip(embeddings, layers.values(), strict=True):
            state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
            found.append(reference.embedding(features.numpy(), state, width=8))
        return np.stack(found, 1)

    query, key = embedded(term.queries, student.layers), embedded(term.keys, teacher.layers)
    assert query.shape == (batch, 2, 8 // factor)
    distances = np.zeros((batch, 2, 3))
    for i, s in enumerate(student.layers.values()):
        for j, t in enumerate(teacher.layers.values()):
            size = min(s.shape[2], t.shape[2])
            smaller, target = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
            with torch.no_grad():
                projected = term.projectors[3 * i + j](smaller)
            distances[:, i, j] = ((projected - target) ** 2).numpy().mean((1, 2, 3))
    expected = np.mean(reference.semckd(query, key, distances, softness))
    assert term(student, teacher, {}).item() == pytest.approx(expected, rel=1e-9)


def test_projector_is_the_authors() -> None:
    """1×1, 3×3, 1×1 without biases, twice the teacher's width between; so many parameters with two BatchNorms."""
    for project, (width_in, width_out) in zip(
        built().projectors, [(s[0], t[0]) for s in STUDENT.values() for t in TEACHER.values()], strict=True
    ):
        middle = 2 * width_out
        expected = width_in * middle + 9 * middle * middle + middle * width_out + 2 * 2 * middle
        assert sum(parameter.numel() for parameter in project.parameters()) == expected


@each_case("projector", ["conv", "none"])
def test_other_projectors(projector: str) -> None:
    value = built(projector=projector)(signals(8, STUDENT, 0), signals(8, TEACHER, 10), {})
    assert value.isfinite()
    assert value > 0


def learning() -> Signals:
    student = signals(8, STUDENT, 0)
    for tensor in student.layers.values():
        tensor.requires_grad_()
    return student


def train(term: SemCKD, student: Signals, steps: int) -> list[float]:
    optimizer = torch.optim.Adam([*student.layers.values(), *term.parameters()], lr=0.03)
    teacher, values = signals(8, TEACHER, 10), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = term(student, teacher, {})
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_overfits_a_batch_and_goes_on_bit_equal_after_saving() -> None:
    straight, student = built(), learning()
    before = [parameter.clone() for parameter in straight.parameters()]
    expected = train(straight, student, 40)
    assert expected[-1] < 0.2 * expected[0]
    assert not any(torch.equal(*pair) for pair in zip(straight.parameters(), before, strict=True))

    saved, student = built(), learning()
    train(saved, student, 5)
    torch.save(saved.state_dict(), stored := io.BytesIO())
    stored.seek(0)
    resumed = built()
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    given, again = signals(8, STUDENT, 0), signals(8, TEACHER, 10)
    assert torch.equal(resumed.eval()(given, again, {}), saved.eval()(given, again, {}))


@each_case(
    ("settings", "words"),
    [
        ({"batch_size": None}, "batch_size=None.*the size of the largest batch"),
        ({"batch_size": 3}, "batch_size=3.*at least factor=4"),
    ],
)
def test_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        built(**settings)


@terms.example_of(SemCKD)
def example_semckd(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Two layers of each network, each with each."""
    made = terms.plain(term, layers={"x": "x", "y": "y"}, teacher_layers=(), batch_size=8)
    student, teacher = (
        Signals(draw(batch, terms.CLASSES), {"x": draw(batch, 5, 4, 4), "y": draw(batch, 5, 2, 2)}) for _ in range(2)
    )
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
