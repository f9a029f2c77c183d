"""Initialises a student from layers of a larger transformer, as in DistilBERT (Sanh et al. 2019, section 3)."""

from collections.abc import Sequence
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
    ours, theirs = _Body(student, "student"), _Body(source, "source")
    _refuse_embeddings(ours.net, theirs.net, embeddings)
    numbers = chosen_layers(layers, theirs.depth, ours.depth)
    keep = Truncation(Widths.of(ours.net.config), Widths.of(theirs.net.config))
    inside: dict[str, Tensor] = {}
    for number, chosen in enumerate(numbers):
        inside |= _layer(ours, number, theirs, chosen, keep)
    outside = _outside(ours, theirs, keep, embeddings, counts)
    values = {ours.prefix + name: value for name, value in (inside | outside).items()}
    values |= _head(student, ours.prefix, source, theirs.prefix)
    filled = {name: parameter for name, parameter in student.named_parameters() if name in values}
    with torch.no_grad():
        for name, parameter in filled.items():
            parameter.copy_(values[name])
    return list(filled)


class _Body:
    """A transformer without its head: `prefix` and `stack` are its own path, and that of its numbered layers in it."""

    def __init__(self, whole: nn.Module, role: str) -> None:
        if (found := pretrained_model(whole)) is None:
            raise UserError(
                f"student.initialise: the {role} is a {type(whole).__name__}, and only transformers are filled from "
                "transformers. Set student.initialise=null."
            )
        self.net: PreTrainedModel = found.base_model  # type: ignore[assignment]
        path = next(path for path, module in whole.named_modules() if module is self.net)
        self.prefix = f"{path}." if path else ""
        stacks = {
            path: module
            for path, module in self.net.named_modules()
            if isinstance(module, nn.ModuleList)
            and path.rpartition(".")[2] in STACKS
            and not any(part.isdigit() for part in path.split("."))
        }
        if len(stacks) != 1:
            raise UserError(
                f"student.initialise: the {role} ({type(self.net).__name__}) has {len(stacks)} lists of layers called "
                f"{' or '.join(STACKS)}, and one is wanted. Choose another (bert, electra, roberta, distilbert), or "
                "set student.initialise=null."
            )
        ((self.stack, self.layers),) = stacks.items()
        self.depth = len(self.layers)

    @property
    def outside(self) -> dict[str, Tensor]:
        """The parameters that are in no layer."""
        named = self.net.named_parameters()
        return {name: value.detach() for name, value in named if not name.startswith(f"{self.stack}.")}


def _layer(ours: _Body, number: int, theirs: _Body, chosen: int, keep: Truncation) -> dict[str, Tensor]:
    """The values of the parameters of one layer, by the student's names."""
    wanted = dict(ours.layers[number].named_parameters())
    given = dict(theirs.layers[chosen].named_parameters())
    if not keep.same and not any(is_of_heads(name, 0) for name in given):
        raise UserError(
            f"student.initialise: it is not known which parameters in the layers of {type(theirs.net).__name__} are "
            "those of attention heads, to leave some out. Give the student the source's widths, and fewer layers only."
        )
    if different := sorted(wanted.keys() ^ given.keys()):
        raise UserError(
            f"student.initialise: the layers of {type(ours.net).__name__} and {type(theirs.net).__name__} differ: "
            f"{different[0]} is known in one only. Take a student of the source's family: "
            f"student.net.model={theirs.net.config.model_type}"
        )
    path = f"{ours.stack}.{number}."
    return {path + name: keep(path + name, given[name], wanted[name].shape) for name in wanted}


def _outside(
    ours: _Body, theirs: _Body, keep: Truncation, embeddings: Embeddings, counts: Tensor | None
) -> dict[str, Tensor]:
    """The values of the parameters outside of the layers that both networks have."""
    wanted = ours.outside
    common = {name: value for name, value in theirs.outside.items() if name in wanted}
    for path, table in ours.net.named_modules():
        if isinstance(table, nn.Embedding) and (name := f"{path}.weight") in common:
            common[name] = _rows(path, table, theirs.net.get_submodule(path), common[name])
    narrow = factorised_embeddings(ours.net, theirs.net, common, counts) if embeddings == "factorise" else {}
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
