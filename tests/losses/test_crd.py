import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.feature.crd import CRD
from distillery.losses.functional import crd, crd_in_batch, mean_score
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from fixtures import formulas, terms
from fixtures.cases import each_case
from fixtures.random import draw
from reference import crd as reference

SAMPLES = 12


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@each_case("negatives", [1, 7])
@each_case("samples", [20, 5000])
def test_rows(negatives: int, samples: int) -> None:
    """The number of samples cancels."""
    scores, first = 2 * draw(4, 1 + negatives), draw(3, 1 + negatives, seed=1)
    z = reference.first_z(first.numpy(), samples)
    rows = crd(scores, mean_score(first), reduction="none")
    np.testing.assert_allclose(rows.numpy(), reference.nce(scores.numpy(), z, samples), rtol=1e-10)
    of_itself = reference.nce(scores.numpy(), reference.first_z(scores.numpy(), samples), samples)
    assert crd(scores).item() == pytest.approx(np.mean(of_itself), rel=1e-10)


@each_case("temperature", [0.07, 0.5])
def test_rows_in_batch(temperature: float) -> None:
    student, teacher = unit(draw(5, 3)), unit(draw(5, 3, seed=1))
    expected = reference.info_nce(student.numpy(), teacher.numpy(), temperature)
    rows = crd_in_batch(student, teacher, temperature, reduction="none")
    np.testing.assert_allclose(rows.numpy(), expected, rtol=1e-10)
    assert crd_in_batch(student[:1], teacher[:1], temperature).item() == pytest.approx(0, abs=1e-12)


def test_gradients() -> None:
    """The constant is one, though it is measured on the scores."""
    first = mean_score(draw(3, 4, seed=1))
    assert torch.autograd.gradcheck(lambda s: crd(s, first), draw(3, 4).requires_grad_())
    scores = draw(3, 4).requires_grad_()
    given = torch.autograd.grad(crd(scores), scores)[0]
    torch.testing.assert_close(given, torch.autograd.grad(crd(scores, mean_score(scores)), scores)[0])
    teacher = unit(draw(4, 3, seed=1))
    assert torch.autograd.gradcheck(lambda s: crd_in_batch(s, teacher, 0.3), draw(4, 3).requires_grad_())


def built(**settings: Any) -> CRD:
    torch.manual_seed(0)
    term = CRD(**({"samples": SAMPLES, "num_negatives": 5, "dimension": 3} | settings))
    term.build({"embedding": torch.Size([4, 6])}, {"embedding": torch.Size([4, 4])})
    return term.double()


def value(term: CRD, index: list[int], labels: Tensor | None, student: Tensor | None = None, seed: int = 0) -> Tensor:
    """Of a batch of random features, or of the student's that are given."""
    student = draw(len(index), 6, seed=seed) if student is None else student
    logits = torch.zeros(len(index), 2)
    batch = {"index": torch.tensor(index)} | ({} if labels is None else {"target": labels})
    teacher = Signals(logits, {"embedding": draw(len(index), 4, seed=seed + 1)})
    return term(Signals(logits, {"embedding": student}), teacher, batch)


def banks(term: CRD) -> list[Tensor]:
    return [term.student_bank.clone(), term.teacher_bank.clone()]


def embedded(term: CRD, index: list[int], seed: int) -> list[Tensor]:
    student, teacher = draw(len(index), 6, seed=seed), draw(len(index), 4, seed=seed + 1)
    return [unit(term.embed_student(student)).detach(), unit(term.embed_teacher(teacher)).detach()]


def negatives_of(term: CRD, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects what the term draws from now on."""
    drawn: list[Tensor] = []
    plain = term._negatives

    def noted(*given: Tensor) -> Tensor:
        drawn.append(plain(*given))
        return drawn[-1]

    monkeypatch.setattr(term, "_negatives", noted)
    return drawn


@each_case(("temperature", "momentum"), [(0.07, 0.5), (0.5, 0.9)])
def test_term_over_three_batches(temperature: float, momentum: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants of the first batch, positives and negatives out of the other network's bank, which then moves."""
    term = built(temperature=temperature, momentum=momentum)
    drawn = negatives_of(term, monkeypatch)
    z: list[float] = []
    for step, index in enumerate([[0, 3, 7, 9], [3, 1, 2, 11], [0, 3, 5, 8]]):
        before = [bank.numpy() for bank in banks(term)]
        anchors = [rows.numpy() for rows in embedded(term, index, seed=10 * step)]
        given = value(term, index, torch.tensor([0, 1, 2, 1]), seed=10 * step).item()
        expected = 0.0
        for direction, (rows, bank) in enumerate(zip(anchors, reversed(before), strict=True)):
            chosen = [[own, *others] for own, others in zip(index, drawn[-1].tolist(), strict=True)]
            scores = np.array([bank[of] @ row / temperature for of, row in zip(chosen, rows, strict=True)])
            if step == 0:
                z.append(reference.first_z(scores, SAMPLES))
            expected += float(np.mean(reference.nce(scores, z[direction], SAMPLES)))
        assert given == pytest.approx(expected, rel=1e-9)
        for bank, old, rows in zip(banks(term), before, anchors, strict=True):
            for sample, row in zip(index, rows, strict=True):
                old[sample] = reference.remembered(old[sample], row, momentum)
            np.testing.assert_allclose(bank.numpy(), old, rtol=1e-9)


def test_negatives_are_of_other_classes_and_have_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    term = built(num_negatives=200)
    drawn = negatives_of(term, monkeypatch)
    value(term, [0, 1, 2, 3], torch.tensor([0, 0, 1, 2]))
    value(term, [4, 5, 0, 6], torch.tensor([0, 1, 0, 2]))
    assert [set(row.tolist()) for row in drawn[0]] == [{2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]
    assert [set(row.tolist()) for row in drawn[1]] == [{2, 3, 5, 6}, {0, 1, 3, 4, 6}, {2, 3, 5, 6}, {0, 1, 2, 4, 5}]
    counts = drawn[1][1].bincount(minlength=7)[[0, 1, 3, 4, 6]]
    assert counts.min() > 15  # 40 each, ± 6


@each_case("labels", [None, torch.full((4, 2), 0.5)])
def test_without_classes_the_negatives_are_other_samples(
    labels: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    term = built(num_negatives=100)
    drawn = negatives_of(term, monkeypatch)
    value(term, [0, 5, 7, 11], labels)
    assert [set(row.tolist()) for row in drawn[0]] == [{5, 7, 11}, {0, 7, 11}, {0, 5, 11}, {0, 5, 7}]


def test_a_first_batch_of_one_class_draws_any_row() -> None:
    assert value(built(), [0, 1, 2, 3], torch.zeros(4, dtype=torch.long)).isfinite()


def test_negatives_change_with_batch_sample_and_seed() -> None:
    """And with nothing else: not with the global generator."""
    labels, index = torch.arange(SAMPLES), torch.tensor([0, 1])

    def drawn(term: CRD) -> list[list[int]]:
        term.labels.copy_(labels)
        torch.rand(1)
        return term._negatives(labels[index], labels, index).tolist()

    term = built(num_negatives=20)
    first = drawn(term)
    assert first[0] != first[1]
    assert drawn(term) == first
    assert drawn(built(num_negatives=20, seed=1)) != first
    term.steps.done = 1
    assert drawn(term) != first


def test_evaluation_changes_nothing() -> None:
    term = built()
    value(term, [0, 1, 2, 3], torch.arange(4))
    before = {name: tensor.clone() for name, tensor in term.state_dict().items()}
    term.eval()
    value(term, [4, 5, 6, 7], torch.arange(4), seed=5)
    assert term.steps.done == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in term.state_dict().items())


def train(term: CRD, steps: range, student: Tensor) -> list[float]:
    """Moves the student's features of twelve samples, in batches of four, and both embeddings."""
    optimizer = torch.optim.SGD([student, *term.parameters()], lr=0.1)
    values = []
    for step in steps:
        index = [(4 * step + i) % SAMPLES for i in range(4)]
        optimizer.zero_grad()
        loss = value(term, index, torch.tensor(index) % 3, student[index], seed=step % 3)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_goes_on_bit_equal_after_saving() -> None:
    straight, student = built(), draw(SAMPLES, 6).requires_grad_()
    expected = train(straight, range(8), student)

    saved, again = built(), draw(SAMPLES, 6).requires_grad_()
    begun = train(saved, range(5), again)
    torch.save(saved.state_dict(), stored := io.BytesIO())
    stored.seek(0)
    resumed = built(seed=0)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert begun + train(resumed, range(5, 8), again) == expected
    assert torch.equal(student, again)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@each_case(("variant", "share"), [("memory", 0.6), ("in_batch", 0.1)])
def test_overfits(variant: str, share: float) -> None:
    """The floor of the NCE is not 0: a sample and one of its own negatives are never quite told apart."""
    term, student = built(variant=variant, dimension=8, temperature=0.2), draw(SAMPLES, 6).requires_grad_()
    values = train(term, range(200), student)
    assert np.mean(values[-30:]) < share * np.mean(values[:3])


def test_both_embeddings_are_trained() -> None:
    term, student = built(), draw(4, 6).requires_grad_()
    value(term, [0, 1, 2, 3], torch.arange(4), student).backward()
    for tensor in (student, *term.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_in_batch_has_no_banks() -> None:
    term = built(variant="in_batch", samples=None)
    assert not [name for name, _ in term.named_buffers()]
    student, teacher = embedded(term, [0, 1, 2], seed=0)
    torch.testing.assert_close(value(term, [0, 1, 2], None), crd_in_batch(student, teacher))


@each_case(
    ("settings", "words"),
    [
        ({"samples": None}, "samples: give the size"),
        ({"layers": {"embedding": "embedding", "a": "b"}}, "names 2. Name one"),
    ],
)
def test_refused(settings: dict[str, Any], words: str) -> None:
    def make() -> None:
        size = torch.Size([4, 6])
        term = CRD(**({"samples": SAMPLES} | settings))
        term.build({"embedding": size, "a": size}, {"embedding": size, "b": size})

    with pytest.raises(UserError, match=words):
        make()


@formulas.plain("crd", "contrast")
def plain_crd(x: formulas.Inputs) -> Tensor:
    scores = x["contrast"].exp()
    noise = 256 * scores.detach().mean()
    true, false = scores[:, 0] / (scores[:, 0] + noise), noise / (scores[:, 1:] + noise)
    return -(true.log().sum() + false.log().sum()) / len(scores)


@formulas.plain_of("crd_in_batch", lambda x: crd_in_batch(unit(x["s_vector"]), unit(x["t_vector"])))
def plain_crd_in_batch(x: formulas.Inputs) -> Tensor:
    scores = formulas.unit(x["s_vector"]) @ formulas.unit(x["t_vector"]).T / 0.07
    own = torch.arange(len(scores))
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


@terms.example_of(CRD)
def example_crd(term: type[Term], batch: int, draw: terms.Draw) -> terms.Example:
    """With small banks."""
    made = terms.plain(term, samples=16, num_negatives=6, dimension=4)
    student, teacher = (Signals(draw(batch, terms.CLASSES), {"x": draw(batch, 5)}) for _ in range(2))
    terms.built(made, student, teacher)
    return terms.Example(made, student, teacher, terms.labels(batch))
