"""Fashion-MNIST, from any folder with its IDX files."""

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from distillery.core.errors import UserError
from distillery.data.images import TensorImages
from distillery.data.raw import RawData, Split
from distillery.data.sources.download import download

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
UNSIGNED_BYTE = 0x08


def fashion_mnist(root: str | Path = "data") -> RawData:
    """60,000 + 10,000 grey images of 28×28 pixels in 10 classes (Xiao, Rasul & Vollgraf 2017).

    Looked for in `root`, in `root`/FashionMNIST/raw and where Debian's package puts it, gzipped or not; what
    is nowhere is downloaded to `root`.

    Raises:
        UserError: a file is missing, damaged or of another format, or the download failed.
    """
    nested = Path(root) / "FashionMNIST" / "raw"
    places = [Path(root), nested, DEBIAN]
    folder = next((place for place in places if _file(place, "train-images-idx3-ubyte")), None)
    if folder is None:
        download(FashionMNIST, Path(root), "the four IDX files of Fashion-MNIST (gzipped or not)")
        folder = nested
    return RawData(
        "fashion_mnist",
        tuple(FashionMNIST.classes),
        train=_split(folder, "train"),
        test=_split(folder, "t10k"),
    )


def read_idx(path: Path) -> Tensor:
    """The unsigned bytes of an IDX file, gzipped or not, as uint8.

    The format: two zero bytes, the type, the number of dimensions, each dimension as a big-endian 32-bit
    number, the values.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise UserError(f"'{path}' cannot be read: {error}. Fetch the file again.") from error
    if len(data) < 4 or data[:3] != bytes((0, 0, UNSIGNED_BYTE)):
        raise UserError(f"'{path}' is not an IDX file of unsigned bytes.")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) - start != np.prod(shape, dtype=int):
        raise UserError(
            f"'{path}' is damaged: its header says {' × '.join(map(str, shape))} bytes, "
            f"but {len(data) - start} follow. Fetch the file again."
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _split(folder: Path, part: str) -> Split:
    names = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
    found = []
    for name in names:
        path = _file(folder, name)
        if path is None:
            raise UserError(f"'{folder}' has no '{name}' nor '{name}.gz'. Fetch the file, or set data.root.")
        found.append(read_idx(path))
    images, labels = found
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise UserError(
            f"'{names[0]}' and '{names[1]}' in '{folder}' don't belong together: "
            f"shapes {tuple(images.shape)} and {tuple(labels.shape)}."
        )
    return Split.whole(TensorImages(images[:, None]), labels.long())
