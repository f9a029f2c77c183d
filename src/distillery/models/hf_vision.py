"""Vision models of Hugging Face (ViT, DINOv2, SigLIP, CLIP, ConvNeXt, …), by name on the hub, folder or model type."""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForImageClassification,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from distillery.core.errors import UserError
from distillery.core.hub import FAILURES, find_config, folder_or_name, is_type, quiet, refuse_type, why_not
from distillery.models.hf_settings import refuse_sizes, refuse_unknown

CLASSIFIES = "ForImageClassification"  # the end of the name of an architecture with a classifier


class VisionTower(nn.Module):
    """A vision model without a classifier of its own: its embedding [B, D], or `head` on top of it.

    The embedding is the model's pooled output. ViT's additional pooler (a dense layer and tanh) is left out, since most
    checkpoints lack it: there, the embedding is the class token's after the last norm.

    Args:
        tower: transformers' `AutoModel`.
        num_classes: 0: no head.
    """

    pretrained_cfg: ClassVar[Mapping[str, str]] = {
        "classifier": "head"
    }  # where timm's networks say where the classifier is

    def __init__(self, tower: PreTrainedModel, num_classes: int = 0) -> None:
        super().__init__()
        self.tower = tower
        if hasattr(getattr(tower, "pooler", None), "dense"):
            tower.pooler = None  # type: ignore[assignment]
        sizes = getattr(tower.config, "hidden_sizes", None)  # of the stages of a convolutional network
        width = sizes[-1] if sizes else tower.config.hidden_size
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.new_weights = [f"tower.{name}" for name in getattr(tower, "new_weights", ())]

    def forward(self, pixel_values: Tensor) -> Tensor:
        found = self.tower(pixel_values=pixel_values)
        pooled = getattr(found, "pooler_output", None)
        if pooled is None:
            states = found.last_hidden_state
            pooled = states.mean((2, 3)) if states.dim() == 4 else states[:, 0]
        return self.head(pooled.flatten(1))  # ConvNeXt of some versions keeps [B, D, 1, 1]


def hf_vision(
    model: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A vision model in float32, with its own classifier or as a `VisionTower`; of CLIP and SigLIP the image tower.

    Attention runs through SDPA where the model has it, so that it can be tapped. Its attribute `new_weights` names the
    parameters that are newly initialised although `pretrained`.

    Args:
        model: a name on the hub, a folder with config.json, or a model type ('vit'), which has no weights.
        num_classes: 0: embeddings, without a classifier; None: the model's own classifier, or none if it has none.
        in_chans: the channels of the images; None: the model's own.
        config: settings of the model's config class that differ.
        pretrained: with the weights of the hub or of the folder.

    Raises:
        UserError: no such model or setting, a hub that cannot be reached, weights that do not fit.
    """
    if pretrained:
        refuse_type(model)
    with quiet():
        given = find_config(model)
        own = any(str(name).endswith(CLASSIFIES) for name in given.get("architectures") or ())
        classes = num_classes if num_classes is not None or own else 0
        made = vision_config(model, config, in_chans, given)
        auto = AutoModelForImageClassification if classes != 0 and _has(made) else AutoModel
        if auto is AutoModelForImageClassification:
            if classes is not None and classes != made.num_labels:
                made.num_labels = classes
            return load(auto, model, made, pretrained)
        tower = load(auto, model, getattr(made, "vision_config", made), pretrained)
        net = VisionTower(tower, classes or 0)
        net.new_weights += ["head.weight", "head.bias"] if pretrained and classes else []
    return net


def vision_config(
    model: str, config: Mapping[str, Any] | None, in_chans: int | None, given: Mapping[str, Any]
) -> PreTrainedConfig:
    """The model's config with those settings that differ; `in_chans` is none of them where it is pretrained for it."""
    kind = CONFIG_MAPPING[given["model_type"]]
    nested = "vision_config" in kind.sub_configs
    changes: dict[str, Any] = {**(config or {})}
    refuse_unknown(kind.from_dict({**given}), changes)
    if in_chans is not None:
        changes = (
            {"vision_config": {"num_channels": in_chans} | {**changes.pop("vision_config", {})}, **changes}
            if (nested)
            else {"num_channels": in_chans} | changes
        )
    settings = {**given}
    for key, value in changes.items():
        settings[key] = {**(settings.get(key) or {}), **value} if isinstance(value, Mapping) else value
    try:
        made = kind.from_dict(settings)
    except FAILURES as error:
        raise UserError(f"The settings of model type {kind.model_type!r} are invalid: {error}") from error
    if not hasattr(getattr(made, "vision_config", made), "num_channels"):
        raise UserError(f"{model!r} is a {kind.model_type!r}, which reads no images. Choose model/…=transformer.")
    refuse_sizes(getattr(made, "vision_config", made))
    return made


def load(auto: Any, model: str, config: PreTrainedConfig, pretrained: bool) -> PreTrainedModel:
    """The network of a config, with its attribute `new_weights`; see `hf_vision`."""
    if type(config) not in auto._model_mapping:
        raise UserError(f"transformers has no image tower alone for {model!r}: choose another model.")
    network = auto._model_mapping[type(config)]
    if isinstance(network, tuple):  # several heads, of which the first is the plain one
        network = network[0]
        config.architectures = [network.__name__]
    if "spatial_shapes" in inspect.signature(network.forward).parameters:
        raise UserError(f"{model!r} reads patches of images of any shape (NaFlex), which the data do not give.")
    attention = "sdpa" if getattr(network, "_supports_sdpa", False) else "eager"
    options = {"attn_implementation": attention, "dtype": torch.float32}
    if not pretrained:
        try:
            net = auto.from_config(config, **options)
        except FAILURES as error:
            raise UserError(f"The model type {config.model_type!r} cannot be built so: {error}") from error
        net.new_weights = []
        return net
    try:
        net, info = auto.from_pretrained(
            folder_or_name(model),
            config=config,
            ignore_mismatched_sizes=True,  # a head for other classes is new; other mismatches are refused below
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(why_not(model, "The weights", error)) from error
    new = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    base = {name for name, parameter in net.named_parameters() if _is_base(net, name)}
    if wrong := sorted(base & {name for name, *_ in info["mismatched_keys"]}):
        raise UserError(
            f"The weights of {model} do not fit these settings: {wrong[0]} has another shape there. Leave its sizes, "
            "channels and image_size as they are."
        )
    if base and base <= new:
        raise UserError(f"The weights of {model} belong to another network: none fits a {type(net).__name__}.")
    net.new_weights = [name for name, _ in net.named_parameters() if name in new and not _is_unused(net, name)]
    return net


def image_input(model: str, config: Mapping[str, Any] | None, trained: bool) -> dict[str, Any]:
    """The `mean`, `std` and `size` that a model wants, as far as they are known.

    From its preprocessor_config.json if it was `trained`, otherwise the size alone. An image is resized to that of the
    crop at once.
    """
    with quiet():
        given = find_config(model)
        made = vision_config(model, config, None, given)
        vision = getattr(made, "vision_config", made)
        size = getattr(vision, "image_size", None) if hasattr(vision, "num_attention_heads") else None
        found: dict[str, Any] = {"size": _side(size)}
        if not trained or is_type(model):
            return found
        try:
            said, _ = ImageProcessingMixin.get_image_processor_dict(folder_or_name(model))
        except FAILURES:  # not all have one
            return found
    if not said.get("do_normalize", True):
        found |= {"mean": [0.0] * vision.num_channels, "std": [1.0] * vision.num_channels}
    elif "image_mean" in said:
        found |= {"mean": list(said["image_mean"]), "std": list(said["image_std"])}
    cropped = said.get("do_center_crop") and said.get("crop_size")
    return found | {"size": _side(cropped or said.get("size")) or found["size"]}


def _side(size: Any) -> int | None:
    """The side of the square images that a size stands for, as processors and configs write it."""
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    return None if size is None else int(size)


def _has(config: PreTrainedConfig) -> bool:
    return type(config) in AutoModelForImageClassification._model_mapping


def _is_base(net: PreTrainedModel, name: str) -> bool:
    return net.base_model is net or name.startswith(f"{net.base_model_prefix}.")


def _is_unused(net: PreTrainedModel, name: str) -> bool:
    """Whether it is of the pooler that a `VisionTower` leaves out."""
    return net.base_model is net and name.startswith("pooler.dense.")
