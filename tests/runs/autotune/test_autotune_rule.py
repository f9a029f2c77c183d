"""When a setting is kept, on made-up timings."""

import math

import pytest

from distillery.runs.autotune.rule import Timing, Tried, verdict

AS_IT_IS = Timing(first=1.0, rounds=[1.0] * 5)


@pytest.mark.parametrize(
    ("first", "rounds", "steps", "kept", "why"),
    [
        (1.0, [0.8] * 5, 100, True, "a step takes 20% less time"),
        (1.0, [0.98] * 5, 100, False, "not plainly faster"),  # what noise may do
        (1.0, [1.2] * 5, 100, False, "a step takes 20% more time: not plainly faster"),
        (1.0, [0.8, 0.8, 1.1, 0.8, 0.8], 100, True, "20% less"),  # one round was disturbed
        (1.0, [0.8, 1.1, 0.8, 1.1, 0.8], 100, False, "faster in 3 of 5 rounds only"),
        # Compiled: 0.2 s saved in each step after the first, which takes 60 s longer.
        (61.0, [0.8] * 5, 301, False, "pays from 301 steps on"),
        (61.0, [0.8] * 5, 302, True, "pays from 301 steps on"),
        (61.0, [0.8] * 5, 12, False, "pays from 301 steps on"),
        (61.0, [0.8] * 5, math.inf, True, "pays from 301 steps on"),
    ],
)
def test_what_is_kept(first: float, rounds: list[float], steps: float, kept: bool, why: str) -> None:
    found, said = verdict(AS_IT_IS, Timing(first, rounds), steps)
    assert (found, why in said) == (kept, True), said


def test_a_machine_that_slows_down_favours_neither() -> None:
    """Both are timed in turn: what counts is the ratio within a round."""
    slowing = [1.0, 1.5, 2.0, 2.5, 3.0]
    same = Timing(1.0, [each * 1.01 for each in slowing])
    faster = Timing(1.0, [each * 0.9 for each in slowing])
    assert not verdict(Timing(1.0, slowing), same, 100)[0]
    assert verdict(Timing(1.0, slowing), faster, 100)[0]


def test_the_entry_has_the_time_of_the_whole_run() -> None:
    entry = Tried.timed("compile=true", AS_IT_IS, Timing(61.0, [0.8] * 5), 1001)
    assert entry.kept
    assert entry.step_ms == (1000, 800)
    assert entry.first_s == (1, 61)
    assert entry.run_s == pytest.approx((1 + 1000, 61 + 800))
