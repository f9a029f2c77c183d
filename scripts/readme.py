"""Fill the README's result tables from the reports in docs/results: `python scripts/readme.py`.

A block `<!-- results: NAME -->` … `<!-- end -->` holds the table of docs/results/NAME/report.csv.
"""

import re
from pathlib import Path

import pandas as pd

from distillery.results.render import markdown_table

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- results: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(readme: str) -> str:
    """The README with every block as its report has it now."""

    def block(match: re.Match[str]) -> str:
        table = pd.read_csv(ROOT / "docs/results" / match["name"] / "report.csv")
        return f"{match[1]}{markdown_table(table)}{match[3]}"

    return BLOCK.sub(block, readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
