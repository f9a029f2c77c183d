"""A script: loads one exported network, in a process that has never imported Distillery, and runs it on demand.

`proof.py` starts it and talks to it in pickles through its standard input and output. It imports what the format needs
and nothing of this package but the clock, a file of the standard library alone.
"""

import json
import os
import pickle
import runpy
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[Arrays], Any]  # the inputs of a batch by name → its logits


def onnx(path: Path, options: Mapping[str, Any]) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["logits"], dict(inputs))[0]


def torch_export(path: Path, options: Mapping[str, Any]) -> Run:
    import torch

    if "operators" in options:  # of a package, which the graph calls
        import_module(options["operators"])
    graph = torch.export.load(path).module()
    return lambda inputs: graph(**_tensors(inputs)).numpy()


def executorch_program(path: Path, options: Mapping[str, Any]) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    largest = options["largest"]

    def run(inputs: Arrays) -> Any:
        count = len(next(iter(inputs.values())))
        parts = [
            method.execute([values[start : start + largest] for values in _tensors(inputs).values()])[0].numpy().copy()
            for start in range(0, count, largest)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return run


def openvino_model(path: Path, options: Mapping[str, Any]) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda inputs: compiled(dict(inputs))["logits"]


def timm_folder(path: Path, options: Mapping[str, Any]) -> Run:
    import timm

    return _images(timm.create_model(f"local-dir:{path}", pretrained=True), path)


def transformers_folder(path: Path, options: Mapping[str, Any]) -> Run:
    import torch
    import transformers

    folder = path if path.is_dir() else path.parent
    net = getattr(transformers, options["auto"]).from_pretrained(folder, **options.get("load", {})).eval()
    if options.get("images"):
        return _images(net, path)

    def run(inputs: Arrays) -> Any:
        output = net(**_tensors(inputs))
        if "start_logits" in output:
            return torch.stack([output.start_logits, output.end_logits], -1).numpy()
        if "logits" in output:
            return output.logits.float().numpy()
        counts = torch.from_numpy(inputs["attention_mask"]).unsqueeze(-1)  # an encoder: the mean over the tokens
        mean = (output.last_hidden_state * counts).sum(1) / counts.sum(1).clamp(min=1)
        return (torch.nn.functional.normalize(mean, dim=-1) if options["normalise"] else mean).float().numpy()

    return run


def torch_module(path: Path, options: Mapping[str, Any]) -> Run:
    return _any(runpy.run_path(str(path / "model.py"))["load"](path), path)


def distillery_network(path: Path, options: Mapping[str, Any]) -> Run:
    from hydra.utils import instantiate

    from distillery.models.weights import load_weights

    net = instantiate(json.loads((path / "network.json").read_text(encoding="utf-8")))
    load_weights(net, path / "model.safetensors")
    return _any(net, path)


FORMATS: dict[str, Callable[[Path, Mapping[str, Any]], Run]] = {
    each.__name__: each
    for each in (
        onnx,
        torch_export,
        executorch_program,
        openvino_model,
        timm_folder,
        transformers_folder,
        torch_module,
        distillery_network,
    )
}


def _any(net: Any, path: Path) -> Run:
    images = "mean" in _preprocessing(path)
    return _images(net, path) if images else lambda inputs: _logits(net.eval()(**_tensors(inputs))).numpy()


def _images(net: Any, path: Path) -> Run:
    """A network that takes normalised images."""
    import torch

    said = _preprocessing(path)
    mean, std = (torch.tensor(said[name]).view(-1, 1, 1) for name in ("mean", "std"))
    dtype = next(net.parameters()).dtype
    net.eval()
    return lambda inputs: _logits(net(((torch.from_numpy(inputs["image"]) - mean) / std).to(dtype))).float().numpy()


def _logits(output: Any) -> Any:
    output = output[0] if isinstance(output, tuple) else output
    return getattr(output, "logits", output)


def _preprocessing(path: Path) -> Any:
    return json.loads((path / "preprocessing.json").read_text(encoding="utf-8"))


def _tensors(inputs: Arrays) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(values) for name, values in inputs.items()}


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None: the system does not tell."""
    status = Path(
        "/proc/self/status"
    )  # what getrusage says begins with the memory of the process that started this one
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def main() -> None:
    """Answer requests until the standard input ends: what to load, then `run`, `time` and `memory`."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    requests = sys.stdin.buffer

    def answer(found: object) -> None:
        pickle.dump(found, answers)
        answers.flush()

    asked = pickle.load(requests)
    if "distillery" not in asked["needs"]:
        sys.modules["distillery"] = None  # type: ignore[assignment]  # importing it is an error from now on
    timed = runpy.run_path(asked["clock"])["timed"]
    if asked["torch"]:
        import torch

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
    run = FORMATS[asked["loader"]](Path(asked["path"]), asked["options"])
    answer(version(asked["runtime"]))
    while True:
        try:
            name, inputs = pickle.load(requests)
        except EOFError:
            return
        if name == "run":
            answer(run(inputs))
        elif name == "time":
            found = timed(lambda: run(inputs), **asked["timed"])  # noqa: B023
            answer((found.minimum, found.median, found.busy))
        else:
            answer(peak_memory())


if __name__ == "__main__":
    main()
