"""Draw training images as each option of data/augment serves them: a row each, the same images in every row.

    python scripts/augmentation_grid.py docs/assets/augmentation.png data=fashion_mnist
    python scripts/augmentation_grid.py grid.png data=image_folder data.root=pictures data.source.size=96

The arguments after the file are overrides of `distill-train`.
"""

import argparse
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib import pyplot

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.data.sampler import BatchKey

RECIPES = ("none", "crop_flip", "crop_scale", "patient", "rsb", "deit")
COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    register_resolvers()
    figure, rows = pyplot.subplots(len(RECIPES), COLUMNS, figsize=(COLUMNS, len(RECIPES) * 1.02))
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        for recipe, row in zip(RECIPES, rows, strict=True):
            data = instantiate(compose("train", [*asked.overrides, f"data/augment={recipe}"]).data)
            positions = data.splits["train"].indices[:COLUMNS].tolist()
            for axes, image in zip(row, data.dataset("train")[BatchKey(0, positions)]["image"], strict=False):
                axes.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            for axes in row:
                axes.set(xticks=[], yticks=[], frame_on=False)
            row[0].set_ylabel(recipe)
    figure.tight_layout(pad=0.2)
    figure.savefig(asked.file, dpi=100)


if __name__ == "__main__":
    main()
