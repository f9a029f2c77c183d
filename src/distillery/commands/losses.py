"""`distill-losses`: every loss and its contract, as a table."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distillery.losses import FAMILIES

if TYPE_CHECKING:
    from rich.table import Table

    from distillery.config.loss_catalogue import Loss

TIMES = {"yes": "times T²", "no": "without T²", "–": ""}


def main() -> None:
    """Prints the losses of all families, or of those that are named."""
    parser = argparse.ArgumentParser("distill-losses", description="Every distillation loss and its contract.")
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=FAMILIES, help="only these; all by default")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    arguments = parser.parse_args()

    from rich.console import Console

    from distillery.config.loss_catalogue import losses, markdown_table

    found = losses(arguments.family)
    if arguments.markdown:
        print(markdown_table(found), end="")
    else:
        Console().print(terminal_table(found))


def terminal_table(losses: Sequence["Loss"]) -> "Table":
    """A row for each loss, by family; readable from 100 columns on."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from distillery.config.loss_catalogue import FORMS

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("loss (short name)\npaper", width=len("correlation_congruence"), overflow="fold")
    table.add_column("form\ntimes T²", no_wrap=True)
    for heading in ("reduction", "expected size", "values of"):
        table.add_column(heading, overflow="fold")
    family = None
    for loss in losses:
        contract = loss.contract
        if loss.family != family:
            family = loss.family
            table.add_section()
            table.add_row(Text(f"loss/{family}", style="bold"))
        name = Text(loss.name, style="cyan")
        if loss.name != contract.short_name:
            name.append(f" ({contract.short_name})")
        paper = contract.paper.removeprefix("https://").replace("arxiv.org/abs/", "arXiv:")
        form = Text(FORMS[contract.form]).append(f"\n{TIMES[loss.t_squared]}", style="dim")
        texts = (Text(text) for text in (contract.reduction, contract.scale, contract.values_of))
        table.add_row(Text("\n").join([name, Text(paper, style=f"dim link {contract.paper}")]), form, *texts)
    return table


if __name__ == "__main__":
    main()
