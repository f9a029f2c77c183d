"""Initialises a student from layers of a larger transformer, as in DistilBERT (Sanh et al. 2019, section 3)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillery.core.errors import UserError, did_you_mean
from distillery.models.text.factorisation import factorised_embeddings, word_table
from distillery.models.text.importance import Inputs, by_activation, by_magnitude
from distillery.models.text.layer_choice import Layers, chosen_layers
from distillery.models.text.sentence_encoder import pretrained_model
from distillery.models.text.truncation import Scores, Truncation, Widths, is_of_heads

Embeddings = Literal["copy", "factorise"]
Keep = Literal["first", "magnitude", "activation"]
STACKS = ("layer", "layers", "h")  # names of the list of numbered layers in transformers
# Settings that have no weights, and change what the weights compute.
FUNCTION = (
    "rope_parameters hidden_act hidden_activation activation_function rms_norm_eps layer_norm_eps layer_norm_epsilon "
    "sliding_window attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar"
).split()


class Filled(NamedTuple):
    """The names of the parameters that were filled, and for the user what was kept."""

    names: list[str]
    remarks: list[str]


def initialise(
    student: nn.Module,
    source: nn.Module,
    layers: Layers | Sequence[int] = "even",
    embeddings: Embeddings = "copy",
    counts: Tensor | None = None,
    keep: Keep = "first",
    batches: Iterable[tuple[Inputs, Tensor]] = (),
) -> Filled:
    """Fill `student` with weights of `source`.

    Filled are the embeddings, every layer (from those of `chosen_layers`), what else the two networks have under
    the same name (a pooler), and the modules of the head where names and shapes agree. Where the student is narrower,
    `Truncation` says what is kept; of a causal model the head is cut, too, also to fewer tokens. The two must name the
    parameters of a layer alike, as BERT and ELECTRA do.

    Args:
        layers: which of the source's layers; numbers count from 0.
        embeddings: copy, or factorise (see `factorised_embeddings`), for a student whose embedding_size is smaller.
        counts: how often each word of the vocabulary occurs in the texts, [V]: what is kept in a factorisation.
        keep: of heads, neurons and hidden channels the first, or those with the largest weights (`by_magnitude`), or
            those that give most on `batches` (`by_activation`).
        batches: the source's arguments, and the mask of the tokens that count.

    Raises:
        UserError: networks that do not fit. Nothing has been filled then.
    """
    for setting, value, known in (("embeddings", embeddings, Embeddings), ("keep", keep, Keep)):
        if value not in get_args(known):
            raise UserError(f"student.initialise.{setting}={value}." + did_you_mean(str(value), get_args(known)))
    ours, theirs = _Body(student, "student"), _Body(source, "source")
    generates = bool(getattr(pretrained_model(student), "can_generate", bool)())
    _refuse_embeddings(ours.net, theirs.net, embeddings, fewer_words=generates)
    numbers = chosen_layers(layers, theirs.depth, ours.depth)
    _refuse_other_function(ours.net.config, theirs.net.config, numbers)
    widths = Widths.of(ours.net.config), Widths.of(theirs.net.config)
    scores: Sequence[Scores | None] = [None] * theirs.depth
    if keep == "magnitude":
        scores = by_magnitude(theirs.layers, theirs.outside.values(), widths[1])
    elif keep == "activation" and widths[0] != widths[1]:
        scores = by_activation(theirs.net, list(theirs.layers), widths[1], batches)
    inside: dict[str, Tensor] = {}
    for number, chosen in enumerate(numbers):
        inside |= _layer(ours, number, theirs, chosen, Truncation(*widths, scores[chosen]))
    _refuse_narrower_rotation(*widths, theirs.net.config)
    everywhere = Truncation(*widths, scores[0])
    outside = _outside(ours, theirs, everywhere, embeddings, counts)
    values = {ours.prefix + name: value for name, value in (inside | outside).items()}
    values |= _head(student, ours.prefix, source, theirs.prefix)
    if generates:
        values |= _predictions(student, source, everywhere, values)
    filled = {name: parameter for name, parameter in student.named_parameters() if name in values}
    with torch.no_grad():
        for name, parameter in filled.items():
            parameter.copy_(values[name])
    by = {"first": "the first of each", "magnitude": "those with the largest weights"}.get(keep, "by their activation")
    remarks = [f"its layers are {', '.join(map(str, numbers))} of the source's 0 to {theirs.depth - 1}"]
    if widths[0] != widths[1]:
        remarks.append(f"each layer keeps {widths[0]}, of {widths[1]}: {by}")
    return Filled(list(filled), remarks)


class _Body:
    """A transformer without its head: `prefix` and `stack` are its own path, and that of its numbered layers in it."""

    def __init__(self, whole: nn.Module, role: str) -> None:
        if (found := pretrained_model(whole)) is None:
            raise UserError(
                f"student.initialise: the {role} is a {type(whole).__name__}, but student and source must be Hugging "
                "Face transformers. Set student.initialise=null."
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
                f"{' or '.join(STACKS)}, but exactly one is needed. Choose another model (bert, electra, roberta, "
                "distilbert), or set student.initialise=null."
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
    if not keep.same_but_inner and not any(is_of_heads(name, 0) for name in given):
        raise UserError(
            "student.initialise: cannot find the parameters of single attention heads in the layers of "
            f"{type(theirs.net).__name__}, so heads cannot be removed. Give the student the source's widths; it may "
            "have fewer layers."
        )
    if different := sorted(wanted.keys() ^ given.keys()):
        raise UserError(
            f"student.initialise: the layers of {type(ours.net).__name__} and {type(theirs.net).__name__} differ: "
            f"{different[0]} exists in only one of them. Take a student of the source's family: "
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


def _predictions(student: nn.Module, source: nn.Module, keep: Truncation, known: Iterable[str]) -> dict[str, Tensor]:
    """The matrix that predicts words, of a causal model whose embeddings are another one: its first rows."""
    models: list[Any] = [pretrained_model(net) for net in (student, source)]
    ours, theirs = (model.get_output_embeddings() for model in models)
    if ours is None or theirs is None:
        return {}
    names = [name for name, parameter in student.named_parameters() if parameter is ours.weight and name not in known]
    rows = theirs.weight.detach()[: len(ours.weight)]
    return {name: keep(name, rows, ours.weight.shape) for name in names}


def _rows(path: str, ours: nn.Embedding, theirs: nn.Module, table: Tensor) -> Tensor:
    """The first rows of a table: as many positions or token types as the student has."""
    if ours.num_embeddings > len(table):
        raise UserError(
            f"student.initialise: {path} has {ours.num_embeddings} rows in the student, {len(table)} in the source. "
            f"Set the student's max_position_embeddings or type_vocab_size to at most {len(table)}."
        )
    if "position" in path and ours.padding_idx != theirs.padding_idx:  # RoBERTa counts from padding_idx + 1
        raise UserError(
            f"student.initialise: student and source count positions differently ({path}, padding_idx "
            f"{ours.padding_idx} and {theirs.padding_idx}). Take a student of the source's model type."
        )
    return table[: ours.num_embeddings]


def _refuse_embeddings(
    ours: PreTrainedModel, theirs: PreTrainedModel, embeddings: Embeddings, fewer_words: bool
) -> None:
    """Refuse other vocabularies, but with `fewer_words` those that are a beginning of the source's: its padding."""
    (our_words, our_width), (their_words, their_width) = word_table(ours).weight.shape, word_table(theirs).weight.shape
    if our_words > their_words or (our_words < their_words and not fewer_words):
        raise UserError(
            f"student.initialise: the student's vocabulary has {our_words} tokens, the source's {their_words}. Give "
            "the student the source's tokenizer (student.input.tokenizer) and vocab_size. If they must differ, set "
            "student.initialise=null and use losses on logits only."
        )
    both_wide = our_width == ours.config.hidden_size and their_width == theirs.config.hidden_size
    if embeddings == "copy" and our_width != their_width and not both_wide:
        raise UserError(
            f"student.initialise.embeddings=copy: the student's embeddings are {our_width} wide, the source's "
            f"{their_width}. Use embeddings=factorise, or give the student embedding_size={their_width}."
        )


def _refuse_other_function(ours: Any, theirs: Any, numbers: Sequence[int]) -> None:
    """Refuse a student that would compute something else with the same weights: other rotary angles, other attention.

    Args:
        numbers: the layers that are chosen.
    """
    kinds = getattr(theirs, "layer_types", None)
    given = {key: getattr(theirs, key) for key in FUNCTION if hasattr(theirs, key) and hasattr(ours, key)}
    if kinds and getattr(ours, "layer_types", None):
        given["layer_types"] = [kinds[number] for number in numbers]
    for key, value in given.items():
        if (own := getattr(ours, key)) != value:
            raise UserError(
                f"student.initialise: with {key}={own} the student would compute something else with the source's "
                f"weights; the source has {value}. Set '+student.net.config.{key}={value}', or use all settings of the "
                "source with student.net.model=<the source>."
            )


def _refuse_narrower_rotation(ours: Widths, theirs: Widths, config: Any) -> None:
    if ours.head < theirs.head and getattr(config, "rope_parameters", None):
        raise UserError(
            f"student.initialise: the student's heads are narrower than the source's ({theirs.head}), but queries and "
            f"keys cannot be cut, as they are rotated in pairs. Set +student.net.config.head_dim={theirs.head}."
        )
