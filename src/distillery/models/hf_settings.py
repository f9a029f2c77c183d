"""Refuses settings that a config class of transformers would take without a word, or fail on later."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from distillery.core.errors import UserError, did_you_mean

LABELS = ("num_labels", "id2label", "label2id")  # what num_classes says
OURS = frozenset((*LABELS, "model_type", "architectures", "transformers_version", "dtype", "return_dict"))
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def refuse_unknown(default: PreTrainedConfig, settings: Mapping[str, Any], path: str = "config") -> None:
    """Refuse settings that the config does not have, also those of the configs inside it.

    Raises:
        UserError: with the nearest right ones.
    """
    known = {key for key in vars(default) if not key.startswith("_")} | default.attribute_map.keys()
    if hasattr(default, "num_key_value_heads"):
        known.add("head_dim")  # networks read it, and configs such as Qwen2's leave it out
    for key, value in settings.items():
        if key in LABELS:
            raise UserError(f"{path}.{key}={value}: the number of classes is net.num_classes, which the data fill in.")
        if key not in known - OURS:
            raise UserError(
                f"{path}.{key}={value}: {default.model_type!r} has no such setting." + did_you_mean(key, known - OURS)
            )
        if isinstance(value, Mapping) and isinstance(inner := getattr(default, key), PreTrainedConfig):
            refuse_unknown(inner, value, f"{path}.{key}")


def refuse_sizes(config: PreTrainedConfig) -> None:
    """Refuse layers, heads and widths below 1, and a width that the heads do not divide.

    Raises:
        UserError: with widths and numbers of heads that fit.
    """
    for key in SIZES:
        if isinstance(value := getattr(config, key, None), int) and value < 1:
            raise UserError(f"config.{key}={value}: it must be at least 1.")
    width, heads = (getattr(config, key, None) for key in ("hidden_size", "num_attention_heads"))
    if width and heads and getattr(config, "head_dim", None) is None and width % heads:
        raise UserError(
            f"config.hidden_size={width} is not a multiple of the {heads} attention heads: "
            f"set it to {width - width % heads or heads} or {width - width % heads + heads}, or set "
            f"config.num_attention_heads to one of {', '.join(str(n) for n in range(1, width + 1) if width % n == 0)}."
        )
