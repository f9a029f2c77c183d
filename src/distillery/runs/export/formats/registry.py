"""The formats by their names in `to=` and `target.format`."""

from importlib.util import find_spec

from distillery.core.errors import UserError, did_you_mean
from distillery.runs.export.formats import executorch, gguf, onnx, onnx_int8, openvino, safetensors, torch_export
from distillery.runs.export.formats.artefact import Format

ONNX = ("onnx", "onnxscript", "onnxruntime")

FORMATS = {
    "safetensors": Format(safetensors.write),
    "onnx": Format(onnx.write, "export", ONNX),
    "onnx_int8": Format(onnx_int8.write_dynamic, "export", ONNX),
    "onnx_int8_static": Format(onnx_int8.write_static, "export", ONNX, onnx_int8.unfit_static),
    "torch_export": Format(torch_export.write, unfit=torch_export.unfit, integers=True),
    "executorch": Format(executorch.write, "executorch", ("executorch",), torch_export.unfit, integers=True),
    "gguf": Format(gguf.write, "lm", ("gguf",), gguf.unfit),
    "openvino": Format(openvino.write, "openvino", ("onnx", "onnxscript", "openvino")),
}


def installed(name: str, setting: str) -> Format:
    """The format of this name.

    Args:
        setting: that names it, for errors.

    Raises:
        UserError: there is none, or its packages are missing.
    """
    if name not in FORMATS:
        raise UserError(f"{setting}={name}: there is no such format." + did_you_mean(name, FORMATS))
    chosen = FORMATS[name]
    if missing := [module for module in chosen.modules if find_spec(module) is None]:
        raise UserError(f"{setting}={name} needs {', '.join(missing)}: pip install -e '.[{chosen.extra}]'")
    return chosen
