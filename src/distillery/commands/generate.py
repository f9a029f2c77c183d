"""`distill-generate model/teacher=… data=… out=<file.jsonl>`: texts that a teacher writes, as data for a student."""

from omegaconf import DictConfig

from distillery.commands.entry import hydra_main


@hydra_main("generate")
def main(cfg: DictConfig) -> None:
    from pathlib import Path

    from distillery.config.check import refuse_missing
    from distillery.config.writer import build_writer
    from distillery.core.terminal import say
    from distillery.runs.generate.generate import write_texts

    refuse_missing(cfg)
    out = Path(str(cfg.out))
    teacher, data, law, positions = build_writer(cfg)
    counts = write_texts(teacher, data, law, out, positions, cfg.prompt_tokens, cfg.samples, cfg.at_once)
    texts = data.raw.train.inputs
    reader = "messages" if texts.conversations or texts.completions is not None else "plain_text"
    said = ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items(), reverse=True) if number)
    say(f"{out}: {said or 'no prompts'}. Train on it: data={reader} data.source.path={out}")


if __name__ == "__main__":
    main()
