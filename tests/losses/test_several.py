"""Several teachers of one loss: their weights against plain Python."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.hint import Hint
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.kd import KD
from distillery.losses.several import COMBINATIONS, Several, best, confidence, drawn
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures.cases import each_case
from reference.several_teachers import cross_entropies

GENERATOR = torch.Generator().manual_seed(0)
NAMES = ("main", "b", "c")


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


@each_case("teachers", [2, 3, 5])
def test_confidence_is_that_of_the_paper(teachers: int) -> None:
    logits, target = 3 * draw(teachers, 7, 4), torch.arange(7) % 4
    powers = np.exp(cross_entropies(logits, target))
    expected = (1 - powers / powers.sum(0)) / (teachers - 1)
    found = confidence(logits, target)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(0).numpy(), 1, rtol=1e-12)


def test_the_best_has_all_the_weight() -> None:
    logits, target = 3 * draw(3, 50, 4), torch.arange(50) % 4
    chosen = cross_entropies(logits, target).argmin(0)
    assert set(chosen) == {0, 1, 2}
    np.testing.assert_array_equal(best(logits, target).numpy(), np.eye(3)[chosen].T)


@each_case("weights", [confidence, best])
@each_case("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_stay_finite_with_great_logits(weights: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = (1e4 * draw(3, 20, 4)).to(dtype)
    found = weights(logits, torch.arange(20) % 4)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(0), torch.ones(20))


def test_the_draw_is_even_and_a_function_of_seed_step_and_sample() -> None:
    index = torch.arange(3000)
    first = drawn(3, index, 0, 0)
    assert torch.equal(first.sum(0), torch.ones(3000, dtype=torch.int64))
    assert all(900 < count < 1100 for count in first.sum(1).tolist())
    assert torch.equal(drawn(3, index, 0, 0), first)
    order = torch.randperm(3000, generator=GENERATOR)  # another rank, another batch: the sample keeps its teacher
    assert torch.equal(drawn(3, index[order], 0, 0), first[:, order])
    for other in (drawn(3, index, 1, 0), drawn(3, index, 0, 1)):
        assert 0.2 < (other * first).sum() / 3000 < 0.47


def signals(width: int) -> Signals:
    return Signals(3 * draw(9, 4), {"x": draw(9, 5, 2, 2), "y": draw(9, width, 2, 2)})


BATCH = {"target": torch.arange(9) % 4, "index": 100 + torch.arange(9)}


def values_of(term: Several, student: Signals, teachers: dict[str, Signals]) -> dict[str, Tensor]:
    return {name: one(student, teachers[name], BATCH) for name, one in term.by_teacher.items()}


@each_case("combine", COMBINATIONS)
@each_case("family", ["response", "feature"])
def test_rows_are_weighted_alike_in_every_family(combine: str, family: str) -> None:
    student, teachers = signals(5), {name: signals(6) for name in NAMES}

    def one(name: str) -> Term:
        if family == "response":
            return KD(temperature=2.0, teacher=name)
        term = Hint(teacher=name, layers={"x": "y"}).double()
        term.projectors = torch.nn.ModuleList([torch.nn.Conv2d(5, 6, 1).double()])
        return term

    term = Several([one(name) for name in NAMES], combine, seed=4)
    values = values_of(term, student, teachers)
    rows = torch.stack(list(values.values())).detach().numpy()
    assert rows.shape == (3, 9)
    logits = torch.stack([each.logits for each in teachers.values()])
    entropies = cross_entropies(logits, BATCH["target"])
    for step in range(3):
        weights = {
            "mean": np.full((3, 9), 1 / 3),
            "confidence": (1 - np.exp(entropies) / np.exp(entropies).sum(0)) / 2,
            "best": np.eye(3)[entropies.argmin(0)].T,
            "random": drawn(3, BATCH["index"], 4, step).numpy(),
        }[combine]
        found = term.combined(values, teachers, BATCH)
        np.testing.assert_allclose(found.detach().numpy(), (weights * rows).sum(0), rtol=1e-12)


def test_a_loss_of_the_whole_batch_has_one_teacher_a_batch() -> None:
    student, teachers = signals(5), {name: signals(5) for name in NAMES}
    terms = [RKD(teacher=name, layers={"x": "y"}) for name in NAMES]
    mean, random = Several(terms, "mean"), Several(terms, "random", seed=1)
    values = values_of(mean, student, teachers)
    each = [value.item() for value in values.values()]
    assert mean.combined(values, teachers, BATCH).item() == pytest.approx(sum(each) / 3)
    found = [random.combined(values, teachers, BATCH).item() for _ in range(20)]
    assert set(found) == set(each)
    again = Several(terms, "random", seed=1)
    again.load_state_dict(random.state_dict())  # 20 steps done
    assert [again.combined(values, teachers, BATCH).item() for _ in range(5)] == [
        random.combined(values, teachers, BATCH).item() for _ in range(5)
    ]


def test_the_weight_is_that_of_every_copy() -> None:
    term = Several([KD(0.5, teacher="main"), KD(0.5, teacher="b")])
    term.weight = 0.25
    assert term.weight == 0.25
    assert [one.weight for one in term.by_teacher.values()] == [0.25, 0.25]


def test_logits_are_read_where_the_weights_depend_on_them() -> None:
    hints = [Hint(teacher=name, layers={"x": "y"}) for name in NAMES]
    read = {combine: Several(hints, combine).needs_logits for combine in COMBINATIONS}
    assert read == {"mean": False, "confidence": True, "best": True, "random": False}
    assert Several([KD(teacher=name) for name in NAMES], "mean").needs_logits


@each_case("combine", ["confidence", "best"])
def test_what_has_no_rows_cannot_be_weighed_by_them(combine: str) -> None:
    with pytest.raises(UserError, match=rf"^combine={combine} weights .* Use combine=mean or combine=random"):
        Several([RKD(teacher=name) for name in NAMES], combine)


def test_an_unknown_combination() -> None:
    with pytest.raises(UserError, match=r"combine=confidense.*Did you mean 'confidence'"):
        Several([KD(teacher=name) for name in NAMES], "confidense")
