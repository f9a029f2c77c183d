"""Draw test images of a finished segmentation run: image, mask, and what teacher and student predict.

python scripts/segmentation_picture.py outputs/fashion_mnist_segmentation/kd docs/assets/segmentation.png
"""

import argparse
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from matplotlib import pyplot
from omegaconf import OmegaConf

from distillery.config.hydra_support import register_resolvers
from distillery.data.sampler import BatchKey
from distillery.data.tokens import IGNORED
from distillery.results.layout import CONFIG, PREDICTIONS

COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    register_resolvers()
    data = instantiate(OmegaConf.load(asked.run / CONFIG).data)
    positions = data.splits["test"].indices[:COLUMNS].tolist()
    batch = data.dataset("test")[BatchKey(0, positions)]
    counts = (batch["target"] != IGNORED).numpy()
    rows = {"image": batch["image"].permute(0, 2, 3, 1).numpy(), "mask": np.where(counts, batch["target"], np.nan)}
    with np.load(asked.run / PREDICTIONS, allow_pickle=False) as saved:
        for name in saved.files[2:][::-1]:  # the teachers, and the student last
            found = np.full(counts.shape, np.nan)
            for place, position in enumerate(positions):
                found[place][counts[place]] = saved[name][saved["index"] == position]
            rows[name] = found
    figure, grid = pyplot.subplots(len(rows), COLUMNS, figsize=(COLUMNS, len(rows) * 1.02))
    for (name, pictures), line in zip(rows.items(), grid, strict=True):
        for picture, axes in zip(pictures, line, strict=True):
            of_classes = {"cmap": "tab20", "vmin": 0, "vmax": max(19, len(data.classes)), "interpolation": "nearest"}
            axes.imshow(picture, **({"cmap": "gray", "vmin": 0, "vmax": 1} if name == "image" else of_classes))
            axes.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel("teacher" if name == "main" else name)
    figure.tight_layout(pad=0.2)
    figure.savefig(asked.file, dpi=100)


if __name__ == "__main__":
    main()
