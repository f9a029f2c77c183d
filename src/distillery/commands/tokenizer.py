"""`distill-tokenizer data=… out=<folder>`: a tokenizer made of the training documents of a data set."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from distillery.commands.entry import heavy_imports, hydra_main
from distillery.core.errors import UserError


@hydra_main("tokenizer")
def main(cfg: DictConfig) -> None:
    with heavy_imports():
        from distillery.config.check import refuse_missing
        from distillery.config.instantiate import make
        from distillery.config.targets import check_target
        from distillery.core.terminal import say
        from distillery.data.text import TextData
        from distillery.data.tokenizers import train_bpe

    refuse_missing(cfg)
    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    data = make("data", OmegaConf.create(check_target("data", settings)))
    if not isinstance(data, TextData):
        raise UserError("distill-tokenizer needs texts. Choose other data, such as data=plain_text.")
    texts = data.training_texts()
    size = train_bpe(texts, cfg.size, cfg.out)
    say(f"{cfg.out}: a tokenizer of {size:,} tokens, trained on {len(texts):,} texts. Use it: data.tokenizer={cfg.out}")


if __name__ == "__main__":
    main()
