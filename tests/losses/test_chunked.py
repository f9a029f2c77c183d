"""Losses in chunks of rows have the values and gradients of the same losses from all logits at once."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.config.loss_catalogue import losses
from distillery.core.errors import UserError
from distillery.losses.chunked import Batch, RowLoss, sum_over_rows, weighted_sum
from distillery.losses.functional import kd
from distillery.losses.levels import Headed
from distillery.losses.response.jsd import JSD
from distillery.losses.response.kd import KD
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.signals import Signals
from distillery.losses.sparse import TopK, sparse_kl
from distillery.losses.term import Term
from fixtures.terms import plain

N, CLASSES, STUDENT, TEACHER = 11, 17, 6, 5
TERMS = {loss.name: loss.term for loss in losses(["response"])}
IN_ROWS = {name for name, term in TERMS.items() if term.contract.per_sample and term.contract.needs == "logits"}


def networks(
    dtype: torch.dtype = torch.float64, softcap: float | None = None, bias: bool = True, rows: int = N
) -> tuple[Headed, Headed, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    def of(width: int) -> Headed:
        return Headed(drawn(rows, width), drawn(CLASSES, width), drawn(CLASSES) if bias else None, softcap)

    student, teacher = of(STUDENT), of(TEACHER)
    for tensor in leaves(student):
        tensor.requires_grad_()
    index = torch.arange(rows)
    return student, teacher, {"target": index % CLASSES, "index": index // 4, "position": index % 4}


def leaves(student: Headed) -> list[Tensor]:
    return [each for each in (student.hidden, student.weight, student.bias) if each is not None]


def naive(loss: RowLoss, student: Headed, teacher: Headed | Tensor | None, batch: Batch) -> Tensor:
    return loss(student.logits(), teacher.logits() if isinstance(teacher, Headed) else teacher, batch).sum()


def gradients(value: Tensor, student: Headed) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, leaves(student))


def of_kd(student_logits: Tensor, teacher_logits: Tensor | None, batch: Batch) -> Tensor:
    assert teacher_logits is not None
    labels = F.cross_entropy(student_logits, batch["target"], reduction="none")
    return 0.1 * labels + 0.9 * kd(student_logits, teacher_logits, 2.0, reduction="none")


def agree(loss: RowLoss, student: Headed, teacher: Headed | Tensor | None, batch: Batch, **tolerance: float) -> None:
    expected = naive(loss, student, teacher, batch)
    wanted = gradients(3 * expected, student)
    for rows in (1, 4, N, 100):
        found = sum_over_rows(loss, student, teacher, batch, rows)
        torch.testing.assert_close(found, expected, **tolerance)
        for one, other in zip(gradients(3 * found, student), wanted, strict=True):
            torch.testing.assert_close(one, other, **tolerance)


def test_value_and_gradients_are_exact_for_any_chunk() -> None:
    for bias in (True, False):
        for softcap in (None, 2.0):
            student, teacher, batch = networks(softcap=softcap, bias=bias)
            agree(of_kd, student, teacher, batch, rtol=1e-12, atol=1e-13)
            agree(of_kd, student, teacher.logits(), batch, rtol=1e-12, atol=1e-13)
            agree(of_kd, *networks(torch.float32, softcap, bias), rtol=1e-5, atol=1e-6)


def test_soft_capped_logits_are_those_of_the_formula() -> None:
    student, *_ = networks(softcap=2.0)
    assert student.bias is not None
    expected = 2 * ((student.hidden @ student.weight.T + student.bias) / 2).tanh()
    torch.testing.assert_close(student.logits(), expected)


def test_every_loss_that_is_a_sum_over_rows() -> None:
    assert {"kd", "reverse_kl", "jsd", "topk_kd", "sampled_kl"} <= IN_ROWS
    student, teacher, batch = networks()
    for name in sorted(IN_ROWS):
        terms = [plain(TERMS[name], layers=None, weight=0.7), KD(weight=0.3)]
        expected = naive(lambda s, t, b, terms=terms: whole(terms, s, t, b), student, teacher, batch)  # type: ignore[misc]
        wanted = gradients(expected, student)
        found = sum_over_rows(weighted_sum(terms), student, teacher, batch, 4)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=name)
        for one, other in zip(gradients(found, student), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12, msg=name)


def whole(terms: list[Term], student: Tensor, teacher: Tensor | None, batch: Batch) -> Tensor:
    assert teacher is not None
    return torch.stack([term.weight * term(Signals(student), Signals(teacher), batch) for term in terms]).sum(0)


def test_losses_that_need_all_rows_or_layers_are_refused() -> None:
    for name in sorted(TERMS.keys() - IN_ROWS - {"deep_supervision", "deit_hard", "deit_soft"}):
        with pytest.raises(UserError, match=f"{name} compares the rows of a batch with each other. It is no sum"):
            weighted_sum([KD(), plain(TERMS[name], layers=None)])
    assert "dist" not in IN_ROWS
    with pytest.raises(UserError, match="deit_hard is no function of logits alone"):
        weighted_sum([TERMS["deit_hard"]()])


def test_draws_of_a_batch_are_the_same_in_any_chunks() -> None:
    student, teacher, batch = networks()

    def values(rows: int) -> list[float]:
        term = TopKKD(missing="sample", k=3, seed=5)
        found = [sum_over_rows(weighted_sum([term]), student, teacher, batch, rows).item() for _ in range(3)]
        assert term.steps.done == 3
        return found

    term = TopKKD(missing="sample", k=3, seed=5)
    expected = [term(Signals(student.logits()), Signals(teacher.logits()), batch).sum().item() for _ in range(3)]
    assert len(set(expected)) == 3
    for rows in (1, 4, 100):
        assert values(rows) == pytest.approx(expected, rel=1e-12)


def test_a_stored_teacher_is_read_from_the_batch() -> None:
    student, teacher, batch = networks()
    log_p = teacher.logits().log_softmax(-1)
    classes = log_p.topk(3).indices
    kept = TopK.of(log_p, classes)
    stored = {**batch, "classes": classes, "kept": kept.kept, "tail": kept.tail}

    def loss(student_logits: Tensor, teacher_logits: Tensor | None, batch: Batch) -> Tensor:
        assert teacher_logits is None
        of_student = TopK.of(student_logits.log_softmax(-1), batch["classes"])
        return sparse_kl(of_student, TopK(batch["kept"], batch["tail"]), "tail")

    agree(loss, student, None, stored, rtol=1e-12, atol=1e-13)
    online = naive(weighted_sum([TopKKD(k=3, missing="tail")]), student, teacher, batch)
    torch.testing.assert_close(sum_over_rows(loss, student, None, stored, 4), online)


def test_tied_embeddings_gather_the_gradients_of_both_uses() -> None:
    tokens = torch.arange(N) * 7 % CLASSES

    def of_embedding(chunked: bool) -> tuple[Tensor, Tensor]:
        student, teacher, batch = networks()
        weight = student.weight.detach().requires_grad_()
        tied = Headed(F.embedding(tokens, weight).tanh(), weight)
        value = sum_over_rows(of_kd, tied, teacher, batch, 4) if chunked else naive(of_kd, tied, teacher, batch)
        value.backward()
        assert weight.grad is not None
        return value, weight.grad

    for found, expected in zip(of_embedding(True), of_embedding(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_low_precision_is_widened_before_the_product() -> None:
    """The logits are those of the same numbers in float32; so are the gradients, up to the rounding of the result."""
    for autocast in (False, True):
        student, teacher, batch = networks(torch.bfloat16)
        exact = [Headed(*(x.detach().float() for x in (h.hidden, h.weight, h.bias)), 2.0) for h in (student, teacher)]  # type: ignore[union-attr, arg-type]
        low = [Headed(h.hidden, h.weight, h.bias, 2.0) for h in (student, teacher)]
        for tensor in leaves(exact[0]):
            tensor.requires_grad_()
        expected = naive(of_kd, exact[0], exact[1], batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = sum_over_rows(of_kd, low[0], low[1], batch, 4)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for one, other in zip(gradients(found, low[0]), gradients(expected, exact[0]), strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), other, rtol=2**-8, atol=1e-6)


def test_what_is_frozen_gets_no_gradient() -> None:
    for trained in ("hidden", "weight", "bias"):
        student, teacher, batch = networks()
        for tensor in leaves(student):
            tensor.requires_grad_(False)
        getattr(student, trained).requires_grad_()
        (expected,) = torch.autograd.grad(naive(of_kd, student, teacher, batch), getattr(student, trained))
        found = sum_over_rows(of_kd, student, teacher, batch, 4)
        found.backward()
        torch.testing.assert_close(getattr(student, trained).grad, expected)
        assert sum(tensor.grad is not None for tensor in (*leaves(student), *leaves(teacher))) == 1
    student, teacher, batch = networks()
    with torch.no_grad():
        value = sum_over_rows(of_kd, student, teacher, batch, 4)
    assert not value.requires_grad
    torch.testing.assert_close(value, naive(of_kd, student, teacher, batch).detach())


def test_no_rows_give_zero_and_stay_in_the_graph() -> None:
    student, teacher, batch = networks(rows=0)
    for terms in ([KD()], [TopKKD(k=3, missing="tail"), JSD()]):
        value = sum_over_rows(weighted_sum(terms), student, teacher, batch)
        assert value.item() == 0
        for gradient in gradients(value, student):
            assert not gradient.any()


def test_a_second_backward_finds_the_same_gradients() -> None:
    student, teacher, batch = networks()
    value = sum_over_rows(of_kd, student, teacher, batch, 4)
    first = torch.autograd.grad(value, leaves(student), retain_graph=True)
    for one, other in zip(first, gradients(value, student), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_the_benchmark_measures_both_forms() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "chunked_loss.py"
    command = [sys.executable, str(script), "--rows=64", "--classes=999", "--repeats=1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr  # 1: too small to save anything
    lines = ended.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["64", "naive", "chunked"]
    assert lines[1].endswith("1.00 ×      1.00 ×")
