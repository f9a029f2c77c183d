"""The student as one graph: from the tensors that a user has to the logits, for formats that hold graphs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from distillery.models.adapters import ImageAdapter, TextAdapter
from distillery.models.taps.network import Network, logits_of

IMAGE, LOGITS = "image", "logits"
BATCH, LENGTH = "batch", "length"  # the dimensions of any size


class ImageGraph(nn.Module):
    """Images [B, C, H, W] in [0, 1], in the resolution of the network → logits.

    Mean and standard deviation are part of the graph: they belong to the weights, and a graph that is fed without them
    gives wrong answers and no error. Decoding and resizing are not: runtimes differ in them, and users have their own.
    """

    def __init__(self, net: nn.Module, adapter: ImageAdapter) -> None:
        super().__init__()
        self.net, self.adapter = net, adapter

    def forward(self, image: Tensor) -> Tensor:
        return _logits(self.net(self.adapter.normalised(image)))


class TextGraph(nn.Module):
    """Tokens [B, L] → logits."""

    def __init__(self, net: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.net, self.options = net, options

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return _logits(self.net(input_ids=input_ids, attention_mask=attention_mask, **types, **self.options))


def graph_of(student: Network) -> nn.Module:
    """The graph of a student, in evaluation mode; it shares the student's weights."""
    adapter = student.adapter
    if isinstance(adapter, ImageAdapter):
        return ImageGraph(student.net, adapter).eval()
    assert isinstance(adapter, TextAdapter)
    return TextGraph(student.net, {"use_cache": False} if adapter.finds_documents else {}).eval()


def graph_inputs(student: Network, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the graph of the student is called with for a batch, by name."""
    adapter = student.adapter
    if isinstance(adapter, ImageAdapter):
        return {IMAGE: adapter.resized(batch["image"])}
    plain = {name: values for name, values in batch.items() if name != "position_ids"}
    named: dict[str, Tensor] = adapter(plain)[1]
    return named


def dynamic_shapes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """The names of the dimensions that may have any size: the batch and, of texts, the length."""
    return {name: {0: BATCH} if name == IMAGE else {0: BATCH, 1: LENGTH} for name in inputs}


def _logits(output: Any) -> Tensor:
    logits = logits_of(output)
    assert logits is not None
    return logits
