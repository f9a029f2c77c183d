"""`distill-evaluate run=<dir>`: rebuild a run's student from its folder alone and prove its score."""

from omegaconf import DictConfig

from distillery.entry import hydra_main


@hydra_main("evaluate")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from distillery.prove import prove

    prove(Path(cfg.run), cfg.split)


if __name__ == "__main__":
    main()
