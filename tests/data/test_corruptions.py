"""Corruptions of images: against NumPy, SciPy and Pillow, and the same for a sample wherever it is served."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from distillery.data.corruptions import FAMILIES, KINDS, SEVERITIES, corrupted

SIDE = 64


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    picture = Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 400, 400)).resize((SIDE, SIDE))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def one(image: torch.Tensor, name: str, severity: int, index: int = 0) -> np.ndarray:
    return np.asarray(corrupted(image[None], torch.tensor([index]), name, severity)[0])


def test_noise_has_the_deviation_and_the_share_that_it_should() -> None:
    grey = torch.full((3, 100, 100), 0.5)
    deviations = 0.08, 0.12, 0.18
    photons = 60, 25, 12, 5, 3
    shares = 0.03, 0.06, 0.09, 0.17, 0.27
    for severity, deviation in enumerate(deviations, 1):  # those of which little is cut off at 0 and 1
        noisy = one(grey, "gaussian_noise", severity)
        assert (noisy.mean(), noisy.std()) == (pytest.approx(0.5, abs=0.005), pytest.approx(deviation, rel=0.03))
    for severity, number in enumerate(photons[:2], 1):
        assert one(grey, "shot_noise", severity).std() == pytest.approx(np.sqrt(0.5 / number), rel=0.03)
    for severity, share in enumerate(shares, 1):
        salted = one(grey, "impulse_noise", severity)
        assert set(np.unique(salted)) == {0, 0.5, 1}
        assert [(salted == value).mean() for value in (0, 1)] == pytest.approx([share / 2, share / 2], rel=0.1)


def test_blur_is_that_of_scipy(photo: torch.Tensor) -> None:
    for severity, share in zip(SEVERITIES, (0.01, 0.015, 0.02, 0.03, 0.04), strict=True):
        reach = max(1, round(3 * share * SIDE))
        wanted = [gaussian_filter(channel, share * SIDE, mode="nearest", radius=reach) for channel in photo.numpy()]
        np.testing.assert_allclose(one(photo, "gaussian_blur", severity), wanted, atol=1e-5)


def test_motion_spreads_a_point_along_a_line() -> None:
    point = torch.zeros(1, SIDE, SIDE)
    point[0, 32, 32] = 1
    angles = set()
    for index in range(20):
        spread = one(point, "motion_blur", 5, index)[0]
        assert spread.sum() == pytest.approx(1, abs=1e-4)
        y, x = (values - 32 for values in np.nonzero(spread > 0.02))
        along, across = sorted(np.linalg.svd(np.stack([x, y]), compute_uv=False) / np.sqrt(len(x)), reverse=True)
        assert 3 < along < 6, "a line of 16 pixels has a deviation of 16 ÷ √12 = 4.6"
        assert across < 0.8
        angles.add(round(float(np.degrees(np.arctan2(np.polyfit(x, y, 1)[0], 1))) / 10))
    assert len(angles) > 5


def test_light_is_that_of_numpy(photo: torch.Tensor) -> None:
    for severity, more, left in zip(SEVERITIES, (0.1, 0.2, 0.3, 0.4, 0.5), (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        x = photo.numpy()
        np.testing.assert_allclose(one(photo, "brightness", severity), np.minimum(x + more, 1), atol=1e-6)
        np.testing.assert_allclose(one(photo, "contrast", severity), x.mean() + left * (x - x.mean()), atol=1e-6)


def test_pixelation_leaves_few_pixels(photo: torch.Tensor) -> None:
    for severity, share in zip(SEVERITIES, (0.6, 0.5, 0.4, 0.3, 0.25), strict=True):
        seen = one(photo, "pixelate", severity)
        rows = 1 + (np.abs(np.diff(seen, axis=1)).max((0, 2)) > 0).sum()
        assert rows == round(share * SIDE)
        assert seen.mean() == pytest.approx(photo.mean().item(), abs=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_that_of_pillow(photo: torch.Tensor, channels: int) -> None:
    image = photo[:channels]
    for severity, quality in zip(SEVERITIES, (25, 18, 15, 10, 7), strict=True):
        pixels = (255 * image.permute(1, 2, 0).numpy()).round().astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality)
        wanted = np.array(Image.open(file)).reshape(SIDE, SIDE, channels).transpose(2, 0, 1)
        assert np.abs(255 * one(image, "jpeg", severity) - wanted).mean() < 1.5


@pytest.mark.parametrize("name", KINDS)
def test_each_severity_is_further_from_the_picture(photo: torch.Tensor, name: str) -> None:
    distances = [np.abs(one(photo, name, severity) - photo.numpy()).mean() for severity in SEVERITIES]
    for milder, stronger in pairwise(distances):
        assert stronger > 0.95 * milder, "half the pixels fit the grid of the picture, three fifths do not"
    assert distances[0] > 0.005
    assert distances[4] > 1.3 * distances[0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 20, 13)])
def test_a_sample_is_the_same_in_any_batch(name: str, shape: tuple[int, int, int]) -> None:
    images = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([3, 1, 4, 100_000, 2**40])
    torch.manual_seed(1)
    together = corrupted(images, index, name, 3)
    assert together.shape == images.shape
    assert 0 <= together.min() <= together.max() <= 1
    for place in range(5):
        torch.manual_seed(2)
        torch.testing.assert_close(corrupted(images[[place]], index[[place]], name, 3)[0], together[place])
    if KINDS[name].family == "noise" or name == "motion_blur":
        assert not torch.equal(corrupted(images, index + 1, name, 3), together)


def test_the_families() -> None:
    assert FAMILIES == ("noise", "blur", "light", "digital")
