"""report.html: nothing in it comes from elsewhere, and a browser shows it whole."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from distillery.results.report.html import html
from distillery.results.report.write import write_report

MakeRun = Callable[..., Path]
PAGE = """# Title

![A <curve> & more](a.png) ![again](b.png)

| method | score | params |
| --- | ---: | ---: |
| a | 90.5 ± 0.1 | 5.1k |
| <script>alert(1)</script> | −3 | 1M |
| c | – | 900 |
"""


def pictures() -> dict[str, Figure]:
    figures = {}
    for name in ("a.png", "b.png"):
        figures[name] = figure = Figure()
        figure.subplots().plot([1, 2], [3, 4], marker="o", label="line")
    return figures


def test_everything_is_in_the_page() -> None:
    page = html("A <title>", PAGE, pictures())
    assert "<title>A &lt;title&gt;</title>" in page
    assert page.count("<svg") == 2
    assert 'aria-label="A &lt;curve&gt; &amp; more"' in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.findall(r'(?:src|href)="(?!#|report\.|classes\.)[^"]*"', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len({*ids}), "no two elements of both pictures have one id"
    assert {name for pair in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page) for name in pair if name} <= {*ids}
    assert page == html("A <title>", PAGE, pictures()), "the same each time"


def test_it_says_what_the_markdown_says(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in range(2):
        make_run("baseline", seed, 0.8 + 0.01 * seed)
        make_run("kd", seed, 0.9)
    write_report([tmp_path], tmp_path, "Both")
    page, markdown = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count("<svg") == markdown.count("![")
    assert re.findall(r"<h2>(.*)</h2>", page) == re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    cells = [cell.strip("* ") for line in markdown.splitlines() if line.startswith("| kd") for cell in line.split("|")]
    assert cells
    assert all(cell in page for cell in cells)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it(make_run: MakeRun, tmp_path: Path, width: int) -> None:
    """Needs `pip install -e '.[browser]'` and Chromium (Debian's package `chromium`)."""
    browsers = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on the path")
    for method, gain in (("baseline", 0.0), ("kd", 0.1), ("a_method_with_a_long_name+another_one", 0.05)):
        for seed in range(3):
            score = 0.7 + gain + 0.01 * seed
            entries = [
                {"epoch": e, "step": e, "stage": "", "lr": 1 / e, "score": score - 1 / (e + 9), "numbers": {}}
                for e in range(1, 9)
            ]
            make_run(method, seed, score, timeline=entries)
    write_report([tmp_path], tmp_path, "A report with a title that is longer than the window of a telephone")
    problems: list[str] = []
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        page.screenshot(path=tmp_path / f"report_{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no sideways scroll of the page"
        table = page.locator("table").first
        table.get_by_role("button", name="score %").click()
        first = table.locator("tbody tr td:first-child").all_inner_texts()
        table.get_by_role("button", name="score %").click()
        last = table.locator("tbody tr td:first-child").all_inner_texts()
        assert (first[:2], last[:2]) == (["teacher", "kd"], ["baseline", "a_method_with_a_long_name+another_one"])
        assert page.locator("th[aria-sort=ascending]").count() == 1
        for box in (svg.bounding_box() for svg in page.locator("svg").all()):
            assert box is not None
            assert box["width"] > 350
        browser.close()
    assert problems == []
    assert requests == [(tmp_path / "report.html").as_uri()]
