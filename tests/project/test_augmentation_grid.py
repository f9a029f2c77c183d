"""The picture of the augmentations: every recipe has a row, of grey images and of photographs in colour."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillery.core.paths import CONFIGS


def test_every_recipe_has_a_row_in_grey_and_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(CONFIGS.parent / "scripts/augmentation_grid.py"))
    rows = script["ROWS"]
    assert set(rows) == {*(path.stem for path in CONFIGS.glob("data/augment/*")), "color_jitter", "trivial_augment"}
    for name in rows.keys() - {"none", "rsb", "color_jitter"}:  # three are quick
        del rows[name]
    file = tmp_path / "grid.png"
    monkeypatch.setattr("sys.argv", ["augmentation_grid.py", str(file), "data=digits", "data.train_size=20"])
    script["main"]()
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    height, width = picture.shape[:2]
    assert width / height == pytest.approx((6 + 2 * 2) / (3 * 1.02), rel=0.01)
    coloured = np.ptp(picture, axis=2).max(0) > 30
    assert not coloured[: round(0.55 * width)].any(), "the digits"
    assert coloured[round(0.65 * width) :].mean() > 0.9, "the photographs"
    lines = np.split(picture[: height // 3 * 3], 3)
    assert all(np.abs(line - lines[0]).mean() > 5 for line in lines[1:]), "the others are not as in evaluation"
