"""Initialises a student from layers of a larger transformer, as in DistilBERT (Sanh et al. 2019, section 3)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillery.core.errors import UserError, did_you_mean
from distillery.models.text.factorisation import factorised_embeddings, word_table
from distillery.models.text.layer_choice import Layers, chosen_layers
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.models.text.truncation import Truncation, Widths, is_of_heads

Embeddings = Literal["copy", "factorise"]
STACKS = ("layer", "layers")  # names of the list of numbered layers in transformers


def initialise(
    student: nn.Module,
    source: nn.Module,
    layers: Layers | Sequence[int] = "even",
    embeddings: Embeddings = "copy",
    counts: Tensor | None = None,
) -> list[str]:
    """Fill `student` with weights of `source`; returns the names of the parameters that were filled.

    Filled are the embeddings, every layer (from those of `chosen_layers`), what else the two networks have under
    the same name (a pooler), and the modules of the head where names and shapes agree. Where the student is narrower,
    `Truncation` says what is kept. The two must name the parameters of a layer alike, as BERT and ELECTRA do.

    Args:
        layers: which of the source's layers; numbers count from 0.
        embeddings: copy, or factorise (see `factorised_embeddings`), for a student whose embedding_size is smaller.
        counts: how often each word of the vocabulary occurs in the texts, [V]: what is kept in a factorisation.

    Raises:
        UserError: networks that do not fit. Nothing has been filled then.
    """
    if embeddings not in get_args(Embeddings):
        raise UserError(
            f"student.initialise.embeddings={embeddings}." + did_you_mean(str(embeddings), get_args(Embeddings))
        )
    ours, theirs = _body(student, "student"), _body(source, "source")
    _refuse_embeddings(ours, theirs, embeddings)
    our_stack, their_stack = _stack(ours, "student"), _stack(theirs, "source")
    numbers = chosen_layers(layers, _depth(theirs, their_stack), _depth(ours, our_stack))
    keep = Truncation(Widths.of(ours.config), Widths.of(theirs.config))
    inside: dict[str, Tensor] = {}
    for number, chosen in enumerate(numbers):
        inside |= _layer(ours, f"{our_stack}.{number}.", theirs, f"{their_stack}.{chosen}.", keep)
    outside = _outside(_without(ours, our_stack), ours, _without(theirs, their_stack), theirs, keep, embeddings, counts)
    prefix, their_prefix = _prefix(student, ours), _prefix(source, theirs)
    values = {prefix + name: value for name, value in (inside | outside).items()}
    values |= _head(student, prefix, source, their_prefix)
    filled = {name: parameter for name, parameter in student.named_parameters() if name in values}
    with torch.no_grad():
        for name, parameter in filled.items():
            parameter.copy_(values[name])
    return list(filled)


def _body(net: nn.Module, role: str) -> PreTrainedModel:
    """The network without its head."""
    if (found := pretrained_model(net)) is None:
        raise UserError(
            f"student.initialise: the {role} is a {type(net).__name__}, and only transformers are filled from "
            "transformers. Set student.initialise=null."
        )
    return found.base_model  # type: ignore[return-value]


def _prefix(net: nn.Module, body: nn.Module) -> str:
    path = next(path for path, module in net.named_modules() if module is body)
    return f"{path}." if path else ""


def _stack(body: PreTrainedModel, role: str) -> str:
    """The path of the list of numbered layers."""
    found = [
        path
        for path, module in body.named_modules()
        if isinstance(module, nn.ModuleList)
        and path.rpartition(".")[2] in STACKS
        and not any(part.isdigit() for part in path.split("."))
    ]
    if len(found) != 1:
        raise UserError(
            f"student.initialise: the {role} ({type(body).__name__}) has {len(found)} lists of layers called "
            f"{' or '.join(STACKS)}, and one is wanted. Choose another (bert, electra, roberta, distilbert), or set "
            "student.initialise=null."
        )
    return found[0]


def _depth(body: PreTrainedModel, stack: str) -> int:
    return len(list(body.get_submodule(stack).children()))


def _without(body: PreTrainedModel, stack: str) -> dict[str, Tensor]:
    """The parameters that are in no layer."""
    return {name: value.detach() for name, value in body.named_parameters() if not name.startswith(f"{stack}.")}


def _layer(
    ours: PreTrainedModel, our_layer: str, theirs: PreTrainedModel, their_layer: str, keep: Truncation
) -> dict[str, Tensor]:
    """The values of the parameters of one layer, by the student's names."""
    wanted = dict(ours.get_submodule(our_layer[:-1]).named_parameters())
    given = dict(theirs.get_submodule(their_layer[:-1]).named_parameters())
    if not keep.same and not any(is_of_heads(name, 0) for name in given):
        raise UserError(
            f"student.initialise: it is not known which parameters in the layers of {type(theirs).__name__} are those "
            "of attention heads, to leave some out. Give the student the source's widths, and fewer layers only."
        )
    if different := sorted(wanted.keys() ^ given.keys()):
        raise UserError(
            f"student.initialise: the layers of {type(ours).__name__} and {type(theirs).__name__} differ: "
            f"{different[0]} is known in one only. Take a student of the source's family: "
            f"student.net.model={theirs.config.model_type}"
        )
    return {our_layer + name: keep(our_layer + name, given[name], wanted[name].shape) for name in wanted}


def _outside(
    wanted: Mapping[str, Tensor],
    ours: PreTrainedModel,
    given: Mapping[str, Tensor],
    theirs: PreTrainedModel,
    keep: Truncation,
    embeddings: Embeddings,
    counts: Tensor | None,
) -> dict[str, Tensor]:
    """The values of the parameters outside of the layers that both networks have."""
    common = {name: value for name, value in given.items() if name in wanted}
    for path, table in ours.named_modules():
        if isinstance(table, nn.Embedding) and (name := f"{path}.weight") in common:
            common[name] = _rows(path, table, theirs.get_submodule(path), common[name])
    narrow = factorised_embeddings(ours, theirs, common, counts) if embeddings == "factorise" else {}
    rest = {name: value for name, value in common.items() if name not in narrow}
    return narrow | {name: keep(name, value, wanted[name].shape) for name, value in rest.items()}


def _head(student: nn.Module, prefix: str, source: nn.Module, their_prefix: str) -> dict[str, Tensor]:
    """The values of the head's modules that agree in all of their parameters: a bias alone would fit no weight."""
    given = {name: value for name, value in source.named_parameters() if not name.startswith(their_prefix)}
    modules: dict[str, list[str]] = {}
    for name, parameter in student.named_parameters():
        if not name.startswith(prefix):
            fits = name in given and given[name].shape == parameter.shape
            modules.setdefault(name.rpartition(".")[0], []).append(name if fits else "")
    return {name: given[name] for names in modules.values() if all(names) for name in names}


def _rows(path: str, ours: nn.Embedding, theirs: nn.Module, table: Tensor) -> Tensor:
    """The first rows of a table: as many positions or token types as the student has."""
    if ours.num_embeddings > len(table):
        raise UserError(
            f"student.initialise: {path} has {ours.num_embeddings} rows in the student, {len(table)} in the source: "
            "set the student's max_position_embeddings or type_vocab_size to at most that."
        )
    if "position" in path and ours.padding_idx != theirs.padding_idx:  # RoBERTa counts from padding_idx + 1
        raise UserError(
            f"student.initialise: student and source count positions differently ({path}, padding_idx "
            f"{ours.padding_idx} and {theirs.padding_idx}). Take a student of the source's model type."
        )
    return table[: ours.num_embeddings]


def _refuse_embeddings(ours: PreTrainedModel, theirs: PreTrainedModel, embeddings: Embeddings) -> None:
    (our_words, our_width), (their_words, their_width) = word_table(ours).weight.shape, word_table(theirs).weight.shape
    if our_words != their_words:
        raise UserError(
            f"student.initialise: the student's vocabulary has {our_words} tokens, the source's {their_words}. Give "
            "the student the source's tokenizer (student.input.tokenizer) and vocab_size; or, where they are to "
            "differ, set student.initialise=null and take losses on logits only."
        )
    both_wide = our_width == ours.config.hidden_size and their_width == theirs.config.hidden_size
    if embeddings == "copy" and our_width != their_width and not both_wide:
        raise UserError(
            f"student.initialise.embeddings=copy: the student's embeddings are {our_width} wide, the source's "
            f"{their_width}. Take embeddings=factorise, or give the student embedding_size={their_width}."
        )
