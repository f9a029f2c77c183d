import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from distillery.core.errors import UserError
from distillery.core.random import hash_key, uniforms
from distillery.data.augmentation import augment_options
from distillery.data.images import TensorImages, Transform
from distillery.data.sources.image_folder import image_folder
from distillery.data.whole_batches import CropFlip
from fixtures.datasets import write_image_folder

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
SEED, EPOCH = 3, 2
BILINEAR = InterpolationMode.BILINEAR
Steps = list[Any]
OPERATIONS: dict[
    str, tuple[dict[str, Any], Callable[[], tuple[Steps, Steps]]]
] = {  # the steps that move and that colour
    "padded": (
        {"crop": 3, "color_jitter": {"hue": 0.5}},
        lambda: ([v2.RandomCrop(28, 3)], [v2.ColorJitter(hue=0.5)]),
    ),
    "flip": (
        {"flip": True, "rand_augment": {"magnitude": 7, "num_magnitude_bins": 11}},
        lambda: ([v2.RandomHorizontalFlip(0.5)], [v2.RandAugment(2, 7, 11, BILINEAR)]),
    ),
    "trivial": ({"trivial_augment": True}, lambda: ([], [v2.TrivialAugmentWide(interpolation=BILINEAR)])),
    "crops": (
        {"resized_crop": [0.1, 0.6], "ratio": [0.5, 0.9], "interpolation": "bicubic"},
        lambda: ([v2.RandomResizedCrop(28, (0.1, 0.6), (0.5, 0.9), InterpolationMode.BICUBIC)], []),
    ),
}


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


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Files of 28×28 pixels, in the order of their positions."""
    write_image_folder(tmp_path, shape=(28, 28))
    return sorted((tmp_path / "train").rglob("*.png"))


def seeded(steps: list[Any], images: list[Any]) -> torch.Tensor:
    """Torchvision's transforms of each image, the generator being seeded by seed, epoch, view and position."""
    served = []
    for position, image in enumerate(images):
        torch.manual_seed(hash_key(SEED, EPOCH, 0, position) >> 1)
        served.append(v2.Compose(steps)(image))
    return torch.stack(served)


@pytest.mark.parametrize("name", OPERATIONS)
def test_files_and_memory_are_served_as_torchvision_makes_them(name: str, pictures: list[Path]) -> None:
    given, steps = OPERATIONS[name]
    whole = [] if "resized_crop" in given else [v2.Resize(32), v2.CenterCrop(28)]
    to_float = v2.ToDtype(torch.float32, scale=True)
    read = [Image.open(path).convert("RGB") for path in pictures]
    files = image_folder(pictures[0].parents[2], size=28).train.inputs
    memory = TensorImages(torch.stack([v2.functional.pil_to_tensor(image) for image in read]))
    options, index = augment_options(given), torch.arange(len(read))
    of_files = files.batch(index, files.transform(options, MEAN, STD), SEED, EPOCH)
    moved, colours = steps()
    by_pillow = [v2.ToPILImage(), *colours, v2.PILToTensor()] if colours else []
    assert torch.equal(of_files, seeded([*whole, *moved, *by_pillow, to_float], list(memory.values)))
    if not colours:  # which may enlarge a difference
        of_pillow = seeded([*whole, *moved, v2.PILToTensor(), to_float], read)
        assert torch.allclose(of_files, of_pillow, rtol=0, atol=1.01 / 255)
    in_memory = memory.batch(index, memory.transform(options, MEAN, STD), SEED, EPOCH)
    assert torch.equal(in_memory, seeded([*moved, *colours, to_float], list(memory.values)))
    assert not torch.equal(in_memory, memory.batch(index, None, SEED, EPOCH))


def erased(value: object) -> tuple[torch.Tensor, torch.Tensor]:
    """200 images of black and white pixels, of 4 % to 25 % of which a part is erased; and which pixels these are."""
    images = TensorImages((torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5).float())
    options = augment_options({"random_erasing": {"p": 1.0, "scale": [0.04, 0.25], "value": value}})
    served = images.batch(torch.arange(200), images.transform(options, MEAN, STD), 0, 0)
    return served, ((served - images.values).abs() > 1e-3).any(1)


def test_a_rectangle_of_every_image_is_erased() -> None:
    served, where = erased(0.25)
    for image, part in zip(served, where, strict=True):
        rows, columns = part.any(1).nonzero(), part.any(0).nonzero()
        assert part.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0.02 < part.float().mean() < 0.3
        assert image[:, part].unique().tolist() == [0.25]


def test_noise_has_the_mean_and_the_deviation_of_the_data() -> None:
    served, where = erased("random")
    assert served.min() >= 0
    assert served.max() <= 1
    for channel in range(3):
        pixels = served[:, channel][where]
        normal = torch.distributions.Normal(MEAN[channel], STD[channel])
        expected = normal.sample((100_000,)).clamp(0, 1)  # what lies outside of [0, 1] is cut off
        assert pixels.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
        assert pixels.std().item() == pytest.approx(expected.std().item(), abs=0.02)


def test_crops_and_flips_alone_keep_the_fast_path() -> None:
    images = TensorImages(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))

    def transform(**given: object) -> Transform:
        return images.transform(augment_options(given), [0.5], [0.5])

    assert transform(crop=2, flip=True, mixup=0.2) == CropFlip(2, True)
    assert isinstance(transform(crop=2, trivial_augment=True), v2.Compose)


def test_colours_of_two_channels_are_refused() -> None:
    images = TensorImages(torch.zeros(2, 2, 8, 8))
    with pytest.raises(UserError, match="for grey or RGB images, and these have 2 channels"):
        images.transform(augment_options({"color_jitter": {"hue": 0.1}}), [0.5] * 2, [0.5] * 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"crop": 4, "fliip": True}, r"data\.augment has no option 'fliip'.*'flip'"),
        ({"rand_augment": {"num_op": 2}}, r"data\.augment\.rand_augment has no option 'num_op'.*'num_ops'"),
        ({"rand_augment": True}, r"rand_augment=true: it must be a mapping of its options \(num_ops, magnitude, …\)"),
        ({"rand_augment": {"magnitude": 11, "num_magnitude_bins": 11}}, r"magnitude=11: .* it is at most 10"),
        ({"resized_crop": [0.9, 0.1]}, r"resized_crop=\[0\.9, 0\.1\]: the first number must not exceed"),
        ({"resized_crop": [0.0, 1.0]}, r"resized_crop=.* greater than 0 and of at most 1"),
        ({"random_erasing": {"ratio": [3, 0.3]}}, r"random_erasing\.ratio=\[3, 0\.3\]: the first number must not"),
        ({"random_erasing": {"value": 255}}, r"value=255: it must be a number from 0 to 1, or random"),
        ({"interpolation": "bicubics"}, r"interpolation=bicubics\. Did you mean 'bicubic'"),
        ({"mixup": -1}, r"data\.augment\.mixup=-1: it must be a finite number of at least 0"),
        ({"mix_prob": 2}, r"data\.augment\.mix_prob=2: .* at most 1"),
        ({"crop": 2, "resized_crop": [0.1, 1.0]}, r"crop and data\.augment\.resized_crop exclude each other"),
        ({"rand_augment": {}, "trivial_augment": True}, r"rand_augment and data\.augment\.trivial_augment exclude"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        augment_options(given)
