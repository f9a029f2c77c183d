"""Draw training images as each recipe of data/augment serves them, and two more options: a row each.

    python scripts/augmentation_grid.py docs/assets/augmentation.png data=fashion_mnist
    python scripts/augmentation_grid.py grid.png data=image_folder data.root=pictures data.source.size=96

The arguments after the file are overrides of `distill-train`: the first images of these data, the same in every row. To
their right are two views of each of scikit-learn's sample photographs, which are in colour.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib import pyplot
from sklearn.datasets import load_sample_images
from torch import Tensor

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.data.images import EncodedImages
from distillery.data.module import Data
from distillery.data.raw_data import RawData, Split
from distillery.data.sampler import BatchKey
from distillery.data.unseen import NamedPictures

RECIPES = sorted((path.stem for path in CONFIGS.glob("data/augment/*.yaml")), key=lambda name: (name != "none", name))
OPTIONS = {"color_jitter": "{brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.2}", "trivial_augment": "true"}
ROWS = {name: [f"data/augment={name}"] for name in RECIPES} | {
    name: ["data/augment=none", f"+data.augment.{name}={value}"] for name, value in OPTIONS.items()
}
IMAGES, VIEWS, SIZE = 6, 2, 64


def photographs() -> RawData:
    """scikit-learn's two sample photographs, in RGB."""
    paths = [Path(name) for name in load_sample_images().filenames]
    split = Split.whole(EncodedImages(NamedPictures(paths), SIZE), torch.arange(len(paths)))
    return RawData("photographs", tuple(path.stem for path in paths), split, split)


def served(data: Data, images: int, views: int) -> Iterator[Tensor]:
    """The first training images as the first epochs serve them: [C,H,W], all views of an image together."""
    positions, dataset = data.splits["train"].indices[:images].tolist(), data.dataset("train")
    epochs = [dataset[BatchKey(epoch, positions)]["image"] for epoch in range(views)]
    return (view for of_image in zip(*epochs, strict=True) for view in of_image)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    register_resolvers()
    columns = IMAGES + 2 * VIEWS
    figure, grid = pyplot.subplots(len(ROWS), columns, figsize=(columns, len(ROWS) * 1.02))
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        for (name, overrides), row in zip(ROWS.items(), grid, strict=True):
            given = compose("train", [*asked.overrides, *overrides]).data
            colour = compose("train", ["data=image_folder", "data.root=null", "data.val_size=0", *overrides]).data
            images = [
                *served(instantiate(given), IMAGES, 1),
                *served(instantiate(colour, source=photographs), 2, VIEWS),
            ]
            for axes, image in zip(row, images, strict=True):
                axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[], frame_on=False)
            row[0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.2)
    figure.savefig(asked.file, dpi=64)


if __name__ == "__main__":
    main()
