"""Tables of results in Markdown, made from docs/results/<report>/report.csv. Run it to update the README's.

Between `<!-- results: NAME -->` and `<!-- end -->` goes the table of the report NAME, between `<!-- leaderboard -->`
and `<!-- end -->` each method's gain in the studies of all losses. The site's pages are filled in when it is built.
"""

import re
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.results.report.formats import NONE, percent, points, verdicts
from distillery.results.report.page import markdown_table
from distillery.results.report.table import BASELINE, TEACHER

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (leaderboard|results: (?P<report>\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
STUDIES = {
    "leaderboard_digits": "digits",
    "leaderboard_fashion_mnist": "Fashion-MNIST",
    "leaderboard_vit": "Fashion-MNIST, ViT",
}
MARKS = {"better than the baseline": "**", "worse than the baseline": "*"}


def filled(page: str) -> str:
    """The page with the present table in each block."""

    def block(match: re.Match[str]) -> str:
        if report := match["report"]:
            table = markdown_table(pd.read_csv(ROOT / "docs/results" / report / "report.csv"))
        else:
            table = leaderboard()
        return f"{match[1]}{table}{match[4]}"

    return BLOCK.sub(block, page)


def leaderboard() -> str:
    """Each method's gain over the baseline in each study, in percentage points.

    Bold where the interval lies above 0, italic where it lies below. Teacher and baseline show their score. A method
    of the study without a finished run is marked as failed.
    """
    columns = {study: _gains(study) for study in STUDIES}
    rows = [TEACHER, BASELINE]
    for study, gains in columns.items():
        methods = [*gains, *(method for method in _methods(study) if method not in gains)]
        rows += [method for method in methods if method not in rows]
        gains |= {method: "failed" for method in _methods(study) if method not in gains}
    lines = [["method", *STUDIES.values()], ["---"] + ["---:"] * len(STUDIES)]
    lines += [[row, *(gains.get(row, NONE) for gains in columns.values())] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _gains(study: str) -> dict[str, str]:
    """By method, the largest gain first."""
    table = pd.read_csv(ROOT / "docs/results" / study / "report.csv").sort_values("diff_mean", ascending=False)
    said = verdicts(table)
    found = {}
    for row in table.itertuples():
        mark = MARKS.get(said.get(row.method, ""), "")
        gain = points(row.diff_mean, row.diff_ci95)
        found[row.method] = f"{mark}{gain}{mark}" if row.method in said else f"{percent(row.score_mean, 2)} %"
    return found


def _methods(study: str) -> list[str]:
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
        return list(compose("study", overrides=[f"study={study}"]).methods)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
