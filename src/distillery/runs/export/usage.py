"""How each exported format is loaded and called, as pieces of Python for the model card."""

from collections.abc import Mapping
from typing import Any

from distillery.results.exports import Export

TEXTS = '["A text of yours."]'


def usage(export: Export, said: Mapping[str, Any]) -> str:
    """The code, from the folder `export`.

    Args:
        said: what preprocessing.json says of the inputs.
    """
    names = list(said["inputs"])
    images = "image" in names
    shape = said["inputs"][names[0]]["shape"]
    if images:
        before = [f"image = np.zeros({[1, *shape[1:]]}, dtype=np.float32)  # yours, made as preprocessing.json says"]
    else:
        folder = export.path.partition("/")[0]
        before = [
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            f'tokens = tokenizer({TEXTS}, return_tensors="np", padding=True)',
            f'inputs = {{name: tokens[name].astype("int64") for name in {names}}}',
        ]
    imports = ["import numpy as np"] if images else ["from transformers import AutoTokenizer"]
    own, call = _call(export, images)
    return "\n".join(["```python", *own, *imports, "", *before, *call, "```"])


def _call(export: Export, images: bool) -> tuple[list[str], list[str]]:
    """The imports, and the lines that give the logits."""
    path, given = export.path, '{"image": image}' if images else "inputs"
    tensors = (
        "torch.from_numpy(image)" if images else "**{name: torch.from_numpy(each) for name, each in inputs.items()}"
    )
    if export.format.startswith("onnx"):
        return ["import onnxruntime"], [
            f'session = onnxruntime.InferenceSession("{path}")',
            f'(logits,) = session.run(["logits"], {given})',
        ]
    if export.format == "torch_export":
        keywords = "image=torch.from_numpy(image)" if images else tensors
        return ["import torch"], [f'logits = torch.export.load("{path}").module()({keywords})']
    normalised = "  # normalised, by mean and std" if images else ""
    if export.needs[0] == "timm":
        load = f'timm.create_model("local-dir:{path}", pretrained=True).eval()'
        return ["import timm", "import torch"], [f"model = {load}", f"logits = model({tensors}){normalised}"]
    if export.needs[0] == "torch":
        load = f'runpy.run_path("{path}/model.py")["load"]()'
        return ["import runpy", "", "import torch"], [f"model = {load}", f"logits = model({tensors}){normalised}"]
    return [], []
