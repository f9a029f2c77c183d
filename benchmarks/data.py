"""Images a second from a folder, beside torchvision's ImageFolder and DataLoader; and how runs on many files start.

    python benchmarks/data.py [--pairs 5] [--pictures 2048] [--workers 2] [--files 100000] [--json FILE]

The pictures are crops of 500×375 pixels from scikit-learn's two photographs. Both sides crop 8 to 100 % of the area to
224×224 pixels, flip, and make tensors, in batches of 64: an epoch each, in turn, with as many workers. The ratio is the
median over the pairs. So it is with RandAugment besides. Decoders of JPEG files are timed by themselves, in one thread:
this project's, which is Pillow, torchvision's, which is deprecated, and TorchCodec's where it is installed.

Then a run on `--files` small pictures is started twice, each time in a fresh process: the first start decodes and
compares all of them, the second remembers. Exits with 1 if an epoch takes plainly longer than torchvision's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chunked_loss import resident
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from parts.options import positive
from parts.table import show
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import InterpolationMode, v2

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.data.decoding import decode
from distillery.data.vision import VisionData
from distillery.results.environment import environment

LIMIT = 0.95  # of torchvision's images a second
SIZE, BATCH, CLASSES = 224, 64, 10
IMAGENET = 1_281_167  # training images
AUGMENTATIONS: dict[str, tuple[list[str], list[v2.Transform]]] = {  # the options of both sides, besides crop and flip
    "crop and flip": ([], []),
    "and RandAugment": (["+data.augment.rand_augment={}"], [v2.RandAugment(interpolation=InterpolationMode.BILINEAR)]),
}


def write_photographs(folder: Path, number: int) -> None:
    """Crops of the two photographs at random places."""
    draws = np.random.default_rng(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for place, photograph in enumerate(islice(cycle(photographs), number)):
        left, top = (int(draws.integers(1 + most)) for most in (photograph.width - 500, photograph.height - 375))
        file = folder / "train" / str(place % CLASSES) / f"{place}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((left, top, left + 500, top + 375)).save(file, quality=90)
    for name in range(CLASSES):  # a test split that is not timed
        file = folder / "test" / str(name) / "0.jpg"
        file.parent.mkdir(parents=True)
        photographs[0].crop((0, 0, 64 + name, 64)).save(file)


def write_small_pictures(folder: Path, number: int) -> None:
    """Noise of 32×32 pixels, which are all different; 1,000 in each class."""
    draws = np.random.default_rng(0)
    for place in range(number):
        file = folder / str(place // 1000) / f"{place}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file)


def data_of(folder: Path, *overrides: str) -> VisionData:
    """The data of a run on a folder, set up."""
    own = [f"data.root={folder}", f"data.batch_size={BATCH}", "data.val_size=0", *overrides]
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        data: VisionData = instantiate(compose("train", ["data=image_folder", *own]).data)
    data.setup()
    return data


def by_torchvision(folder: Path, more: list[v2.Transform], workers: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of the same images by torchvision."""
    moved = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()]
    steps = [*moved, *more, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    images = ImageFolder(folder / "train", v2.Compose(steps))
    return DataLoader(images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def epochs(name: str, folder: Path, number: int, pairs: int, workers: int) -> dict[str, Any]:
    """Print and return images a second, with one of `AUGMENTATIONS`."""
    options, theirs = AUGMENTATIONS[name]
    ours = data_of(folder, f"data.num_workers={workers}", *options).train_dataloader()
    loaders = {"this project": ours, "torchvision": by_torchvision(folder, theirs, workers)}
    seconds: dict[str, list[float]] = {side: [] for side in loaders}
    for pair in range(pairs + 1):
        for side, loader in loaders.items():
            own = seconds_of(lambda loader=loader: [None for _ in loader])  # type: ignore[misc]
            if pair:  # the workers start in the first
                seconds[side].append(own)
    ratios = [theirs / own for own, theirs in zip(*seconds.values(), strict=True)]
    speed = {side: number / statistics.median(own) for side, own in seconds.items()}
    ratio, span = statistics.median(ratios), (min(ratios), max(ratios))
    rows = [
        ["this project", f"{speed['this project']:.0f}", f"{ratio:.2f}", "{:.2f}–{:.2f}".format(*span)],
        ["torchvision", f"{speed['torchvision']:.0f}", "1", ""],
    ]
    title = f"Pictures of a folder, {name}: {pairs} × {number} images, {workers} workers"
    show(title, ["", "images a second", "ratio", "range"], rows)
    return {"images_a_second": speed, "ratio": ratio, "range": span}


def decoders(folder: Path, repeats: int) -> dict[str, float]:
    """Print and return milliseconds for a picture as a tensor, in the fastest of the repetitions."""
    files = [*(folder / "train").rglob("*.jpg")][:256]
    kinds: dict[str, Callable[[Path], object]] = {
        "this project": lambda path: decode(path, str(path)),
        "torchvision.io.decode_image": lambda path: decode_image(read_file(str(path)), ImageReadMode.RGB),
    }
    if find_spec("torchcodec"):
        from torchcodec.decoders import decode_image as by_torchcodec

        kinds["torchcodec.decoders.decode_image"] = by_torchcodec
    found = {name: float("inf") for name in kinds}
    for _ in range(repeats):
        for name, decoder in kinds.items():
            own = seconds_of(lambda decoder=decoder: [decoder(path) for path in files])  # type: ignore[misc]
            found[name] = min(found[name], 1e3 * own / len(files))
    show("Decoding a JPEG file of 500×375 pixels", ["", "ms"], [[name, f"{ms:.2f}"] for name, ms in found.items()])
    return found


def start(folder: Path) -> dict[str, float]:
    """Seconds until the data are ready, and MiB above the memory before."""
    before = resident()
    seconds = seconds_of(lambda: data_of(folder))
    return {"seconds": seconds, "mib": resident() - before}


def starts(number: int) -> dict[str, dict[str, float]]:
    """Print and return what the first and the second start of a run on small pictures take."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_small_pictures(Path(scratch) / "pictures", number)
        command = [sys.executable, __file__, "--start", f"{scratch}/pictures"]
        own = os.environ | {"DISTILLERY_CACHE": f"{scratch}/cache"}
        for name in ("first start", "second start"):
            said = subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name] = json.loads(said.splitlines()[-1])
    times = IMAGENET / number
    rows = []
    for name, own in found.items():
        rows.append([name, *(f"{own[unit]:.1f} ({own[unit] * times:.0f})" for unit in ("seconds", "mib"))])
    title = f"Start of a run on {number:,} pictures of 32×32 pixels (× {times:.1f}: as many as ImageNet's)"
    show(title, ["", "s", "MiB"], rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=positive, default=5, help="epochs of each side, in turn")
    parser.add_argument("--pictures", type=positive, default=2048, help="photographs in the folder")
    parser.add_argument("--workers", type=int, default=2, help="processes that make batches")
    parser.add_argument("--files", type=int, default=100_000, help="small pictures; 0: starts are not measured")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")
    register_resolvers()
    torch.set_num_threads(1)
    if options.start:
        return print(json.dumps(start(options.start)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_photographs(folder, options.pictures)
        size = options.pictures, options.pairs, options.workers
        found: dict[str, Any] = {name: epochs(name, folder, *size) for name in AUGMENTATIONS}
        found["decoding_ms"] = decoders(folder, options.pairs)
    if options.files:
        found["starts"] = starts(options.files)
    if options.json:
        content = found | {"environment": environment()}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    slowest = min(found[name]["ratio"] for name in AUGMENTATIONS)
    sys.exit(f"{slowest:.2f} × torchvision's images a second, less than {LIMIT}" if slowest < LIMIT else 0)


if __name__ == "__main__":
    main()
