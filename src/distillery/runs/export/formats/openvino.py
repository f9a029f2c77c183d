"""OpenVINO's intermediate representation, from the graph in ONNX; for Intel's processors."""

from pathlib import Path

from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.formats.onnx import float_file

MODEL = "model.xml"


def write(model: Exportable, folder: Path) -> Artefact:
    """Write `model.xml` and `model.bin`, with weights in float32."""
    import openvino

    openvino.save_model(openvino.convert_model(float_file(model)), folder / MODEL, compress_to_fp16=False)
    return Artefact(folder / MODEL, "openvino_model", "openvino", ("openvino",))
