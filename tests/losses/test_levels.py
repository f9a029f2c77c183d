"""Teachers of which less than all logits is known: the same values as from the logits, or a refusal."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distillery.config.loss_catalogue import losses
from distillery.core.errors import UserError
from distillery.losses.levels import Available, Headed, Level, SparseLogits
from distillery.losses.response.kd import KD
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.response.teacher_free import TeacherFree
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.several import Several
from distillery.losses.signals import Signals
from distillery.losses.term import Term
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.masked_lm import MaskedLM
from distillery.training.check_task import check_levels
from fixtures.terms import plain

T = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
S = torch.tensor([[0.2, 0.5, 0.2, 0.1]], dtype=torch.float64).log()
TOPK = Available(frozenset({"topk"}), 5)
SAMPLED = Available(frozenset({"sampled"}), 12)
TOKEN = Available(frozenset({"token"}), 0)


def signals(sparse: SparseLogits) -> Signals:
    return Signals(torch.empty(len(sparse.classes), 0), sparse=sparse)


def stored(logits: Tensor, k: int) -> SparseLogits:
    """The k likeliest classes, in no order; the tail from the probabilities themselves."""
    log_p = logits.log_softmax(-1)
    classes = log_p.argsort(-1, descending=True)[:, :k].flip(-1)
    outside = torch.ones_like(log_p).scatter(-1, classes, 0.0)
    return SparseLogits(classes, log_p.gather(-1, classes), (log_p.exp() * outside).sum(-1).log())


def random_logits() -> tuple[Tensor, Tensor]:
    student, teacher = 2 * torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0)).double()
    return student.requires_grad_(), teacher


def same(term: Term, teacher: SparseLogits, batch: dict[str, Tensor]) -> None:
    """Value and gradient are those from all logits."""
    student, logits = random_logits()
    found, expected = (term(Signals(student), given, batch) for given in (signals(teacher), Signals(logits)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for one, other in zip(*(torch.autograd.grad(v.sum(), student) for v in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_the_fixtures_from_stored_classes() -> None:
    for missing, direction, expected in (
        ("truncate", "forward", 0.304898),
        ("tail", "forward", 0.223805),
        ("renormalise", "forward", 0.247591),
        ("renormalise_teacher", "forward", 0.604266),
        ("truncate", "reverse", 0.072155),
        ("tail", "reverse", 0.193794),
    ):
        term = TopKKD(k=2, missing=missing, direction=direction)  # type: ignore[arg-type]
        for k in (2, 3):
            assert term(Signals(S + 3), signals(stored(T, k)), {}).item() == pytest.approx(expected, abs=6e-7)


def test_value_and_gradient_are_those_from_all_logits() -> None:
    _, teacher = random_logits()
    forms: list[dict[str, Any]] = [
        {"missing": missing, "direction": direction}
        for missing in ("tail", "truncate", "renormalise", "uniform")
        for direction in ("forward", "reverse")
    ]
    for form in (*forms, {"missing": "renormalise_teacher"}, {"temperature": 3.0, "t_squared": True}):
        for k in (1, 3, 5):
            same(TopKKD(k=k, **form), stored(teacher, 5), {})
    target = torch.arange(50) % 9
    of_target = teacher.log_softmax(-1).gather(1, target[:, None])[:, 0]
    one = SparseLogits(target.new_empty(50, 0), teacher.new_empty(50, 0), log_p_target=of_target)
    for estimator in ("k2", "k3", "policy_gradient"):
        batch = {"target": target, "sampled_log_prob": of_target - 0.3}
        same(SampledKL(estimator=estimator, clip=0.2), one, batch)  # type: ignore[arg-type]


def test_drawn_classes_count_alike() -> None:
    """Σ log t/s over the first k that were drawn ÷ k; a class that was drawn twice counts twice."""
    student, teacher = random_logits()
    log_t, log_s = teacher.log_softmax(-1), student.detach().log_softmax(-1)
    drawn = torch.multinomial(log_t.exp(), 12, replacement=True, generator=torch.Generator().manual_seed(0))
    given = signals(SparseLogits(drawn, log_t.gather(-1, drawn)))
    term = TopKKD(k=7, missing="sample")
    found = term(Signals(student), given, {})
    for row in range(50):
        gaps = [float(log_t[row, c] - log_s[row, c]) for c in drawn[row, :7].tolist()]
        assert found[row].item() == pytest.approx(sum(gaps) / 7)
    assert term.steps.done == 0  # nothing was drawn here


def test_levels() -> None:
    teacher = random_logits()[1]
    kept = stored(teacher, 3)
    sampled = SparseLogits(kept.classes, kept.log_p)
    both = SparseLogits(kept.classes, kept.log_p, kept.log_tail, kept.log_p[:, 0])
    head = Headed(torch.zeros(50, 2), torch.zeros(9, 2))
    for given, level in (
        (Signals(teacher), "logits"),
        (Signals(torch.empty(50, 0), headed=head), "logits"),
        (signals(kept), "topk"),
        (signals(both), "topk"),
        (signals(sampled), "sampled"),
        (Signals(torch.empty(50, 0)), None),
    ):
        assert given.level == level
    assert signals(both).available == Available(frozenset({"topk", "token"}), 3)


def test_what_each_loss_needs_is_what_its_contract_says() -> None:
    for loss in losses():
        least = plain(loss.term, layers=None).least_level
        below: set[Level] = set(loss.term.contract.below_logits)
        assert least in below or (not below and least in ("logits", None)), loss.name
    assert TeacherFree().least_level is None
    assert TopKKD(missing="sample").least_level == "sampled"
    assert Several([TopKKD(), TopKKD(teacher="b")], "mean").least_level == "topk"
    assert Several([TopKKD(), TopKKD(teacher="b")], "best").least_level == "logits"


def test_a_loss_that_needs_more_is_refused_with_those_that_do_not() -> None:
    def checked(term: Term, available: Available) -> None:
        teacher: Any = SimpleNamespace(available=available)
        check_levels({"mine": term}, {"main": teacher, "b": teacher})

    tail, sample = "loss/response=[topk_kd] with loss.topk_kd.missing=tail", "loss.topk_kd.missing=sample"
    for term, available, words in (
        (
            KD(),
            TOPK,
            rf"loss.mine needs .* of all classes, and teacher 'main' gives the 5 likeliest.*{tail}".replace("[", r"\["),
        ),
        (KD(), SAMPLED, f"gives 12 drawn classes. Choose .*{sample}"),
        (KD(), TOKEN, r"the probability of each target. Choose loss/response=\[sampled_kl\]"),
        (KD(), Available(frozenset()), "no probabilities. Choose a loss on layers"),
        (TopKKD(missing="sample"), TOPK, "needs classes that are drawn"),
        (TopKKD(), SAMPLED, "needs its teacher's likeliest classes"),
        (SampledKL(), TOPK, "needs its teacher's probability of each target"),
        (TopKKD(k=6), TOPK, "loss.mine: topk_kd.k=6: the teacher gives 5 classes"),
        (TopKKD(temperature=2.0, missing="tail"), TOPK, "temperature=2: .* missing=renormalise"),
        (TopKKD(temperature=2.0, missing="sample"), SAMPLED, "temperature=2"),
        (SampledKL(temperature=2.0), TOKEN, "temperature=2"),
        (Several([TopKKD(k=9), TopKKD(teacher="b", k=9)]), TOPK, "k=9"),
        (Several([TopKKD(), TopKKD(teacher="b")], "best"), TOPK, "needs .* of all classes"),
    ):
        with pytest.raises(UserError, match=words):
            checked(term, available)
    for term, available in ((TopKKD(temperature=2.0), TOPK), (TopKKD(missing="sample"), SAMPLED), (SampledKL(), TOKEN)):
        checked(term, available)
        checked(term, Available())
    with pytest.raises(UserError, match="temperature=2"):  # a schedule has changed it
        TopKKD(k=2, temperature=2.0, missing="tail")(Signals(S), signals(stored(T, 2)), {})


def test_rows_are_taken_of_all_that_stands_for_logits() -> None:
    """Of tokens that bear loss and of labelled samples; classes beyond the tokenizer have no row in the head."""
    batch = {
        "target": torch.tensor([[-100, 1, 2], [-100, 3, -100]]),
        "bytes": torch.ones(2, 3, dtype=torch.long),
        "index": torch.tensor([5, 6]),
        "labelled": torch.tensor([True, False]),
    }
    draw = torch.Generator().manual_seed(0)
    head = Headed(torch.randn(2, 3, 4, generator=draw), torch.randn(9, 4, generator=draw), torch.zeros(9))
    logits = head.logits()
    log_p, classes = logits.log_softmax(-1).topk(2)
    sparse = SparseLogits(classes, log_p, log_p[..., 0], log_p[..., 1])
    given = Signals(torch.empty(2, 0), headed=head, sparse=sparse)
    for task in (CausalLM(), MaskedLM()):
        whole, _ = task.rows(Signals(logits), batch)
        rows, labelled = task.rows(given, batch)
        for own, full in ((rows, whole), *((x.take(labelled["labelled"], batch["labelled"]) for x in (rows, whole)),)):
            assert own.headed is not None
            assert own.sparse is not None
            torch.testing.assert_close(own.headed.logits(), full.logits)
            torch.testing.assert_close(own.sparse.log_p, full.logits.log_softmax(-1).gather(1, own.sparse.classes))
            assert own.sparse.log_tail is not None
            assert torch.equal(own.sparse.log_tail, own.sparse.log_p[:, 0])
    task = CausalLM()
    task.outputs(SimpleNamespace(name="x", classes=(), vocab_size=7, pack=True))  # type: ignore[arg-type]
    rows, _ = task.rows(Signals(torch.empty(2, 0), headed=head), batch)
    assert rows.headed is not None
    torch.testing.assert_close(rows.headed.logits(), task.rows(Signals(logits), batch)[0].logits)
    beyond = SparseLogits(torch.full((2, 3, 1), 7), torch.zeros(2, 3, 1), torch.zeros(2, 3))
    with pytest.raises(UserError, match="probability of token 7, but the tokenizer has 7"):
        task.rows(Signals(torch.empty(2, 0), sparse=beyond), batch)
    with pytest.raises(UserError, match="a row of logits for each token"):
        task.rows(Signals(torch.empty(2, 0), sparse=SparseLogits(*(x[:, :2] for x in (classes, log_p)))), batch)
    leaf = head.hidden.requires_grad_()
    assert given.detach().headed is not None
    assert leaf.requires_grad
    assert not given.detach().headed.hidden.requires_grad  # type: ignore[union-attr]
