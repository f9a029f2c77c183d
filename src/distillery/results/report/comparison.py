"""Every method against the baseline and the teacher, seed by seed: the columns of a method table that relate rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from distillery.results.report.collect import Run
from distillery.results.report.score import GENERIC, Score
from distillery.results.report.settings import differing
from distillery.results.report.statistics import holm, mean_and_ci95, paired_test, ratio_and_ci95

AGAINST_BASELINE = ["diff_mean", "diff_ci95", "p"]
BEST_AGAINST_BASELINE = ["diff_best_mean", "diff_best_ci95", "p_best"]
COMPARED = (
    *AGAINST_BASELINE, *BEST_AGAINST_BASELINE, "p_holm", "p_best_holm",
    "retention_ci95", "gap_recovered", "gap_ci95",
)  # fmt: skip


def compare(
    table: pd.DataFrame,
    baselines: Sequence[Run],
    methods: Sequence[Run],
    teacher: Mapping[str, Any] | None,
    metrics: Sequence[str],
) -> pd.DataFrame:
    """The rows of the students with the columns `COMPARED`, and the differences in the other metrics.

    Of several baselines, a method is compared with the one of its own settings (the same learning rate, say), or with
    none. `gap_recovered` is a ratio of means, and empty where teacher and baseline are not measurably apart.
    `p_holm` is `p` corrected over the methods.

    Args:
        table: a row for each label of the runs.
        teacher: its `score_mean` and `by_seed`, the scores by seed; None: there is none.
        metrics: the names of those beside the score.
    """
    table = table.assign(**dict.fromkeys(COMPARED, float("nan")))
    score = Score.of_record([*baselines, *methods][0].record.data)
    settings = differing(baselines)
    for label, runs in by_label(methods).items():
        like = [run for run in baselines if all(run.settings.get(s) == runs[0].settings.get(s) for s in settings)]
        ours, baseline = scores(runs), scores(like)
        table.loc[label, AGAINST_BASELINE] = [*paired_test(ours, baseline)]
        best, baseline_best = scores(runs, epoch="best"), scores(like, epoch="best")
        table.loc[label, BEST_AGAINST_BASELINE] = [*paired_test(best, baseline_best)]
        for name in metrics:
            test = paired_test(scores(runs, name), scores(like, name))
            table.loc[label, [f"{name}_diff_mean", f"{name}_diff_ci95"]] = test.mean, test.ci95
        if teacher:
            gaps = of_seeds(teacher, baseline) - baseline
            gap, half = mean_and_ci95(gaps)
            if score.sign * gap > half:
                gained = table.loc[label, "score_mean"] - baseline.mean()
                table.loc[label, "gap_recovered"] = gained / (teacher["score_mean"] - baseline.mean())
                table.loc[label, "gap_ci95"] = ratio_and_ci95(ours - baseline, gaps)[1]
    if teacher and not score.lower:
        for label, runs in by_label([*baselines, *methods]).items():
            ours = scores(runs)
            table.loc[label, "retention_ci95"] = ratio_and_ci95(ours, of_seeds(teacher, ours))[1]
    return table.assign(p_holm=holm(table["p"]), p_best_holm=holm(table["p_best"]))


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each row, in order of appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


def scores(runs: Sequence[Run], figure: str = GENERIC, epoch: str = "last") -> pd.Series:
    """A figure of the test split by seed, at the `last` or the `best` epoch."""
    values = {run.record.seed: run.record.metrics.get(epoch, {}).get(f"test_{figure}") for run in runs}
    return pd.Series(values, dtype="float64")


def of_seeds(teacher: Mapping[str, Any], like: pd.Series) -> pd.Series:
    """The teacher's score for the seeds of `like`; where a seed has no teacher of its own, the mean of all."""
    own = pd.Series(teacher["by_seed"], dtype="float64")
    return own.reindex(like.index).fillna(teacher["score_mean"])
