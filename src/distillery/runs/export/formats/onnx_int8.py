"""ONNX with weights of 8 bits: dynamic, static with calibration data, and weight-only for language models.

Quantisation of the graph in float32, by onnxruntime (https://onnxruntime.ai/docs/performance/model-optimizations/
quantization.html).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.onnx import MODEL, float_file
from distillery.runs.export.graph import IMAGE, graph_inputs

BLOCK = 32  # weights that share a scale, of language models
CALIBRATION = 256  # training samples, as they are in evaluation
AT_ONCE = 32


def write_dynamic(model: Exportable, folder: Path) -> Artefact:
    """Weights in int8; activations are quantised batch by batch. Of a language model the weights alone."""
    if model.task.generates:
        return _write_weights(model, folder)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # For convolutions onnxruntime's CPU kernels have unsigned weights alone.
    kind = QuantType.QUInt8 if IMAGE in model.inputs else QuantType.QInt8
    with _quiet():
        quantize_dynamic(_prepared(model), folder / MODEL, weight_type=kind, per_channel=IMAGE not in model.inputs)
    return _artefact(folder, "weights in int8, activations quantised batch by batch")


def write_static(model: Exportable, folder: Path) -> Artefact:
    """Weights and activations in int8, with the ranges of activations that training samples give.

    Weights are unsigned: x86 processors without VNNI add up pairs of products of signed weights in 16 bits, which
    overflow, and the student would predict otherwise there.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        """Training samples, batch by batch."""

        def __init__(self) -> None:
            self.batches = _calibration(model)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.batches, None)

    with _quiet():
        quantize_static(
            _prepared(model),
            folder / MODEL,
            Samples(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
        )
    seen = min(CALIBRATION, model.data.sizes["train"])
    return _artefact(folder, f"weights and activations in int8, calibrated on {seen} training samples")


def unfit_static(model: Exportable) -> str | None:
    """Language models have activations with outliers, which one range for all tokens does not serve."""
    if model.task.generates:
        return "a language model is quantised by its weights alone. Use to=[onnx_int8]."
    return None


def _write_weights(model: Exportable, folder: Path) -> Artefact:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        quantizer = MatMulNBitsQuantizer(onnx.load(_prepared(model)), bits=8, block_size=BLOCK, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(folder / MODEL), False)
    return _artefact(folder, f"the weights of linear layers alone in 8 bits, {BLOCK} with a scale")


def _prepared(model: Exportable) -> Path:
    """The graph in float32 with the shapes that quantisation asks for, written once."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = model.scratch / "prepared.onnx"
    if not path.exists():
        with _quiet():
            quant_pre_process(float_file(model), path, skip_symbolic_shape=True)
    return path


def _calibration(model: Exportable) -> Iterator[dict[str, NDArray[Any]]]:
    keys, samples = model.data.plain(AT_ONCE, augmented=False)
    for key in keys[: -(-CALIBRATION // AT_ONCE)]:
        yield {name: values.numpy() for name, values in graph_inputs(model.student, samples[key]).items()}


def _artefact(folder: Path, remark: str) -> Artefact:
    return Artefact(folder / MODEL, "onnx", "onnxruntime", ("onnxruntime",), exact=False, remarks=(remark,))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which has been followed."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
