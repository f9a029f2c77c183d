"""The student's own texts: the law of sampling, what is recorded of them, and the losses on them."""

import copy
import itertools
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from distillery.data.tokens import IGNORED
from distillery.losses.on_policy import SAMPLED
from distillery.losses.response.kd import KD
from distillery.losses.response.nkd import NKD
from distillery.losses.response.reverse_kl import ReverseKL
from distillery.losses.response.sampled_kl import SampledKL
from distillery.losses.term import Term
from distillery.models.adapters import TextAdapter
from distillery.models.taps.network import Network
from distillery.models.text.generation import can_generate, generate, greedy, left_padded
from distillery.tasks.causal_lm import CausalLM
from distillery.teachers.frozen import Teacher
from distillery.training.head_chunks import end_before_heads
from distillery.training.objective import Objective
from distillery.training.rollouts import Rollouts, batch_of, given, repetition
from fixtures.documents import tiny_llama
from fixtures.own_texts import END, completions, networks, prompts
from fixtures.thread_ranks import on_ranks


def fresh(net: nn.Module, ids: Sequence[int]) -> Tensor:
    """The log-probabilities of each next token of a single text, without cache, padding or mask."""
    with torch.no_grad():
        return net(input_ids=torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


def plain_law(log_p: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """By counting: the likeliest k tokens, then those of them that are needed for the probability top_p."""
    p = (log_p / temperature).exp()
    p = p / p.sum()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    kept = order[: top_k or len(order)]
    total, needed = sum(p[i] for i in kept), []
    for i in kept:
        if sum(p[j] for j in needed) / total < top_p:
            needed.append(i)
    law = torch.zeros_like(p)
    law[needed] = p[needed] / p[needed].sum()
    return law


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 4, 0.9)])
def test_texts_are_drawn_with_the_probability_that_they_have(temperature: float, top_k: int, top_p: float) -> None:
    """All texts of three tokens of five, against a network that is asked for each of them anew."""
    student, _ = networks(5)
    number, prompt = 2000, [3, 1]
    batch = {
        "input_ids": torch.tensor([[*prompt, 1]]).repeat(number, 1),
        "attention_mask": torch.ones(number, 3, dtype=torch.int64),
        "target": torch.tensor([[IGNORED, IGNORED, 1]]).repeat(number, 1),
        "index": torch.arange(number),
    }
    rollouts = Rollouts(new_tokens=3, temperature=temperature, top_k=top_k, top_p=top_p, ends=[END], seed=2)
    (drawn,) = rollouts.draw(student.net, [batch], 7)
    expected: dict[tuple[int, ...], float] = {}
    law_after = cache(
        lambda text: plain_law(fresh(student.net, [*prompt, *text])[-1], temperature, top_k, top_p).tolist()
    )
    for text in itertools.product(range(5), repeat=3):
        text = text[: text.index(END) + 1] if END in text else text
        expected[text] = math.prod(law_after(text[:at])[token] for at, token in enumerate(text))
    assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
    found = [tuple(text) for text in completions(drawn)]
    log_probs = [row[~row.isnan()].sum().item() for row in drawn[SAMPLED]]
    for text, log_p in zip(found, log_probs, strict=True):
        assert log_p == pytest.approx(math.log(expected[text]), abs=1e-4)
    counted = [[found.count(text), number * p] for text, p in expected.items() if number * p > 5]
    rest = [number - sum(count for count, _ in counted), number - sum(p for _, p in counted)]
    counts, means = zip(*counted, *([rest] if rest[1] > 1e-6 else []), strict=True)
    assert stats.chisquare(counts, means, sum_check=False).pvalue > 1e-3
    assert rollouts.last is not None
    ended = sum(text[-1] == END for text in found) / number
    assert rollouts.last.truncated == pytest.approx(1 - ended)
    assert rollouts.last.tokens == pytest.approx(sum(map(len, found)) / number)


def test_log_probabilities_are_those_of_a_fresh_forward(tmp_path: Path) -> None:
    """Of prompts of unequal lengths, drawn together with padding on the left and a cache; dropout is off."""
    for kind, config in (("llama", {}), ("gpt2", {"embd_pdrop": 0.5, "resid_pdrop": 0.5, "attn_pdrop": 0.5})):
        sizes = {} if kind == "llama" else {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        net = _gpt2(sizes | config) if kind == "gpt2" else tiny_llama(9)
        student = Network(net, TextAdapter(net)).train()
        batch = prompts(1, 6, 3, 4)
        rollouts = Rollouts(new_tokens=12, ends=[END], seed=3)
        (drawn,) = rollouts.draw(student.net, [batch], 0)
        assert all(module.training for module in student.modules() if isinstance(module, nn.Dropout))
        lengths = [len(text) for text in completions(drawn)]
        assert len(set(lengths)) > 1  # the case is what it says
        net.eval()
        for row, size in enumerate((1, 6, 3, 4)):
            text = completions(drawn)[row]
            whole = [*batch["input_ids"][row, :size].tolist(), *text]
            assert drawn["input_ids"][row, : len(whole)].tolist() == whole
            assert drawn["attention_mask"][row].sum() == len(whole)
            assert drawn["position_ids"][row, : len(whole)].tolist() == [*range(len(whole))]
            assert END not in text[:-1]
            assert text[-1] == END or len(text) == 12  # the end bears loss, what follows does not
            assert drawn["target"][row, :size].eq(IGNORED).all()
            expected = fresh(net, whole)[size - 1 : -1].gather(1, torch.tensor(text)[:, None])[:, 0]
            found = drawn[SAMPLED][row, size : size + len(text)]
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
        # and of the batch in training, as the task sees it: the same rows, aligned with their logits
        task = CausalLM()
        with torch.no_grad():
            rows, of_rows = task.rows(student(drawn), drawn)
        mine = rows.logits.log_softmax(-1).gather(1, of_rows["target"][:, None])[:, 0]
        torch.testing.assert_close(of_rows[SAMPLED], mine, rtol=0, atol=1e-5)
        assert len(mine) == sum(lengths)


def _gpt2(config: dict[str, Any]) -> nn.Module:
    from distillery.models.text.transformer import transformer

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return transformer("gpt2", "causal_lm", 9, {**config, "initializer_range": 0.3})


def test_a_draw_depends_on_seed_update_and_sample_alone() -> None:
    student, _ = networks()
    batch = prompts(2, 5, 3, 4)
    rollouts = Rollouts(new_tokens=8, ends=[END], seed=4)
    (whole,) = rollouts.draw(student.net, [batch], 5)
    torch.manual_seed(99)
    parts = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    for drawn in (rollouts.draw(student.net, parts, 5), [rollouts.draw(student.net, [part], 5)[0] for part in parts]):
        assert [*completions(drawn[0]), *completions(drawn[1])] == completions(whole)
    assert completions(rollouts.draw(student.net, [batch], 6)[0]) != completions(whole)
    other = Rollouts(new_tokens=8, ends=[END], seed=5)
    assert completions(other.draw(student.net, [batch], 5)[0]) != completions(whole)
    coin = Rollouts(share=0.3, seed=1)
    coins = [coin.own(update) for update in range(1000)]
    assert sum(coins) / 1000 == pytest.approx(0.3, abs=0.05)
    torch.manual_seed(7)
    assert coins[:50] == [Rollouts(share=0.3, seed=1).own(update) for update in range(50)]  # of another process, say
    assert not any(Rollouts(share=0.0).own(update) for update in range(50))
    assert all(Rollouts(share=1.0).own(update) for update in range(50))


def test_prompts() -> None:
    batch = prompts(2, 5)
    assert Rollouts().prompts(batch).tolist() == [2, 5]
    assert Rollouts(prompt_tokens=6).prompts(batch).tolist() == [4, 6]  # never the whole of a text
    batch["target"][0] = IGNORED
    assert Rollouts().prompts(batch).tolist() == [0, 5]
    student, _ = networks()
    (drawn,) = Rollouts(new_tokens=3, ends=[END]).draw(student.net, [batch], 0)
    assert completions(drawn)[0] == []
    assert len(completions(drawn)[1]) > 0
    batch["target"][1] = IGNORED  # not one token in all
    (drawn,) = Rollouts(new_tokens=3, ends=[END]).draw(student.net, [batch], 0)
    assert completions(drawn) == [[], []]
    losses = Objective(CausalLM(), {"rkl": ReverseKL()})(student(drawn), {"main": student(drawn)}, drawn)
    losses.total.backward()
    assert losses.total == 0
    assert all(p.grad is not None and not p.grad.any() for p in student.parameters())


def test_greedy_texts_are_those_of_transformers() -> None:
    """Whose own settings of generation, as top_k, are not asked."""
    student, _ = networks()
    net: Any = student.net
    batch = prompts(2, 5, 3)
    ids, mask = left_padded(batch["input_ids"], torch.tensor([2, 5, 3]))
    made = generate(net, ids, mask, 10, [END], greedy)
    theirs = net.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=END, pad_token_id=END
    )
    assert made.tokens.tolist() == theirs[:, ids.shape[1] :].tolist()
    net.generation_config.update(top_k=1, do_sample=True, temperature=0.1)
    first = Rollouts(new_tokens=5, ends=[END]).draw(net, [batch], 0)[0]
    net.generation_config.update(top_k=50, temperature=1.0)
    assert completions(Rollouts(new_tokens=5, ends=[END]).draw(net, [batch], 0)[0]) == completions(first)
    assert can_generate(net)
    assert not can_generate(nn.Linear(2, 2))
    net.gradient_checkpointing_enable()
    net.train()
    assert completions(Rollouts(new_tokens=5, ends=[END]).draw(net, [batch], 0)[0]) == completions(first)


def test_logits_that_no_token_has_are_not_drawn() -> None:
    """Trap 5: of a padded vocabulary, however large they are; what is recorded is the law of the others alone."""
    student, _ = networks(9)
    student.net.get_output_embeddings().weight.data[7:] *= 50  # type: ignore[operator]
    rollouts = Rollouts(new_tokens=6, ends=[END], seed=1)
    (beyond,) = rollouts.draw(student.net, [prompts(2, 5, 3, vocabulary=7)], 0)
    assert beyond["input_ids"].max() >= 7  # the case is what it says
    rollouts.vocabulary = 7
    (drawn,) = rollouts.draw(student.net, [prompts(2, 5, 3, vocabulary=7)], 0)
    assert drawn["input_ids"].max() < 7
    for row, text in enumerate(completions(drawn)):
        whole = drawn["input_ids"][row, : int(drawn["attention_mask"][row].sum())].tolist()
        law = fresh(student.net, whole)[-len(text) - 1 : -1, :7].log_softmax(-1)
        expected = law.gather(1, torch.tensor(text)[:, None])[:, 0]
        found = drawn[SAMPLED][row][drawn["target"][row] != IGNORED]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_repetition_is_counted_in_each_text() -> None:
    tokens = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 0, 0]])
    assert repetition(tokens, torch.tensor([6, 6, 4])) == 2 / (3 + 3 + 1)


def test_labels_count_on_the_datas_texts_and_samples_on_the_students_own() -> None:
    student, teacher = networks()
    batch = given(prompts(2, 5, 3))
    (drawn,) = Rollouts(new_tokens=6, ends=[END]).draw(student.net, [prompts(2, 5, 3)], 0)
    terms: dict[str, Term] = {"kd": KD(), "nkd": NKD(), "sampled": SampledKL(estimator="k2")}
    objective = Objective(CausalLM(), terms)
    nothing = {True: ("task", "nkd"), False: ("sampled",)}
    for own, each in ((False, batch), (True, drawn)):
        losses = objective(student(each), {"main": teacher(each)}, each)
        for name, value in losses.raw.items():
            assert (value == 0) == (name in nothing[own]), (own, name)
            student.zero_grad()
            value.backward(retain_graph=True)
            silent = all(p.grad is None or not p.grad.any() for p in student.parameters())
            assert silent == (name in nothing[own])
    before = Objective(CausalLM(), {"kd": KD()})(student(batch), {"main": teacher(batch)}, prompts(2, 5, 3))
    after = objective(student(batch), {"main": teacher(batch)}, batch)
    for name in ("task", "kd"):
        torch.testing.assert_close(after.raw[name], before.raw[name], rtol=0, atol=0)


def test_the_gradient_of_sampled_tokens_is_that_of_the_reverse_divergence() -> None:
    """In expectation over all texts of two tokens out of three, by all parameters of a network; and stale ones."""
    student, teacher = networks(3)
    student.double(), teacher.double()
    old = copy.deepcopy(student.net)
    with torch.no_grad():
        for parameter in old.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    texts = torch.tensor(list(itertools.product(range(3), repeat=2)))
    prompt = torch.tensor([[1]]).expand(9, 1)

    def log_probs(net: nn.Module) -> tuple[Tensor, Tensor]:
        """Of the tokens of each text [9,2], and of all tokens in their place [9,2,3]."""
        given_ids = torch.cat([prompt, texts], 1)
        every = net(input_ids=given_ids).logits[:, :2].log_softmax(-1)
        return every.gather(-1, texts[..., None])[..., 0], every

    parameters = [*student.net.parameters()]
    (ours, every), (theirs, of_teacher) = log_probs(student.net), log_probs(teacher.net)
    of_texts = (ours.sum(1).exp() * (ours - theirs).sum(1)).sum()
    visited = ours.detach().sum(1).exp()[:, None]  # every text once: its second token's state, and a third of the first
    of_tokens = (visited * (every.exp() * (every - of_teacher)).sum(-1)).sum()
    expected = {
        1.0: torch.autograd.grad(of_texts, parameters, retain_graph=True),
        0.0: torch.autograd.grad(of_tokens, parameters),
    }
    for drawn_by, discount in itertools.product((student.net, old), (0.0, 1.0)):
        if drawn_by is old and discount == 0:
            continue  # of single tokens the states that are visited are the older student's
        with torch.no_grad():
            log_sampled, _ = log_probs(drawn_by)
        batch = batch_of(prompt, torch.ones(9).long(), texts, torch.full((9,), 2), log_sampled, torch.arange(9))
        term = SampledKL(estimator="policy_gradient", discount=discount)
        found = [torch.zeros_like(p) for p in parameters]
        for row in range(9):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            losses = Objective(CausalLM(weight=0.0), {"sampled": term})(student(one), {"main": teacher(one)}, one)
            gradients = torch.autograd.grad(2 * losses.total * log_sampled[row].sum().exp(), parameters)
            found = [a + b for a, b in zip(found, gradients, strict=True)]
        if drawn_by is old:
            # ρ of each token by itself corrects the token, not the texts before and after it: exact to first order only
            pairs = zip(found, expected[discount], strict=True)
            assert sum((a * b).sum() for a, b in pairs) > 0
            continue
        for a, b in zip(found, expected[discount], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=3e-7)  # Llama normalises in float32


def test_returns_go_to_the_end_of_each_text() -> None:
    """MiniLLM's: of rewards of 1 with γ = 1/2 they are 1.875, 1.75, 1.5, 1, not TRL's 1.875, 0.875, 0.375, 0.125."""
    teacher, student = torch.tensor([[1.0, 0.0]]).repeat(6, 1), torch.zeros(6, 2)
    reward = teacher.log_softmax(-1)[0, 0] - student.log_softmax(-1)[0, 0]
    term = SampledKL(estimator="policy_gradient", discount=0.5)
    batch = {
        "target": torch.zeros(6, dtype=torch.int64),
        "index": torch.tensor([4, 4, 4, 4, 4, 8]),
        "position": torch.tensor([2, 3, 4, 5, 1, 2]),  # the fifth row begins another text of the same sample
    }
    from distillery.losses.signals import Signals

    found = term(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(found, -reward * torch.tensor([1.875, 1.75, 1.5, 1.0, 1.0, 1.0]))


def test_returns_need_all_rows_at_once() -> None:
    for discount in (0.0, 0.5):
        student, teacher = networks()
        terms: dict[str, Term] = {"sampled": SampledKL(estimator="policy_gradient", discount=discount)}
        end_before_heads(CausalLM(rows_per_chunk=3), terms, student, {"main": teacher}, prompts(2, 5))
        assert (student.known_head is None) == bool(discount)
        assert [discount > 0] == [
            remark.endswith("loss.sampled compares rows with each other") for remark in student.remarks or [""]
        ]


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_generation_are_float32_products(autocast: bool) -> None:
    net: Any = tiny_llama(9) if autocast else tiny_llama(9).bfloat16()
    batch, hidden, found = prompts(2, 5, 3), [], []
    hook = net.lm_head.register_forward_pre_hook(lambda _, given: hidden.append(given[0][:, -1]))

    def choose(logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        found.append(logits)
        return greedy(logits, step)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        generate(net, *left_padded(batch["input_ids"], torch.tensor([2, 5, 3])), 6, [], choose)
        hook.remove()
        after = net(input_ids=batch["input_ids"]).logits
    weight = net.lm_head.weight.double()
    for before, logits in zip(hidden, found, strict=True):
        torch.testing.assert_close(logits.double(), before.double() @ weight.T, rtol=1e-5, atol=1e-5)
    assert after.dtype == torch.bfloat16  # the network itself is as it was


def test_two_processes_draw_and_learn_as_one_does() -> None:
    """Texts of unequal lengths, two on each; the mean of the gradients is that of all four on one process."""
    made = [networks() for _ in range(3)]
    batch = prompts(2, 5, 3, 4)

    def gradients(rows: slice, pair: tuple[Network, Teacher]) -> tuple[list[list[int]], list[Tensor]]:
        student, teacher = pair
        part = {key: value[rows] for key, value in batch.items()}
        (drawn,) = Rollouts(new_tokens=8, ends=[END], seed=4).draw(student.net, [part], 5)
        terms: dict[str, Term] = {"rkl": ReverseKL(), "sampled": SampledKL(estimator="policy_gradient", discount=0.9)}
        losses = Objective(CausalLM(), terms)(student(drawn), {"main": teacher(drawn)}, drawn)
        return completions(drawn), list(torch.autograd.grad(losses.total, [*student.net.parameters()]))

    for empty in (False, True):
        batch["target"][1::2] = (
            IGNORED if empty else batch["target"][1::2]
        )  # nothing to continue on the second (trap 2)
        texts, whole = gradients(slice(None), made[2])
        (even, a), (odd, b) = on_ranks(lambda rank: gradients(slice(rank, None, 2), made[rank]))
        assert [even[0], odd[0], even[1], odd[1]] == texts
        assert (odd == [[], []]) == empty
        assert len({*map(len, texts)}) > 1
        for one, other, both in zip(a, b, whole, strict=True):
            torch.testing.assert_close((one + other) / 2, both, rtol=1e-4, atol=1e-6)
