"""Losses in chunks of rows have the values and gradients of the same losses from all logits at once."""

import json
import runpy
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.losses.chunked import Batch, map_rows, sum_over_rows
from distillery.losses.functional import kd
from distillery.losses.levels import Headed, SparseLogits
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.signals import Signals

N, CLASSES, STUDENT, TEACHER = 11, 17, 6, 5


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


def rows_of(teacher: Headed | Tensor) -> Signals:
    return Signals(torch.empty(2, 0), headed=teacher) if isinstance(teacher, Headed) else Signals(teacher)


def naive(student: Headed, teacher: Headed, batch: Batch) -> Tensor:
    return of_kd(Signals(student.logits()), {"main": Signals(teacher.logits())}, batch)


def chunked(student: Headed, teacher: Headed | Tensor, batch: Batch, rows: int = 4) -> Tensor:
    return sum_over_rows(of_kd, student, {"main": rows_of(teacher)}, batch, rows=rows)[0]


def gradients(value: Tensor, student: Headed) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, leaves(student))


def of_kd(student: Signals, teachers: Mapping[str, Signals], batch: Batch) -> Tensor:
    labels = F.cross_entropy(student.logits, batch["target"], reduction="none")
    return (0.1 * labels + 0.9 * kd(student.logits, teachers["main"].logits, 2.0, reduction="none")).sum()


def agree(student: Headed, teacher: Headed, batch: Batch, **tolerance: float) -> None:
    expected = naive(student, teacher, batch)
    wanted = gradients(3 * expected, student)
    for given in (teacher, teacher.logits()):
        for rows in (1, 4, N, 100):
            found = chunked(student, given, batch, rows)
            torch.testing.assert_close(found, expected, **tolerance)
            for one, other in zip(gradients(3 * found, student), wanted, strict=True):
                torch.testing.assert_close(one, other, **tolerance)


def test_value_and_gradients_are_exact_for_any_chunk() -> None:
    for bias in (True, False):
        for softcap in (None, 2.0):
            agree(*networks(softcap=softcap, bias=bias), rtol=1e-12, atol=1e-13)
            agree(*networks(torch.float32, softcap, bias), rtol=1e-5, atol=1e-6)


def test_several_losses_have_their_own_sums_and_one_gradient() -> None:
    student, teacher, batch = networks()

    def two(student: Signals, teachers: Mapping[str, Signals], part: Batch) -> Tensor:
        return torch.stack([of_kd(student, teachers, part), student.logits.square().sum()])

    total, sums = sum_over_rows(two, student, {"main": rows_of(teacher)}, batch, [0.7, -2.0], rows=4)
    expected = [naive(student, teacher, batch), student.logits().square().sum()]
    torch.testing.assert_close(sums, torch.stack(expected).detach())
    assert not sums.requires_grad
    whole = 0.7 * expected[0] - 2 * expected[1]
    torch.testing.assert_close(total, whole)
    for one, other in zip(gradients(total, student), gradients(whole, student), strict=True):
        torch.testing.assert_close(one, other)


def test_soft_capped_logits_are_those_of_the_formula() -> None:
    student, *_ = networks(softcap=2.0)
    assert student.bias is not None
    expected = 2 * ((student.hidden @ student.weight.T + student.bias) / 2).tanh()
    torch.testing.assert_close(student.logits(), expected)


def test_a_teacher_of_which_few_classes_are_known() -> None:
    student, teacher, batch = networks()
    log_p = teacher.logits().log_softmax(-1)
    kept, classes = log_p.topk(3)
    tail = log_p.scatter(-1, classes, -torch.inf).logsumexp(-1)
    stored = Signals(torch.empty(2, 0), sparse=SparseLogits(classes, kept, tail))
    term = TopKKD(k=3, missing="tail")

    def loss(student: Signals, teachers: Mapping[str, Signals], part: Batch) -> Tensor:
        return term(student, teachers["main"], part).sum()

    found, expected = (
        sum_over_rows(loss, student, {"main": each}, batch, rows=4)[0] for each in (stored, rows_of(teacher))
    )
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_computed_of_each_row_a_few_at_a_time() -> None:
    student, _, batch = networks()
    given = batch | {"of_samples": torch.zeros(2)}

    def figures(rows: Signals, part: Batch) -> dict[str, Tensor]:
        assert part.keys() == (given if whole else batch).keys()
        sizes.append(len(rows.logits))
        return {"logits": rows.logits, "doubled": 2 * part["target"]}

    for signals in (rows_of(student), Signals(student.logits())):
        for rows, expected in ((4, [4, 4, 3]), (None, [N])):
            sizes: list[int] = []
            whole = rows is None
            found = map_rows(figures, signals, given, rows)
            assert sizes == expected
            torch.testing.assert_close(found["logits"], student.logits())
            assert torch.equal(found["doubled"], 2 * batch["target"])


def test_tied_embeddings_gather_the_gradients_of_both_uses() -> None:
    tokens = torch.arange(N) * 7 % CLASSES

    def of_embedding(in_chunks: bool) -> tuple[Tensor, Tensor]:
        student, teacher, batch = networks()
        weight = student.weight.detach().requires_grad_()
        tied = Headed(F.embedding(tokens, weight).tanh(), weight)
        value = chunked(tied, teacher, batch) if in_chunks else naive(tied, teacher, batch)
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
        expected = naive(exact[0], exact[1], batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = chunked(low[0], low[1], batch)
            logits = low[1].logits()  # all at once, as for scores
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(logits, exact[1].logits(), rtol=0, atol=0)
        for one, other in zip(gradients(found, low[0]), gradients(expected, exact[0]), strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), other, rtol=2**-8, atol=1e-6)


def test_what_is_frozen_gets_no_gradient() -> None:
    for trained in ("hidden", "weight", "bias"):
        student, teacher, batch = networks()
        for tensor in leaves(student):
            tensor.requires_grad_(False)
        getattr(student, trained).requires_grad_()
        (expected,) = torch.autograd.grad(naive(student, teacher, batch), getattr(student, trained))
        found = chunked(student, teacher, batch)
        found.backward()
        torch.testing.assert_close(getattr(student, trained).grad, expected)
        assert sum(tensor.grad is not None for tensor in (*leaves(student), *leaves(teacher))) == 1
    student, teacher, batch = networks()
    with torch.no_grad():
        value = chunked(student, teacher, batch)
    assert not value.requires_grad
    torch.testing.assert_close(value, naive(student, teacher, batch).detach())


def test_no_rows_give_zero_and_stay_in_the_graph() -> None:
    student, teacher, batch = networks(rows=0)
    value = chunked(student, teacher, batch)
    assert value.item() == 0
    for gradient in gradients(value, student):
        assert not gradient.any()


def test_a_second_backward_finds_the_same_gradients() -> None:
    student, teacher, batch = networks()
    value = chunked(student, teacher, batch)
    first = torch.autograd.grad(value, leaves(student), retain_graph=True)
    for one, other in zip(first, gradients(value, student), strict=True):
        assert torch.equal(one, other)


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "chunked_loss.py"
FORMS = ["naive", "chunked", "recomputed", *(["liger"] if find_spec("liger_kernel") else [])]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True)


def table(printed: str) -> list[list[str]]:
    """The cells of a table in Markdown, row by row."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_benchmark_measures_equal_losses() -> None:
    ended = benchmark("--rows=64", "--classes=999", "--repeats=1")
    assert ended.returncode in (0, 1), ended.stderr  # 1: too small to save anything
    rows = table(ended.stdout)[2:]
    assert [row[0] for row in rows] == FORMS
    assert (rows[0][2], rows[0][4]) == ("1.00", "1.00")
    assert "different losses" not in ended.stderr


@pytest.mark.long
@pytest.mark.parametrize("step", [[], ["--step"]])
def test_chunks_keep_to_the_limits_at_full_size(step: list[str]) -> None:
    ended = benchmark(*step)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_benchmark_fails_past_its_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exit_code(mebibytes: float, seconds: float, loss: float) -> object:
        def run(command: list[str], **_: Any) -> Any:
            naive = {"MiB": 100.0, "seconds": 10.0, "loss": 5.0}
            other = {"MiB": mebibytes, "seconds": seconds, "loss": loss}
            return SimpleNamespace(stdout=json.dumps(naive if command[-1] == "--form=naive" else other))

        monkeypatch.setattr(subprocess, "run", run)
        monkeypatch.setattr(sys, "argv", [str(BENCHMARK)])
        monkeypatch.syspath_prepend(BENCHMARK.parent)
        try:
            runpy.run_path(str(BENCHMARK), run_name="__main__")
        except SystemExit as ended:
            return ended.code
        return 0

    assert exit_code(25.0, 11.0, 5.0) == 0
    limits = "More than 0.25 × the memory, or more than 1.1 × the time, of the naive form."
    assert exit_code(25.1, 11.0, 5.0) == exit_code(25.0, 11.1, 5.0) == limits
    assert exit_code(25.0, 11.0, 5.001) == "The forms give different losses."
    assert ["chunked", "25", "0.25", "11.00", "1.10", "5.00000"] in table(capsys.readouterr().out)
