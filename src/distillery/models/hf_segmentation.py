"""Networks of Hugging Face for segmentation (SegFormer, MobileViT, DPT, …), by name on the hub, folder or type."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AutoModelForSemanticSegmentation

from distillery.core.errors import UserError, did_you_mean
from distillery.core.hub import find_config, quiet, refuse_type
from distillery.models.hf_vision import load, vision_config


def hf_segmentation(
    model: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    config: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A network in float32 whose logits are maps, [B, num_classes, h, w], smaller than the image for most models.

    Its attribute `new_weights` names the parameters that are newly initialised although `pretrained`.

    Args:
        model: a name on the hub, a folder with config.json, or a model type ('segformer'), which has no weights.
        num_classes: None: the model's own.
        in_chans: the channels of the images; None: the model's own.
        config: settings of the model's config class that differ.
        pretrained: with the weights of the hub or of the folder.

    Raises:
        UserError: no such model or setting, one that classifies no pixels, a hub that cannot be reached, weights that
            do not fit.
    """
    if pretrained:
        refuse_type(model)
    with quiet():
        made = vision_config(model, config, in_chans, find_config(model))
        known = AutoModelForSemanticSegmentation._model_mapping
        if type(made) not in known:
            types = [each.model_type for each in known]
            raise UserError(f"{model!r} is a {made.model_type!r}, which cannot segment." + did_you_mean("", types))
        if num_classes is not None and num_classes != made.num_labels:
            made.num_labels = num_classes
        return load(AutoModelForSemanticSegmentation, model, made, pretrained)
