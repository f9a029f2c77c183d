"""Response losses on rows that are tokens: one value a token, the same as of that token alone."""

import pytest
import torch
from torch import Tensor

from distillery.config.loss_catalogue import losses
from distillery.core.errors import UserError
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.several import BY_LABEL, Several
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from distillery.tasks.embedding import Embedding
from distillery.tasks.masked_lm import MaskedLM
from distillery.tasks.regression import Regression
from fixtures.terms import plain

TERMS = {loss.name: loss.term for loss in losses(["response"])}
# They compare layers [B,C] with the logits or labels of samples, or heads that are layers; a token is neither.
OF_SAMPLES = {"deep_supervision", "deit_hard", "deit_soft"}
OF_TOKENS = sorted(TERMS.keys() - OF_SAMPLES)
VOCABULARY = 13
TARGET = torch.tensor([[-100, 4, -100, 10, -100], [12, -100, -100, 0, 3]])
BATCH = {"input_ids": TARGET.abs(), "target": TARGET, "index": torch.tensor([70, 50])}
PLACES = [(0, 1), (0, 3), (1, 0), (1, 3), (1, 4)]
each_loss = pytest.mark.parametrize("name", OF_TOKENS)


def made(name: str, teacher: str = "main") -> Term:
    return plain(TERMS[name], layers=None, teacher=teacher)


def networks() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def rows(logits: Tensor) -> tuple[Signals, dict[str, Tensor]]:
    """As a language model's task gives them to a loss."""
    signals, labelled = MaskedLM().rows(Signals(logits), BATCH)
    return signals, dict(labelled)


def test_the_losses_that_read_layers_are_those_which_cannot() -> None:
    assert {name for name, term in TERMS.items() if term.contract.needs != "logits"} == OF_SAMPLES


@pytest.mark.parametrize("name", sorted(OF_SAMPLES))
def test_these_fail_instead_of_comparing_something_else(name: str) -> None:
    def value() -> Tensor:
        student, teacher = (Signals(rows(x)[0].logits, {"x": x[..., :3], "head": x}) for x in networks())
        shapes = {tap: tensor.shape for tap, tensor in student.layers.items()}
        layer = "x" if name == "deep_supervision" else "head"
        term = plain(TERMS[name], layers={layer: layer})
        term.build(shapes, shapes)
        return term.double()(student, teacher, BATCH)

    with pytest.raises((UserError, ValueError, RuntimeError)):
        value()


@each_loss
def test_each_masked_token_has_a_finite_value_and_no_other_a_gradient(name: str) -> None:
    student, teacher = networks()
    (of_student, batch), (of_teacher, _) = rows(student), rows(teacher)
    term = made(name)
    value = term(of_student, of_teacher, batch)
    assert value.shape == ((len(PLACES),) if term.contract.per_sample else ())
    assert value.isfinite().all()
    assert value.sum() != 0
    value.sum().backward()
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, TARGET != -100)


@pytest.mark.parametrize("name", [name for name in OF_TOKENS if TERMS[name].contract.per_sample])
def test_a_token_is_judged_by_its_own_label_and_teacher(name: str) -> None:
    """Its value in the batch is that of a batch with this token only."""
    student, teacher = networks()
    (of_student, batch), (of_teacher, _) = rows(student), rows(teacher)
    term = made(name)
    found = term(of_student, of_teacher, batch)
    for value, (sample, token) in zip(found, PLACES, strict=True):
        alone = {"target": TARGET[sample, token].view(1), "index": BATCH["index"][sample].view(1)}
        given = Signals(student[sample, token].view(1, -1)), Signals(teacher[sample, token].view(1, -1))
        torch.testing.assert_close(term(*given, alone), value.view(1))


def test_topk_may_draw_from_the_teacher_of_a_token() -> None:
    student, teacher = networks()
    (of_student, batch), (of_teacher, _) = rows(student), rows(teacher)
    value = TopKKD(missing="sample", k=3)(of_student, of_teacher, batch)
    assert value.shape == (len(PLACES),)
    assert value.isfinite().all()


@pytest.mark.parametrize("combine", ["mean", "random", *BY_LABEL])
def test_several_teachers_of_a_token(combine: str) -> None:
    student, teacher = networks()
    (of_student, batch), (of_teacher, _) = rows(student), rows(teacher)
    teachers = {"main": of_teacher, "b": Signals(-of_teacher.logits)}
    terms = [made("kd", name) for name in teachers]
    values = {term.teacher: term(of_student, teachers[term.teacher], batch) for term in terms}
    found = Several(terms, combine).combined(values, teachers, batch)
    low, high = torch.stack(list(values.values())).aminmax(dim=0)
    assert found.shape == (len(PLACES),)
    assert ((low <= found) & (found <= high)).all()
    if combine == "random":  # drawn for each sample, not for each of its tokens
        chosen = found == values["main"]
        assert chosen[:2].unique().numel() == chosen[2:].unique().numel() == 1


def test_numbers_have_a_loss_between_networks_and_no_classes() -> None:
    """Of one logit a softmax is 1, whatever the logit is."""
    batch = {"target": torch.tensor([0.5, 2.0]), "index": torch.tensor([3, 1])}
    student, teacher = (Regression().rows(Signals(torch.tensor(x)), batch)[0] for x in ([[1.0], [2.0]], [[4.0], [2.5]]))
    assert made("logit_mse")(student, teacher, batch).tolist() == [9.0, 0.25]
    assert made("kd")(student, teacher, batch).tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="dkd needs class indices as labels"):
        made("dkd")(student, teacher, batch)


def test_embeddings_of_other_widths_are_not_compared() -> None:
    batch = {"target": torch.tensor([0, 1]), "index": torch.tensor([3, 1])}
    student, teacher = (Embedding().rows(Signals(torch.randn(2, width)), batch)[0] for width in (6, 8))
    with pytest.raises(ValueError, match=r"student \[2, 6\] and teacher \[2, 8\] differ in shape"):
        made("logit_mse")(student, teacher, batch)
