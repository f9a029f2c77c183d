"""Input adapters: they turn a batch into the arguments that a network takes."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = ("input_ids", "attention_mask", "token_type_ids")  # of a text batch: what networks may ask for
POSITIONS = "position_ids"


class Adapter(nn.Module):
    """Makes the arguments that a network is called with; parameter-free, and no part of an export or of costs."""

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments."""
        raise NotImplementedError

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """[B, L], non-zero where a token counts; None: every one."""
        raise NotImplementedError

    def own_tokenizer(self, batch: Mapping[str, Tensor]) -> str | None:
        """The tokenizer whose tokens of the batch are taken; None: the data's, or there are no tokens."""
        return None


class ImageAdapter(Adapter):
    """Resizes (bilinear) and normalises on the device, so that a teacher and a student of different resolutions and
    statistics share one batch of plain images in [0, 1].

    Args:
        mean, std: per channel, of images in [0, 1]. By default the images stay as they are.
        size: side length in pixels that the network needs; None: keep that of the images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor([*map(float, mean)]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([*map(float, std)]).view(-1, 1, 1), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[tuple[Tensor], dict[str, Any]]:
        """Images [B, C, H, W] in [0, 1] → what the network was trained on: its resolution, channels and statistics."""
        return (self.normalised(self.resized(batch["image"])),), {}

    def resized(self, image: Tensor) -> Tensor:
        """Images in the resolution of the network."""
        if not self.size or image.shape[-2:] == (self.size, self.size):
            return image
        return nn.functional.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)

    def normalised(self, image: Tensor) -> Tensor:
        """Images in the statistics and the precision of the network; a grey one is broadcast to three channels."""
        image = (image - self.mean) / self.std
        return image.to(self.mean.dtype)  # so that float32 images do not promote a 16-bit network

    def mask(self, batch: Mapping[str, Tensor]) -> None:
        return None


class TextAdapter(Adapter):
    """Passes a network those tensors of `TOKENS` by name that its `forward` accepts.

    In blocks of documents `position_ids` begin anew at each; transformers' causal models find the documents by them,
    and let no token attend to another document, if they are given neither a mask nor a cache. (Padding then is one
    document for each token: nothing attends to it.)

    Args:
        net: the network; only its signature is read.
        tokenizer: its name. In a batch with `<tokenizer>/input_ids` these are the network's tokens.
    """

    def __init__(self, net: nn.Module, tokenizer: str | None = None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        accepted = inspect.signature(net.forward).parameters.keys()
        self.taken: Collection[str] = accepted & set(TOKENS)
        self.finds_documents = {POSITIONS, "use_cache"} <= accepted

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[tuple[()], dict[str, Any]]:
        own = self._own(batch)
        if POSITIONS in batch and self.finds_documents:
            return (), {**{name: batch[own + name] for name in ("input_ids", POSITIONS)}, "use_cache": False}
        return (), {name: batch[own + name] for name in TOKENS if name in self.taken and own + name in batch}

    def mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch[f"{self._own(batch)}attention_mask"]

    def own_tokenizer(self, batch: Mapping[str, Tensor]) -> str | None:
        return self.tokenizer if self._own(batch) else None

    def _own(self, batch: Mapping[str, Tensor]) -> str:
        """What the names of the network's tokens begin with."""
        return f"{self.tokenizer}/" if f"{self.tokenizer}/input_ids" in batch else ""
