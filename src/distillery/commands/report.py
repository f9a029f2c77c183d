"""`distill-report runs=[dir,dir] out=dir`: the table and the plot of many runs."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from distillery.commands.entry import hydra_main
from distillery.core.errors import UserError


@hydra_main("report")
def main(cfg: DictConfig) -> None:
    """Writes report.md, report.csv and report.png, and prints the table."""
    from rich.console import Console

    from distillery.results.layout import report_files
    from distillery.results.report.write import terminal_table, write_report

    if OmegaConf.is_missing(cfg, "runs") or not cfg.runs:
        raise UserError("Which runs? Name run folders, or a folder above them: distill-report runs=[outputs/demo]")
    names = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    folders = [Path(str(name)) for name in names]
    out = Path(cfg.out or folders[0])
    table = write_report(folders, out, cfg.title)
    console = Console()
    console.print(terminal_table(table, cfg.title))
    console.print(f"Written: {out}/{', '.join(report_files(out))}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
