"""`distill-study study=<name>`: a teacher, the baseline and methods over seeds; then the report."""

from omegaconf import DictConfig

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError, did_you_mean
from distillery.core.paths import CONFIGS


@hydra_main("study")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.runs.study import run_study

    if "methods" not in cfg:
        names = (path.stem for path in (CONFIGS / "study").glob("*.yaml"))
        raise UserError("Which study? distill-study study=<name>." + did_you_mean("", names))
    run_study(cfg)


if __name__ == "__main__":
    main()
