"""`distill-report runs=[dir,dir] out=dir`: the table and the plot of many runs."""

from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError


@hydra_main("report")
def main(cfg: DictConfig) -> None:
    """Writes report.md, report.html, report.csv and the pictures, and prints the table."""
    with heavy_imports():
        from distillery.results.report.cheapest import Question
        from distillery.results.report.write import title_of
        from distillery.runs.show_report import show_report

    if OmegaConf.is_missing(cfg, "runs") or not cfg.runs:
        raise UserError("Which runs? Name run folders, or a folder above them: distill-report runs=[outputs/demo]")
    names = cfg.runs if isinstance(cfg.runs, ListConfig) else [cfg.runs]
    folders = [Path(str(name)) for name in names]
    question = None if cfg.keep is None else Question(cfg.keep, cfg.cost, cfg.price)
    show_report(folders, Path(cfg.out or folders[0]), cfg.title or title_of(folders), question=question)


if __name__ == "__main__":
    main()
