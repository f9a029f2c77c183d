"""A student, with all that its exports are made from and compared with."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from distillery.config.build import Parts
from distillery.config.networks import TOKENIZER, run_config
from distillery.config.students import blank_student
from distillery.data.module import Data
from distillery.data.tokenizers import load_tokenizer
from distillery.models.qat import Scheme, convert
from distillery.models.taps.network import Network
from distillery.runs.export.graph import graph_inputs, graph_of
from distillery.runs.export.preprocessing import preprocessing
from distillery.runs.export.transformers_folder import describe_task, for_conversations
from distillery.runs.verify_run import rebuilt
from distillery.tasks.task import Task


@dataclass(frozen=True)
class Exportable:
    """A student, trained or not, on the CPU.

    Attributes:
        cfg: of its run, with every open setting filled in.
        scratch: a folder for files that several formats are made from.
    """

    cfg: DictConfig
    student: Network
    data: Data
    task: Task
    scratch: Path

    @cached_property
    def batch(self) -> dict[str, Tensor]:
        """A few test samples, on which costs are measured, as on those of the run."""
        return self.data.example(self.data.eval_batch_size, "test")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What the graph takes for two samples: tracing would make constants of sizes 0 and 1."""
        return {name: values[:2] for name, values in graph_inputs(self.student, self.batch).items()}

    @property
    def graph(self) -> nn.Module:
        """In float32, with integers where it was trained for them; it may have the student's own weights."""
        return graph_of(self.student if self.dtype == torch.float32 and not self.qat else self._in_float32)

    @cached_property
    def _in_float32(self) -> Network:
        own = copy.deepcopy(self.student).float()
        if self.qat:
            convert(own.net, self.qat)
        return own

    @property
    def qat(self) -> Scheme | None:
        """`student.qat` of the config."""
        scheme: Scheme | None = self.cfg.student.get("qat")
        return scheme

    @property
    def dtype(self) -> torch.dtype:
        """Of the student's weights."""
        return next(each.dtype for each in self.student.net.parameters() if each.is_floating_point())

    @property
    def settings(self) -> dict[str, Any]:
        """`student.net` of the config."""
        net = OmegaConf.to_container(self.cfg.student.net, resolve=True)
        assert isinstance(net, dict)
        return {str(key): value for key, value in net.items()}

    @cached_property
    def tokenizer(self) -> Any:
        """None: the student reads images."""
        if TOKENIZER not in self.cfg.student.input:
            return None
        tokenizer = load_tokenizer(self.cfg.student.input.tokenizer, "student.input.tokenizer")
        return for_conversations(self.student.net, tokenizer, self.cfg, type(self.task))

    def preprocessing(self, in_graph: bool) -> Mapping[str, Any]:
        """See `preprocessing.py`."""
        return preprocessing(self.student, self.data, type(self.task), self.cfg, self.inputs, in_graph)


def exportable(folder: Path, scratch: Path, split: str = "test") -> Exportable:
    """Rebuild the student of a finished run, its data with this split, and its task.

    Raises:
        UserError: see `rebuilt`.
    """
    _, student, data, task = rebuilt(folder, split)
    return _described(run_config(str(folder), "run"), student, data, task, scratch)


def untrained(parts: Parts, scratch: Path) -> Exportable:
    """The student of a run that has not begun, as it would be exported: with the same layers and other weights.

    All its tensors differ, as after training: exporters keep one of those that are alike, such as new biases.
    """
    sixteen = {"bf16-true": torch.bfloat16, "16-true": torch.float16}
    with torch.random.fork_rng(devices=[]):
        student = blank_student(parts.cfg.student, sixteen.get(str(parts.cfg.trainer.precision), torch.float32))
        for tensor in student.net.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
    return _described(parts.cfg, student, parts.data, parts.distiller.task, scratch)


def _described(cfg: DictConfig, student: Network, data: Data, task: Task, scratch: Path) -> Exportable:
    student = student.to("cpu").eval()
    describe_task(student.net, type(task), data.classes)
    return Exportable(cfg, student, data, task, scratch)
