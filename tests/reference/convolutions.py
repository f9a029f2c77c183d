"""3×3 convolutions of one sample, one offset of the kernel at a time, on NumPy arrays."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution(features: Array, weight: Array, bias: Array) -> Array:
    """[C,H,W], [D,C,3,3], [D] → [D,H,W]: zeros around the map."""
    _, height, width = features.shape
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(bias), height, width)) + bias[:, None, None]
    for y in range(3):
        for x in range(3):
            out += np.tensordot(weight[:, :, y, x], padded[:, y : y + height, x : x + width], 1)
    return out


def transposed_convolution(features: Array, weight: Array, bias: Array) -> Array:
    """[C,H,W], [C,D,3,3], [D] → [D,H,W]: each position adds its kernel to the map around it."""
    _, height, width = features.shape
    out = np.zeros((len(bias), height + 2, width + 2))
    for y in range(height):
        for x in range(width):
            out[:, y : y + 3, x : x + 3] += np.tensordot(features[:, y, x], weight, 1)
    return out[:, 1:-1, 1:-1] + bias[:, None, None]


def leaky(features: Array, slope: float) -> Array:
    return np.where(features > 0, features, slope * features)
