import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillery.losses.functional import deep_supervision, kd
from distillery.losses.projectors import ExitBranch
from distillery.losses.response.deep_supervision import DeepSupervision
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from reference import deep_supervision as reference

TARGET = torch.tensor([0, 6, 2, 2, 5])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@each_case("alpha", [0.0, 0.3])
@each_case("temperature", [1.0, 3.0])
def test_rows(alpha: float, temperature: float) -> None:
    branch, deepest = draw(5, 7), draw(5, 7, seed=1)
    values, entropies = reference.rows(branch.tolist(), deepest.tolist(), TARGET.tolist(), alpha, temperature)
    expected = np.array(values) - np.array(entropies)
    found = deep_supervision(branch, deepest, TARGET, alpha, temperature, reduction="none")
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    mean = deep_supervision(branch, deepest, TARGET, alpha, temperature)
    assert mean.item() == pytest.approx(expected.mean(), rel=1e-9)


def test_t_squared_multiplies_the_divergence_alone() -> None:
    branch, deepest = draw(5, 7), draw(5, 7, seed=1)
    difference = deep_supervision(branch, deepest, TARGET, t_squared=True) - deep_supervision(branch, deepest, TARGET)
    torch.testing.assert_close(difference, 0.3 * 8 * kd(branch, deepest, 3.0, t_squared=False))


@each_case(("shape", "dims"), [((5, 4, 3, 2), (2, 3)), ((5, 6, 4), (1,)), ((5, 4), ())])
def test_a_branch_is_linear_in_the_mean_over_positions(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    branch = ExitBranch(torch.Size(shape), 7).double()
    features = draw(*shape)
    mean = np.mean(features.numpy(), axis=dims) if dims else features.numpy()
    expected = mean @ branch.linear.weight.detach().numpy().T + branch.linear.bias.detach().numpy()
    np.testing.assert_allclose(branch(features).detach().numpy(), expected, rtol=1e-9)
    assert branch.bfloat16()(features.bfloat16()).dtype == torch.bfloat16


def signals() -> Signals:
    return Signals(draw(5, 7), {"one": draw(5, 4, 6, 6, seed=1), "two": draw(5, 8, 3, 3, seed=2), "head": draw(5, 7)})


def built(**settings: object) -> DeepSupervision:
    torch.manual_seed(0)
    term = DeepSupervision(layers={"one": "two", "two": "two"}, **settings)  # type: ignore[arg-type]
    term.build({tap: tensor.shape for tap, tensor in signals().layers.items()}, {})
    return term.double()


def test_term_sums_its_branches() -> None:
    term = built(alpha=0.5, temperature=2.0, t_squared=True)
    given, teacher = signals(), Signals(draw(5, 7, seed=3))
    exits = [nn.functional.linear(given.layers[tap].mean((2, 3)), b.linear.weight, b.linear.bias)
             for tap, b in zip(("one", "two"), term.branches, strict=True)]  # fmt: skip
    expected = sum(deep_supervision(e, teacher.logits, TARGET, 0.5, 2.0, True, reduction="none") for e in exits)
    torch.testing.assert_close(term(given, teacher, {"target": TARGET}), expected)


def test_term_asks_for_its_layers_and_reads_the_classes_off_the_head() -> None:
    term = built()
    assert term.student_taps == ["one", "two", "head"]
    assert term.teacher_taps == []
    assert term.needs_logits
    assert term.teacher == "self"
    assert [tuple(b.linear.weight.shape) for b in term.branches] == [(7, 4), (7, 8)]


def test_overfits_one_batch_and_survives_saving() -> None:
    """The branches learn the labels, and learn on as before after they were stored and read."""
    teacher = Signals(20 * nn.functional.one_hot(TARGET, 7).double())

    def steps(term: DeepSupervision, optimizer: torch.optim.Optimizer, number: int) -> list[float]:
        values = []
        for _ in range(number):
            value = term(signals(), teacher, {"target": TARGET}).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        return values

    term = built()
    optimizer = torch.optim.SGD(term.parameters(), lr=1.0)
    values = steps(term, optimizer, 500)
    assert values[-1] < 0.05 * values[0]
    torch.save(term.state_dict(), stored := io.BytesIO())
    stored.seek(0)
    again = built()
    again.load_state_dict(torch.load(stored, weights_only=True))
    assert steps(again, torch.optim.SGD(again.parameters(), lr=1.0), 3) == steps(term, optimizer, 3)


@formulas.plain("deep_supervision", "s_logits", "t_logits", "target")
def plain_deep_supervision(x: formulas.Inputs) -> Tensor:
    hard = F.cross_entropy(x["s_logits"], x["target"])
    return 0.7 * hard + 0.3 * formulas.divergence(formulas.p(x["t_logits"], 3), formulas.p(x["s_logits"], 3)).mean()


@terms.example_of(DeepSupervision)
def example_deep_supervision(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """The head's width tells the branches the number of classes."""
    made = terms.plain(term)
    logits = draw(batch, terms.CLASSES)
    student = Signals(logits, {"x": draw(batch, 5, 4, 4), "head": logits})
    teacher = Signals(draw(batch, terms.CLASSES), {"x": draw(batch, 5, 4, 4), "head": draw(batch, terms.CLASSES)})
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
