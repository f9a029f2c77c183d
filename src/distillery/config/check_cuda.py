"""Refuses settings that only a CUDA device can follow where a run has none, and what does not go together there."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from distillery.core.errors import UserError
from distillery.core.process import processes

GRAPHS = "reduce-overhead"  # the mode of `torch.compile` that replays networks as CUDA graphs


def has_cuda(trainer: Mapping[str, Any]) -> bool:
    """Whether a run with these settings of the trainer is on a CUDA device."""
    return trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def refuse_stream(plain: Mapping[str, Any]) -> None:
    """Refuse a stream of the teachers' own where there is no CUDA device, and beside CUDA graphs."""
    if not plain.get("teacher_stream"):
        return
    if not has_cuda(plain["trainer"]):
        raise UserError(
            "teacher_stream=true runs frozen teachers on a CUDA stream, and this run has no CUDA device. A CPU runs "
            "one network after the other: set teacher_stream=false."
        )
    if plain["compile"] == GRAPHS:
        raise UserError(
            f"teacher_stream=true and compile={GRAPHS}: the CUDA graphs of teacher and student share their memory, and "
            "must not run at the same time. Set teacher_stream=false, or compile=true."
        )


def refuse_graphs(plain: Mapping[str, Any]) -> None:
    """Refuse CUDA graphs of the networks, or of the step, where there is no CUDA device, and what they exclude."""
    if plain["compile"] == GRAPHS:
        _refuse_graphs(plain, f"compile={GRAPHS}", "replays the networks as CUDA graphs", "compile=true")
    if not plain.get("step_graph"):
        return
    _refuse_graphs(plain, "step_graph=true", "replays the step as a CUDA graph", "step_graph=false")
    if plain["compile"] == GRAPHS:
        raise UserError(
            f"step_graph=true and compile={GRAPHS}: the networks would be graphs within a graph. Set compile=true, or "
            "step_graph=false."
        )
    if plain.get("rollouts"):
        raise UserError(
            "step_graph=true: the student's own texts have a length of their own in each step, and a CUDA graph has "
            "fixed shapes. Set step_graph=false."
        )
    if placed := [name for name, teacher in plain["teachers"].items() if teacher.get("placement")]:
        raise UserError(
            f"step_graph=true: teachers.{placed[0]}.placement moves tensors to another device and back, and a CUDA "
            "graph is of one device. Set placement=null, or step_graph=false."
        )


def _refuse_graphs(plain: Mapping[str, Any], setting: str, does: str, instead: str) -> None:
    trainer = plain["trainer"]
    if not has_cuda(trainer):
        raise UserError(
            f"{setting} {does}, and this run has no CUDA device. Choose hardware=gpu where there is one, or {instead}."
        )
    if trainer.get("accumulate_grad_batches", 1) > 1:
        raise UserError(
            f"{setting}: gradients lie in the memory of the CUDA graphs, which the next batch overwrites before they "
            f"are added up. Set trainer.accumulate_grad_batches=1, or {instead}."
        )
    several = processes(OmegaConf.create(dict(trainer))) > 1 or trainer.get("num_nodes", 1) > 1
    if several or trainer.get("strategy", "auto") != "auto":
        raise UserError(
            f"{setting} is for one device: DDP and FSDP2 read and write what the CUDA graphs hold. Set "
            f"trainer.devices=1 trainer.strategy=auto, or {instead}."
        )
