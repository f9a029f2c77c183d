"""ONNX for onnxruntime: one graph, with a batch and a length of any size."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path

import torch

from distillery.models.text.bilstm import BiLSTM
from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.onnx_bilstm import BiLSTMGraph
from distillery.runs.export.graph import LOGITS, dynamic_shapes

MODEL = "model.onnx"


def write(model: Exportable, folder: Path) -> Artefact:
    """Write `model.onnx`, beside which large weights have a file of their own."""
    for path in float_file(model).parent.iterdir():
        shutil.copy(path, folder)
    return Artefact(folder / MODEL, "onnx", "onnxruntime", ("onnxruntime",))


def float_file(model: Exportable) -> Path:
    """The graph in float32, from which other formats are made, too; it is converted once.

    Its metadata hold what preprocessing.json says.
    """
    path = model.scratch / "onnx" / MODEL
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    graph = BiLSTMGraph(model.student.net) if isinstance(model.student.net, BiLSTM) else model.graph
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (),
            kwargs=model.inputs,
            dynamic_shapes=dynamic_shapes(model.inputs),
            input_names=[*model.inputs],
            output_names=[LOGITS],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # Of each node the exporter keeps the lines of source that it comes from: more bytes than a small network's weights.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props["preprocessing"] = json.dumps(model.preprocessing(in_graph=True))
    program.save(path)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converter says of its own rules."""
    loggers = [getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
