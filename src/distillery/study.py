"""`distill-study study=<name>`: a teacher, the baseline and methods over seeds; then the report."""

from omegaconf import DictConfig

from distillery.entry import hydra_main


@hydra_main("study")
def main(cfg: DictConfig) -> None:
    from distillery.compare import compare

    compare(cfg)


if __name__ == "__main__":
    main()
