"""`distill-cache experiment=… signals=topk out=<folder>`: a teacher's signals for a run's training samples, on disk."""

from omegaconf import DictConfig, OmegaConf, open_dict

from distillery.commands.entry import heavy_imports, hydra_main

OWN = ["out", "signals", "k", "dtype", "tolerance", "teacher"]


@hydra_main("cache")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.config.check import refuse_missing
        from distillery.config.spec import check_section
        from distillery.core.terminal import hushed
        from distillery.runs.write_signals import Settings, write_signals

    refuse_missing(OmegaConf.masked_copy(cfg, OWN))
    given = {name: cfg[name] for name in OWN}
    with open_dict(cfg):
        for name in OWN:
            del cfg[name]
    settings = Settings(**check_section("", given, Settings))
    with hushed():
        write_signals(cfg, settings)


if __name__ == "__main__":
    main()
