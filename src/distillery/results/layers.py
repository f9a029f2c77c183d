"""`layers.npz` in a run folder: how alike the layers of student and teacher are, and what both look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distillery.core.files import atomic_write
from distillery.results.layout import LAYERS

NETWORKS = ("student", "teacher")


@dataclass(frozen=True)
class Layers:
    """What `distill-evaluate pictures=true` has measured of the student in a run folder and of its teacher.

    Attributes:
        stages: by network, the paths of its stages (of a transformer, its blocks), in their order.
        cka: [A + B, A + B] of all of them with each other, those of the student first.
        pairs: the layers of student and teacher whose maps are compared; none: there are no maps.
        maps: by network, for each pair [B, h, w] of images (see `kind`), of a text [L, L].
        kind: of the maps: `attention` of tokens to each other, `patches`: that of the class token (or the mean token)
            to the patches, `activation`: the mean of the squared activations over the channels.
        images: [B, H, W, C] in [0, 1]; of texts empty.
        tokens: of the text; of images empty.
    """

    stages: dict[str, list[str]]
    cka: NDArray[np.float64]
    pairs: list[tuple[str, str]]
    maps: dict[str, list[NDArray[np.float32]]]
    kind: str
    images: NDArray[np.float32]
    tokens: list[str]

    def write(self, folder: Path) -> None:
        """Write it to the run folder, whole or not at all."""
        arrays: dict[str, Any] = {"cka": self.cka, "kind": self.kind, "images": self.images}
        arrays |= {"tokens": np.array(self.tokens, dtype=str), "pairs": np.array(self.pairs, dtype=str).reshape(-1, 2)}
        for name in NETWORKS:
            arrays[name] = np.array(self.stages[name], dtype=str)
            arrays |= {f"{name}_{place}": each for place, each in enumerate(self.maps.get(name, ()))}
        with atomic_write(folder / LAYERS) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of a run folder; None: nothing was measured."""
        if not (folder / LAYERS).is_file():
            return None
        with np.load(folder / LAYERS, allow_pickle=False) as saved:
            pairs = [(str(ours), str(theirs)) for ours, theirs in saved["pairs"]]
            maps = {name: [saved[f"{name}_{place}"] for place in range(len(pairs))] for name in NETWORKS}
            stages = {name: saved[name].tolist() for name in NETWORKS}
            kind, tokens = str(saved["kind"]), saved["tokens"].tolist()
            return cls(stages, saved["cka"], pairs, maps, kind, saved["images"], tokens)
