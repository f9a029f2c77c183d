"""The model card of an exported student: what the record and the config of its run say about it."""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedTokenizerBase

from distillery.config.command_line import shell_quoted
from distillery.config.loss_catalogue import Loss
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.results.exports import Export
from distillery.results.layout import BALANCE
from distillery.results.record import RunRecord
from distillery.results.report.formats import NONE, in_unit, percent, points, si
from distillery.results.report.latency import input_of
from distillery.results.report.score import Score
from distillery.runs.export.exports_table import columns, remarks, row
from distillery.runs.export.loading_snippet import loading_snippet
from distillery.runs.job import plain
from distillery.tasks.task import Task

MADE_BY = "Written by `distill-export`"
TEMPLATE = Path(__file__).with_suffix(".md.jinja")
SHOWN_ELSEWHERE = ("_target_", "weight")  # settings of a loss


def transformers_card(
    record: RunRecord, cfg: DictConfig, net: nn.Module, tokenizer: PreTrainedTokenizerBase, run: Path
) -> str:
    """The card of a student that transformers loads, exported with the tokenizer."""
    return model_card(record, cfg, net, run, snippet_of(cfg, net, tokenizer))


def snippet_of(
    cfg: DictConfig, net: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str = "path/to/this/folder"
) -> str:
    """How transformers loads the student of a run's config from a folder."""
    given = cfg.data.get("max_length"), _chat(cfg, tokenizer), folder
    return loading_snippet(task_of(cfg), head_of(cfg), net, tokenizer, *given)


def model_card(
    record: RunRecord, cfg: DictConfig, net: nn.Module, run: Path, snippet: str, exports: Sequence[Export] = ()
) -> str:
    """The card of the student `net` of a run, in Markdown with YAML metadata.

    Args:
        snippet: how it is used.
        exports: the formats that are beside the card.
    """
    task, last = task_of(cfg), record.metrics["last"]
    kind = Score.of_record(record.data)
    result = EvalResult(
        task_type=task.pipeline_tag,
        dataset_type=record.data["name"],
        dataset_name=record.data["name"],
        dataset_split="test",
        metric_type=task.score.lower().replace(" ", "_"),
        metric_name=task.score,
        metric_value=last["test_score"],
    )
    metadata = ModelCardData(
        library_name=library_of(net),
        pipeline_tag=task.pipeline_tag,
        tags=["knowledge-distillation"] if record.teachers else None,
        model_name=record.name,
        eval_results=[result],
    )
    student = {**record.cost, "score": last["test_score"], "val_score": last["val_score"]}
    scored = {f"teacher `{name}`": entry for name, entry in record.teachers.items() if entry.get("score") is not None}
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        record=record,
        network=type(pretrained_model(net) or net).__name__,
        head=(head_of(cfg) if pretrained_model(net) is not None else task.pipeline_tag)
        .replace("_", " ")
        .replace("-", " "),
        teachers=[f"`{name}` ({entry.get('source') or entry['role']})" for name, entry in record.teachers.items()],
        made_by=MADE_BY,
        snippet=snippet,
        exports=exports,
        export_columns=columns(record, exports),
        export_rows=[row(record, export) for export in exports],
        export_remarks=remarks(exports),
        score=task.score if kind.lower else f"{task.score} %",
        figures=[_figures(name, entry, kind) for name, entry in {"student": student, **scored}.items()],
        comparisons=[_comparison(student, entry, name, kind) for name, entry in record.scored_teachers.items()],
        method=list(_method(cfg, run)),
        data=[*_data(record.data), *record.remarks],
        command=["distill-train", *map(shell_quoted, record.overrides)],
        environment=_environment(record),
        input=input_of(record.cost),
    )
    return f"{card}\n"


def _chat(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any] | None:
    """What a chat template reads besides the messages; None: the student was not trained on conversations."""
    if "template" not in cfg.data or task_of(cfg).prediction != "token" or not tokenizer.chat_template:
        return None
    given = cfg.data.template_kwargs
    return {} if given is None else plain(given)


def library_of(net: nn.Module) -> str:
    """The library that loads a network, as the hub calls it."""
    if pretrained_model(net) is not None:
        return "transformers"
    return "timm" if type(net).__module__.startswith("timm.") else "pytorch"


def head_of(cfg: DictConfig) -> str:
    """The head of the student in a run's config: its own, or that of the task."""
    return str(cfg.student.net.get("head") or task_of(cfg).head)


def task_of(cfg: DictConfig) -> type[Task]:
    """The task of a run's config."""
    return get_class(cfg.task._target_)


def _figures(network: str, entry: Mapping[str, Any], kind: Score) -> list[str]:
    """A row of the table of scores and costs."""
    scores = [in_unit(_number(entry.get(key)), kind) for key in ("score", "val_score")]
    counts = [si(_number(entry.get(key))) for key in ("params", "embedding_params", "flops")]
    latency = _number(entry.get("latency_ms"))
    return [network, *scores, *counts, NONE if math.isnan(latency) else f"{latency:.3g}"]


def _comparison(student: Mapping[str, Any], teacher: Mapping[str, Any], name: str, kind: Score) -> str:
    """Retention, share of the parameters, and speed-up; of a teacher that was run elsewhere retention alone."""

    def ratio(key: str, without: str | None = None) -> float:
        ours, theirs = (_number(e.get(key)) - (_number(e.get(without)) if without else 0) for e in (student, teacher))
        return ours / theirs if theirs else math.nan

    kept = f"keeps {percent(ratio('score'))} % of the score (retention)"
    if kind.lower:
        difference = _number(student.get("score")) - _number(teacher.get("score"))
        kept = f"is at {points(difference, math.nan, kind)} {kind.unit} (lower is better)"
    kept = f"Compared with its teacher `{name}`, the student {kept}"
    if teacher.get("params") is None:
        return f"{kept}."
    speed_up = 1 / ratio("latency_ms")
    return (
        f"{kept} with {percent(ratio('params'), 0)} % of the parameters "
        f"({percent(ratio('params', 'embedding_params'), 0)} % without the embeddings), "
        f"at {NONE if math.isnan(speed_up) else f'{speed_up:.2f}'} times the speed."
    )


def _method(cfg: DictConfig, run: Path) -> Iterator[str]:
    """The terms of the objective and the initial weights."""
    path = run / BALANCE
    balanced = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield f"labels (`{cfg.task._target_.rpartition('.')[2]}`), weight {cfg.task.weight}{_settings(cfg.task)}"
    for name, loss in cfg.loss.items():
        term: Any = get_class(loss._target_)
        title = Loss(name, sys.modules[term.__module__], term).title or term.__name__
        weight = balanced.get(f"loss.{name}.weight", loss.weight)
        yield f"`{name}`, weight {weight}: [{title}]({term.contract.paper}){_settings(loss)}"
    if initial := cfg.student.get("initialise"):
        yield f"initial weights: those of another network{_settings(initial)}"
    else:
        yield f"initial weights: {'random' if cfg.student.weights is None else f'`{cfg.student.weights}`'}"
    if lora := cfg.student.get("lora"):
        yield f"trained by [LoRA](https://arxiv.org/abs/2106.09685), and merged{_settings(lora)}"
    if scheme := cfg.student.get("qat"):
        yield f"quantization-aware: trained as `{scheme}` by torchao"


def _settings(cfg: DictConfig) -> str:
    """The remaining settings of a loss, as on a command line."""
    shown = [
        f"`{key}={value}`" for key, value in plain(cfg).items() if key not in SHOWN_ELSEWHERE and value is not None
    ]
    return f"; {', '.join(shown)}" if shown else ""


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    splits = ", ".join(f"{data[split]:,} {split}" for split in ("train", "val", "test"))
    classes = f", in {data['num_classes']} classes" if data["num_classes"] else ""
    without = f" ({data['unlabelled']:,} of train without a label)" if data.get("unlabelled") else ""
    yield f"{data['name']}: {splits} samples{without}{classes}"
    yield f"SHA-256 of the samples: `{data['fingerprint']}`"
    yield from data.get("remarks", ())


def _environment(record: RunRecord) -> str:
    packages = record.environment.get("packages", {})
    commit = f"{record.git.get('commit') or 'unknown'}{' with uncommitted changes' if record.git.get('dirty') else ''}"
    machine = record.environment.get("gpu") or record.environment.get("cpu")
    return (
        f"Distillery {packages.get('distillery')}, commit {commit}; torch {packages.get('torch')}; {machine}; "
        f"{record.seconds:.0f} s, started on {record.started[:10]}."
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
