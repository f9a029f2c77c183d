"""The formats by their names in `to=`."""

from distillery.runs.export.formats import executorch, gguf, onnx, onnx_int8, openvino, safetensors, torch_export
from distillery.runs.export.formats.artefact import Format

ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "safetensors": Format(safetensors.write),
    "onnx": Format(onnx.write, "export", ONNX),
    "onnx_int8": Format(onnx_int8.write_dynamic, "export", ONNX),
    "onnx_int8_static": Format(onnx_int8.write_static, "export", ONNX, onnx_int8.unfit_static),
    "torch_export": Format(torch_export.write, unfit=torch_export.unfit),
    "executorch": Format(executorch.write, "executorch", ("executorch",), torch_export.unfit),
    "gguf": Format(gguf.write, "lm", ("gguf",), gguf.unfit),
    "openvino": Format(openvino.write, "openvino", ("onnx", "onnxscript", "openvino")),
}
