"""Divergences from k classes: the fixtures, and the laws that say how each form is biased."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import kd, reverse_kl, topk_kd
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.sparse import TopK, log_rest, sampled_kl_rows, sparse_kl

T, S = (
    torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64),
    torch.tensor([[0.2, 0.5, 0.2, 0.1]], dtype=torch.float64),
)
T2, S2 = (
    torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64),
    torch.tensor([[0.6, 0.25, 0.1, 0.05]], dtype=torch.float64),
)
FORMS = ("tail", "truncate", "renormalise", "renormalise_teacher")
PAIRS = [(form, way) for form in FORMS for way in ("forward", "reverse") if (form, way) != (FORMS[3], "reverse")]


def random_logits(rows: int = 200, classes: int = 7, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    student, teacher = scale * torch.randn(2, rows, classes, generator=torch.Generator().manual_seed(0)).double()
    return student, teacher


def gradient(student: Tensor, teacher: Tensor, k: int, missing: str, direction: str = "forward") -> Tensor:
    student = student.clone().requires_grad_()
    rows = topk_kd(student, teacher, k, missing=missing, direction=direction, reduction="none")  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(rows.sum(), student)
    return found


def test_fixtures() -> None:
    for (missing, direction), first, second in (
        (("truncate", "forward"), 0.304898, -0.135789),
        (("tail", "forward"), 0.223805, 0.072155),
        (("renormalise", "forward"), 0.247591, 0.000171),
        (("renormalise_teacher", "forward"), 0.604266, None),
        (("truncate", "reverse"), 0.072155, None),
        (("tail", "reverse"), 0.193794, None),
    ):
        for t, s, expected in ((T, S, first), (T2, S2, second)):
            if expected is not None:
                classes = torch.tensor([[0, 1]])  # the second pair has a tie
                topk = [TopK(p.log().gather(1, classes), p[:, 2:].sum(1).log()) for p in (s, t)]
                value = sparse_kl(*topk, missing, direction).item()  # type: ignore[arg-type]
                assert value == pytest.approx(expected, abs=6e-7), (missing, direction)
        of_logits = topk_kd(S.log() + 3, T.log() - 1, 2, missing=missing, direction=direction)  # type: ignore[arg-type]
        assert of_logits.item() == pytest.approx(first, abs=6e-7)
    assert kd(S.log(), T.log(), 1.0).item() == pytest.approx(0.227088009, abs=1e-9)
    assert kd(S2.log(), T2.log(), 1.0).item() == pytest.approx(0.072155, abs=6e-7)


def test_all_classes_are_the_full_divergence() -> None:
    student, teacher = random_logits()
    for missing, direction in PAIRS:
        full = {"forward": kd, "reverse": reverse_kl}[direction](student, teacher, 2.0, t_squared=True)
        value = topk_kd(student, teacher, 7, 2.0, missing, True, direction=direction)  # type: ignore[arg-type]
        torch.testing.assert_close(value, full)
        assert gradient(student, teacher, 7, missing, direction).isfinite().all()


def test_the_tail_gives_a_lower_bound_which_is_reached_at_a_constant_ratio_only() -> None:
    student, teacher = random_logits()
    for direction, of_all in (("forward", kd), ("reverse", reverse_kl)):
        full = of_all(student, teacher, 1.0, reduction="none")
        bounds = [
            topk_kd(student, teacher, k, missing="tail", direction=direction, reduction="none")  # type: ignore[arg-type]
            for k in (1, 3, 5)
        ]
        for bound in bounds:
            assert (bound < full).all()
            assert (bound >= 0).all()
        assert (bounds[0] <= bounds[1]).all()
        assert (bounds[1] <= bounds[2]).all()
        # A student whose tail is the teacher's times a constant.
        inner = teacher.topk(3).indices
        proportional = teacher.scatter(1, inner, student.gather(1, inner))
        equal = topk_kd(proportional, teacher, 3, missing="tail", direction=direction, reduction="none")  # type: ignore[arg-type]
        torch.testing.assert_close(equal, of_all(proportional, teacher, 1.0, reduction="none"))


def test_the_tail_moves_mass_but_not_its_shape() -> None:
    """Within the tail the gradient is the student's own distribution times (s - t) of the bucket."""
    student, teacher = random_logits()
    found = gradient(student, teacher, 3, "tail")
    s, t = student.softmax(1), teacher.softmax(1)
    outside = torch.ones_like(s).scatter(1, teacher.topk(3).indices, 0.0)
    s_tail, t_tail = (outside * s).sum(1, True), (outside * t).sum(1, True)
    torch.testing.assert_close(found, torch.where(outside.bool(), s / s_tail * (s_tail - t_tail), s - t))


def test_renormalised_over_both_is_blind_to_the_tail() -> None:
    student, teacher = random_logits()
    outside = torch.ones_like(student).scatter(1, teacher.topk(3).indices, 0.0)
    for direction in ("forward", "reverse"):
        assert not (gradient(student, teacher, 3, "renormalise", direction) * outside).any()
    lifted = topk_kd(student + 9 * outside, teacher, 3)
    torch.testing.assert_close(lifted, topk_kd(student, teacher, 3))


def test_renormalised_teacher_is_least_without_a_tail() -> None:
    _, teacher = random_logits()
    kept = teacher.topk(3)
    outside = torch.ones_like(teacher).scatter(1, kept.indices, 0.0)
    without_tail = topk_kd(teacher - 60 * outside, teacher, 3, missing="renormalise_teacher")
    assert without_tail.item() == pytest.approx(0, abs=1e-12)
    assert topk_kd(teacher, teacher, 3, missing="renormalise_teacher") > 0.01  # it is not least at agreement
    assert gradient(teacher - 60 * outside, teacher, 3, "renormalise_teacher").abs().max() < 1e-12
    mass = kept.values.logsumexp(1) - teacher.logsumexp(1)
    student = random_logits()[0]
    truncated = topk_kd(student, teacher, 3, missing="truncate", reduction="none")
    expected = truncated / mass.exp() - mass
    found = topk_kd(student, teacher, 3, missing="renormalise_teacher", reduction="none")
    torch.testing.assert_close(found, expected)


def test_truncated_may_be_negative_and_in_reverse_sends_mass_outside() -> None:
    student, teacher = random_logits()
    assert (topk_kd(student, teacher, 2, missing="truncate", reduction="none") < 0).any()
    outside = torch.ones_like(teacher).scatter(1, teacher.topk(2).indices, 0.0)
    away = [
        topk_kd(teacher + up * outside, teacher, 2, missing="truncate", direction="reverse", reduction="none")
        for up in (0.0, 0.1)
    ]
    assert (away[1] < away[0]).all()
    assert (away[0].abs() < 1e-12).all()  # where the networks agree
    t = teacher.softmax(1)
    kept = (1 - outside).bool()
    scattered = torch.where(kept, t / torch.e, (1 - (t * kept / torch.e).sum(1, True)) / 5)
    assert gradient(scattered.log(), teacher, 2, "truncate", "reverse").abs().max() < 1e-12


def test_sampled_classes_are_unbiased_by_enumeration_if_divided_by_their_number() -> None:
    """All 3² draws of a proposal, weighted by their probabilities; n ≠ Σ of the weights."""
    student = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64).requires_grad_()
    teacher = torch.tensor([0.0, 0.4, -0.4], dtype=torch.float64).log_softmax(0)
    exact = kd(student[None], teacher[None], 1.0)
    (exact_gradient,) = torch.autograd.grad(exact, student)
    for proposal in (teacher, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()):
        log_s = student.log_softmax(0)
        drawn = torch.tensor(list(itertools.product(range(3), repeat=2)))
        likely = proposal[drawn].sum(1).exp()
        own = None if proposal is teacher else proposal[drawn]
        value = (likely * sampled_kl_rows(log_s[drawn], teacher[drawn], own)).sum()
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)
        (found,) = torch.autograd.grad(value, student)
        torch.testing.assert_close(found, exact_gradient, rtol=1e-12, atol=1e-15)
        if own is not None:  # divided by the sum of the weights it is biased
            weights = (teacher[drawn] - own).exp()
            gap = teacher[drawn] - log_s.detach()[drawn]
            assert abs((likely * (weights * gap).sum(1) / weights.sum(1)).sum() - exact) > 1e-3


def test_the_rest_of_k_probabilities() -> None:
    """Against float64, in float32 and for bfloat16's own numbers; what 1 - Σ p cannot resolve is 1e-7."""
    logits = random_logits(scale=3.0)[1]
    log_p = logits.log_softmax(1)
    classes = log_p.topk(3).indices
    exact = TopK.of(log_p, classes)
    torch.testing.assert_close(log_rest(exact.kept), exact.tail, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_rest(exact.kept.float()), exact.tail.float(), rtol=0, atol=5e-3)
    certain = torch.tensor([[0.0, -40.0], [-1e-9, -60.0], [1e-7, -1e4]], requires_grad=True)
    floor = log_rest(certain)
    torch.testing.assert_close(floor, torch.full((3,), 1e-7).log())
    floor.sum().backward()
    assert certain.grad is not None
    assert not certain.grad.any()


def test_a_teacher_without_a_tail() -> None:
    """Forward the bucket vanishes; in reverse it counts as a tail of 1e-7."""
    student, teacher = (TopK(p[:, :2].log(), p[:, 2:].sum(1).log()) for p in (S, T))
    student = TopK(*(x.clone().requires_grad_() for x in student))
    bare = TopK(teacher.kept, torch.full_like(teacher.tail, -torch.inf))
    torch.testing.assert_close(sparse_kl(student, bare, "tail"), sparse_kl(student, bare, "truncate"))
    value = sparse_kl(student, bare, "tail", "reverse")
    assert value.item() == pytest.approx(0.072155 + 0.3 * (math.log(0.3) - math.log(1e-7)), abs=1e-4)
    gradients = torch.autograd.grad(value + sparse_kl(student, bare, "tail"), student)
    assert all(found.isfinite().all() for found in gradients)


def test_extreme_and_low_precision_logits_stay_finite_and_agree_with_float64() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for scale in (1.0, 1e4):
            student, teacher = (x.to(dtype) for x in random_logits(scale=scale))
            for missing, direction in PAIRS:
                leaf = student.clone().requires_grad_()
                value = topk_kd(leaf, teacher, 3, missing=missing, direction=direction)  # type: ignore[arg-type]
                value.backward()
                exact = topk_kd(student.double(), teacher.double(), 3, missing=missing, direction=direction)  # type: ignore[arg-type]
                torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)
                assert leaf.grad is not None
                assert leaf.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences() -> None:
    student, teacher = random_logits(rows=4)
    for missing, direction in (*PAIRS, ("uniform", "reverse")):

        def value(z: Tensor, missing: str = missing, direction: str = direction) -> Tensor:
            return topk_kd(z, teacher, 3, missing=missing, direction=direction)  # type: ignore[arg-type]

        assert torch.autograd.gradcheck(value, student.clone().requires_grad_()), (missing, direction)


def test_forms_without_a_reverse_are_refused_before_training() -> None:
    for missing, words in (("sample", "estimate KL"), ("renormalise_teacher", "infinitely far")):
        with pytest.raises(UserError, match=f"direction=reverse: .*{words}.*Use missing=tail"):
            TopKKD(missing=missing, direction="reverse")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="direction=reverse"):
            topk_kd(S, T, 2, missing=missing, direction="reverse", draws=torch.rand(1, 2))  # type: ignore[arg-type]
