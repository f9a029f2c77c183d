"""Two ranks that gather their rows compute what one process computes: values, order and gradients."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.core.process import world_size
from distillery.data.sampler import SeededBatchSampler
from distillery.losses.feature.crd import CRD
from distillery.losses.feature.hint import Hint
from distillery.losses.functional import pkt, rkd
from distillery.losses.relation.correlation_congruence import CorrelationCongruence
from distillery.losses.relation.rkd import RKD
from distillery.losses.response.dist import DIST
from distillery.losses.response.dkd import DKD
from distillery.losses.response.kd import KD
from distillery.losses.signals import Signals
from distillery.tasks.classification import Classification
from distillery.training.gathering import Given, all_rows, gathered
from distillery.training.objective import Objective
from fixtures.random import draw
from fixtures.thread_ranks import SEEDED, on_ranks

RANKS = 2
SHARES = [(4, 3), (3, 3), (1, 4), (0, 2)]  # rows of each rank; the sampler deals the first two kinds
BATCH = 7
PARAMETER = "head:weight"
# Which samples have a label: some of both ranks' (which take turns), of the first rank's alone, of neither's.
LABELLED = {"both": (1, 0, 1, 1, 0, 0, 1), "first": (1, 0, 1, 0, 0, 0, 1), "none": (0,) * 7}


def positions(shares: tuple[int, ...]) -> list[list[int]]:
    """Of each rank's rows in the whole, which are dealt one to each rank in turn."""
    dealt: list[list[int]] = [[] for _ in shares]
    rows = [(i, rank) for rank, share in enumerate(shares) for i in range(share)]
    for position, (_, rank) in enumerate(sorted(rows)):
        dealt[rank].append(position)
    return dealt


def network() -> nn.Linear:
    with SEEDED:
        torch.manual_seed(0)
        return nn.Linear(3, 4, dtype=torch.float64)


def relations(features: Tensor, teacher: Tensor) -> Tensor:
    """A loss that depends on all pairs, and on the order."""
    order = torch.arange(1.0, 1 + len(features), dtype=torch.float64)
    return rkd(features, teacher) + 1000 * pkt(features, teacher) + (order * features.square().sum(1)).sum()


def objective(gather: bool) -> Objective:
    """A loss of pairs, one that depends on the order and has a projector, and one of rows."""
    terms = {
        "rkd": RKD(2.0, layers={"x": "y"}, gather=gather),
        "cc": CorrelationCongruence(0.5, layers={"x": "y"}, gather=gather),
        "hint": Hint(layers={"x": "y"}),
    }
    with SEEDED:
        torch.manual_seed(1)
        for term in terms.values():
            term.build({"x": torch.Size([2, 4])}, {"y": torch.Size([2, 5])})
    return Objective(Classification(), terms).double()


def partly_labelled() -> Objective:
    """Losses that read labels beside losses that do not: of relations, of rows, and with buffers."""
    with SEEDED:
        torch.manual_seed(1)
        crd = CRD(3.0, layers={"x": "y"}, samples=BATCH, num_negatives=3, dimension=4)
        crd.build({"x": torch.Size([2, 4])}, {"y": torch.Size([2, 5])})
    rkd_term = RKD(2.0, layers={"x": "y"}, gather=True)
    return Objective(
        Classification(), {"crd": crd, "dkd": DKD(), "rkd": rkd_term, "dist": DIST(gather=True), "kd": KD()}
    ).double()


@dataclass
class Step:
    """What one rank computes on its share of a batch."""

    losses: dict[str, Tensor]
    gradients: list[Tensor]
    buffers: dict[str, Tensor]


def step(rows: list[int], made: Objective, labelled: tuple[int, ...] | None = None) -> Step:
    student = network()
    features, target = student(draw(BATCH, 3)[rows]), torch.arange(BATCH)[rows] % 4
    batch = {"target": target, "index": torch.tensor(rows)}
    if labelled is not None:
        known = torch.tensor(labelled, dtype=torch.bool)[rows]
        batch |= {"target": target.where(known, -1), "labelled": known}
    losses = made(
        Signals(features, {"x": features}),
        {"main": Signals(draw(BATCH, 4, seed=2)[rows], {"y": draw(BATCH, 5, seed=1)[rows]})},
        batch,
    )
    losses.total.backward()
    gradients = [p.grad for p in (*student.parameters(), *made.parameters()) if p.grad is not None]
    return Step(losses.terms, gradients, dict(made.named_buffers()))


def work(rank: int) -> dict[Any, Any]:
    """Every case's results on one rank."""
    results: dict[Any, Any] = {"world": world_size()}
    for shares in SHARES:
        rows = positions(shares)[rank]
        total = sum(shares)
        student = network()
        features, numbers, half = all_rows(
            [student(draw(total, 3)[rows]), torch.tensor(rows, dtype=torch.int64), draw(total, 2, 2)[rows].half()]
        )
        (value := (1 + rank) * relations(features, draw(total, 5, seed=1))).backward()
        gradients = [p.grad for p in student.parameters()]
        results[shares] = {"value": value.detach(), "numbers": numbers, "half": half, "gradients": gradients}
    for gather in (True, False):
        rows = torch.arange(BATCH)[rank::RANKS].tolist()
        results["objective", gather] = vars(step(rows, objective(gather)))
    for name, labelled in LABELLED.items():
        results[name] = vars(step(rows, partly_labelled(), labelled))
    with pytest.raises(ValueError, match=r"rows differ in shape, \[\[2, 3\], \[2, 4\]\]$"):
        all_rows([torch.zeros(2, 3 + rank)])
    return results


@pytest.fixture(scope="module")
def results() -> list[dict[Any, Any]]:
    return on_ranks(work, RANKS)


def mean_gradients(results: list[dict[Any, Any]], case: Any) -> list[Tensor]:
    """What DDP makes of the ranks' gradients."""
    each = [result[case]["gradients"] for result in results]
    return [torch.stack(of_ranks).mean(0) for of_ranks in zip(*each, strict=True)]


def test_one_process_has_no_world() -> None:
    assert world_size() == 1


def test_the_order_is_that_of_the_sampler(results: list[dict[Any, Any]]) -> None:
    for rank, result in enumerate(results):
        assert result["world"] == RANKS
        sampler = SeededBatchSampler(torch.arange(BATCH), BATCH, rank=rank, world=RANKS)
        assert next(iter(sampler)).positions == positions((4, 3))[rank]


@pytest.mark.parametrize("shares", SHARES)
def test_rows_of_all_ranks_with_the_gradient_of_one_process(
    results: list[dict[Any, Any]], shares: tuple[int, int]
) -> None:
    """The ranks' losses differ by a factor of 1 and 2: DDP's gradient is that of their mean."""
    total = sum(shares)
    student = network()
    value = relations(student(draw(total, 3)), draw(total, 5, seed=1))
    (1.5 * value).backward()
    for rank, result in enumerate(results):
        torch.testing.assert_close(result[shares]["numbers"], torch.arange(total))
        torch.testing.assert_close(result[shares]["half"], draw(total, 2, 2).half(), rtol=0, atol=0)
        torch.testing.assert_close(result[shares]["value"], (1 + rank) * value.detach())
    for found, parameter in zip(mean_gradients(results, shares), student.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)


def test_the_objective_of_two_ranks_is_that_of_one_process(results: list[dict[Any, Any]]) -> None:
    """Also of the projector, and of a loss of rows beside; without `gather` the relations are others."""
    alone = step(list(range(BATCH)), objective(gather=True))
    for result in results:
        for name in ("rkd", "cc"):
            torch.testing.assert_close(result["objective", True]["losses"][name], alone.losses[name])
            assert not torch.isclose(result["objective", False]["losses"][name], alone.losses[name], rtol=1e-3)
    for name, expected in alone.losses.items():
        ranks = [result["objective", True]["losses"][name] for result in results]
        torch.testing.assert_close(torch.stack(ranks).mean(), expected)
    found = mean_gradients(results, ("objective", True))
    assert len(found) == 6  # of the network, and of two projectors
    torch.testing.assert_close(found, alone.gradients)


def test_partly_labelled_batches_of_two_ranks_are_that_of_one_process(results: list[dict[Any, Any]]) -> None:
    """Also where the labelled samples are all on one rank, or on none."""
    for case, labelled in LABELLED.items():
        alone = step(list(range(BATCH)), partly_labelled(), labelled)
        for name, expected in alone.losses.items():
            assert (expected == 0) == (case == "none" and name in ("task", "crd", "dkd")), (case, name)
            ranks = torch.stack([result[case]["losses"][name] for result in results])
            torch.testing.assert_close(ranks.mean(), expected, msg=f"{case}: {name}")
        for result in results:
            torch.testing.assert_close(result[case]["losses"]["rkd"], alone.losses["rkd"])
            torch.testing.assert_close(result[case]["buffers"], alone.buffers, equal_nan=True)
        found = mean_gradients(results, case)
        assert len(found) == len(alone.gradients) == 6  # of the network, and of the two embeddings of crd
        torch.testing.assert_close(found, alone.gradients)


@pytest.mark.parametrize("needs_logits", [True, False])
def test_a_term_is_given_what_it_reads_and_nothing_else(needs_logits: bool) -> None:
    """Also the mask, which only one of the networks has, and the parameters, which are the same on every rank."""
    taps = {"student_taps": ("x", PARAMETER), "teacher_taps": ("y",)}
    term: Any = SimpleNamespace(**taps, needs_logits=needs_logits)
    layers = {"x": draw(BATCH, 3), PARAMETER: draw(2, 2), "unread": draw(BATCH, 9)}
    mask = draw(BATCH, 3, seed=4) > 0
    target, logits, teacher_logits = torch.arange(BATCH), draw(BATCH, 4, seed=1), draw(BATCH, 5, seed=2)

    def work(rank: int) -> Given:
        rows = torch.arange(BATCH)[rank::RANKS]
        own = {name: value if name == PARAMETER else value[rows] for name, value in layers.items()}
        student = Signals(logits[rows], own, mask=mask[rows])
        teacher = Signals(teacher_logits[rows], {"y": draw(BATCH, 6, seed=3)[rows]})
        return gathered(term, student, teacher, {"target": target[rows], "image": draw(BATCH, 8)[rows]})

    for rank, (student, teacher, batch) in enumerate(on_ranks(work, RANKS)):
        own = slice(None) if needs_logits else slice(rank, None, RANKS)  # logits that it does not read stay as they are
        torch.testing.assert_close(student.logits, logits[own])
        torch.testing.assert_close(teacher.logits, teacher_logits[own])
        assert student.layers.keys() == {"x", PARAMETER}
        torch.testing.assert_close(student.layers["x"], layers["x"])
        torch.testing.assert_close(student.layers[PARAMETER], layers[PARAMETER])
        torch.testing.assert_close(teacher.layers["y"], draw(BATCH, 6, seed=3))
        assert torch.equal(student.mask, mask)  # type: ignore[arg-type]
        assert teacher.mask is None
        assert batch.keys() == {"target"}
        assert torch.equal(batch["target"], target)


def test_a_loss_with_a_value_for_each_sample_has_nothing_to_gather() -> None:
    class GatheredHint(Hint):
        gather: bool = True

    with pytest.raises(UserError, match=r"gather=true: .* compares no sample with another.*Remove gather"):
        GatheredHint()
