"""`layers: auto`: which layers of student and teacher are compared when the user names none."""

import math
from collections.abc import Mapping
from typing import Literal

from torch import Size

from distillery.errors import UserError


def stage_ends(layers: Mapping[str, Size]) -> dict[str, tuple[int, int]]:
    """The last feature map at each resolution: path → (H, W), in the order of the network.

    Taken from the shallowest level of modules at which every resolution of the network is seen (`layer2`, not
    `layer3.0.conv1`, though that still runs at layer2's resolution in an inverted bottleneck).

    Args:
        layers: path → output shape of every module, in the order in which they finish (`Network.layers`).
    """
    maps = {path: (shape[2], shape[3]) for path, shape in layers.items() if len(shape) == 4 and shape[2] * shape[3] > 1}
    resolutions = set(maps.values())
    for depth in range(1, 1 + max((path.count(".") + 1 for path in maps), default=0)):
        shallow = {path: resolution for path, resolution in maps.items() if path.count(".") < depth}
        if set(shallow.values()) == resolutions:
            last = {resolution: path for path, resolution in shallow.items()}  # later ones replace earlier ones
            return {path: resolution for resolution, path in last.items()}
    return {}


def auto_layers(
    student: Mapping[str, Size],
    teacher: Mapping[str, Size],
    which: Literal["all", "middle", "last"],
) -> dict[str, str]:
    """Pair each stage of the student with the teacher's at the nearest relative resolution, then relative depth.

    Args:
        student, teacher: path → output shape of every module (`Network.layers`).
        which: every stage (attention transfer), the middle one (FitNets' hint) or the last one.

    Raises:
        UserError: a network without feature maps.
    """
    ends = {"student": stage_ends(student), "teacher": stage_ends(teacher)}
    for role, found in ends.items():
        if not found:
            raise UserError(
                f"`layers: auto` looks for feature maps [B, C, H, W], and the {role} network has none. "
                "Name the layers, `layers: {student_layer: teacher_layer}`, or choose another loss."
            )
    places = {role: _places(found) for role, found in ends.items()}

    def distance(at: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
        return round(abs(at[0] - other[0]), 6), abs(at[1] - other[1])

    pairs = {
        path: min(places["teacher"], key=lambda other: distance(place, places["teacher"][other]))
        for path, place in places["student"].items()
    }
    paths = list(pairs)
    chosen = {"all": paths, "middle": [paths[len(paths) // 2]], "last": paths[-1:]}[which]
    return {path: pairs[path] for path in chosen}


def _places(ends: Mapping[str, tuple[int, int]]) -> dict[str, tuple[float, float]]:
    """Each stage's octaves below the first one's resolution, and its relative depth in (0, 1]."""
    first = next(iter(ends.values()))[0]
    return {path: (math.log2(first / size[0]), (i + 1) / len(ends)) for i, (path, size) in enumerate(ends.items())}
