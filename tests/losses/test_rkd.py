import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import rkd
from distillery.losses.relation.rkd import RKD
from distillery.losses.signals import Signals
from fixtures import formulas
from fixtures.cases import each_case
from fixtures.random import draw


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def parts_by_hand(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """(distances, angles) by loops over pairs and triplets."""
    networks = [x.double().flatten(1).numpy() for x in (student, teacher)]
    batch = len(student)
    means = [
        np.mean([np.linalg.norm(x[i] - x[j]) for i, j in itertools.permutations(range(batch), 2)]) for x in networks
    ]

    def distance(n: int, i: int, j: int) -> float:
        return float(np.linalg.norm(networks[n][i] - networks[n][j]) / means[n])

    def cosine(n: int, v: int, a: int, b: int) -> float:
        if v in (a, b):
            return 0.0
        to_a, to_b = networks[n][a] - networks[n][v], networks[n][b] - networks[n][v]
        return float(to_a @ to_b / np.linalg.norm(to_a) / np.linalg.norm(to_b))

    pairs = list(itertools.product(range(batch), repeat=2))
    triplets = list(itertools.product(range(batch), repeat=3))
    distances = sum(smooth_l1(distance(0, *pair) - distance(1, *pair)) for pair in pairs) / len(pairs)
    angles = sum(smooth_l1(cosine(0, *three) - cosine(1, *three)) for three in triplets) / len(triplets)
    return distances, angles


@each_case(("distance_weight", "angle_weight"), [(25.0, 50.0), (1.0, 0.0), (0.0, 2.0)])
def test_loops_over_pairs_and_triplets(distance_weight: float, angle_weight: float) -> None:
    student, teacher = draw(6, 3), 3 * draw(6, 2, 2, seed=1)
    distances, angles = parts_by_hand(student, teacher)
    value = rkd(student, teacher, distance_weight, angle_weight)
    assert value.item() == pytest.approx(distance_weight * distances + angle_weight * angles, rel=1e-10)


def test_close_neighbours_keep_their_angles_in_float32() -> None:
    """Far from the origin a Gram matrix in float32 loses distances of 0.01."""
    student, teacher = draw(12, 8), draw(12, 5, seed=1)
    student[6:] = student[:6] + 0.01 * draw(6, 8, seed=2)
    student = (student + 100).float()
    distances, angles = parts_by_hand(student, teacher)
    value = rkd(student, teacher.float())
    assert value.item() == pytest.approx(25 * distances + 50 * angles, rel=1e-4)


def test_scale_and_shift_of_the_features_do_not_matter() -> None:
    student, teacher = draw(6, 3), draw(6, 4, seed=1)
    torch.testing.assert_close(rkd(1e6 * student + 5, 1e-6 * teacher - 1), rkd(student, teacher))


@each_case("dtype", [torch.float32, torch.float64])
def test_samples_that_coincide_have_a_moderate_gradient(dtype: torch.dtype) -> None:
    """Dividing by a clamped distance of 1e-12, as the reference does, gives gradients of 1e12."""
    student = draw(6, 4).to(dtype)
    student[3] = student[0]
    student.requires_grad_()
    value = rkd(student, draw(6, 3, seed=1).to(dtype))
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert 0 < student.grad.norm() < 100


def test_collapsed_student_stays_finite() -> None:
    student = torch.ones(5, 4, requires_grad=True)
    value = rkd(student, torch.randn(5, 3))
    value.backward()
    assert value.item() > 0
    assert student.grad is not None
    assert not student.grad.any()


@each_case("batch", [0, 1, 2])
def test_too_few_samples_have_no_relation(batch: int) -> None:
    """Two samples are always at the mean distance, and make no triangle."""
    student = draw(batch, 4).requires_grad_()
    value = rkd(student, draw(batch, 3, seed=1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_batches_must_agree() -> None:
    with pytest.raises(ValueError, match="student has 3 samples, teacher 4"):
        rkd(draw(3, 2), draw(4, 2))


def test_term() -> None:
    term = RKD(distance_weight=3.0, angle_weight=7.0)
    assert term.layers == {"embedding": "embedding"}
    student, teacher = draw(5, 4), draw(5, 2, seed=1)
    term.build({"embedding": student.shape}, {"embedding": teacher.shape})
    signals = [Signals(draw(5, 2), {"embedding": x}) for x in (student, teacher)]
    torch.testing.assert_close(term(*signals, {}), rkd(student, teacher, 3.0, 7.0), rtol=0, atol=0)


def test_layer_without_features_is_refused() -> None:
    with pytest.raises(UserError, match=r"student layer 'embedding' \[5\] .*Choose layers"):
        RKD().build({"embedding": torch.Size([5])}, {"embedding": torch.Size([5, 4])})


@formulas.plain("rkd", "s_vector", "t_vector")
def plain_rkd(x: formulas.Inputs) -> Tensor:
    relations = []
    for e in (x["s_vector"], x["t_vector"]):
        square = e.pow(2).sum(1)
        distance = (square.unsqueeze(1) + square - 2 * e @ e.T).clamp_min(1e-12).sqrt()
        distance = distance * (1 - torch.eye(len(e)))
        direction = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), dim=2)
        relations.append((distance / distance[distance > 0].mean(), direction @ direction.mT))
    student, teacher = relations
    return 25 * F.smooth_l1_loss(student[0], teacher[0]) + 50 * F.smooth_l1_loss(student[1], teacher[1])
