"""How each exported format is loaded and called, as pieces of Python for the model card."""

from collections.abc import Mapping
from typing import Any

from distillery.results.exports import Export

TEXTS = '["A text of yours."]'


def usage(export: Export, said: Mapping[str, Any], repo: str | None = None) -> str:
    """The code, run in the folder `export`.

    Args:
        said: what preprocessing.json says of the inputs.
        repo: the repository of the hub where the exports are; None: they are here.
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
    own, call = _call(export, images, said, repo)
    return "\n".join(["```python", *own, *imports, "", *before, *call, "```"])


def _call(export: Export, images: bool, said: Mapping[str, Any], repo: str | None) -> tuple[list[str], list[str]]:
    """The imports, and the lines that give the logits."""
    path, given = export.path, '{"image": image}' if images else "inputs"
    tensors = (
        "torch.from_numpy(image)" if images else "**{name: torch.from_numpy(each) for name, each in inputs.items()}"
    )
    ordered = "[torch.from_numpy(image)]" if images else "[*map(torch.from_numpy, inputs.values())]"
    normalised = "  # of normalised images: (image - mean) / std" if images else ""
    if export.format.startswith("onnx"):
        return ["import onnxruntime"], [
            f'session = onnxruntime.InferenceSession("{path}")',
            f'(logits,) = session.run(["logits"], {given})',
        ]
    if export.format == "torch_export":
        keywords = "image=torch.from_numpy(image)" if images else tensors
        operators = ["import torchao  # operators of the graph"] if "torchao" in export.needs else []
        return ["import torch", *operators], [f'logits = torch.export.load("{path}").module()({keywords})']
    if export.format == "executorch":
        return ["import torch", "from executorch.runtime import Runtime"], [
            f'method = Runtime.get().load_program("{path}").load_method("forward")',
            f"(logits,) = method.execute({ordered})",
        ]
    if export.format == "openvino":
        return ["import openvino"], [
            f'compiled = openvino.Core().compile_model("{path}")',
            f'logits = compiled({given})["logits"]',
        ]
    if export.format == "gguf":
        folder, _, file = path.partition("/")
        load = f'AutoModelForCausalLM.from_pretrained("{folder}", gguf_file="{file}")'
        return ["import torch", "from transformers import AutoModelForCausalLM"], [
            f"model = {load}  # or: llama-cli -m {path}",
            f"logits = model({tensors}).logits",
        ]
    if export.loads_with("timm"):
        load = f'timm.create_model("{f"hf-hub:{repo}" if repo else f"local-dir:{path}"}", pretrained=True).eval()'
        return ["import timm", "import torch"], [f"model = {load}", f"logits = model({tensors}){normalised}"]
    if export.loads_with("transformers"):  # images
        segments = said["task"] == "image-segmentation"
        name = "AutoModelForSemanticSegmentation" if segments else "AutoModelForImageClassification"
        load = f'{name}.from_pretrained("{repo or path}").eval()'
        return ["import torch", f"from transformers import {name}"], [
            f"model = {load}",
            f"logits = model({tensors}).logits{normalised}",
        ]
    if export.loads_with("torch"):
        load = f'runpy.run_path("{"" if repo else f"{path}/"}model.py")["load"]()'
        return ["import runpy", "", "import torch"], [f"model = {load}", f"logits = model({tensors}){normalised}"]
    return [
        "import json",
        "from hydra.utils import instantiate",
        "from distillery.models.weights import load_weights",
    ], [
        f'model = instantiate(json.load(open("{path}/network.json")))',
        f'load_weights(model, "{path}/model.safetensors")',
    ]
