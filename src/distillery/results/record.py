"""`run.json`: the versioned record that every run leaves in its folder, read by everything downstream."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from distillery.core.errors import UserError
from distillery.core.files import atomic_write
from distillery.core.roles import FROZEN, role_of
from distillery.results.layout import RECORD

# Settings that do not change what is computed: where things lie, what they are called, how the run is watched, and how
# its kernels are launched.
NOT_IDENTITY = frozenset(  # at the config's root
    "paths hydra name method logger resume replace plan target teacher_stream step_graph".split()
)
PLACES = frozenset({"root", "dirpath", "save_dir", "output_dir", "default_root_dir", "url"})  # at any depth
WATCHING = frozenset({"enable_progress_bar", "num_workers", "client"})  # at any depth
SINCE = frozenset({"placement"})  # at any depth, where null: jobs from before these settings existed are the same
NO_NETWORK = "it is no network here"  # why a teacher was not compared with the student when the run was scored
ADDED = {"remarks", "fidelity", "samples", "target", "autotune", "fit_seconds"}  # fields that old records lack


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


@dataclass
class RunRecord:
    """One run, by the file's own field names.

    Attributes:
        name: name of the run, as its folder is called.
        method: short names of its distillation terms (`kd+hint`); `baseline` for a run without teachers.
        seed: seed of the run; runs of one seed are compared as pairs.
        config_hash: identity of the job, see `runs/job.py`.
        overrides: the command line's own part of the config.
        status: `running` from the first moment; `failed` and `over budget` keep the message in `error`.
        started: UTC, ISO 8601.
        git: `commit`, `dirty`.
        environment: versions and machine (see `environment.py`); `scored_on`: cpu or cuda.
        data: `name`, `fingerprint`, `train`, `val`, `test` (numbers of samples), `labelled` and `unlabelled` (those of
            train), `num_classes` and `classes` (their names), `prediction` (what the task predicts, see `Task`),
            `score_name` (what it calls its score), `higher_is_better` and `score_range` (lowest and highest possible
            score), `metrics` (the others of the task, each with `higher_is_better` and `range`), `monitor` (what of the
            validation chooses students), `measured` (what the score depends on besides network and data, as the windows
            in which texts are read), `remarks` (notes on the data for the user).
        sources: SHA-256 of what the run is made from, by `<stage>:data` and `<stage>:teachers.<name>`; the stage is
            empty where there is but one.
        teachers: for each teacher its `role`, `source`, `sha256` (of its weights), `score` (test), the figures that
            `metrics` has without a prefix, the task's other metrics by name, `scored_by` (where that is not its own
            classifier), and its costs like the student's; for the student as its own teacher the role.
        student_sha256: hash of the exported weights, made as a teacher's is: so a teacher's own run is known.
        metrics: `last` and `best` (chosen on validation), each `epoch`, `val_score`, `test_score`,
            `val_loss`, `test_loss`, `val_<metric>` and `test_<metric>` for the task's other metrics, and of the test
            split, where the task has them, `perplexity`, `exact_match`, and of classes `calibration_error`,
            `adaptive_calibration_error`, `brier` and `nll` (see `tasks/calibration.py`); `ensemble`, where the config
            asks for one. With `optim.ema` these are figures of the student's average; `unaveraged` has those of the
            student itself in the last epoch.
        fidelity: of classes, by network (`student`, and the frozen teachers that were loaded) the number of test
            `samples` or `tokens`, the mean `entropy` in nats and the `bins` of a reliability diagram, and of a
            teacher's divergence from the student `agreement`, `kl`, `reverse_kl` (see `tasks/fidelity.py`) and, where
            it is a network here, `cka`: that of what the two heads read of up to 1,024 samples (`tasks/cka.py`).
            Of a language model, by network (`student`, and the teachers that were loaded, as in `teachers`) means
            over `tokens` of the test split: `entropy` in nats, `calibration_error` and its `bins`, and of a teacher's
            divergence from the student `agreement`, `kl`, `reverse_kl`, `acceptance` (see `tasks/fidelity.py`).
            `data_text` and `own_text` have these on continuations of the same prompts, the data's and the student's,
            with `kl_by_place`; `texts` says how many there are. `not_compared` says why a teacher has none.
            `sha256`: of a teacher that another run had, with which a run without one is compared.
        samples: of a language model, the likeliest continuations of some test texts: `prompt`, `data` (what follows
            there), `student`, and the teachers by name.
        cost: the student's `params`, `embedding_params` (those of them in lookup tables), `flops` (2 × MACs at
            batch 1), `latency_ms` (the median), and of the `latency`: `minimum_ms`, `spread` (interquartile range ÷
            median), `cpu_share` (median share of a forward's time in which the thread computed), `busy` (whether the
            machine was, so that the median says little), `repeats`, `threads`, `batch_size` and `input` (the shape of
            one sample).
        target: where the config has a budget (see `runs/budget.py`), by format of the export: `measured`, the fields of
            `exports.Measured` of the untrained student; and `validation`, what the trained one scores on the validation
            split as it is exported, in the figure that `monitored` names.
        autotune: where settings were `auto` (see `runs/autotune/`), `choice` (their values, by path), `tried` (entries
            with the fields of `autotune.Tried`, in order), `steps` (of the run), `rounds` and `steps_per_round` (that
            were timed), `seconds` (that it took), `device`, and `note`, why nothing was timed.
        seconds: wall-clock time of the run.
        fit_seconds: of these, what training and its validations took; of a resumed run, in all of its parts.
        timeline: one entry an epoch, by the field names of `timeline.Epoch`.
        remarks: notes on the networks for the user: what was done to their weights and classes.
    """

    VERSION: ClassVar[int] = 1

    name: str
    method: str
    seed: int
    config_hash: str
    overrides: list[str] = field(default_factory=list)
    status: Literal["running", "finished", "failed", "over budget"] = "running"
    started: str = field(default_factory=_now)
    git: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    student_sha256: str | None = None
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    fidelity: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    cost: dict[str, Any] = field(default_factory=dict)
    target: dict[str, dict[str, Any]] = field(default_factory=dict)
    autotune: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    fit_seconds: float | None = None
    error: str | None = None
    timeline: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def val_score(self) -> float | None:
        """On the validation split in the last epoch; None without such a split, or if the run is not finished."""
        score: float | None = self.metrics.get("last", {}).get("val_score")
        return score

    @property
    def monitored(self) -> str:
        """The figure by which students are chosen, as `macro_f1`: `score`, unless `task.monitor` names another."""
        return str(self.data.get("monitor", "val/score")).removeprefix("val/")

    @property
    def val_monitored(self) -> float | None:
        """That figure, where `val_score` is the score."""
        value: float | None = self.metrics.get("last", {}).get(f"val_{self.monitored}")
        return value

    def is_better_higher(self, figure: str) -> bool:
        """Whether the best value of a figure, `score`, `loss` or a metric's name, is the greatest."""
        known: Mapping[str, Any] = {"loss": {"higher_is_better": False}, **self.data.get("metrics", {})}
        return bool(known.get(figure, self.data).get("higher_is_better", True))

    @property
    def frozen_teachers(self) -> dict[str, dict[str, Any]]:
        """Those that were there before the run: an average of the student, or a peer, is no teacher to compare with."""
        return {name: entry for name, entry in self.teachers.items() if role_of(entry) == FROZEN}

    @property
    def scored_teachers(self) -> dict[str, dict[str, Any]]:
        """The frozen teachers with a score: those whose classes are the data's."""
        return {name: entry for name, entry in self.frozen_teachers.items() if entry.get("score") is not None}

    def write(self, folder: Path) -> None:
        """Writes `folder/run.json` atomically: a reader sees the old record or the new one, never half."""
        content = {"version": self.VERSION, **dataclasses.asdict(self)}
        with atomic_write(folder / RECORD) as unfinished:
            unfinished.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record in `folder`.

        Raises:
            UserError: no `run.json` there, a torn one, or one of another version.
        """
        path = folder / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a run folder: it has no {RECORD}. Name a folder that distill-train wrote."
            ) from None
        except ValueError as error:
            raise UserError(
                f"{path} is torn ({error}). Run that job again with replace=true, or remove its folder."
            ) from None
        version = content.pop("version", None) if isinstance(content, dict) else None
        if version != cls.VERSION:
            raise UserError(
                f"{path} has version {version}, and this Distillery reads version {cls.VERSION}. "
                "Run that job again, or read it with the version that wrote it."
            )
        names = {f.name for f in dataclasses.fields(cls)}
        missing, unexpected = sorted(names - content.keys() - ADDED), sorted(content.keys() - names)
        if missing or unexpected:
            raise UserError(
                f"{path} has unexpected fields ({', '.join(unexpected) or 'none'}) and lacks others "
                f"({', '.join(missing) or 'none'}). Run that job again with replace=true, or remove its folder."
            )
        return cls(**content)


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def config_hash(cfg: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved config without its paths: equal for two jobs that compute the same thing."""
    return hashlib.sha256(json.dumps(computed_settings(cfg), sort_keys=True).encode()).hexdigest()


def computed_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what is computed.

    That is all of it but names, paths, loggers, progress bars, the number of workers that load data, and the stream on
    which teachers run.
    """
    return {key: _essence(value) for key, value in cfg.items() if key not in NOT_IDENTITY}


def _essence(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _essence(item)
            for key, item in value.items()
            if key not in PLACES | WATCHING and not (key in SINCE and item is None) and not _is_progress_bar(item)
        }
    return [_essence(item) for item in value] if isinstance(value, list) else value


def _is_progress_bar(value: Any) -> bool:
    return isinstance(value, Mapping) and str(value.get("_target_", "")).endswith("ProgressBar")


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting that holds no others, by its dotted path; lists of mappings are walked, too."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        for index, item in enumerate(node):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, node
