"""Hugging Face transformers, by name on the hub, folder or model type, with the head of a task."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from distillery.core.errors import UserError, did_you_mean
from distillery.core.hub import FAILURES, find_config, quiet, refuse_type, source_of, why_not
from distillery.models.hf_settings import refuse_sizes, refuse_unknown
from distillery.models.text.sentence_encoder import SentenceEncoder

HEADS: dict[str, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "masked_lm": AutoModelForMaskedLM,
    "causal_lm": AutoModelForCausalLM,
    "question_answering": AutoModelForQuestionAnswering,
    "sentence_embedding": AutoModel,  # inside a SentenceEncoder
}


def transformer(
    model: str,
    head: str,
    num_classes: int | None = None,
    config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A network in float32 whose attention runs through SDPA, so that it can be read without being changed.

    Where transformers has no such attention (DeBERTa, XLNet), it runs as written there, and no loss can read it.

    Its attribute `new_weights` names the parameters that are newly initialised although `pretrained`: a new head,
    or the layers by which `config` exceeds the pretrained model. Without `pretrained` everything is new, and the
    list is empty.

    Args:
        model: a name on the hub, a folder with config.json, a GGUF file (whose quantised weights become float32), or a
            model type ('bert'), which has no weights.
        head: a key of `HEADS`.
        num_classes: of classification; the size of the vocabulary for masked_lm and causal_lm (where `config` may have
            a larger vocab_size); the width for sentence_embedding; 2 for question_answering.
            None: what the model's own config says.
        config: settings of the model's config class that differ.
        pretrained: with the weights of the hub or of the folder.

    Raises:
        UserError: see `transformer_config`; weights that cannot be had, or are of another network.
    """
    made = transformer_config(model, head, num_classes, config)
    if pretrained:
        refuse_type(model)
    with quiet():
        net = _pretrained(model, head, made) if pretrained else _new(head, made)
    return SentenceEncoder(net) if head == "sentence_embedding" else net


def transformer_config(
    model: str, head: str, num_classes: int | None = None, config: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The config that `transformer` builds from; takes no weights, and little time.

    Raises:
        UserError: no such head, model or setting; a hub that cannot be reached; settings that exclude each other.
    """
    if head not in HEADS:
        raise UserError(f"head={head}: there is no such head." + did_you_mean(head, HEADS))
    with quiet():
        given = find_config(model)
        kind = CONFIG_MAPPING[given["model_type"]]
        if kind not in HEADS[head]._model_mapping:
            raise UserError(f"model={model}: transformers has no {head} for the model type {given['model_type']!r}.")
        default = _built(kind, given)
        settings = {**(config or {})}
        refuse_unknown(default, settings)
        if settings.get("vocab_size", 0) is None:
            raise UserError("config.vocab_size=null: it must be the number of tokens in the tokenizer.")
        settings = {default.attribute_map.get(key, key): value for key, value in settings.items()}
        if "num_hidden_layers" in settings:  # the kinds of a config's own layers: for others the class names them
            given = {key: value for key, value in given.items() if key != "layer_types"}
        made = _built(kind, given | settings | _size(default, head, num_classes, settings))
    refuse_sizes(made)
    if head == "sentence_embedding" and num_classes not in (None, made.hidden_size):
        raise UserError(
            f"The sentences' embeddings of {model} have the width {made.hidden_size}, not {num_classes}: set "
            "config.hidden_size, or net.num_classes=null."
        )
    return made


def _built(kind: type[PreTrainedConfig], settings: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return kind.from_dict({**settings})
    except FAILURES as error:
        raise UserError(f"The settings of model type {kind.model_type!r} are invalid: {error}") from error


def _size(default: PreTrainedConfig, head: str, num_classes: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `num_classes` stands for."""
    if head == "question_answering":
        if num_classes not in (None, 2):
            raise UserError(
                f"net.num_classes={num_classes}: the answers of {head} have a start and an end. Leave it out."
            )
        num_classes = 2
    if num_classes is None or head == "sentence_embedding":
        return {}
    if head in ("masked_lm", "causal_lm"):
        size = settings.get("vocab_size", num_classes)
        if size < num_classes or (size > num_classes and head == "masked_lm"):
            raise UserError(
                f"config.vocab_size={size}, but {head} predicts {num_classes} tokens; the two must be equal. Leave "
                "config.vocab_size out."
            )
        return {"vocab_size": size}
    if num_classes == default.num_labels:
        return {}  # the model keeps its own class names
    return {"num_labels": num_classes, "id2label": None, "label2id": None}


def _new(head: str, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        net = _with_attention(partial(HEADS[head].from_config, config, dtype=torch.float32))
    except FAILURES as error:
        raise UserError(f"The model type {config.model_type!r} cannot be built with these settings: {error}") from error
    net.new_weights = []
    return net


def _with_attention(make: Callable[..., Any]) -> Any:
    """What `make` makes, with attention that can be read if the model type has such."""
    try:
        return make(attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make(attn_implementation="eager")


def _pretrained(model: str, head: str, config: PreTrainedConfig) -> PreTrainedModel:
    place, file = source_of(model)
    try:
        net, info = _with_attention(
            partial(
                HEADS[head].from_pretrained,
                place,
                **file,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # a head for other classes is new; other mismatches are refused below
                output_loading_info=True,
                trust_remote_code=False,
            )
        )
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(why_not(model, "The weights", error)) from error
    mismatched = {name: (theirs, ours) for name, theirs, ours in info["mismatched_keys"]}
    base = set(net.base_model.parameters())
    for name, parameter in net.named_parameters():
        if name in mismatched and parameter in base:
            theirs, ours = (list(shape) for shape in mismatched[name])
            raise UserError(
                f"The weights of {model} do not fit these settings: {name} is {theirs} there, {ours} here. "
                "Keep the model's sizes, vocabulary and tokenizer. For a smaller student, set weights=null "
                "(pretrained=false), and fill it with student.initialise."
            )
    new = info["missing_keys"] | mismatched.keys()
    if all(name in new for name, parameter in net.named_parameters() if parameter in base):
        raise UserError(f"The weights of {model} belong to another network: none fits a {type(net).__name__}.")
    net.new_weights = [name for name, _ in net.named_parameters() if name in new]
    return net
