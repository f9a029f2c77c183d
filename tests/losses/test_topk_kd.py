import io

import numpy as np
import pytest
import torch
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.functional import kd, topk_kd
from distillery.losses.levels import SparseLogits
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from reference import topk_kd as reference


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(rows: int, k: int) -> Tensor:
    return torch.rand(rows, k, dtype=torch.float64, generator=draw())


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    return tuple(2 * torch.randn(2, 5, 9, dtype=torch.float64, generator=draw()))


@each_case("k", [1, 3, 9])
@each_case("temperature", [1.0, 4.0])
@each_case("t_squared", [True, False])
def test_rows(logits: tuple[Tensor, Tensor], k: int, temperature: float, t_squared: bool) -> None:
    arrays = [x.numpy() for x in logits]
    factor = temperature**2 if t_squared else 1.0
    cross_entropy, entropy = reference.uniform(*arrays, k, temperature)
    expected = {
        "renormalise": reference.renormalise(*arrays, k, temperature),
        "uniform": cross_entropy - entropy,
    }
    for missing, rows in expected.items():
        found = topk_kd(*logits, k, temperature, missing, t_squared, reduction="none")  # type: ignore[arg-type]
        np.testing.assert_allclose(found.numpy(), factor * rows, rtol=1e-9, atol=1e-14)
        mean = topk_kd(*logits, k, temperature, missing, t_squared)  # type: ignore[arg-type]
        assert mean.item() == pytest.approx(factor * rows.mean(), rel=1e-9, abs=1e-14)


@each_case("k", [1, 4])
@each_case("temperature", [1.0, 4.0])
def test_drawn_rows(logits: tuple[Tensor, Tensor], k: int, temperature: float) -> None:
    student, teacher = logits
    drawn = reference.drawn(teacher.numpy(), draws(5, k).numpy(), temperature)
    to_student, to_teacher = reference.sample(student.numpy(), teacher.numpy(), drawn, temperature)
    found = topk_kd(*logits, k, temperature, "sample", draws=draws(5, k), reduction="none")
    np.testing.assert_allclose(found.numpy(), to_student - to_teacher, rtol=1e-9)


@each_case("missing", ["renormalise", "uniform"])
def test_all_classes_are_kd(logits: tuple[Tensor, Tensor], missing: str) -> None:
    value = topk_kd(*logits, 9, 4.0, missing, t_squared=True, reduction="none")  # type: ignore[arg-type]
    torch.testing.assert_close(value, kd(*logits, 4.0, reduction="none"))


@each_case("missing", ["renormalise", "uniform", "sample"])
def test_gradient(logits: tuple[Tensor, Tensor], missing: str) -> None:
    student, teacher = logits

    def value(z: Tensor) -> Tensor:
        return topk_kd(z, teacher, 3, 2.0, missing, draws=draws(5, 3))  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(value, student.clone().requires_grad_())


def in_standard_errors(samples: Tensor, expected: Tensor) -> Tensor:
    """How far the mean over the first dimension lies from what is expected."""
    return (samples.mean(0) - expected).abs() / (samples.std(0) / len(samples) ** 0.5)


@each_case("k", [1, 4])
def test_only_drawn_classes_are_unbiased_in_value_and_gradient(k: int) -> None:
    student, teacher = 2 * torch.randn(2, 1, 6, dtype=torch.float64, generator=draw(1))
    student.requires_grad_()
    exact = kd(student, teacher, 1.0)
    (exact_gradient,) = torch.autograd.grad(exact, student)
    many = student.detach().expand(40_000, -1).clone().requires_grad_()
    rows = topk_kd(many, teacher.expand(40_000, -1), missing="sample", draws=draws(40_000, k), reduction="none")
    (gradients,) = torch.autograd.grad(rows.sum(), many)
    assert in_standard_errors(rows.detach(), exact.detach()) < 4
    assert (in_standard_errors(gradients, exact_gradient[0]) < 4).all()
    spread = gradients.std(0) / 40_000**0.5
    for missing in ("renormalise", "uniform"):
        value = topk_kd(student, teacher, k, missing=missing)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(value, student)
        assert ((gradient - exact_gradient).abs()[0] > 4 * spread).any()


def test_impossible_classes_are_never_drawn() -> None:
    """Also not by the least and the greatest number that is drawn."""
    teacher = torch.tensor([[-1e4, 1.0, 0.0, -1e4]])
    value = topk_kd(torch.zeros(1, 4), teacher, missing="sample", draws=torch.tensor([[0.0, 1 - 2**-24]]))
    expected = teacher[0, 1:3].log_softmax(-1).mean() - torch.tensor(0.25).log()
    torch.testing.assert_close(value, expected)


def test_more_draws_are_less_noisy() -> None:
    """The variance of a mean of k independent draws falls with 1 / k."""
    student, teacher = 2 * torch.randn(2, 1, 6, dtype=torch.float64, generator=draw(1)).expand(-1, 40_000, -1)
    one, sixteen = (
        topk_kd(student, teacher, missing="sample", draws=draws(40_000, k), reduction="none").var() for k in (1, 16)
    )
    assert (one / sixteen).item() == pytest.approx(16, rel=0.1)


@each_case("missing", ["renormalise", "uniform", "sample"])
@each_case("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scale_of_ten_thousand_stays_finite(missing: str, dtype: torch.dtype) -> None:
    student, teacher = (1e4 * torch.randn(2, 4, 7, generator=draw())).to(dtype)
    student.requires_grad_()
    value = topk_kd(student, teacher, 3, missing=missing, draws=draws(4, 3))  # type: ignore[arg-type]
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_rows_give_zero() -> None:
    for missing in ("renormalise", "uniform", "sample"):
        value = topk_kd(torch.zeros(0, 4), torch.zeros(0, 4), 2, missing=missing, draws=draws(0, 2))  # type: ignore[arg-type]
        assert value.item() == 0


def test_term_draws_for_each_sample_and_batch_and_a_resumed_one_goes_on(logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    index = torch.tensor([7, 3, 3, 0, 90])

    def values(term: TopKKD, calls: int, rows: slice = slice(None)) -> list[list[float]]:
        signals = Signals(student[rows]), Signals(teacher[rows])
        return [term(*signals, {"index": index[rows]}).tolist() for _ in range(calls)]

    whole = values(TopKKD(missing="sample", seed=3), 4)
    assert len({tuple(rows) for rows in whole}) == 4
    assert values(TopKKD(missing="sample", seed=4), 1) != whole[:1]
    assert values(TopKKD(missing="sample", seed=3), 4, slice(2, 5)) == [rows[2:] for rows in whole]
    begun = TopKKD(missing="sample", seed=3)
    assert values(begun, 2) == whole[:2]
    torch.save(begun.state_dict(), stored := io.BytesIO())
    stored.seek(0)
    resumed = TopKKD(missing="sample", seed=3)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert values(resumed, 2) == whole[2:]


def test_every_token_of_a_text_has_draws_of_its_own(logits: tuple[Tensor, Tensor]) -> None:
    """Rows of the same sample and with the same logits differ, and each is the same wherever it is computed."""
    student, teacher = (logit[:1].expand(40, -1) for logit in logits)
    index, position = torch.arange(2).repeat_interleave(20), torch.arange(20).repeat(2)

    def values(rows: slice, **settings: int) -> Tensor:
        batch = {"index": index[rows], "position": position[rows]}
        term = TopKKD(missing="sample", k=8, temperature=4.0, **settings)
        return term(Signals(student[rows]), Signals(teacher[rows]), batch)

    whole = values(slice(None))
    assert len(set(whole.tolist())) > 30  # the same draws would give 2 values
    assert torch.equal(values(slice(13, 27)), whole[13:27])
    assert not torch.equal(values(slice(None), seed=1), whole)


def test_more_classes_than_there_are_are_refused(logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="k=10: there are only 9 classes"):
        topk_kd(*logits, 10)
    assert topk_kd(*logits, 10, missing="sample", draws=draws(5, 10)).isfinite()
    with pytest.raises(ValueError, match=r"needs draws \[N,k\]"):
        topk_kd(*logits, missing="sample")
    with pytest.raises(ValueError, match="differ in shape"):
        topk_kd(torch.zeros(2, 3), torch.zeros(2, 4), 2)


@formulas.plain("topk_kd", "s_logits", "t_logits")
def plain_topk_kd(x: formulas.Inputs) -> Tensor:
    likely, classes = x["t_logits"].topk(5)
    return formulas.divergence(formulas.p(likely), formulas.p(x["s_logits"].gather(1, classes))).mean()


@terms.example_of(TopKKD)
def example_topk(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """Fewer classes than there are."""
    return terms.Example(
        terms.plain(term, k=3),
        Signals(draw(batch, terms.CLASSES)),
        Signals(draw(batch, terms.CLASSES)),
        terms.labels(batch),
    )


@each_case("missing", ["tail", "truncate", "renormalise", "uniform", "sample"])
def test_rows_of_which_nothing_is_known_add_nothing(logits: tuple[Tensor, Tensor], missing: str) -> None:
    """Neither to the loss nor to the gradient; the others are as if they were alone."""
    student, teacher = logits
    log_p, classes = teacher.log_softmax(-1).topk(3)
    tail = None if missing == "sample" else (1 - log_p.exp().sum(-1)).log()
    known = torch.tensor([True, False, True, True, False])
    term = TopKKD(k=3, missing=missing)  # type: ignore[arg-type]
    none = torch.empty(len(student), 0)
    student.requires_grad_()
    rows = term(Signals(student), Signals(none, sparse=SparseLogits(classes, log_p, tail, known=known)), {})
    alone = term(
        Signals(student[known]), Signals(none[known], sparse=SparseLogits(classes, log_p, tail).rows(known)), {}
    )
    torch.testing.assert_close(rows[known], alone)
    assert (rows[~known] == 0).all()
    rows.sum().backward()
    assert student.grad is not None
    assert (student.grad[~known] == 0).all()
    assert (student.grad[known] != 0).any()
