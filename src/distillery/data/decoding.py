"""Picture files → RGB images of 8 bits: every depth, orientation and transparency that Pillow reads."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import pil_to_tensor

from distillery.core.errors import UserError

EXTENSIONS = frozenset({*IMG_EXTENSIONS, ".gif", ".avif"})
MEND = " Replace or remove it, or set data.source.broken=skip."  # of a broken picture in a data set
WHITE = {"I": 65_535, "F": 1.0}  # the value of white in pictures of 16 bits, held as 32-bit integers, and of floats


def decode(file: Path | IO[bytes], name: str, background: str = "white") -> Tensor:
    """The picture in `file`, uint8 [3,H,W], upright as its EXIF data say. Of an animation it is the first frame.

    16-bit greys, which Pillow would clip to white, are scaled by 255 / 65,535, and floats from [0, 1].

    Args:
        name: of the file, in messages.
        background: shows through transparent pixels.

    Raises:
        UserError: it cannot be decoded, or has 32-bit values outside these ranges.
    """
    try:
        with Image.open(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return pil_to_tensor(_rgb(image, background))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"'{name}' cannot be decoded: {error}.{MEND}") from error


def _rgb(image: Image.Image, background: str) -> Image.Image:
    kind = "I" if image.mode.startswith("I;16") else image.mode
    if kind in WHITE:
        return Image.fromarray(_eight_bits(np.asarray(image), kind)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, background)
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: NDArray[Any], kind: str) -> NDArray[Any]:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= WHITE[kind]):  # NaN is neither
        held = "floats from 0 to 1" if kind == "F" else "integers from 0 to 65,535"
        raise ValueError(f"its values go from {low} to {high}, and a picture of this kind holds {held}")
    return np.rint(values * (255 / WHITE[kind])).astype(np.uint8)


def refuse_colour(background: str) -> None:
    """Refuse a background that is no colour to Pillow."""
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise UserError(f"data.source.background={background}: it must be a colour: white, or #808080.") from error
