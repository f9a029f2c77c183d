"""Different tokenizers, against loops over byte strings."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillery.core.errors import UserError
from distillery.losses.byte_groups import TokenRows, byte_groups
from distillery.losses.functional import cross_tokenizer, jsd, kd
from distillery.losses.response.cross_tokenizer import CrossTokenizer, Tokenised
from distillery.losses.shared_tokens import Unmatched, Vocabulary, shared_tokens
from distillery.losses.signals import Signals
from fixtures import formulas

END = "end of text"
BASE: list[bytes | str] = [b"a", b"b", b" ", END]
SMALL: list[bytes | str] = [*BASE, b"aa", b" a", "\u00e9".encode()[:1], "\u00e9".encode()[1:]]
LARGE: list[bytes | str] = [b" ab", *BASE, b"ab", b" a", b"aab", "\u00e9".encode(), b"ba", "<tool>"]


def rows_of(pieces: Sequence[Sequence[int]], vocabulary: Vocabulary) -> TokenRows:
    """All tokens of each piece but the first; an end of text counts as one byte."""
    found: list[tuple[int, int, int]] = []
    for number, piece in enumerate(pieces):
        place = 1000 * number
        for position, id_ in enumerate(piece):
            token = vocabulary[id_]
            size = int(position > 0) if isinstance(token, str) else len(token)
            found += [(id_, place, place + size)] if position else []
            place += size
    return TokenRows(*torch.tensor(found, dtype=torch.int64).reshape(-1, 3).T.contiguous())


def groups_by_hand(ours: TokenRows, theirs: TokenRows) -> list[tuple[list[int], list[int]]]:
    """The rows of each group, from the sets of places that both reach."""

    def run(rows: TokenRows, start: int, end: int) -> list[int] | None:
        inside = [i for i in range(len(rows.start)) if start <= rows.start[i] and rows.end[i] <= end]
        covered = sum(int(rows.end[i] - rows.start[i]) for i in inside)
        return inside if inside and covered == end - start else None

    places = [{*rows.start.tolist(), *rows.end.tolist()} for rows in (ours, theirs)]
    both = sorted(places[0] & places[1])
    runs = [(run(ours, *pair), run(theirs, *pair)) for pair in pairwise(both)]
    return [(a, b) for a, b in runs if a and b]


def begins(key: bytes | str) -> bool:
    return key in (END, "<tool>") or (isinstance(key, bytes) and key.startswith(b" "))


def by_hand(
    logits: tuple[Tensor, Tensor],
    rows: tuple[TokenRows, TokenRows],
    words: tuple[Vocabulary, Vocabulary],
    how: str,
    begun: bool,
) -> Tensor:
    """The sum of KL(teacher ‖ student) over all groups, outcome by outcome."""
    shared = set(words[0]) & set(words[1])

    def outcome(token: bytes | str) -> bytes | str:
        parts = [token] if isinstance(token, str) or how == "rest" else [token[:n] for n in range(len(token), 0, -1)]
        return next((part for part in parts if part in shared), "rest")

    total = logits[0].new_zeros(())
    for runs in groups_by_hand(*rows):
        masses: list[dict[bytes | str, Tensor]] = []
        alone = [words[k][int(rows[k].token[runs[k][0]])] for k in (0, 1) if len(runs[k]) == 1]
        text_key = next((token for token in alone if token in shared), "text")
        first = [outcome(words[k][int(rows[k].token[runs[k][0]])]) for k in (0, 1)]
        for k in (0, 1):
            p = logits[k].softmax(-1)
            mass: dict[bytes | str, Tensor] = {}
            for id_, token in enumerate(words[k]):
                mass[outcome(token)] = mass.get(outcome(token), 0) + p[runs[k][0], id_]
            if text_key != first[k]:
                text = torch.stack([p[row, rows[k].token[row]] for row in runs[k]]).prod()
                mass[first[k]] = mass[first[k]] - text
                mass[text_key] = mass.get(text_key, 0) + text
            masses.append(mass)
        kept = {key for mass in masses for key in mass}
        if begun:
            kept = {key for key in kept if any(map(begins, first if key == "text" else [key]))}
        floor = torch.tensor(1e-7, dtype=torch.float64)
        shares = [sum((mass.get(key, floor * 0) for key in kept), floor * 0) for mass in masses]
        for key in kept:
            theirs = masses[1].get(key, floor * 0)
            if theirs > 1e-12:
                total = total + theirs * (theirs / masses[0].get(key, floor)).log()
        if begun and shares[1] > 1e-12:
            total = total - shares[1] * (shares[1] / shares[0]).log()
    return total


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def compared(
    pieces: tuple[Any, Any], words: tuple[Vocabulary, Vocabulary], how: Unmatched = "prefix", seed: int = 0
) -> tuple[tuple[Tensor, Tensor], tuple[TokenRows, TokenRows], tuple[Tokenised, Tokenised]]:
    """Random logits, the rows, and the two last arguments of the function."""
    rows = rows_of(pieces[0], words[0]), rows_of(pieces[1], words[1])
    made = shared_tokens(*words, how)
    logits = tuple(draw(len(rows[k].token), len(words[k]), seed=seed + k).requires_grad_(k == 0) for k in (0, 1))
    return logits, rows, tuple(map(Tokenised, rows, made))  # type: ignore[return-value]


def tokens(vocabulary: Vocabulary, *texts: str) -> list[int]:
    return [vocabulary.index(text if text == END else text.encode()) for text in texts]


@st.composite
def pieces(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """The same texts in random tokens of both vocabularies, some of which begin later or end earlier."""
    both: tuple[list[list[int]], list[list[int]]] = ([], [])
    for _ in range(draw(st.integers(1, 3))):
        text = draw(st.text("ab \u00e9", max_size=9)).encode()
        ended = draw(st.booleans())
        for words, found in zip((SMALL, LARGE), both, strict=True):
            ids: list[int] = []
            left = text
            while left:
                fits = [i for i, word in enumerate(words) if isinstance(word, bytes) and left.startswith(word)]
                ids.append(draw(st.sampled_from(fits)))
                left = left[len(words[ids[-1]]) :]
            found.append([*([words.index(END)] if draw(st.booleans()) else []), *ids, *[words.index(END)] * ended])
    return both


@settings(max_examples=60, deadline=None)
@given(pieces(), st.sampled_from(["prefix", "rest"]), st.booleans(), st.integers(0, 99))
@example(([[0, 2, 0, 1]], [[1, 0]]), "rest", True, 0)  # the group's text begins a word, and is in the teacher's rest
def test_value_and_gradient_are_those_of_loops_over_byte_strings(
    given_: Any, how: Unmatched, begun: bool, seed: int
) -> None:
    logits, rows, sides = compared(given_, (SMALL, LARGE), how, seed)
    found = byte_groups(*rows)
    expected_groups = groups_by_hand(*rows)
    assert found.begins.nonzero()[:, 0].tolist() == [ours[0] for ours, _ in expected_groups]
    for ours, theirs in expected_groups:
        assert (found.of_student == ours[0]).nonzero()[:, 0].tolist() == ours
        assert (found.of_teacher == ours[0]).nonzero()[:, 0].tolist() == theirs
        assert found.single[ours[0]] == (len(ours) == len(theirs) == 1)
    value = cross_tokenizer(*logits, *sides, words=begun, reduction="none").sum()
    expected = by_hand(logits, rows, (SMALL, LARGE), how, begun)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(value, logits[0])
    other = torch.autograd.grad(expected, logits[0])[0] if expected.requires_grad else torch.zeros_like(gradient)
    torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)


def test_equal_tokenizers_give_the_loss_of_one_vocabulary() -> None:
    """Bit for bit, gradients too. Without the shift (TRL's "observed") each would be that of the row after."""
    both = [[1, 0, 4, 2, 3], [0, 1, 2, 3]]
    logits, rows, sides = compared((both, both), (SMALL, SMALL))
    assert byte_groups(*rows).single.all()
    for beta, other in ((0.0, lambda: kd(*logits, temperature=2.0, reduction="none")), (0.3, None)):
        value = cross_tokenizer(*logits, *sides, temperature=2.0, t_squared=True, beta=beta, reduction="none")
        expected = other() if other else 4 * jsd(*logits, beta, 2.0, divided=True, reduction="none")
        gradients = [torch.autograd.grad(each.sum(), logits[0])[0] for each in (value, expected)]
        tolerance: dict[str, float] = {"rtol": 0, "atol": 0} if other else {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(value, expected, **tolerance)
        torch.testing.assert_close(*gradients, **tolerance)
        torch.testing.assert_close(
            value, cross_tokenizer(*logits, temperature=2.0, t_squared=True, beta=beta, reduction="none"), **tolerance
        )


def test_other_ids_for_the_same_tokens_give_the_same_loss() -> None:
    both, order = [[1, 0, 4, 2, 3]], torch.randperm(len(SMALL), generator=torch.Generator().manual_seed(0))
    words = [SMALL[i] for i in order.tolist()]
    logits, _, sides = compared((both, [[words.index(SMALL[i]) for i in both[0]]]), (SMALL, words))
    there = logits[1][:, order.argsort()]
    torch.testing.assert_close(cross_tokenizer(*logits, *sides), kd(logits[0], there, 1.0), rtol=1e-9, atol=0)


def test_a_token_more_in_front_leaves_all_groups_as_they_are() -> None:
    """X-Token's account of TRL: without one BOS everything was one group."""
    text = tokens(SMALL, "b", "a", "aa", " ", END)
    begun = [SMALL.index(END), *text]
    _, (ours, theirs), _ = compared(([text], [begun]), (SMALL, SMALL))
    groups = byte_groups(ours, theirs)
    assert groups.single.all()
    assert groups.teacher.tolist() == [1, 2, 3, 4]  # the teacher also predicts the first token
    assert byte_groups(theirs, ours).begins.tolist() == [False, True, True, True, True]


def test_a_split_character_is_one_group_and_an_unfinished_one_none() -> None:
    halves = [SMALL.index("\u00e9".encode()[:1]), SMALL.index("\u00e9".encode()[1:])]
    ours = [*tokens(SMALL, "a"), *halves, *tokens(SMALL, "b"), halves[0]]
    theirs = tokens(LARGE, "a", "\u00e9", "b", "\u00e9")
    logits, rows, sides = compared(([ours], [theirs]), (SMALL, LARGE))
    groups = byte_groups(*rows)
    assert groups.begins.tolist() == [True, False, True, False]
    assert groups.single.tolist() == [False, False, True, False]
    value = cross_tokenizer(*logits, *sides, words=False, reduction="none")
    assert (value != 0).tolist() == [True, False, True, False]
    (gradient,) = torch.autograd.grad(value.sum(), logits[0])
    assert (gradient[:3].abs().sum(1) > 0).all()  # the second half learns by the chain rule
    assert (gradient[3] == 0).all()


def test_nothing_in_common_is_zero_with_a_gradient() -> None:
    for theirs in (tokens(LARGE, "ba", "ba"), tokens(LARGE, "ba")):
        logits, rows, sides = compared(([tokens(SMALL, "a", "b")], [theirs]), (SMALL, LARGE))
        assert not byte_groups(*rows).begins.any()
        value = cross_tokenizer(*logits, *sides)
        value.backward()
        assert value == 0
        assert logits[0].grad is not None
        assert (logits[0].grad == 0).all()


def test_the_text_of_a_group_is_what_is_learnt() -> None:
    """A teacher that is sure of ' ab' and a student that spells it. TRL compares 'b' with 'b' as the teacher has it
    where the group begins, 0, and teaches the student not to write what the teacher writes.
    """
    ours, theirs = tokens(SMALL, "a", " a", "b"), tokens(LARGE, "a", " ab")
    logits, rows, sides = compared(([ours], [theirs]), (SMALL, LARGE))
    sure = torch.full_like(logits[1], -9.0).index_fill(1, rows[1].token, 9.0)
    student = logits[0].detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([student], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        cross_tokenizer(student, sure, *sides, words=False).backward()
        optimizer.step()
    learnt = student.log_softmax(-1).gather(1, rows[0].token[:, None]).sum()
    assert learnt.exp() > 0.97


def test_it_is_a_divergence_between_distributions() -> None:
    """TRL's matched part is not: the unnormalised probabilities of matched tokens, of which the rest is missing."""
    both = [tokens(SMALL, "a", "b", "a", END)], [tokens(LARGE, "a", "b", "a", END)]
    for how in ("prefix", "rest"):
        _, _, sides = compared(both, (SMALL, LARGE), how)  # type: ignore[arg-type]
        for side in sides:
            log_p, outcomes = side.vocabulary.log_probabilities(draw(3, side.vocabulary.size), 1.0)
            torch.testing.assert_close(outcomes.exp().sum(1), torch.ones(3).double(), rtol=1e-6, atol=0)
            assert log_p.shape == (3, side.vocabulary.size)
        for seed in range(20):
            logits = draw(3, len(SMALL), seed=seed), draw(3, len(LARGE), seed=-seed)
            assert (cross_tokenizer(*logits, *sides, reduction="none") > 0).all()
    assert [shared_tokens(SMALL, LARGE, "rest")[0].classes[7], len(set(SMALL) & set(LARGE))] == [5, 5]


def test_the_other_tokens_by_their_sorted_probabilities() -> None:
    both = [tokens(SMALL, "a", "b")], [tokens(LARGE, "a", "b")]
    logits, _, sides = compared(both, (SMALL, LARGE))
    more = cross_tokenizer(*logits, *sides, uld_weight=2.0) - cross_tokenizer(*logits, *sides)
    alone = [
        sorted((p for p, w in zip(each[0].softmax(-1).tolist(), words, strict=True) if w not in other), reverse=True)
        for each, words, other in zip(logits, (SMALL, LARGE), (LARGE, SMALL), strict=True)
    ]
    assert [len(each) for each in alone] == [3, 6]
    expected = sum(abs(s - t) for s, t in zip([*alone[0], 0, 0, 0], alone[1], strict=True))
    assert more.item() == pytest.approx(2 * expected)


def test_the_term_measures_how_much_is_compared() -> None:
    ours, theirs = tokens(SMALL, "a", " a", "b", "b", END), tokens(LARGE, "a", " ab", "b", END)
    logits, rows, sides = compared(([ours], [theirs]), (SMALL, LARGE))
    term = CrossTokenizer()
    term.match_vocabularies(SMALL, LARGE)
    places = [{"target": each.token, "start": each.start, "end": each.end} for each in rows]
    teacher = Signals(logits[1], tokenizer="large", of_rows=places[1])
    value = term(Signals(logits[0]), teacher, places[0])
    torch.testing.assert_close(value, cross_tokenizer(*logits, *sides, reduction="none"))
    shared = [word in SMALL for word in LARGE]
    assert term.measured["one_to_one"] == pytest.approx(2 / 5)  # 'b' and the end; ' ab' is of two tokens
    assert term.measured["aligned"] == 1
    mass = logits[1].softmax(-1)[:, shared].sum(1).mean().item()
    assert term.measured["shared_mass"].item() == pytest.approx(mass)


def test_large_logits_stay_finite_in_half_precision_and_without_reading_a_value_back() -> None:
    ours, theirs = tokens(SMALL, "a", " a", "b", "b", END), tokens(LARGE, "a", " ab", "b", END)
    logits, rows, sides = compared(([ours], [theirs]), (SMALL, LARGE))
    for beta in (0.0, 0.5, 1.0):
        student = (1e4 * logits[0].detach()).half().requires_grad_()
        value = cross_tokenizer(student, (1e4 * logits[1]).half(), *sides, beta=beta, uld_weight=1.0)
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()
    on_meta = [
        Tokenised(TokenRows(*(each.to("meta") for each in rows[k])), sides[k].vocabulary.to("meta")) for k in (0, 1)
    ]
    assert cross_tokenizer(*(each.to("meta") for each in logits), *on_meta, uld_weight=1.0).device.type == "meta"


def test_vocabularies_without_a_common_token_are_refused() -> None:
    with pytest.raises(UserError, match="no token of the two tokenizers stands for the same bytes"):
        shared_tokens([b"a"], [b"b"])


@formulas.plain("cross_tokenizer", "s_logits", "t_logits")
def plain_cross_tokenizer(x: formulas.Inputs) -> Tensor:
    return formulas.divergence(formulas.p(x["t_logits"]), formulas.p(x["s_logits"])).mean()
