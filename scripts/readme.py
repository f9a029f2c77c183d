"""Fill the README's tables from the reports in docs/results and from the losses: `make docs`.

A block `<!-- results: NAME -->` … `<!-- end -->` holds the table of docs/results/NAME/report.csv, the block
`<!-- losses -->` … `<!-- end -->` what `distill-losses --markdown` prints, and `<!-- leaderboard -->` … `<!-- end -->`
each method's gain in the studies of all losses.
"""

import re
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from distillery.config import loss_catalogue
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.results.report.formats import NONE, percent, points, verdicts
from distillery.results.report.table import BASELINE, TEACHER
from distillery.results.report.write import markdown_table

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (losses|leaderboard|results: (?P<report>\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
STUDIES = {
    "leaderboard_digits": "digits",
    "leaderboard_fashion_mnist": "Fashion-MNIST",
    "leaderboard_vit": "Fashion-MNIST, ViT",
}
MARKS = {"better than the baseline": "**", "worse than the baseline": "*"}


def filled(readme: str) -> str:
    """The README with every block as its report, or the code, has it now."""

    def block(match: re.Match[str]) -> str:
        if report := match["report"]:
            table = markdown_table(pd.read_csv(ROOT / "docs/results" / report / "report.csv"))
        elif match[2] == "losses":
            table = loss_catalogue.markdown_table(loss_catalogue.losses())
        else:
            table = leaderboard()
        return f"{match[1]}{table}{match[4]}"

    return BLOCK.sub(block, readme)


def leaderboard() -> str:
    """Gain over the baseline in each study, in points: bold where it is above 0, italic where it is below.

    Of teacher and baseline the score itself. A method without a finished run has failed.
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
    """By method, the greatest gain first."""
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
