"""Logits in chunks of rows: the losses, gradients and scores of a causal language model are those of all at once."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.config.loss_catalogue import losses
from distillery.core.errors import UserError
from distillery.losses.feature.hidden_mse import HiddenMSE
from distillery.losses.response.dist import DIST
from distillery.losses.response.kd import KD
from distillery.losses.response.topk_kd import TopKKD
from distillery.losses.several import Several
from distillery.losses.term import Term
from distillery.models.adapters import TextAdapter
from distillery.models.taps.end_before_head import before_heads, find_head
from distillery.models.taps.network import Network
from distillery.models.text.transformer import transformer
from distillery.tasks.causal_lm import CausalLM
from distillery.tasks.evaluate import evaluate
from distillery.teachers.frozen import Teacher
from distillery.teachers.peer import Peer
from distillery.training.head_chunks import end_before_heads
from distillery.training.objective import Losses, Objective
from distillery.training.update_counts import UpdateCounts
from distillery.training.wiring import wire
from fixtures.documents import tiny_llama
from fixtures.terms import plain

SIZE, KNOWN = 37, 33  # logits of the networks, tokens of the tokenizer
PER_ROW = {
    loss.name: loss.term
    for loss in losses(["response"])
    if loss.term.contract.per_sample and loss.term.contract.needs == "logits"
}


def batch_of(samples: int = 4, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(KNOWN, (samples, length), generator=draw)
    target = ids.masked_fill(torch.rand(samples, length, generator=draw) < 0.4, -100)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(samples, length).contiguous(),
        "target": target,
        "bytes": torch.ones_like(ids),
        "index": torch.arange(samples) + 10 * seed,
    }


def network(net: nn.Module, role: type[Network] = Network, name: str = "student") -> Network:
    return role(net.double(), TextAdapter(net), name)


def task_of(rows: int | None = None) -> CausalLM:
    task = CausalLM(0.7, rows_per_chunk=rows)
    task._vocabulary = KNOWN  # fewer than the networks' logits
    return task


class Pieces:
    """A student, two teachers and an objective; `losses` with any chunk size."""

    def __init__(self, terms: Mapping[str, Term], kind: str = "llama", **config: Any) -> None:
        self.student = network(tiny_llama(SIZE, kind=kind, **config))
        self.teachers = {
            name: network(tiny_llama(SIZE, seed, hidden_size=8), Teacher, name)
            for seed, name in enumerate(("main", "b"), 1)
        }
        self.task = task_of()
        self.objective = Objective(self.task, terms).double()
        end_before_heads(task_of(1), terms, self.student, self.teachers, batch_of())
        assert self.student.known_head

    def losses(self, rows: int | None, batch: Mapping[str, Tensor], counts: UpdateCounts | None = None) -> Losses:
        self.task.rows_per_chunk = rows
        with before_heads([] if rows is None else [self.student, *self.teachers.values()]):
            teachers = {name: each(batch, training=True) for name, each in self.teachers.items()}
            student = self.student(batch)
        assert (student.headed is None) == (rows is None)
        return self.objective(student, teachers, batch, counts)

    def gradients(self, value: Tensor, every: bool = True) -> Sequence[Tensor]:
        """Of all parameters, which must all have one; not `every`: 0 where the value does not depend on it."""
        own = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        return torch.autograd.grad(value, own, materialize_grads=not every, retain_graph=True)


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_values_and_gradients_of_every_loss_of_rows() -> None:
    """Of each by itself and of their sum; with samples of which no label is known, and with a loss on layers."""
    assert {"kd", "reverse_kl", "jsd", "topk_kd", "sampled_kl", "uld"} <= PER_ROW.keys()
    terms: dict[str, Any] = {name: plain(term, layers=None, weight=0.3) for name, term in PER_ROW.items()}
    terms["draws"] = TopKKD(k=3, missing="sample", weight=0.2)
    for combine in ("mean", "confidence", "random"):
        terms[combine] = Several([KD(weight=0.4), KD(teacher="b", weight=0.4)], combine)
    terms["layers"] = HiddenMSE(layers={"model.layers.0": "model.layers.1"}, projector="linear")
    pieces = Pieces({name: term for name, term in terms.items() if name != "layers"})
    wire(terms, pieces.student, pieces.teachers, batch_of())
    pieces.objective = Objective(pieces.task, terms).double()
    counters = [terms["draws"].steps, terms["random"].steps]

    def computed(rows: int | None, batch: Mapping[str, Tensor]) -> Losses:
        for counter in counters:
            counter.done = 5
        return pieces.losses(rows, batch)

    def alone(found: Losses) -> dict[str, Any]:
        """Each unweighted loss and its gradient. One of layers does not depend on those after them."""
        return {
            name: (each.detach(), pieces.gradients(each, every=name != "layers"))
            for name, each in found.raw.items()
            if each.requires_grad
        }

    some = batch_of() | {"labelled": torch.tensor([True, False, True, False])}
    none = some | {"labelled": torch.zeros(4, dtype=torch.bool)}
    for batch, sizes in ((batch_of(), (1, 7, 999)), (some, (3,)), (none, (3,))):
        whole = computed(None, batch)
        expected = pieces.gradients(whole.total)
        for rows in sizes:
            found = computed(rows, batch)
            same(found.terms, whole.terms)
            assert list(found.terms) == list(whole.terms)
            same(pieces.gradients(found.total), expected)
            if rows == 7:
                same(alone(found), alone(whole))
                assert len(alone(found)) == len(terms) + 1
            assert [counter.done for counter in counters] == [6, 6]


def test_heads_with_a_bias_a_soft_cap_a_factor_and_tied_or_not() -> None:
    """Traps 16 and 17."""
    for kind, config in (
        ("gemma2", {"final_logit_softcapping": 3.0, "tie_word_embeddings": True, "head_dim": 8}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0, "tie_word_embeddings": False}),
        ("llama", {"tie_word_embeddings": True}),
        ("phi", {}),  # a bias
    ):
        pieces = Pieces({"kd": KD(temperature=2.0)}, kind, **config)
        net: Any = pieces.student.net
        with torch.no_grad():
            for parameter in pieces.student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert (net.lm_head.weight is net.get_input_embeddings().weight) == config.get(
            "tie_word_embeddings", kind == "cohere"
        )
        whole = pieces.losses(None, batch_of())
        found = pieces.losses(7, batch_of())
        assert whole.total.item() > 0.1
        same(found.terms, whole.terms)
        same(pieces.gradients(found.total), pieces.gradients(whole.total))


def test_an_update_is_the_same_however_its_batches_are_cut() -> None:
    """Traps 2 and 3: 1 × 8, 2 × 4 and 8 × 1, one batch without a loss-bearing token among them."""
    pieces = Pieces({"kd": KD(), "topk_kd": TopKKD(k=3, missing="tail")})
    whole = batch_of(8)
    whole["target"][3] = -100
    found = []
    for size, rows in ((8, None), (8, 5), (4, 5), (1, 5)):
        parts = [{key: value[at : at + size] for key, value in whole.items()} for at in range(0, 8, size)]
        counts = UpdateCounts.of(pieces.task, parts)
        totals = [pieces.losses(rows, part, counts).total / counts.batches for part in parts]
        found.append(pieces.gradients(sum(totals, torch.zeros(()))))
        assert all(total.isfinite() for total in totals)
    for other in found[1:]:
        same(other, found[0])
    nothing = pieces.losses(5, whole | {"target": torch.full_like(whole["target"], -100)})
    assert {name: value.item() for name, value in nothing.terms.items()} == {
        "loss": 0,
        "task": 0,
        "kd": 0,
        "topk_kd": 0,
    }
    assert not any(gradient.any() for gradient in pieces.gradients(nothing.total))


def test_bfloat16_is_widened_before_the_product_with_the_head() -> None:
    """Trap 7: the losses are those of the same hidden rows and weights in float32, and the logits are not rounded."""
    net = tiny_llama(SIZE).bfloat16()
    student, task, batch = Network(net, TextAdapter(net)), task_of(4), batch_of()
    end_before_heads(task, {}, student, {}, batch)
    with before_heads([student]):
        signals = student(batch)
    total = Objective(task, {})(signals, {}, batch).total
    assert signals.headed is not None
    logits = signals.headed.hidden.float() @ signals.headed.weight.float()[:KNOWN].T
    kept = batch["target"][:, 1:] != -100
    expected = nn.functional.cross_entropy(logits[:, :-1][kept], batch["target"][:, 1:][kept])
    torch.testing.assert_close(total, 0.7 * expected)
    rounded = Objective(task, {})(student(batch), {}, batch).total
    assert (rounded - total).abs() > 1e-4
    total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in net.parameters())


def test_scores_are_those_of_all_logits() -> None:
    student, task = network(tiny_llama(SIZE)), task_of(5)
    loader = [batch_of(seed=seed) for seed in range(3)]
    expected = evaluate(student, loader, task, KNOWN)
    end_before_heads(task, {}, student, {}, loader[0])
    seen: list[int] = []
    hook = student.net.lm_head.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[operator, union-attr]
    found = evaluate(student, loader, task, KNOWN)
    hook.remove()
    assert not seen
    assert found.score == pytest.approx(expected.score, rel=1e-12)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert torch.equal(found.predicted, expected.predicted)
    assert student(loader[0]).logits.shape == (4, 6, SIZE)  # elsewhere a network gives its logits


class Doubled(nn.Module):
    """Gives the logits of a causal network in another way than its head alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_llama(SIZE)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.net(input_ids, attention_mask).logits
        return logits + logits.roll(1, -1)


def test_what_needs_all_logits_says_so_and_has_them() -> None:
    def remarks(student: nn.Module, terms: Mapping[str, Term], whole: str = "", role: type[Network] = Teacher) -> str:
        own, teachers = network(student), {"main": network(tiny_llama(SIZE, 1), role, "main")}
        wire(terms, own, teachers, batch_of())
        end_before_heads(task_of(5), terms, own, teachers, batch_of(), whole)
        end_before_heads(task_of(5), terms, own, teachers, batch_of(), whole)  # once only
        assert (own.known_head is None) == bool(own.remarks)
        assert len(own.remarks) <= 1
        return " ".join(own.remarks)

    llama = tiny_llama(SIZE)
    head = HiddenMSE(layers={"head": "model.layers.0"}, projector="linear")
    quantised = tiny_llama(SIZE)
    quantised.lm_head = type("Int8", (nn.Linear,), {})(16, SIZE)
    for student, terms, words in (
        (llama, {"mine": DIST()}, "task.rows_per_chunk.*: loss.mine compares rows with each other"),
        (llama, {"mine": head}, "a loss reads its layer 'head', which is its head"),
        (Doubled(), {}, "its logits are the output of 'net.lm_head' neither as it is"),
        (quantised, {}, "its head 'lm_head' is no plain linear layer"),
    ):
        assert re.search(words, remarks(student, terms))
    assert "hardware=fsdp2 shards" in remarks(llama, {}, "hardware=fsdp2 shards its head")
    assert "teacher 'main' is trained beside it" in remarks(llama, {"kd": KD()}, role=Peer)
    assert not remarks(llama, {"kd": KD(), "layers": HiddenMSE(layers={"model.layers.0": "model.layers.1"})})
    with pytest.raises(UserError, match="rows_per_chunk=0"):
        CausalLM(rows_per_chunk=0)
    own = network(tiny_llama(SIZE))
    end_before_heads(task_of(None), {}, own, {}, batch_of())
    assert own.known_head is None
    assert not own.remarks
    encoder = transformer(
        "bert", "masked_lm", SIZE, {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    )
    find_head(network(encoder), {key: batch_of()[key] for key in ("input_ids", "attention_mask")})
