"""`preprocessing.json`: how the inputs of an exported student are made, and what its outputs are called."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from distillery.data.images import EncodedImages
from distillery.data.module import Data
from distillery.models.adapters import ImageAdapter
from distillery.models.taps.network import Network
from distillery.runs.export.graph import dynamic_shapes
from distillery.tasks.task import Task

PREPROCESSING = "preprocessing.json"


def preprocessing(
    student: Network, data: Data, task: type[Task], cfg: DictConfig, inputs: Mapping[str, Tensor], in_graph: bool
) -> dict[str, Any]:
    """The content of the file.

    Args:
        inputs: of the graph, for a few samples.
        in_graph: whether the exported network normalises images by itself.
    """
    names = dynamic_shapes(inputs)
    found: dict[str, Any] = {
        "task": task.pipeline_tag,
        "inputs": {
            name: {
                "shape": [names[name].get(place, size) for place, size in enumerate(values.shape)],
                "dtype": str(values.dtype).removeprefix("torch."),
            }
            for name, values in inputs.items()
        },
        "classes": list(data.classes) if task.is_of_classes() else [],
    }
    if isinstance(student.adapter, ImageAdapter):
        return found | _of_images(student.adapter, data, list(inputs["image"].shape[1:]), in_graph)
    return found | {
        "tokenizer": "the files beside this one (transformers.AutoTokenizer)",
        "max_length": cfg.data.get("max_length"),
    }


def _of_images(adapter: ImageAdapter, data: Data, shape: list[int], in_graph: bool) -> dict[str, Any]:
    channels, *size = shape
    images = data.splits["test"].inputs
    resize: Any = None  # images in memory are served as they are
    crop = None
    if isinstance(images, EncodedImages):
        served = list(images.shape[1:])
        resize, crop = (served, None) if images.squeeze else (images.shorter_side, served)
    return {
        "mode": {1: "L", 3: "RGB"}.get(channels),
        "layout": "NCHW",
        "range": [0, 1],
        "resize": resize,
        "crop": crop,
        "size": size,
        "interpolation": "bilinear",
        "antialias": True,
        "mean": adapter.mean.flatten().tolist(),
        "std": adapter.std.flatten().tolist(),
        "normalise": "in the network" if in_graph else "before the network: (image - mean) / std",
        "notes": (
            "resize: the shorter side, or [height, width]; crop: from its centre; size: what the network takes, to "
            "which it is resized at last. null: as it is."
        ),
    }
