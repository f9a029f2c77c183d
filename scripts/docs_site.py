"""Hooks of mkdocs: pages that are made from the repository when the site is built, and tables filled in.

Home is the README; the losses' pages come from their contracts; the API has a page for each room of the package.
"""

import importlib
import inspect
import re
from pathlib import Path

import losses_page
import tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from distillery.losses import FAMILIES, functional

ROOT = Path(__file__).parents[1]
ROOMS = "core losses results data models tasks teachers training config runs".split()  # each imports those before it
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"index.md": from_root("README.md"), "changelog.md": from_root("CHANGELOG.md")}
    pages |= {"losses/index.md": losses_page.index()}
    pages |= {f"losses/{family}.md": losses_page.page(family) for family in FAMILIES}
    pages |= {f"api/{room}.md": room_page(room) for room in ROOMS}
    pages |= {"api/index.md": rooms_page(), "api/functional.md": functional_page()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    if page.file.src_uri.startswith("results/") or "/" not in page.file.src_uri:
        page.meta["hide"] = ["navigation"]  # these tabs have no other page; wide tables need the place
    return tables.filled(markdown)


def from_root(name: str) -> str:
    """A page of the repository's root with its links as seen from docs/; what is not on the site loses its link."""

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if target.startswith("docs/"):
            return f"{image}[{text}]({target.removeprefix('docs/')})"
        return f"`{target}`" if text.strip("`") == Path(target).name else text

    return LINK.sub(link, (ROOT / name).read_text(encoding="utf-8"))


def rooms_page() -> str:
    """The rooms, each with the first line of its docstring."""
    first_lines = {room: inspect.getdoc(importlib.import_module(f"distillery.{room}")) or "" for room in ROOMS}
    rooms = "".join(f"- [`{room}`]({room}.md): {doc.partition(chr(10))[0]}\n" for room, doc in first_lines.items())
    return f"""\
# API

The package has eleven rooms in one order; each imports only from the rooms before it. The last, `commands`, holds the
entry points. The losses as pure functions are in [`functional`](functional.md).

{rooms}"""


def room_page(room: str) -> str:
    return f"# {room}\n\n::: distillery.{room}\n    options:\n      show_root_heading: false\n{_only(room)}"


def _only(room: str) -> str:
    """The families' modules are on the losses' own pages."""
    if room != "losses":
        return ""
    return f"      filters: {['!^_', *(f'!^{family}$' for family in FAMILIES)]}\n"


def functional_page() -> str:
    """The pure functions, family by family."""
    functions = "".join(
        f"\n::: {function.__module__}.{name}\n    options:\n      show_root_full_path: false\n"
        for name, function in functional.FUNCTIONS.items()
    )
    return f"""\
# distillery.losses.functional

Every loss as a pure function of tensors, without Lightning or Hydra: `from distillery.losses.functional import kd`.
{functions}"""
