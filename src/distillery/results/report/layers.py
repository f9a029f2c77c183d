"""The report's section on layers: those of the best method and of the baseline beside the teacher's."""

from collections.abc import Mapping, Sequence, Set

from matplotlib.figure import Figure

from distillery.results.layers import Layers
from distillery.results.layout import LAYER_MAPS, LAYER_SIMILARITY
from distillery.results.report.collect import Run
from distillery.results.report.markdown import section
from distillery.results.report.plot_layers import plot_maps, plot_similarities
from distillery.results.report.table import BASELINE

SIMILAR = """
Similarity (CKA, unbiased) of the outputs of each stage or block on up to 1,024 test samples. A student that works as
its teacher does is bright from the upper left to the lower right; the last picture is the teacher with itself."""
MAPS = {
    "attention": "What the tokens of a test text (rows) attend to (columns), the mean over heads.",
    "patches": "What the class token (without one, the mean patch) attends to, the mean over heads.",
    "activation": "The mean over channels of the squared activations, which attention transfer compares.",
}


def layers_by_method(students: Sequence[Run], best: str | None) -> dict[str, Layers]:
    """Of the baseline and the best method what was measured of their first seed that has something."""
    found: dict[str, Layers] = {}
    for label in dict.fromkeys([BASELINE, *([best] if best is not None else [])]):
        own = (Layers.read(run.folder) for run in students if run.label == label)
        if (layers := next((each for each in own if each is not None), None)) is not None:
            found[label] = layers
    return found


def layer_pictures(methods: Mapping[str, Layers]) -> dict[str, Figure | None]:
    """The pictures by the names of their files; None where there is nothing to draw."""
    with_maps = {name: layers for name, layers in methods.items() if layers.pairs}
    first = next(iter(with_maps.values()), None)
    alike = {name: each for name, each in with_maps.items() if first is not None and _alike(each, first)}
    return {
        LAYER_SIMILARITY: plot_similarities(methods) if methods else None,
        LAYER_MAPS: plot_maps(alike) if alike else None,
    }


def layers_section(methods: Mapping[str, Layers], pictures: Set[str]) -> str:
    """Pictures and what they show; empty where nothing was measured."""
    if not methods:
        return ""
    kind = next((layers.kind for layers in methods.values() if layers.pairs), "")
    return section(
        "Layers",
        f"![CKA of the layers of student and teacher]({LAYER_SIMILARITY})\n{SIMILAR}",
        f"![What student and teacher look at]({LAYER_MAPS})\n\n{MAPS[kind]} Each map from 0 (dark) to its maximum."
        if LAYER_MAPS in pictures
        else "",
    )


def _alike(one: Layers, other: Layers) -> bool:
    """Whether they have the same layers, on the same samples."""
    same = one.images.shape == other.images.shape and bool((one.images == other.images).all())
    return one.pairs == other.pairs and one.tokens == other.tokens and same
