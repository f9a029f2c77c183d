"""`distill-export run=<dir>`: a run's student as a folder that transformers loads, with its model card."""

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import hydra_main
from distillery.core.errors import UserError


@hydra_main("export")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from distillery.core.terminal import say
    from distillery.runs.export.export import export

    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("Which run? Name a run folder: distill-export run=outputs/wordnet/kd/seed0")
    run = Path(str(cfg.run))
    out = export(run, run / "export" if cfg.out is None else Path(str(cfg.out)))
    say(f"Written: {out}. Its README.md says how to load it.")


if __name__ == "__main__":
    main()
