"""The table of methods: one row for the teacher, the baseline and each method, over seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from distillery.results.record import RunRecord
from distillery.results.report.collect import Run
from distillery.results.report.comparison import compare, of_seeds, scores
from distillery.results.report.latency import Key, Measured, input_of, latencies, network_of
from distillery.results.report.markdown import listed
from distillery.results.report.score import GENERIC, Score
from distillery.results.report.statistics import mean_and_ci95

BEST = "best"  # the column that marks the best row, see `_best`
COLUMNS = (
    "method", BEST, "n_seeds", "score_mean", "score_std", "diff_mean", "diff_ci95", "p", "p_holm",
    "retention", "retention_ci95", "gap_recovered", "gap_ci95", "agreement", "params", "flops", "latency_ms",
)  # fmt: skip
# At the epoch of the best validation score, where that was kept: the same figures.
BEST_EPOCH = ("score_best_mean", "score_best_std", "diff_best_mean", "diff_best_ci95", "p_best", "p_best_holm")
# Of texts, whose embeddings are many parameters that cost no time: what a student saves of its teacher.
TEXT_COLUMNS = ("non_embedding_params", "non_embedding_ratio", "params_ratio", "speed_up")
# Of data with unlabelled samples: how many samples each network was trained on.
SAMPLE_COLUMNS = ("labelled", "unlabelled")
FIT_SECONDS = "fit_seconds"  # of a training, so that equal time can be checked; a column where records have it
PERPLEXITY = "perplexity"  # of language models: the column, and its figure in a record
EXACT = "exact_match"  # of answers to prompts: the same
# Of sweeps, whose best setting is chosen by it and not on test: the mean over seeds, and its deviation.
SELECTION = ("validation_mean", "validation_std")
# Of language models: nearness to the teacher, and how far predictions can be trusted; with their names in a record.
FIDELITY = {
    "kl": "kl", "kl_own_text": "kl", "reverse_kl_own_text": "reverse_kl", "acceptance": "acceptance",
    "calibration_error": "calibration_error", "entropy": "entropy",
}  # fmt: skip
# Of classes: the same for them, of the last epoch.
CALIBRATION = ("calibration_error", "adaptive_calibration_error", "brier", "nll")
CLASS_FIDELITY = ("kl", "cka", *CALIBRATION)
BUSY = "latency_busy"  # whether all measurements of a latency were on a busy machine; a column where there is one
INPUT = "input"  # what the networks were given whose latency was measured; a column where that is known
TEACHER, BASELINE = "teacher", "baseline"
MAIN = "main"  # the teacher of this name is the one that all methods are compared with
NAN = float("nan")
# How the runs of a method, or the distinct teachers of one name, become a row.
OVER_SEEDS = {
    "n_seeds": ("score", "size"), "score_mean": ("score", "mean"), "score_std": ("score", "std"),
    "score_best_mean": ("best_score", "mean"), "score_best_std": ("best_score", "std"),
    "agreement": ("agreement", "mean"), PERPLEXITY: (PERPLEXITY, "mean"),
    EXACT: (EXACT, "mean"), f"{EXACT}_std": (EXACT, "std"),
    **{column: ("validation", function) for column, function in zip(SELECTION, ("mean", "std"), strict=True)},
    "params": ("params", "first"), "embedding_params": ("embedding_params", "first"), "flops": ("flops", "first"),
    "latency_ms": ("latency_ms", "median"), BUSY: (BUSY, "max"), "speed_up": ("speed_up", "median"),
    INPUT: (INPUT, lambda inputs: listed(inputs.dropna()) or None), FIT_SECONDS: (FIT_SECONDS, "mean"),
    **{column: (column, "first") for column in SAMPLE_COLUMNS},
    **{column: (column, "mean") for column in (*FIDELITY, *CLASS_FIDELITY)},
}  # fmt: skip


def is_teacher(label: str) -> bool:
    """Whether a row of the table is that of a teacher: `teacher`, or `teacher b` of another one."""
    return label.partition(" ")[0] == TEACHER


def is_baseline(label: str) -> bool:
    """Whether a row of the table is a baseline: `baseline`, or `baseline lr=0.1` of several."""
    return label.partition(" ")[0] == BASELINE


def method_table(students: Sequence[Run], others: Sequence[Run] = ()) -> pd.DataFrame:
    """One row for each teacher, baseline, and method with its settings; NaN where a figure is not defined.

    The columns are `COLUMNS`; those of a score of which lower is better have its name, see `Score`. Of each other
    metric `<name>_mean`, `<name>_std`, `<name>_diff_mean` and `<name>_diff_ci95` follow. Where a network has embeddings
    (`nn.Embedding`: runs on texts) `TEXT_COLUMNS` follow, of language models their `PERPLEXITY`, of answers to prompts
    the share that is `EXACT`, of language models their `FIDELITY`, of classes `CLASS_FIDELITY`, where a student saw
    unlabelled samples `SAMPLE_COLUMNS`, where records have the time of the training `FIT_SECONDS`, where the best epoch
    was kept `BEST_EPOCH`, and of sweeps their `SELECTION`. Where `task.monitor` names another figure than the score,
    `SELECTION` has its name in it, `validation_<name>_mean`. Where records say on what costs were measured, `INPUT`
    follows. What the columns mean is said in each report (`definitions.py`). Scores, agreement, retention and gap are
    fractions here. Ratios and gaps relate to the first teacher's row.

    A network has one latency, see `latencies`; of a seed with a machine of its own, one more. `speed_up` divides
    latencies on the same machine.

    Args:
        students: the runs that are compared, as `select` gives them.
        others: runs of the same experiment, among them those that trained the teachers.
    """
    trained = {run.record.student_sha256: _samples(run) for run in others}
    baselines = [run for run in students if run.record.method == BASELINE]
    methods = [run for run in students if run.record.method != BASELINE]
    score = Score.of_record(students[0].record.data)
    metrics = [*dict.fromkeys(name for run in students for name in run.record.data.get("metrics", {}))]
    measured = latencies(run.record for run in students)
    teachers = _teachers(students, baselines, trained, metrics, measured)
    teacher = next(iter(teachers.to_dict("records")), None)
    table = _over_seeds([_figures(run, metrics, measured) for run in (*baselines, *methods)], metrics)
    table = compare(table, baselines, methods, teacher, metrics)
    table = pd.concat([teachers, table]).rename_axis("method").reset_index()
    table["retention"] = table["score_mean"] / (teacher["score_mean"] if teacher and not score.lower else NAN)
    counts = ("params", "flops", "embedding_params", *SAMPLE_COLUMNS)
    table = table.astype({"n_seeds": "int64", **dict.fromkeys(counts, "Int64")})
    columns = [*COLUMNS, *(f"{name}_{each}" for name in metrics for each in ("mean", "std", "diff_mean", "diff_ci95"))]
    if table["embedding_params"].any():
        _add_text_columns(table)
        columns += TEXT_COLUMNS
    if table[PERPLEXITY].notna().any():
        columns.append(PERPLEXITY)
    if table[EXACT].notna().any():
        columns += [EXACT, f"{EXACT}_std"]
    if table["brier"].notna().any():
        columns += CLASS_FIDELITY
    elif table["entropy"].notna().any():
        columns += FIDELITY
    if table["unlabelled"].any():
        columns += SAMPLE_COLUMNS
    if table[FIT_SECONDS].notna().any():
        columns.append(FIT_SECONDS)
    if table["score_best_mean"].notna().any():
        columns += BEST_EPOCH
    renamed, monitored = score.columns, students[0].record.monitored
    if any(run.swept for run in students):
        columns += SELECTION
    if table[INPUT].notna().any():
        columns.append(INPUT)
    table[BUSY] = table[BUSY].fillna(0).astype(bool)
    if table[BUSY].any():
        columns.append(BUSY)
    table[BEST] = table["method"] == _best(students)
    if monitored != GENERIC:
        renamed |= {column: column.replace("_", f"_{monitored}_") for column in SELECTION}
    return table.reindex(columns=columns).rename(columns=renamed)


def chosen_on(students: Sequence[Run]) -> str:
    """The split on which the best row is chosen: `val`, or `test` where some run has no validation split.

    The settings of a sweep are there to be chosen from, so that of them none is ever chosen on `test`.
    """
    validated = all(run.record.val_monitored is not None for run in students)
    return "val" if validated or any(run.swept for run in students) else "test"


def _best(students: Sequence[Run]) -> str | None:
    """The student's row that is best by what `task.monitor` names; None: it is known of none."""
    record = students[0].record
    values = [run.record.metrics["last"].get(f"{chosen_on(students)}_{record.monitored}") for run in students]
    means = pd.Series(values, dtype="float64").groupby([run.label for run in students]).mean()
    best = means if record.is_better_higher(record.monitored) else -means
    return None if means.isna().all() else str(best.idxmax())


def _figures(run: Run, metrics: Sequence[str], measured: Mapping[Key, Measured]) -> dict[str, Any]:
    """What the row of a student's method is made from."""
    record, cost, last = run.record, run.record.cost, run.record.metrics["last"]
    own = _latency(record, cost, measured)
    others = [_latency(record, teacher, measured)["latency_ms"] for teacher in record.frozen_teachers.values()]
    return {
        **cost,
        **own,
        **_samples(run),
        **_fidelity(run),
        "method": run.label,
        FIT_SECONDS: record.fit_seconds,
        "score": run.score,
        "best_score": run.record.metrics.get("best", {}).get("test_score"),
        "validation": run.record.val_monitored,
        "agreement": run.agreement,
        **{figure: last.get(figure) for figure in (PERPLEXITY, EXACT)},
        **{figure: last[figure] for figure in CALIBRATION if figure in last},
        **{name: last.get(f"test_{name}") for name in metrics},
        "speed_up": pd.Series(others, dtype="float64").mean() / own["latency_ms"],
    }


def _latency(record: RunRecord, cost: Mapping[str, Any], measured: Mapping[Key, Measured]) -> dict[str, Any]:
    found = measured.get(network_of(record, cost), Measured(NAN, False))
    return {"latency_ms": found.ms, BUSY: found.busy, INPUT: input_of(cost)}


def compared_with(run: Run) -> str | None:
    """The name of the teacher whose divergence from the run's student is shown; None: there is none."""
    names = [name for name, entry in run.record.fidelity.items() if "kl" in entry]
    return MAIN if MAIN in names else next(iter(names), None)


def _fidelity(run: Run) -> dict[str, Any]:
    """The figures of `FIDELITY`, and of features."""
    teacher = run.record.fidelity.get(compared_with(run) or "", {})
    own = run.record.fidelity.get("student", {})
    entries = {"calibration_error": own, "entropy": own}
    entries |= dict.fromkeys(("kl_own_text", "reverse_kl_own_text"), teacher.get("own_text", {}))
    found = {column: entries.get(column, teacher).get(name) for column, name in FIDELITY.items()}
    return {**found, "cka": teacher.get("cka")}


def _samples(run: Run) -> dict[str, int | None]:
    """How many training samples with and without a label the run's student saw."""
    data = run.record.data
    return {"labelled": data.get("labelled", data.get("train")), "unlabelled": data.get("unlabelled", 0)}


def _over_seeds(figures: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """One row for each method, in order of appearance."""
    wanted = OVER_SEEDS | {f"{name}_{each}": (name, each) for name in metrics for each in ("mean", "std")}
    used = ["method", *dict.fromkeys(figure for figure, _ in wanted.values())]
    frame = pd.DataFrame(figures, columns=used).set_index("method")
    frame = frame.astype({name: "float64" for name in frame if name != INPUT})
    rows: pd.DataFrame = frame.groupby(level=0, sort=False).agg(**wanted)
    return rows


def _teachers(
    students: Sequence[Run],
    baselines: Sequence[Run],
    trained: Mapping[str | None, Mapping[str, int | None]],
    metrics: Sequence[str],
    measured: Mapping[Key, Measured],
) -> pd.DataFrame:
    """The row of the teacher that the methods are compared with, then those of the others; or none.

    The first is the teacher called `main` in most runs, over the seeds: each may have one of its own. A teacher that
    only some methods have besides is `teacher <its name>`; another `main` is `teacher of <method>`. `by_seed` are the
    scores; `trained` says by SHA-256 on how many samples those were trained whose runs are known.
    """
    reference = reference_teachers(students)
    compared = any(run.agreement is not None for run in students)
    own: list[dict[str, Any]] = []
    for run in students:
        for name, teacher in run.record.scored_teachers.items():
            label = f"{TEACHER} {name if name != MAIN else f'of {run.label}'}"
            if teacher["sha256"] == reference.get(run.record.seed):
                label = TEACHER
            agreement = 1.0 if compared and label == TEACHER else NAN
            more = {**trained.get(teacher["sha256"], {}), "agreement": agreement}
            more |= _latency(run.record, teacher, measured)
            if "kl" in (fidelity := run.record.fidelity.get(name, {})):
                more |= {column: fidelity[column] for column in ("calibration_error", "entropy") if column in fidelity}
            own.append({**teacher, **more, "method": label, "seed": run.record.seed})
    own.sort(key=lambda teacher: teacher["method"] != TEACHER)
    distinct = {(teacher["method"], teacher["sha256"]): teacher for teacher in own}
    table = _over_seeds([*distinct.values()], metrics)
    table["by_seed"] = [
        {teacher["seed"]: teacher["score"] for teacher in own if teacher["method"] == label} for label in table.index
    ]
    if len({run.label for run in baselines}) == 1:
        for label, row in zip(table.index, table.to_dict("records"), strict=True):
            baseline = scores(baselines)
            table.loc[label, ["diff_mean", "diff_ci95"]] = mean_and_ci95(of_seeds(row, baseline) - baseline)
    return table


def reference_teachers(students: Sequence[Run]) -> dict[int, str]:
    """The SHA-256 of the teacher that most runs of each seed have, preferably of those called `main`."""
    found: dict[int, Counter[str]] = {}
    entries = [(run.record.seed, *entry) for run in students for entry in run.record.scored_teachers.items()]
    names = [name for _, name, _ in entries]
    for seed, name, teacher in entries:
        if name == (MAIN if MAIN in names else names[0]):
            found.setdefault(seed, Counter())[teacher["sha256"]] += 1
    everywhere = sum(found.values(), Counter[str]())
    return {seed: max(own, key=lambda sha256: (own[sha256], everywhere[sha256])) for seed, own in found.items()}


def _add_text_columns(table: pd.DataFrame) -> None:
    """`TEXT_COLUMNS` beside the others; ratios are to the teacher, which has the first row if there is one."""
    table["non_embedding_params"] = table["params"] - table["embedding_params"]
    numbers = table[["non_embedding_params", "params", "latency_ms"]].astype("float64")
    teacher = numbers.iloc[0] if table["method"].iloc[0] == TEACHER else numbers.iloc[0] * NAN
    table["non_embedding_ratio"] = numbers["non_embedding_params"] / teacher["non_embedding_params"]
    table["params_ratio"] = numbers["params"] / teacher["params"]
    table["speed_up"] = table["speed_up"].fillna(teacher["latency_ms"] / numbers["latency_ms"])
