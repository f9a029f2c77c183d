"""The report as one HTML page, which opens from the disk: the Markdown of `page` with its pictures inside."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from matplotlib import rc_context
from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"
# Letters are drawn as paths: their places were measured with fonts that a reader may not have.
AS_SVG: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "report"}
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def html(title: str, markdown: str, figures: Mapping[str, Figure]) -> str:
    """The page: tables can be sorted, pictures are SVG, and nothing is loaded from elsewhere.

    Args:
        markdown: of the whole report. Raw HTML in it is shown as text.
        figures: in the place of the images of these names.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for rule in (image, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    pictures = {name: as_svg(figure, f"picture{number}") for number, (name, figure) in enumerate(figures.items())}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(TEMPLATE).render(title=title, content=parser.render(markdown, pictures))


def as_svg(figure: Figure, prefix: str) -> str:
    """The picture as an element of a page; `prefix` tells its ids from those of the page's other pictures."""
    text = io.StringIO()
    with rc_context(AS_SVG):
        figure.savefig(text, format="svg", metadata=NO_METADATA)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", svg)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)  # those of the style sheet count


def image(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, pictures: Any) -> str:
    """An image of the Markdown: its picture, with the alternative text as its name."""
    token = tokens[place]
    name = escapeHtml(self.renderInlineAsText(token.children, options, pictures))
    return f'<span class="wide picture" role="img" aria-label="{name}">{pictures[token.attrGet("src")]}</span>'


def table_open(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, pictures: Any) -> str:
    """A table that is wider than the window is moved sideways on its own."""
    return '<div class="wide" tabindex="0"><table>\n'


def table_close(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, pictures: Any) -> str:
    return "</table></div>\n"
