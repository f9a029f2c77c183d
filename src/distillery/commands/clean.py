"""`distill-clean path=<answers.jsonl> out=<folder>`: what a model wrote, without what no student should learn."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main


@hydra_main("clean")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.config.check import refuse_missing
        from distillery.config.spec import check_section
        from distillery.core.terminal import plain_console, say
        from distillery.runs.generate.clean.clean import KEPT, clean
        from distillery.runs.generate.clean.settings import Command, Filters

    refuse_missing(cfg)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    own = check_section("", {key: plain[key] for key in Command.__annotations__}, Command)
    against = own["against"] or []
    out = Path(own["out"])
    summary, remarks = clean(
        Path(own["path"]),
        out,
        Filters.of(plain),
        [against] if isinstance(against, str) else against,
        own["against_split"],
        own["encoding"],
        own["replace"],
    )
    if summary.dropped:
        plain_console().print(summary.table())
    for remark in remarks:
        say(remark)
    say(
        f"{out}: {summary.kept:,} of {summary.rows:,} rows kept. Train on them: data={summary.reader} "
        f"data.source.path={out / KEPT}"
    )


if __name__ == "__main__":
    main()
