"""`torch.export`: a `.pt2` file that torch runs without the code of the network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from distillery.models.text.bilstm import BiLSTM
from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.graph import BATCH, LENGTH, dynamic_shapes

MODEL = "model.pt2"


def write(model: Exportable, folder: Path) -> Artefact:
    """Trace the graph for batches, and texts, of any size, and save it."""
    torch.export.save(traced(model, {BATCH: Dim.DYNAMIC, LENGTH: Dim.DYNAMIC}), folder / MODEL)
    if not model.qat:
        return Artefact(folder / MODEL, "torch_export", "torch", ("torch",))
    remark = f"trained for its integers ({model.qat})"
    return Artefact(
        folder / MODEL, "torch_export", "torch", ("torch", "torchao"), {"operators": "torchao"}, remarks=(remark,)
    )


def traced(model: Exportable, sizes: Mapping[str, Any]) -> torch.export.ExportedProgram:
    """The graph.

    Args:
        sizes: of each dimension by its name, as `torch.export` is told of them.
    """
    named = dynamic_shapes(model.inputs)
    shapes = {name: {place: sizes[each] for place, each in own.items()} for name, own in named.items()}
    with torch.no_grad():
        return torch.export.export(model.graph, (), model.inputs, dynamic_shapes=shapes)


def unfit(model: Exportable) -> str | None:
    """torch.export writes a recurrent layer out step by step, for one length."""
    if isinstance(model.student.net, BiLSTM):
        return "torch.export cannot trace a recurrent network for texts of any length. Use to=[onnx] or [safetensors]."
    return None
