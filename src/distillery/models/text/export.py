"""A network as a folder that `from_pretrained` reads."""

from pathlib import Path

from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from distillery.core.errors import UserError
from distillery.core.files import atomic_folder
from distillery.core.hub import CONFIG, quiet
from distillery.models.text.sentence_encoder import pretrained_model

CARD = "README.md"
WEIGHTS = "model.safetensors"


def save_pretrained_folder(net: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path, card: str) -> None:
    """Write config.json, model.safetensors, the tokenizer's files and the model card, all or nothing.

    `AutoModel.from_pretrained` reads the folder, and so does the Auto class of the network's head; a
    `SentenceEncoder` is saved as its encoder, of which the reader takes the mean. A pooler that the network does
    not have (BERT's under the heads of tokens) is a new one in `AutoModel`, as with any of transformers' folders.
    Of a model that generates, generation_config.json says where texts end, and leaves sampling at its defaults.

    Args:
        card: the model card, Markdown.
        folder: is made; an earlier export there is replaced.

    Raises:
        UserError: a network that is not of transformers, or a folder that holds something else.
    """
    model, folder = pretrained_model(net), Path(folder)
    if model is None:
        raise UserError(
            f"A {type(net).__name__} is not a Hugging Face network, so AutoModel cannot read it. Use it from its run "
            "folder (config.yaml, student.safetensors): model/teacher=run, or distill-evaluate."
        )
    if folder.exists() and not _is_export(folder):
        raise UserError(f"{folder} exists and is not an earlier export, so it is not replaced. Choose another folder.")
    with atomic_folder(folder) as unfinished:
        save_pretrained(model, unfinished, tokenizer)
        with quiet():
            tokenizer.save_pretrained(unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")


def save_pretrained(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write config.json, model.safetensors and, of a model that generates, when its texts end."""
    with quiet():
        if tokenizer is not None and model.can_generate():
            model.generation_config = _generation(model, tokenizer)
        model.save_pretrained(folder)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes it private


def _generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Texts end at the tokenizer's end-of-text token, and at others of its special tokens that the model knows as such.

    What else a pretrained model came with, such as a temperature, was chosen for other weights.
    """
    own = model.generation_config.eos_token_id
    known = [own] if isinstance(own, int) else own or []
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = [tokenizer.eos_token_id, *(each for each in known if each in special)]
    ends = [each for each in dict.fromkeys(ends) if each is not None]
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), None)
    end = ends[0] if len(ends) == 1 else ends or None
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=padding)


def _is_export(folder: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or has what an export has."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    return not names or {CONFIG, WEIGHTS, CARD} <= names
