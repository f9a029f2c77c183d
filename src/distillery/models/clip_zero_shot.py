"""CLIP as a classifier without training: the names of the classes become texts, and the nearest text is the class."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, CLIPConfig, CLIPModel

from distillery.core.errors import UserError
from distillery.core.hub import FAILURES, find_config, folder_or_name, quiet, why_not
from distillery.models.hf_vision import load, vision_config


class ZeroShotCLIP(nn.Module):
    """logits = scale · (unit image embedding · unit text embedding of each class), as in `CLIPModel`.

    The text tower has done its work: only the image tower stays, with the texts' embeddings as the weight of `head`.
    So the tap `embedding` is the unit image embedding.

    Args:
        clip: the two towers.
        texts: the embeddings of the classes' texts, [C, D].
    """

    def __init__(self, clip: CLIPModel, texts: Tensor) -> None:
        super().__init__()
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection
        self.head = nn.Linear(texts.shape[1], texts.shape[0], bias=False)
        with torch.no_grad():
            self.head.weight.copy_(clip.logit_scale.exp() * functional.normalize(texts, dim=-1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        return self.head(functional.normalize(self.visual_projection(pooled), dim=-1))


def clip_zero_shot(
    model: str,
    prompt: str = "a photo of a {}.",
    classes: Sequence[str] | None = None,
    in_chans: int | None = None,
    pretrained: bool = False,
) -> ZeroShotCLIP:
    """A CLIP of the hub or of a folder that tells the classes apart by their names.

    Args:
        model: a name on the hub, or a folder with config.json, weights and tokenizer.
        prompt: the text of a class, `{}` being its name, in which underscores become spaces.
        classes: the names.
        in_chans: the channels of the images, which must be the model's.
        pretrained: must be true: new weights know nothing.

    Raises:
        UserError: the model is no CLIP, or cannot be had; the prompt has no place for the name.

    Paper: Learning Transferable Visual Models From Natural Language Supervision, https://arxiv.org/abs/2103.00020.
    """
    if not pretrained:
        raise UserError("Zero-shot CLIP is not trained here: set weights=pretrained.")
    if prompt.count("{}") != 1:
        raise UserError(f"prompt={prompt}: it must have one {{}}, the place of the class's name.")
    if not classes:
        raise UserError("The data have no classes whose names CLIP could read.")
    with quiet():
        config = vision_config(model, None, in_chans, find_config(model))
        if not isinstance(config, CLIPConfig):
            raise UserError(f"{model!r} is a {config.model_type!r}, not a CLIP with its two towers.")
        clip: Any = load(AutoModel, model, config, pretrained=True).eval()
        if clip.new_weights:
            raise UserError(f"{model!r} has no weights for {clip.new_weights[0]!r}: it is no whole CLIP.")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder_or_name(model))
        except FAILURES as error:
            raise UserError(why_not(model, "The tokenizer", error)) from error
        tokens = tokenizer(
            [prompt.format(name.replace("_", " ")) for name in classes], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            pooled = clip.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            texts = clip.text_projection(pooled)
    return ZeroShotCLIP(clip, texts)
