"""The model card of an exported transformer: what a run's record and config say of it, in Markdown."""

import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillery.config.loss_catalogue import Loss
from distillery.config.names import losses_of
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.results.layout import BALANCE as BALANCE
from distillery.results.record import RunRecord
from distillery.results.report.formats import NONE, percent, si
from distillery.runs.export.loading_snippet import loading_snippet
from distillery.tasks.task import Task

MADE_BY = "Written by `distill-export`"
TAGS = "tags:\n- knowledge-distillation\n"
LICENCE = """\
None is stated here: it is yours to choose, as far as the licences of the teacher, of the initial weights and of the
data allow. Name it as `license:` at the head of this file."""
HIDDEN = ("_target_", "weight")  # of a loss: said otherwise


def model_card(
    record: RunRecord, cfg: DictConfig, net: nn.Module, tokenizer: PreTrainedTokenizerBase, run: Path
) -> str:
    """The card of the student `net`.

    Args:
        record, cfg: of its run.
        tokenizer: the one that it is exported with.
        run: the run folder.
    """
    head = head_of(cfg)
    sections = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task_of(cfg).pipeline_tag}\n"
        f"{TAGS if record.teachers else ''}---",
        f"# {record.name}: {record.method}, seed {record.seed}",
        _summary(record, cfg, net, head),
        "## Use\n\n" + loading_snippet(task_of(cfg), head, net, tokenizer, cfg.data.get("max_length")),
        "## Scores and costs\n\n" + "\n\n".join(_figures(record, cfg)),
        "## Method\n\n" + "\n".join(f"- {line}" for line in _method(record, cfg, run)),
        "## Data\n\n" + "\n".join(f"- {line}" for line in _data(record.data)),
        "## Made by\n\n" + _made_by(record),
        f"## Licence\n\n{LICENCE}",
    ]
    return "\n\n".join(sections) + "\n"


def head_of(cfg: DictConfig) -> str:
    """The head of the student in a run's config: its own, or that of the task."""
    return str(cfg.student.net.get("head") or task_of(cfg).head)


def task_of(cfg: DictConfig) -> type[Task]:
    """The task of a run's config."""
    return get_class(cfg.task._target_)


def _summary(record: RunRecord, cfg: DictConfig, net: nn.Module, head: str) -> str:
    teachers = [f"`{name}` ({entry.get('source') or entry['role']})" for name, entry in record.teachers.items()]
    taught = f"It learnt from {' and '.join(teachers)}." if teachers else "It had no teacher but its labels."
    kind = type(pretrained_model(net) or net).__name__
    what = f"{kind} ({head.replace('_', ' ')}), trained on {record.data['name']} with Distillery."
    return f"{what} {taught} {MADE_BY}."


def _figures(record: RunRecord, cfg: DictConfig) -> Iterator[str]:
    """A table of the student and its teachers, and what the student keeps and saves of each frozen one."""
    name, last = task_of(cfg).score, record.metrics["last"]
    networks = {"student": {**record.cost, "score": last["test_score"], "val_score": last["val_score"]}}
    networks |= {f"teacher `{name}`": entry for name, entry in record.teachers.items() if "score" in entry}
    header = ["", f"test {name} %", f"validation {name} %", "params", "of them embeddings", "FLOPs", "latency ms"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for network, entry in networks.items():
        scores = [percent(_number(entry.get(key)), 2) for key in ("score", "val_score")]
        counts = [si(_number(entry.get(key))) for key in ("params", "embedding_params", "flops")]
        latency = _number(entry.get("latency_ms"))
        rows.append([network, *scores, *counts, NONE if math.isnan(latency) else f"{latency:.3g}"])
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    yield (
        f"Scores are those of the last epoch ({last['epoch']}), on {record.data['test']:,} test samples; nothing was "
        "selected on them. FLOPs: 2 × multiply-accumulates, batch 1. Latency: median of forwards at batch 1 on one "
        "thread."
    )
    for teacher, entry in record.frozen_teachers.items():
        yield _beside(networks["student"], entry, teacher)


def _beside(student: Mapping[str, Any], teacher: Mapping[str, Any], name: str) -> str:
    """Retention, what is saved in parameters, and speed-up."""

    def ratio(key: str, without: str | None = None) -> float:
        ours, theirs = (_number(e.get(key)) - (_number(e.get(without)) if without else 0) for e in (student, teacher))
        return ours / theirs if theirs else math.nan

    speed_up = 1 / ratio("latency_ms")
    return (
        f"Of its teacher `{name}` the student keeps {percent(ratio('score'))} % of the score (retention), with "
        f"{percent(ratio('params'), 0)} % of the parameters ({percent(ratio('params', 'embedding_params'), 0)} % of "
        f"those outside of the embeddings), at {NONE if math.isnan(speed_up) else f'{speed_up:.2f}'} times its speed."
    )


def _method(record: RunRecord, cfg: DictConfig, run: Path) -> Iterator[str]:
    """The objective, and what the student began with."""
    path = run / BALANCE
    balanced = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield f"labels (`{cfg.task._target_.rpartition('.')[2]}`), weight {cfg.task.weight}{_settings(cfg.task)}"
    for name, loss in losses_of(cfg).items():
        term: Any = get_class(loss._target_)
        title = Loss(name, sys.modules[term.__module__], term).title or term.__name__
        weight = balanced.get(f"loss.{name}.weight", loss.weight)
        yield f"`{name}`, weight {weight}: [{title}]({term.contract.paper}){_settings(loss)}"
    if initial := cfg.student.get("initialise"):
        yield f"the student began with weights of another network{_settings(initial)}"
    else:
        given = cfg.student.weights
        yield f"the student began with {'new weights' if given is None else f'the weights `{given}`'}"


def _settings(cfg: DictConfig) -> str:
    """The rest of a loss's config, as on a command line."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    shown = [f"`{key}={value}`" for key, value in plain.items() if key not in HIDDEN and value is not None]
    return f"; {', '.join(shown)}" if shown else ""


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    splits = ", ".join(f"{data[split]:,} {split}" for split in ("train", "val", "test"))
    classes = f", in {data['num_classes']} classes" if data["num_classes"] else ""
    yield f"{data['name']}: {splits} samples{classes}"
    yield f"SHA-256 of what was served: `{data['fingerprint']}`"
    yield from data.get("remarks", ())


def _made_by(record: RunRecord) -> str:
    packages = record.environment.get("packages", {})
    commit = f"{record.git.get('commit') or 'unknown'}{' with uncommitted changes' if record.git.get('dirty') else ''}"
    machine = record.environment.get("gpu") or record.environment.get("cpu")
    command = " \\\n  ".join(["distill-train", *map(_quoted, record.overrides)])
    return (
        f"```bash\n{command}\n```\n\n"
        f"Seed {record.seed}. Distillery {packages.get('distillery')}, commit {commit}; torch {packages.get('torch')}; "
        f"{machine}; {record.seconds:.0f} s, begun on {record.started[:10]}."
    )


def _quoted(override: str) -> str:
    """One word of a shell's command line; an override often has single quotes, which `shlex` makes hard to read."""
    plain = "'" in override and not set(override) & set('"$`\\!')
    return f'"{override}"' if plain else shlex.quote(override)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
