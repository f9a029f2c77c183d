"""Names of points in a picture, placed where nothing else is."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

APART = 5.0  # points from the middle of a marker
AROUND = [  # where a label may stand, the best place first: offsets as multiples of `APART`, and its anchor
    (1, 0, "left", "center"), (-1, 0, "right", "center"), (0, 1, "center", "bottom"), (0, -1, "center", "top"),
    (1, 1, "left", "bottom"), (1, -1, "left", "top"), (-1, 1, "right", "bottom"), (-1, -1, "right", "top"),
]  # fmt: skip


class Label(NamedTuple):
    """The name of a point of the data."""

    x: float
    y: float
    text: str
    colour: str


def label_apart(ax: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> None:
    """Name points, the first ones first; one that would meet a text, a point or the edge in every place has no name.

    Args:
        points: all that are drawn, with or without a name.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # places everything
    renderer = FigureCanvasAgg(figure).get_renderer()
    radius = APART * figure.dpi / 72 * 0.8
    taken = [text.get_window_extent(renderer) for text in ax.texts]
    for x, y in ax.transData.transform([*points]):
        taken.append(Bbox([[x - radius, y - radius], [x + radius, y + radius]]))
    for x, y, text, colour in labels:
        for dx, dy, ha, va in AROUND:
            named = ax.annotate(
                text, (x, y), xytext=(APART * dx, APART * dy), textcoords="offset points", ha=ha, va=va, color=colour
            )
            named.set_in_layout(False)  # the places stay as they were measured
            box = named.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            named.remove()
