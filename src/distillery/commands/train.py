"""`distill-train`: compose a config, train a student."""

from omegaconf import DictConfig

from distillery.commands.entry import hydra_main


@hydra_main("train")
def main(cfg: DictConfig) -> float | None:
    # heavy imports wait until Hydra has the config: --help, --cfg and TAB answer at once
    from distillery.commands.train_command import command

    return command(cfg)


if __name__ == "__main__":
    main()
