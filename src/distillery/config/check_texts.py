"""Refuses networks that were made for another tokenizer, or that have too few positions for the texts.

What differs without making training wrong is said: chat templates, and which tokens begin and end a text.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillery.config.networks import setting_of
from distillery.core.errors import UserError
from distillery.data.chat_template import ChatTemplate, chat_template
from distillery.data.module import Data
from distillery.data.text import TextData
from distillery.data.tokenizers import difference, load_tokenizer, other_vocabulary, token_texts
from distillery.losses.term import Term
from distillery.models.adapters import POSITIONS
from distillery.models.taps.network import Network, probe
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.tasks.task import Task

COMPARED = 200  # texts on which two tokenizers are compared
BEGINNING = 2000  # characters of each
FEW = 8  # tokens of a document on which it is tried what a network reads
# A question and its answer, another question, and the beginning of the next answer: it shows the system prompt that a
# template adds, what becomes of earlier think-spans, and whether thinking is begun.
EXAMPLE = (
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\n4"},
    {"role": "user", "content": "And 3+3?"},
)


def check_tokenizer(name: str, tokenizer: str, data: Data, task: Task, frozen: bool = False) -> None:
    """Give the network `name` its own tokens if it was made for another tokenizer than the data's.

    Args:
        tokenizer: what the network was made for: a name of the hub, or a folder.
        task: where it has a label for each token, all networks read the data's; where it predicts tokens, each id must
            also stand for the same token. Whole documents, of which every token is a label, may be read in any tokens.
        frozen: whether it is a frozen teacher. Others read the data's tokens.

    Raises:
        UserError: with three texts that become other tokens, or three ids, where the network must read the data's.
    """
    assert isinstance(data, TextData)
    found = _unlike(name, tokenizer, data, task)
    if found is None:
        return
    if frozen and (task.rows_are == "samples" or data.pack is not None):
        data.add_tokenizer(tokenizer)
        return
    why = (
        "The labels belong to the data's tokens"
        if frozen
        else "Only a frozen teacher may have a different tokenizer than the data"
    )
    raise UserError(f"{found}{why}. Set data.tokenizer={tokenizer}, and train the other network with it, too.")


def match_vocabularies(terms: Mapping[str, Term], teachers: Mapping[str, Network], data: Data, task: Task) -> None:
    """Tell losses on tokens the vocabularies of student and teacher, where these have different tokenizers.

    Raises:
        UserError: a loss that compares the two row by row; with texts that become other tokens.
    """
    assert isinstance(data, TextData)
    if task.rows_are != "tokens":
        return
    for name, term in terms.items():
        for teacher, one in term.by_teacher.items():
            other, network = own_texts(teachers[teacher], data), teachers[teacher]
            if other is data or not term.needs_logits:
                continue
            if term.aligned_tokens:
                raise UserError(
                    f"{_unlike(network.name, other.tokenizer, data, task)}loss.{name} compares the predictions of both "
                    "token by token. Use loss/response=[cross_tokenizer], which aligns their tokens by bytes; or set "
                    f"data.tokenizer={other.tokenizer}, and train the student with it."
                )
            try:
                one.match_vocabularies(token_texts(data.loaded_tokenizer), token_texts(other.loaded_tokenizer))
            except UserError as error:
                raise UserError(f"loss.{name}: {error}") from None


def own_texts(network: Network, data: Data) -> TextData:
    """The data in the tokens that the network reads."""
    assert isinstance(data, TextData)
    return data.others.get(str(getattr(network.adapter, "tokenizer", None)), data)


def _unlike(name: str, tokenizer: str, data: TextData, task: Task) -> str | None:
    """How the tokenizer differs from the data's, with examples; None: it does not."""
    if tokenizer == data.tokenizer:
        return None
    theirs = load_tokenizer(tokenizer, f"the {name} network's input.tokenizer")
    texts = [text[:BEGINNING] for text in data.raw.train.inputs.first[:COMPARED]]
    found = difference(data.loaded_tokenizer, theirs, name, tokenizer, texts)
    if found is None and task.prediction == "token" and (ids := other_vocabulary(data.loaded_tokenizer, theirs)):
        found = f"The {name} network was made for the tokenizer {tokenizer}. Of the data's, {ids} there. "
    return found


def check_one_way(network: Network, data: Data) -> None:
    """Refuse a network that reads the tokens it is to predict, or, in a packed block, other documents.

    One token is replaced: the logits of places that must not depend on it stay the same, bit for bit.

    Raises:
        UserError: they do not.
    """
    data = own_texts(network, data)
    if data.pack is None:
        return
    half = min(FEW, data.longest()["input_ids"].shape[1] // 2)
    batch = {key: value[:1, : 2 * half] for key, value in data.longest().items() if value.dim() == 2}

    def reaches(place: int, places: slice, positions: Tensor) -> bool:
        ids = batch["input_ids"].clone()
        ids[0, place] = (ids[0, place] + 1) % data.vocab_size
        given = batch | {POSITIONS: positions[None]}
        before, after = (probe(network, {**given, "input_ids": each}).logits for each in (batch["input_ids"], ids))
        return not torch.equal(before[0, places], after[0, places])

    if reaches(-1, slice(0, -1), torch.arange(2 * half)):
        raise UserError(
            f"The {network.name} network reads the tokens that it has to predict, so it is not a causal model. For a "
            f"model type that supports both, such as BERT, set +{setting_of(network.name)}.net.config.is_decoder=true"
        )
    if data.pack and reaches(0, slice(half, None), torch.arange(half).repeat(2)):
        raise UserError(
            f"The {network.name} network attends from one document of a block to another: this architecture does not "
            "separate them by their position ids. Set data.pack=false."
        )


def conventions(network: Network, data: Data) -> list[str]:
    """What the network's own tokenizer and generation config do otherwise than the data, for causal language models.

    Compared are the tokens that begin and end a text, the tokens at which the network was made to stop, and chat
    templates on an example: each difference is a remark. A teacher that reads another template than it was trained with
    gives other probabilities, and a student that ends its texts otherwise than the network that it continues does not
    stop where that does.
    """
    assert isinstance(data, TextData)
    if data.pack is None:
        return []
    ours, name = data.loaded_tokenizer, getattr(network.adapter, "tokenizer", None) or data.tokenizer
    theirs = load_tokenizer(name, f"the {network.name} network's input.tokenizer")
    found = [
        f"{what} of a text: {getattr(ours, kind)!r} in the data, {getattr(theirs, kind)!r} in the tokenizer {name}"
        for what, kind in (("beginning", "bos_token"), ("end", "eos_token"))
        if getattr(ours, kind) != getattr(theirs, kind)
    ]
    template = data.rendered_by
    learnt = {str(ours.eos_token)} if template is None else template.ends
    stops = _stops(network.net, theirs)
    if stops and learnt and not learnt & stops:
        found.append(f"it stops at {_listed(stops)}, but the data's texts end with {_listed(learnt)}")
    if template is not None and (own := chat_template(theirs, None, template.settings)) is not None:
        found += _template_difference(template, own, name)
    return found


def _template_difference(ours: ChatTemplate, theirs: ChatTemplate, name: str) -> list[str]:
    """The lines of an example that the templates render otherwise."""
    texts = [_rendered(template) for template in (ours, theirs)]
    if texts[0] == texts[1]:
        return []
    before, after = ([repr(line)[1:-1] for line in text.splitlines(keepends=True)] for text in texts)
    lines = difflib.unified_diff(before, after, "the data's chat template", f"that of {name}", lineterm="", n=1)
    return ["its own chat template renders an example differently from the data's:\n" + "\n".join(lines)]


def _rendered(template: ChatTemplate) -> str:
    try:
        return template(EXAMPLE, prompt=True)
    except UserError as error:
        return str(error)


def _stops(net: nn.Module, tokenizer: Any) -> set[str]:
    """The tokens at which a pretrained network stops; none if it was not pretrained."""
    model = pretrained_model(net)
    if model is None or not model.config.name_or_path:
        return set()
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = [] if given is None else [given] if isinstance(given, int) else given
    return set(tokenizer.convert_ids_to_tokens(ids))


def _listed(tokens: Collection[str]) -> str:
    return ", ".join(map(repr, sorted(tokens)))


def check_lengths(network: Network, data: Data) -> None:
    """Refuse texts that are too long for the network.

    Raises:
        UserError: with their number.
    """
    theirs = own_texts(network, data)
    own, data = theirs is not data, theirs
    positions = positions_of(network.net)
    if data.pack is not None and positions and data.limit is not None and data.limit > positions:
        where = f", but a block has up to {data.limit} tokens in its own tokenizer" if own else ""
        raise UserError(
            f"data.max_length={data.max_length}: the {network.name} network has only {positions} positions{where}. "
            "Set a smaller data.max_length, or choose a network with more positions "
            "(net.config.max_position_embeddings for a new one)."
        )
    try:
        network.shapes(data.longest())
    except (IndexError, RuntimeError) as error:
        lengths = data.used_lengths()
        longer = f"{int((lengths > positions).sum()):,} of {len(lengths):,}" if positions else "some"
        raise UserError(
            f"The {network.name} network cannot read the longest text, of {int(lengths.max())} tokens: {error}. It has "
            f"{positions or 'too few'} positions, and {longer} texts have more tokens. Cut them with "
            f"data.max_length={positions or '…'}, or choose a network that reads more."
        ) from error


def positions_of(net: nn.Module) -> int | None:
    """The number of tokens that a network has positions for; None if it is not known."""
    model = pretrained_model(net)
    positions: int | None = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if model is None or positions is None:
        return None
    tables = (module for path, module in model.named_modules() if path.endswith("position_embeddings"))
    padding = next((table.padding_idx for table in tables if isinstance(table, nn.Embedding)), None)
    return positions if padding is None else positions - padding - 1  # RoBERTa counts on from that of padding
