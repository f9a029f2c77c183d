"""Which layers of student and teacher are compared: `layers: auto`, and wildcards in named pairs."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Size

from distillery.core.errors import UserError, did_you_mean
from distillery.models.taps.attention_recorder import MEND

Which = Literal["all", "inner", "middle", "last"]


def stage_ends(layers: Mapping[str, Size]) -> dict[str, tuple[int, int]]:
    """The last feature map of each resolution: path → (H, W), in the order of the network.

    They are taken from the shallowest level of modules that has every resolution of the network: `layer2`, and not
    `layer3.0.conv1`, which still has layer2's resolution in an inverted bottleneck.

    Args:
        layers: path → output shape of every module, in the order in which they finish (`Network.layers`).
    """
    maps = {path: (shape[2], shape[3]) for path, shape in layers.items() if len(shape) == 4 and shape[2] * shape[3] > 1}
    resolutions = set(maps.values())
    for depth in sorted({path.count(".") for path in maps}):
        shallow = {path: resolution for path, resolution in maps.items() if path.count(".") <= depth}
        if set(shallow.values()) == resolutions:
            last = {resolution: path for path, resolution in shallow.items()}  # later ones replace earlier ones
            return {path: resolution for resolution, path in last.items()}
    return {}


def blocks(layers: Mapping[str, Size]) -> list[str]:
    """The blocks of a transformer, in the order of the network: numbered siblings with outputs [B, L, D] of one shape.

    There must be two at least. Of several such families the shallowest is taken, then the largest (`blocks.0`, not
    `blocks.0.parts.1`).

    Args:
        layers: see `stage_ends`.
    """
    families: dict[tuple[str, Size], list[str]] = {}
    for path, shape in layers.items():
        parent, _, number = path.rpartition(".")
        if len(shape) == 3 and number.isdigit():
            families.setdefault((parent, shape), []).append(path)
    found = (paths for paths in families.values() if len(paths) > 1)
    return min(found, key=lambda paths: (paths[0].count("."), -len(paths)), default=[])


def all_stages(layers: Mapping[str, Size]) -> list[str]:
    """A network's `blocks` or, if it has none, the ends of its stages (`stage_ends`); in the order of the network."""
    return blocks(layers) or [*stage_ends(layers)]


def auto_layers(student: Mapping[str, Size], teacher: Mapping[str, Size], which: Which) -> dict[str, str]:
    """Pair the stages of two networks.

    Each stage of a convolutional student is paired with the teacher's stage of the nearest relative resolution and, of
    several, relative depth. The blocks of a transformer all have one resolution: if either network has blocks, stages
    are paired by relative depth, in as many pairs as the network with fewer stages has.

    Args:
        student, teacher: path → output shape of every module (`Network.stages`).
        which: every stage (attention transfer), every one but the last (exit branches), the middle one (FitNets'
            hint) or the last one.

    Raises:
        UserError: a network has neither feature maps nor blocks with tokens.
    """
    ours, theirs = all_stages(student), all_stages(teacher)
    for role, found in (("student", ours), ("teacher", theirs)):
        if not found:
            raise UserError(
                "`layers: auto` looks for feature maps [B, C, H, W] or numbered blocks of tokens [B, L, D], "
                f"and the {role} network has none. "
                "Name the layers, `layers: {student_layer: teacher_layer}`, or choose another loss."
            )
    if blocks(student) or blocks(teacher):
        return _chosen(_by_depth(ours, theirs), which)
    return _chosen(_by_resolution(stage_ends(student), stage_ends(teacher)), which)


def attention_layers(student: Sequence[str], teacher: Sequence[str], which: Which) -> dict[str, str]:
    """Pair the modules that compute attention by relative depth, as TinyBERT does: layer i of n with layer i · m/n.

    Args:
        student, teacher: their paths, in the order in which they run (`Network.attention_modules`).
        which: see `auto_layers`.

    Raises:
        UserError: a network has no attention that can be recorded.
    """
    for role, found in (("student", student), ("teacher", teacher)):
        if not found:
            raise UserError(
                f"`layers: auto` looks for modules that compute attention, and the {role} network has none that can "
                f"be recorded. Choose a transformer, or a loss on other layers. {MEND}"
            )
    return _chosen(_by_depth(list(student), list(teacher)), which)


def _chosen(pairs: Mapping[str, str], which: Which) -> dict[str, str]:
    paths = list(pairs)
    chosen = {"all": paths, "inner": paths[:-1] or paths, "middle": [paths[len(paths) // 2]], "last": paths[-1:]}[which]
    return {path: pairs[path] for path in chosen}


def own_layers(stages: Sequence[str], which: Which) -> dict[str, str]:
    """Pair the stages of a network that is its own teacher: each stage but the last with the last one.

    Args:
        stages: in the order of the network (`all_stages`).
        which: see `auto_layers`; of the stages before the last.

    Raises:
        UserError: it has only one stage.
    """
    *earlier, last = stages or [""]
    if not earlier:
        raise UserError(
            "`layers: auto` with the student as its own teacher pairs earlier layers with the last one, "
            "and there are no two. "
            "Name them, `layers: {earlier_layer: later_layer}`."
        )
    return _chosen(dict.fromkeys(earlier, last), "all" if which == "inner" else which)


def _by_depth(student: list[str], teacher: list[str]) -> dict[str, str]:
    """Pair each layer of the shorter list with the other's nearest in relative depth (i + 1) / n; of two, the later."""
    few, many = sorted((student, teacher), key=len)
    partners = [many[(2 * (i + 1) * len(many) - len(few)) // (2 * len(few))] for i in range(len(few))]
    return dict(zip(few, partners, strict=True) if few is student else zip(partners, few, strict=True))


def _by_resolution(student: Mapping[str, tuple[int, int]], teacher: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    ours, theirs = _places(student), _places(teacher)

    def distance(at: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
        return round(abs(at[0] - other[0]), 6), abs(at[1] - other[1])

    return {path: min(theirs, key=lambda other: distance(place, theirs[other])) for path, place in ours.items()}


def _places(ends: Mapping[str, tuple[int, int]]) -> dict[str, tuple[float, float]]:
    """For each stage: how many octaves its resolution is below the first one's, and its relative depth in (0, 1]."""
    first = next(iter(ends.values()))[0]
    return {path: (math.log2(first / size[0]), (i + 1) / len(ends)) for i, (path, size) in enumerate(ends.items())}


def named_layers(layers: Mapping[str, str], student: Sequence[str], teacher: Sequence[str]) -> dict[str, str]:
    """The pairs {student tap: teacher tap}, with wildcards replaced by the layers they match, in order.

    `*` stands for any characters but dots: `stages.*` is `stages.0`, `stages.1`, ..., and not `stages.0.conv`.

    Args:
        layers: as in the config. A tap may continue after the path (`blocks.*:input`).
        student, teacher: the paths of all modules, in the order of the network.

    Raises:
        UserError: a wildcard matches nothing, the two sides match different numbers of layers, or a layer is named
            twice.
    """
    pairs: dict[str, str] = {}
    for ours, theirs in layers.items():
        matches, others = _matching(ours, student, "student"), _matching(theirs, teacher, "teacher")
        if len(matches) != len(others):
            raise UserError(
                f"`layers: {{{ours}: {theirs}}}` pairs {len(matches)} of the student's layers "
                f"({', '.join(matches)}) with {len(others)} of the teacher's ({', '.join(others)}). "
                "Name the pairs one by one, or use `layers: auto`."
            )
        for tap, other in zip(matches, others, strict=True):
            if tap in pairs:
                raise UserError(f"`layers` names the student's layer {tap!r} twice. Name it once.")
            pairs[tap] = other
    return pairs


def _matching(tap: str, paths: Sequence[str], role: str) -> list[str]:
    pattern = re.split(r"[:\[]", tap, maxsplit=1)[0]
    if "*" not in pattern:
        return [tap]
    wanted = re.compile("[^.]*".join(map(re.escape, pattern.split("*"))))
    found = [path + tap[len(pattern) :] for path in paths if wanted.fullmatch(path)]
    if not found:
        raise UserError(f"The {role} network has no layer that {tap!r} matches.{did_you_mean(pattern, paths)}")
    return found
