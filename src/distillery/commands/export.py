"""`distill-export run=<dir> to=[…]`: a run's student in other formats, or as a folder that transformers loads."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError


@hydra_main("export")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.core.terminal import plain_console, say
        from distillery.results.layout import EXPORT
        from distillery.results.record import RunRecord
        from distillery.runs.export.export import export
        from distillery.runs.export.exports_table import exports_table, remarks
        from distillery.runs.export.transformers_folder import export_for_transformers

    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("Which run? Name a run folder: distill-export run=outputs/wordnet/kd/seed0")
    run = Path(str(cfg.run))
    if cfg.to is None:
        out = export_for_transformers(run, run / EXPORT if cfg.out is None else Path(str(cfg.out)))
        say(f"Written: {out}. Its README.md says how to load it.")
        return
    if cfg.out is not None:
        raise UserError(f"out={cfg.out}: formats (to=…) are written to the run's own folder {EXPORT}. Leave out= out.")
    formats = [cfg.to] if isinstance(cfg.to, str) else list(cfg.to)
    done = export(run, formats, cfg.samples, cfg.batch_size, push_to_hub=cfg.push_to_hub)
    plain_console().print(exports_table(RunRecord.read(run), done))
    for remark in remarks(done):
        say(remark)
    say(f"Written: {run / EXPORT}. Its README.md says how to load each.")


if __name__ == "__main__":
    main()
