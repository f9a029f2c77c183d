"""The weights as they are, in a folder that timm or transformers loads; of other networks, with their source."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from distillery.models.adapters import ImageAdapter
from distillery.models.text.export import WEIGHTS, save_pretrained
from distillery.models.text.sentence_encoder import SentenceEncoder, pretrained_model
from distillery.models.text.transformer import HEADS
from distillery.models.weights import save_weights
from distillery.runs.export.exportable import Exportable
from distillery.runs.export.formats.artefact import Artefact
from distillery.runs.export.model_card import head_of
from distillery.runs.export.model_source import NotPlain, model_source


def write(model: Exportable, folder: Path) -> Artefact:
    """Write the network in the form that its own library loads, or else as `model.py`.

    A network that needs this package is written with its settings, `network.json`, and the artefact says so.
    """
    net: Any = model.student.net
    if type(net).__module__.startswith("timm."):
        return _timm(model, net, folder)
    if (pretrained := pretrained_model(net)) is not None:
        return _transformers(model, pretrained, folder)
    save_weights(net, folder / WEIGHTS)
    try:
        source = model_source(model.settings)
    except NotPlain as reason:
        (folder / "network.json").write_text(json.dumps(model.settings, indent=2) + "\n", encoding="utf-8")
        return Artefact(
            folder,
            "distillery_network",
            "distillery",
            ("distillery",),
            in_graph=False,
            remarks=(f"A {type(net).__name__} is built by this package: {reason}.",),
        )
    (folder / "model.py").write_text(source, encoding="utf-8")
    return Artefact(folder, "torch_module", "torch", ("torch", "safetensors"), in_graph=False)


def _timm(model: Exportable, net: Any, folder: Path) -> Artefact:
    adapter = model.student.adapter
    assert isinstance(adapter, ImageAdapter)
    said = model.preprocessing(in_graph=False)
    settings = {key: value for key, value in model.settings.items() if key not in ("_target_", "model_name")}
    arguments = {key: value for key, value in settings.items() if key not in ("num_classes", "in_chans")}
    mean, std = said["mean"], said["std"]
    channels, *size = model.inputs["image"].shape[1:]
    data = {
        "input_size": (channels, *size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": "bilinear",
        "crop_pct": 224 / 256 if said["crop"] else 1.0,
    }
    labels = {"label_names": said["classes"]} if said["classes"] else {}
    from timm.models import save_for_hf  # half a second, which other formats need not wait

    save_for_hf(
        net,
        str(folder),
        labels,
        arguments,
        safe_serialization=True,
        data_config=data,
    )
    return Artefact(folder, "timm_folder", "timm", ("timm",), in_graph=False)


def _transformers(model: Exportable, net: PreTrainedModel, folder: Path) -> Artefact:
    images = isinstance(model.student.adapter, ImageAdapter)
    save_pretrained(net, folder, model.tokenizer)
    if images:
        auto = (
            "AutoModelForSemanticSegmentation" if model.task.rows_are == "pixels" else "AutoModelForImageClassification"
        )
    else:
        auto = HEADS[head_of(model.cfg)].__name__
    remarks = ("The embedding is the mean of the last hidden states over the tokens.",)
    pooled = isinstance(model.student.net, SentenceEncoder)
    return Artefact(
        folder,
        "transformers_folder",
        "transformers",
        ("transformers", "torch"),
        {"auto": auto, "images": images, "normalise": getattr(model.student.net, "normalise", False)},
        in_graph=False,
        remarks=remarks if pooled else (),
    )
