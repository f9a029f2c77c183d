"""Refuses networks that were made for another tokenizer, or that have too few positions for the texts."""

from torch import nn

from distillery.core.errors import UserError
from distillery.data.module import Data
from distillery.data.text import TextData
from distillery.data.tokenizers import difference, load_tokenizer
from distillery.models.taps.network import Network
from distillery.models.text.sentence_encoder import pretrained_model

COMPARED = 200  # texts on which two tokenizers are compared


def check_tokenizer(name: str, tokenizer: str, data: Data, frozen: bool = False, per_token: bool = False) -> None:
    """Give the network `name` its own tokens if it was made for another tokenizer than the data's.

    Args:
        tokenizer: what the network was made for: a name of the hub, or a folder.
        frozen: whether it is a frozen teacher. Others read the data's tokens.
        per_token: whether the task has a label for each token.

    Raises:
        UserError: with three texts that become other tokens, where the network must read the data's.
    """
    assert isinstance(data, TextData)
    if tokenizer == data.tokenizer:
        return
    theirs = load_tokenizer(tokenizer, f"the {name} network's input.tokenizer")
    texts = data.raw.train.inputs.first[:COMPARED]
    if (found := difference(data.loaded_tokenizer, theirs, name, tokenizer, texts)) is None:
        return
    if frozen and not per_token:
        data.add_tokenizer(tokenizer)
        return
    why = (
        "The labels are those of tokens" if frozen else "Only a frozen teacher can have another tokenizer than the data"
    )
    raise UserError(f"{found}{why}. Set data.tokenizer={tokenizer}, and train the other network with it too.")


def check_lengths(network: Network, data: Data) -> None:
    """Refuse texts that are too long for the network.

    Raises:
        UserError: with their number.
    """
    assert isinstance(data, TextData)
    data = data.others.get(str(getattr(network.adapter, "tokenizer", None)), data)
    try:
        network.shapes(data.longest())
    except (IndexError, RuntimeError) as error:
        positions = _positions(network.net)
        lengths = data.used_lengths()
        longer = f"{int((lengths > positions).sum()):,} of {len(lengths):,}" if positions else "some"
        raise UserError(
            f"The {network.name} network cannot read the longest text, of {int(lengths.max())} tokens: {error}. It has "
            f"{positions or 'too few'} positions, and {longer} texts have more tokens. Cut them with "
            f"data.max_length={positions or '…'}, or choose a network that reads more."
        ) from error


def _positions(net: nn.Module) -> int | None:
    """The number of tokens that a network has positions for; None if it is not known."""
    model = pretrained_model(net)
    positions: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if model is None or positions is None:
        return None
    tables = (module for path, module in model.named_modules() if path.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    return positions if padding is None else positions - padding - 1  # RoBERTa counts on from that of padding
