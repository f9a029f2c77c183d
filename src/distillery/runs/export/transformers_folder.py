"""A run's student as a folder for others: transformers loads it, and its model card says where it is from."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from distillery.config.networks import TOKENIZER, run_config
from distillery.core.errors import UserError
from distillery.data.chat_template import chat_template
from distillery.data.tokenizers import load_tokenizer
from distillery.models.text.export import CARD, save_pretrained_folder
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.results.layout import EXPORTS
from distillery.runs.export.model_card import MADE_BY, task_of, transformers_card
from distillery.runs.verify_run import finished, student_of
from distillery.tasks.task import Task

# By what a task predicts: which loss and which activation transformers takes.
PROBLEM_TYPES = {
    "class": "single_label_classification",
    "labels": "multi_label_classification",
    "number": "regression",
}


def export_for_transformers(run: Path, out: Path) -> Path:
    """Write the student of the finished run in `run` to the folder `out`, whole or not at all; returns `out`.

    Raises:
        UserError: no finished run, a student that is no transformer, weights other than the run's, a tokenizer that
            is not there any more, or `out` holds something else than an earlier export.
    """
    record = finished(run)
    cfg = run_config(str(run), "run")
    if TOKENIZER not in cfg.student.input:
        raise UserError(
            f"The student of {run} reads images, and only texts' transformers are exported for AutoModel. Name "
            f"formats: distill-export run={run} to=[safetensors,onnx]"
        )
    if scheme := cfg.student.get("qat"):
        raise UserError(
            f"The student of {run} was trained with student.qat={scheme}, and AutoModel would not round as it does. "
            f"Name a format that does: distill-export run={run} to=[torch_export]"
        )
    if (out / EXPORTS).exists():
        raise UserError(
            f"{out} holds exports (to=…), which would be lost. Add this one to them, to=[safetensors], or name another "
            "folder: out=…"
        )
    if out.is_dir() and any(out.iterdir()) and not _has(out / CARD, MADE_BY):
        raise UserError(
            f"{out} holds something other than an earlier export and is not replaced. Name another folder: out=…"
        )
    student = student_of(run, cfg, record)
    tokenizer = load_tokenizer(cfg.student.input.tokenizer, "student.input.tokenizer")
    task = task_of(cfg)
    describe_task(student.net, task, record.data.get("classes", ()))
    tokenizer = for_conversations(student.net, tokenizer, cfg, task)
    save_pretrained_folder(student.net, tokenizer, out, transformers_card(record, cfg, student.net, tokenizer, run))
    return out


def describe_task(net: nn.Module, task: type[Task], classes: Sequence[str]) -> None:
    """Have the config of a network of transformers, if it is one, say which classes there are and what they mean."""
    config: Any = getattr(net, "config", None)
    if config is None:
        return
    if task.is_of_classes() and classes:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    if task.head == "sequence_classification":
        config.problem_type = PROBLEM_TYPES[task.prediction]


def for_conversations(net: nn.Module, tokenizer: Any, cfg: DictConfig, task: type[Task]) -> Any:
    """The tokenizer; where a run's data are conversations, with their template, and `net` is told what ends a turn."""
    if "template" not in cfg.data or task.prediction != "token":
        return tokenizer
    template = chat_template(tokenizer, cfg.data.template, cfg.data.template_kwargs)
    if template is None:
        return tokenizer
    own, model = copy(tokenizer), pretrained_model(net)
    own.chat_template = template.source
    if model is not None and model.can_generate() and template.ends:
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(sorted(template.ends))
    return own


def _has(card: Path, words: str) -> bool:
    return card.is_file() and words in card.read_text(encoding="utf-8", errors="replace")
