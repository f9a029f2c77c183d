"""`distill-generate generate=answers prompts=… base_url=… model=… out=<folder>`: texts that a teacher writes."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from distillery.commands.entry import heavy_imports, hydra_main

# What users of other tools call a server's settings. On Hydra's command line, `model` would be the group of networks.
SHORT = {
    "base_url": "teachers.main.url",
    "model": "teachers.main.model",
    "api_key_env": "teachers.main.client.api_key_env",
    "concurrency": "teachers.main.client.concurrent",
}


def main() -> None:
    sys.argv[1:] = in_full(sys.argv[1:])
    _generate()


def in_full(arguments: Sequence[str]) -> list[str]:
    """The overrides, with the whole names of settings for the short ones."""
    words = (argument.partition("=") for argument in arguments)
    return [SHORT.get(key, key) + equals + value for key, equals, value in words]


@hydra_main("generate")
def _generate(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.config.check import refuse_missing
        from distillery.core.terminal import say
        from distillery.runs.generate.build import build
        from distillery.runs.generate.generate import generate, plan

    refuse_missing(cfg)
    writer, recipe, price, settings = build(cfg)
    if cfg.plan:
        say(plan(writer, recipe, price, settings.out))
    elif generate(writer, recipe, price, settings).failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
