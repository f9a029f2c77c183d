"""The options of `data.augment`, and the transforms that they stand for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import torch
from annotated_types import Ge, Gt, Le
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from distillery.core.errors import UserError, did_you_mean
from distillery.core.kinds import Says, conform, shown
from distillery.core.random import hash_key

T = TypeVar("T")
Made = TypeVar("Made")
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
Range = tuple[Positive, Positive]
Shares = tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]]
SETTING = "data.augment"
LEFT_OUT = 255  # in a mask: a pixel that counts nowhere, as in PASCAL VOC and Cityscapes


@dataclass(frozen=True)
class RandAugment:
    """Arguments of `v2.RandAugment`."""

    num_ops: PositiveInt = 2
    magnitude: NonNegativeInt = 9
    num_magnitude_bins: Annotated[int, Ge(2)] = 31

    def __post_init__(self) -> None:
        if self.magnitude >= self.num_magnitude_bins:
            raise UserError(
                f"{SETTING}.rand_augment.magnitude={self.magnitude}: with num_magnitude_bins={self.num_magnitude_bins} "
                f"it is at most {self.num_magnitude_bins - 1}."
            )


@dataclass(frozen=True)
class ColorJitter:
    """Arguments of `v2.ColorJitter`."""

    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.0


@dataclass(frozen=True)
class RandomErasing:
    """Arguments of `v2.RandomErasing`.

    `value` is a grey from 0 (black) to 1, or normal noise with the data's mean and deviation.
    """

    p: Share = 0.5
    scale: Shares = (0.02, 0.33)
    ratio: Range = (0.3, 3.3)
    value: Annotated[Share | Literal["random"], Says("a number from 0 to 1, or random")] = 0.0

    def __post_init__(self) -> None:
        _refuse_falling("random_erasing.scale", self.scale)
        _refuse_falling("random_erasing.ratio", self.ratio)


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image, in this order, all by torchvision; see its documentation of each.

    Args:
        resized_crop: the range of the cropped share of the area (Szegedy et al. 2015); None: of a picture file the
            centre is taken, as in evaluation, and of an image in memory all of it.
        ratio: the range of the aspect ratios of these crops.
        interpolation: of these crops.
        crop: pixels of black padding on each side of the image, out of which it is cropped again (He et al. 2016).
        flip: flip half of the images, left to right.
        rand_augment: Cubuk et al. 2020.
        trivial_augment: Müller & Hutter 2021, with the wide ranges.
        color_jitter: brightness, contrast, saturation and hue.
        random_erasing: Zhong et al. 2020.
        mixup: α of λ ~ Beta(α, α); 0: no mixup (Zhang et al. 2018).
        cutmix: α of λ ~ Beta(α, α); 0: no CutMix (Yun et al. 2019).
        mix_prob: the share of the images that are mixed with another one.
        switch_prob: the share of these for which it is CutMix, if both are on.

    Raises:
        UserError: a range falls, or options exclude each other.
    """

    resized_crop: Shares | None = None
    ratio: Range = (3 / 4, 4 / 3)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop: NonNegativeInt = 0
    flip: bool = False
    rand_augment: RandAugment | None = None
    trivial_augment: bool = False
    color_jitter: ColorJitter | None = None
    random_erasing: RandomErasing | None = None
    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    mix_prob: Share = 1.0
    switch_prob: Share = 0.5

    def __post_init__(self) -> None:
        for name in ("resized_crop", "ratio"):
            _refuse_falling(name, getattr(self, name))
        for one, other in (("crop", "resized_crop"), ("rand_augment", "trivial_augment")):
            if getattr(self, one) and getattr(self, other):
                raise UserError(f"{SETTING}.{one} and {SETTING}.{other} exclude each other: leave out one of them.")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, and their labels with them."""
        return bool(self.mix_prob and (self.mixup or self.cutmix))

    @property
    def of_each(self) -> bool:
        """Whether it does to single images what cannot be done to a whole batch, see `whole_batches.py`."""
        return any((self.resized_crop, self.rand_augment, self.trivial_augment, self.color_jitter))

    def transform(
        self,
        size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        whole: Sequence[v2.Transform] = (),
        pillow: bool = False,
    ) -> Callable[[Any], Tensor]:
        """The transform of an image [C,H,W], or of an image and its mask (`tv_tensors.Mask`), which moves with it.

        Args:
            size: height and width of its result, which is float32 in [0,1].
            mean, std: of each channel.
            whole: makes an image of that size, if there is no `resized_crop`.
            pillow: change colours by Pillow, which is faster; images must be RGB, of 8 bits. Tensors are faster for the
                rest (`benchmarks/data.py`).

        Raises:
            UserError: an option cannot be had for images with so many channels.
        """
        if len(mean) not in (1, 3) and (self.rand_augment or self.trivial_augment or self.color_jitter):
            raise UserError(
                f"{SETTING}: rand_augment, trivial_augment and color_jitter are for grey or RGB images, and these have "
                f"{len(mean)} channels. Leave them out."
            )
        steps: list[Callable[..., Any]] = []
        if self.resized_crop is None:
            steps += whole
        else:
            mode = InterpolationMode(self.interpolation)
            steps.append(v2.RandomResizedCrop(size, self.resized_crop, self.ratio, interpolation=mode))
        if self.crop:
            steps.append(v2.RandomCrop(size, padding=self.crop, fill={tv_tensors.Mask: LEFT_OUT, "others": 0}))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        colours = len(steps)
        # Torchvision's own recipes turn and shear bilinearly, too; bicubic is not possible there for tensors.
        if self.rand_augment is not None:
            steps.append(v2.RandAugment(**vars(self.rand_augment), interpolation=InterpolationMode.BILINEAR))
        if self.trivial_augment:
            steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
        if self.color_jitter is not None:
            steps.append(v2.ColorJitter(**vars(self.color_jitter)))
        if pillow and steps[colours:]:
            steps[colours:] = [v2.ToPILImage(), *steps[colours:], v2.PILToTensor()]
        steps.append(v2.ToDtype(torch.float32, scale=True))
        if self.random_erasing is not None:
            erasing = v2.RandomErasing(**vars(self.random_erasing))
            steps += normalised(erasing, mean, std) if self.random_erasing.value == "random" else [erasing]
        return v2.Compose(steps)


def normalised(
    transform: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]
) -> list[Callable[[Tensor], Tensor]]:
    """`transform` of normalised images; its result is brought back, and into [0, 1]."""
    back = v2.Normalize([-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std])
    return [v2.Normalize(list(mean), list(std)), transform, back, partial(torch.clamp, min=0, max=1)]


def of_samples(
    function: Callable[..., Made], items: Iterable[Any], seed: int, epoch: int, index: Tensor, view: int
) -> list[Made]:
    """`function` of the item of each sample. Torch's generator is seeded for each, and as before afterwards."""
    made = []
    with torch.random.fork_rng(devices=[]):
        for position, item in zip(index.tolist(), items, strict=True):
            # Not `torch.manual_seed`, which would reseed the accelerators as well.
            torch.default_generator.manual_seed(hash_key(seed, epoch, view, position) >> 1)
            made.append(function(item))
    return made


def augment_options(given: Mapping[str, Any]) -> Augmentation:
    """The options of `data.augment`.

    Raises:
        UserError: an unknown option, with the nearest right one; a value of another type or out of range; or options
            that exclude each other.
    """
    return _options(Augmentation, given, SETTING)


def _options(kind: type[T], given: Mapping[str, Any], path: str) -> T:
    known = get_type_hints(kind, include_extras=True)
    options = {}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{path} has no option '{name}'.{did_you_mean(name, known)}")
        kinds = [each for each in get_args(known[name]) if isinstance(each, type)]
        inner = next(filter(is_dataclass, kinds), None)
        if inner is None:
            options[name] = conform(f"{path}.{name}", value, known[name])
        elif isinstance(value, Mapping):
            options[name] = _options(inner, value, f"{path}.{name}")
        elif value is not None:
            some = ", ".join(list(get_type_hints(inner))[:2])
            raise UserError(f"{path}.{name}={shown(value)}: it must be a mapping of its options ({some}, …) or null.")
    return kind(**options)


def _refuse_falling(name: str, values: Sequence[float] | None) -> None:
    if values is not None and values[0] > values[1]:
        raise UserError(
            f"{SETTING}.{name}=[{values[0]:g}, {values[1]:g}]: the first number must not exceed the second."
        )
