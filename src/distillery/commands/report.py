"""`distill-report runs=[dir,dir] out=dir`: the table and the plot of many runs."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from distillery.commands.entry import hydra_main
from distillery.core.errors import UserError


@hydra_main("report")
def main(cfg: DictConfig) -> None:
    """Writes report.md, report.csv and report.png, and prints the table."""
    from distillery.core.terminal import plain_console, say
    from distillery.results.layout import report_files
    from distillery.results.report.write import terminal_table, write_report
    from distillery.runs.compare_baselines import compare_baselines

    if OmegaConf.is_missing(cfg, "runs") or not cfg.runs:
        raise UserError("Which runs? Name run folders, or a folder above them: distill-report runs=[outputs/demo]")
    names = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    folders = [Path(str(name)) for name in names]
    out = Path(cfg.out or folders[0])
    compare_baselines(folders)
    table = write_report(folders, out, cfg.title)
    plain_console().print(terminal_table(table, cfg.title))
    say(f"Written: {out}/{', '.join(report_files(out))}")


if __name__ == "__main__":
    main()
