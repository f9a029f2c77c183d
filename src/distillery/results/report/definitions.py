"""What the figures of a report mean, as the report says it of its own table."""

from collections.abc import Iterator, Sequence

import pandas as pd

from distillery.results.report.collect import Run
from distillery.results.report.formats import columns, fidelity_columns, is_of_sweep, is_of_texts, metrics_of
from distillery.results.report.markdown import bullets, listed
from distillery.results.report.score import Score
from distillery.results.report.statistics import ALPHA
from distillery.results.report.table import BEST_EPOCH, BUSY, EXACT, INPUT, PERPLEXITY, chosen_on

SPREAD = "mean ± sample deviation over seeds"
SPLITS = {"val": "validation", "test": "test"}


def definitions(table: pd.DataFrame, students: Sequence[Run]) -> str:
    """An entry for each figure that the report has."""
    return bullets([*_of_scores(table, students), *_of_tests(table), *_of_costs(table)])


def _of_scores(table: pd.DataFrame, students: Sequence[Run]) -> Iterator[str]:
    data, score, split = students[0].record.data, Score.of_table(table), SPLITS[chosen_on(students)]
    shown = _headings(table)
    monitored = students[0].record.monitored
    measured = listed(how for run in students if (how := run.record.data.get("measured")))
    name = "" if data["score_name"] == "accuracy" else data["score_name"]
    said = [each for each in (name, "lower is better" if score.lower else "", measured) if each]
    yield f"**score**: {''.join(f'{each}, ' for each in said)}on the test split at the last epoch, {SPREAD}."
    nothing = " Nothing is selected on the test split." if split != "test" else ""
    yield f"**bold**, and the first sentence: the student whose mean {monitored} on the {split} split is best.{nothing}"
    if metrics := metrics_of(table):
        yield f"**{', '.join(metrics)}**: on the test split at the last epoch, {SPREAD} (`task.metrics`)."
    if is_of_sweep(table):
        yield f"**validation**: {monitored} on the validation split at the last epoch, {SPREAD}."
    if BEST_EPOCH[0] in score.generic(table):
        yield f"**best epoch**: of the best {monitored} on the validation split; the score is that of the test split."
    if PERPLEXITY in table:
        yield (
            "**perplexity**: exp(mean loss in nats a predicted token) on the test split, mean over seeds. It compares "
            "only where vocabulary and masking are the same."
        )
    if EXACT in table:
        yield (
            "**exact %**: share of the test prompts of which the likeliest continuation, token by token, is exactly "
            f"the given one, {SPREAD}."
        )
    if "retention %" in shown:
        yield "**retention**: student ÷ teacher."
    if "gap recovered %" in shown:
        yield (
            "**gap recovered**: (student − baseline) ÷ (teacher − baseline); left empty unless the teacher is better "
            "than the baseline by more than the interval of that difference."
        )
    rows = "samples (tokens, where these are predicted)" if is_of_texts(table) else "samples"
    if "agreement %" in shown:
        yield f"**agreement**: share of the test {rows} for which student and teacher predict the same class."
    yield "**seeds** of the teacher: how many teachers were trained."


def _of_tests(table: pd.DataFrame) -> Iterator[str]:
    score = Score.of_table(table)
    unit = f"in {score.name}, negative where it is better" if score.lower else "in percentage points"
    if "Δ baseline" in _headings(table):
        yield (
            f"**Δ baseline**: difference to the same student trained without a teacher, {unit}, paired by seed: mean ± "
            "half-width of its 95 % t interval. The intervals are not corrected for the number of methods."
        )
        yield (
            "**p**: two-sided paired t test over seeds, not corrected. **p, Holm**: corrected over all methods of the "
            "table (Holm 1979), for the last and the best epoch separately. A method is called better or worse only if "
            f"its interval does not contain 0 and its corrected p is at most {ALPHA}. Other metrics and classes are "
            "not tested."
        )
    yield (
        "**±** in the first sentence: half-width of a 95 % interval over seeds, of ratios by the delta method on the "
        "pairs of each seed; left out where it is as wide as the figure itself. What was not measured, or not on an "
        "idle machine, is left out of that sentence."
    )


def _of_costs(table: pd.DataFrame) -> Iterator[str]:
    yield (
        "**FLOPs**: 2 × multiply-accumulates, batch 1. **Latency**: median of forwards at batch 1 on one thread; of "
        "the runs that measured the same network on the same machine, the lowest counts."
    )
    if INPUT in table:
        yield "**input**: what FLOPs and latency were measured on; of texts, the test split's median length."
    if BUSY in table:
        yield (
            "**(busy)**: whenever the network was measured, something else took the machine's time, so this is not a "
            "median but the fastest forward. `run.json` has the details (`latency`). Run a job again on an idle "
            "machine for a figure to trust."
        )
    if is_of_texts(table):
        yield (
            "**speed-up**: latency of the teacher ÷ that of the student; median over seeds. **Params**: all, and what "
            "part of the teacher's they are; **non-embedding**: those outside of the tables of words, positions and "
            "types, which cost memory, but hardly time."
        )


def _headings(table: pd.DataFrame) -> set[str]:
    return {column.heading for column in (*columns(table), *fidelity_columns(table))}
