import math

import pytest
import torch

from distillery.core.errors import UserError
from distillery.core.random import uniforms
from distillery.data.augmentation import CropFlip, augment_options


def by_hand(image: torch.Tensor, pad: int, flip: bool, down: float, right: float, coin: float) -> torch.Tensor:
    """One image at a time, pixel by pixel: crop, then flip, as torchvision's two transforms do."""
    _, height, width = image.shape
    top, left = (math.floor(share * (2 * pad + 1)) - pad for share in (down, right))
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            column = width - 1 - x if flip and coin < 0.5 else x
            if 0 <= y + top < height and 0 <= column + left < width:
                out[:, y, x] = image[:, y + top, column + left]
    return out


def test_equals_a_loop_over_pixels() -> None:
    for dtype in [torch.float32, torch.uint8]:
        for pad, flip in [(0, True), (2, False), (3, True), (0, False)]:
            images = torch.randint(1, 256, (20, 3, 6, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
            uniform = uniforms(0, 0, torch.arange(20), 0, 3)
            uniform[0] = torch.tensor([0.0, 0.0, 0.0])
            uniform[1] = torch.tensor(1 - 2.0**-24)
            got = CropFlip(pad, flip)(images, uniform)
            expected = [by_hand(im, pad, flip, *u) for im, u in zip(images, uniform.tolist(), strict=True)]
            assert got.dtype == dtype
            assert torch.equal(got, torch.stack(expected))


def test_the_largest_uniform_stays_inside() -> None:
    for pad in range(1, 30):
        CropFlip(pad)(torch.ones(1, 1, 4, 4), torch.full((1, 3), 1 - 2.0**-24))


def test_every_offset_and_both_flips_occur() -> None:
    image = torch.arange(1, 26, dtype=torch.float32).view(1, 1, 5, 5)
    out = CropFlip(1, True)(image.expand(2000, -1, -1, -1), uniforms(0, 0, torch.arange(2000), 0, 3))
    kinds, counts = out.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 9 * 2
    assert counts.min() > 60  # of 111 expected


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UserError, match=r"no option 'fliip'.*'flip'"):
        augment_options(CropFlip, {"crop": 4, "fliip": True})
