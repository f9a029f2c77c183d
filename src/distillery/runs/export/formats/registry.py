"""The formats by their names in `to=`."""

from distillery.runs.export.formats import onnx, safetensors, torch_export
from distillery.runs.export.formats.artefact import Format

ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "safetensors": Format(safetensors.write),
    "onnx": Format(onnx.write, "export", ONNX),
    "torch_export": Format(torch_export.write, unfit=torch_export.unfit),
}
