"""Fill the README's tables from the reports in docs/results and from the losses: `make docs`.

A block `<!-- results: NAME -->` … `<!-- end -->` holds the table of docs/results/NAME/report.csv, the block
`<!-- losses -->` … `<!-- end -->` what `distill-losses --markdown` prints.
"""

import re
from pathlib import Path

import pandas as pd

from distillery import catalogue
from distillery.results.render import markdown_table

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- (losses|results: (?P<report>\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(readme: str) -> str:
    """The README with every block as its report, or the code, has it now."""

    def block(match: re.Match[str]) -> str:
        if report := match["report"]:
            table = markdown_table(pd.read_csv(ROOT / "docs/results" / report / "report.csv"))
        else:
            table = catalogue.markdown_table(catalogue.losses())
        return f"{match[1]}{table}{match[4]}"

    return BLOCK.sub(block, readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
