"""Contamination: a loop over all pairs, lm-evaluation-harness's janitor, and what is shown."""

import random
from typing import Any

import pytest
from lm_eval.decontamination.janitor import Janitor, word_ngrams

from distillery.runs.generate.clean.contamination import TestTexts
from distillery.runs.generate.clean.words import words


def test_words_are_the_janitors_of_ascii_text() -> None:
    text = "It's 3.5% of A-B_c; (x + y) <= {z}~ 'No!'\tSo\n\nyes ... e.g. `code`"
    assert [*words(text)] == Janitor().normalize_string(text).split()


def test_words_of_other_scripts() -> None:
    assert words("Straße “ÉTÉ” ﬁn – ２") == ("strasse", "été", "fin", "2")
    assert words("東京は大きい。 OK") == (*"東京は大きい", "ok")
    assert words("नमस्ते दुनिया!") == ("नमस्ते", "दुनिया")
    assert words("… !?") == ()


@pytest.mark.parametrize("seed", range(10))
def test_rows_are_those_of_a_loop_over_all_pairs(seed: int) -> None:
    """Also those in which the janitor of lm-evaluation-harness finds an n-gram."""
    rng = random.Random(seed)
    n = 2 + seed % 3

    def text(longest: int) -> str:
        return " ".join(
            rng.choice(["the", "Cat,", "sat", "on", "a", "mat.", "Big"]) for _ in range(rng.randrange(n, longest))
        )

    tests, rows = [text(12) for _ in range(4)], [text(30) for _ in range(60)]
    known = TestTexts([(str(at), {"text": each}) for at, each in enumerate(tests)], n)
    janitor = Janitor(ngram_n=n)
    for each in tests:
        janitor.register_contaminant_python(each)
    hits = 0
    for row in rows:
        own = words(row)
        shared = [
            (start, other)
            for start in range(len(own) - n + 1)
            for other, each in enumerate(tests)
            if any(own[start : start + n] == words(each)[at : at + n] for at in range(len(words(each)) - n + 1))
        ]
        found = known.contaminated([row])
        assert (found is None) == (not shared)
        assert bool(janitor.dirt_ngrams & {*word_ngrams(janitor.normalize_string(row), n)}) == bool(shared)
        if found:
            hits += 1
            start, test = shared[0]
            assert found["test_row"] == str(test)
            assert found["test_text"] == tests[test]
            run = found["shared_words"].split()
            assert tuple(run) == own[start : start + len(run)]
            starts = {at for at, _ in shared}
            assert len(run) == n - 1 + next(k for k in range(len(own)) if start + k not in starts)
    assert 0 < hits < len(rows)


LONG = "Anna has twelve red apples and gives five of them to her brother Ben before lunch"


@pytest.mark.parametrize(
    ("row", "text", "found"),
    [
        # 13 words in a row, whatever the case and the punctuation; 12 are too few
        ({"text": LONG}, "so: ANNA has twelve red apples, and gives five of them to her brother!", 13),
        ({"text": LONG}, "so: Anna has twelve red apples and gives five of them to her sister", None),
        # any key of a row, at any depth
        ({"id": 3, "q": {"parts": [LONG]}}, LONG, 16),
        # no n-gram reaches over the end of a turn
        ({"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "Seven."}]}, LONG, 16),
        ({"prompt": LONG[:40], "completion": LONG[40:]}, LONG, None),
        # short texts: the prompt, from beginning to end; neither a part of a text nor a short answer
        ({"prompt": "What is 6 x 7?", "completion": "42"}, "what is 6 x 7", 5),
        ({"prompt": "What is 6 x 7?", "completion": "42"}, "Tell me: what is 6 x 7?", None),
        ({"prompt": "What is 6 x 7?", "completion": "42"}, "42", None),
        ({"question": "Who wrote Faust?", "answer": "Goethe"}, "Who wrote Faust?", 3),
        ({"question": "Who wrote Faust?", "answer": "Goethe"}, "Goethe", None),
        ({"text": "?!"}, "...", None),
    ],
)
def test_what_counts_as_contaminated(row: dict[str, Any], text: str, found: int | None) -> None:
    evidence = TestTexts([("t, line 1", row)], 13).contaminated(["other", text])
    assert (evidence and evidence["count"]) == found
