"""Vision models of Hugging Face, made from small configs: classifiers, towers and zero-shot CLIP."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

from distillery.core.errors import UserError
from distillery.models.classifier import missing_classifier
from distillery.models.clip_zero_shot import clip_zero_shot
from distillery.models.hf_vision import hf_vision, image_input
from distillery.models.taps.network import Network
from distillery.runs.run import train
from fixtures.building import build
from fixtures.composing import Compose

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 16, "patch_size": 8}
VIT = {**SIZES, **IMAGES, "intermediate_size": 24}
TEXT = {**SIZES, "intermediate_size": 24, "vocab_size": 24, "max_position_embeddings": 16}
WORDS = "<pad> zero one two three four five six seven eight nine picture of the digit ! <eos>".split()
BATCH = {"image": torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def saved(net: PreTrainedModel, folder: Path, **processor: Any) -> Path:
    """A folder as `save_pretrained` leaves it, every weight random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
    net.eval().save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def vit(folder: Path, classes: int = 10, **changes: Any) -> Path:
    net = ViTForImageClassification(ViTConfig(**VIT, num_labels=classes, **changes))
    return saved(net, folder, image_mean=[0.5] * 3, image_std=[0.25] * 3, size={"height": 16, "width": 16})


def clip(folder: Path) -> Path:
    config = CLIPConfig(
        text_config={**TEXT, "eos_token_id": WORDS.index("<eos>")}, vision_config=VIT, projection_dim=12
    )
    saved(CLIPModel(config), folder, image_mean=[0.4] * 3, image_std=[0.3] * 3, crop_size=16, do_center_crop=True)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="!"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", WORDS.index("<eos>"))])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="!")
    fast.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_classifier_is_transformers_own(tmp_path: Path) -> None:
    for kind, folder in {
        "vit": vit(tmp_path / "vit"),
        "convnext": saved(
            ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2)),
            tmp_path / "convnext",
        ),
    }.items():
        net = hf_vision(str(folder), pretrained=True).eval()
        cls = ViTForImageClassification if kind == "vit" else ConvNextForImageClassification
        expected = cls.from_pretrained(folder)(BATCH["image"]).logits
        network = Network(net)
        torch.testing.assert_close(network(BATCH).logits, expected)
        assert net.new_weights == []
        shapes = network.tap(["embedding", "head"], BATCH)
        assert (shapes["embedding"][-1], shapes["head"]) == (16, expected.shape)
        student = hf_vision(str(folder), num_classes=3, pretrained=True)
        assert student.new_weights == ["classifier.weight", "classifier.bias"]
        assert len(network.attention_modules(BATCH)) == (2 if kind == "vit" else 0)


def features(folder: Path) -> Tensor:
    net = hf_vision(str(folder), num_classes=0, pretrained=True).eval()
    assert missing_classifier(net) == "head"
    assert net.new_weights == []
    network = Network(net)
    network.tap(["embedding"], BATCH)
    signals = network(BATCH)
    torch.testing.assert_close(signals.layers["embedding"], signals.logits, rtol=0, atol=0)
    assert len(network.attention_modules(BATCH)) >= 2
    return signals.logits


@torch.no_grad()
def test_towers_give_embeddings(tmp_path: Path) -> None:
    image = BATCH["image"]
    dino = saved(Dinov2Model(Dinov2Config(**SIZES, **IMAGES, mlp_ratio=2)), tmp_path / "dino")
    torch.testing.assert_close(features(dino), Dinov2Model.from_pretrained(dino)(image).last_hidden_state[:, 0])
    assert missing_classifier(hf_vision(str(dino), pretrained=True))  # it has no classifier
    whole = vit(tmp_path / "vit")
    states = ViTForImageClassification.from_pretrained(whole).vit(image).last_hidden_state
    torch.testing.assert_close(features(whole), states[:, 0])
    both = clip(tmp_path / "clip")
    expected = CLIPModel.from_pretrained(both).vision_model(pixel_values=image).pooler_output
    torch.testing.assert_close(features(both), expected)
    text = {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    siglip = saved(SiglipModel(SiglipConfig(text_config=text, vision_config=VIT)), tmp_path / "siglip")
    expected = SiglipModel.from_pretrained(siglip).vision_model(pixel_values=image).pooler_output
    torch.testing.assert_close(features(siglip), expected)


def test_students_of_a_model_type() -> None:
    for kind, config in {
        "vit": VIT,
        "dinov2": {**SIZES, **IMAGES, "mlp_ratio": 2},
        "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "deit": VIT,
        "dinov3_vit": VIT,
        "clip_vision_model": VIT,
        "siglip": {"vision_config": VIT, "text_config": TEXT},
    }.items():
        net = hf_vision(kind, num_classes=7, in_chans=1, config=config)
        assert Network(net)({"image": BATCH["image"][:, :1]}).logits.shape == (2, 7), kind
        assert net.new_weights == []


def test_input_is_that_of_the_image_processor(tmp_path: Path) -> None:
    folder = str(vit(tmp_path / "vit"))
    assert image_input(folder, {}, trained=True) == {"size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert image_input(folder, {}, trained=False) == {"size": 16}
    assert image_input(str(clip(tmp_path / "clip")), {}, trained=True)["size"] == 16
    assert image_input("convnext", {}, trained=False) == {"size": None}


def test_what_is_refused(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit")
    for settings, why in [
        ({"model": "bert"}, r"'bert' is a 'bert', which reads no images"),
        ({"model": "siglip2", "num_classes": 0}, r"'siglip2' reads patches of images of any shape"),
        ({"model": "metaclip_2", "num_classes": 0}, r"no image tower alone for 'metaclip_2'"),
        ({"model": "vit", "pretrained": True}, r"'vit' is a model type, which has no weights"),
        ({"model": str(folder), "pretrained": True, "config": {"image_size": 32}}, r"vit\.embeddings\.position_embedd"),
        ({"model": str(folder), "pretrained": True, "in_chans": 1}, r"Leave its sizes, channels"),
    ]:
        with pytest.raises(UserError, match=why):
            hf_vision(**settings)


@torch.no_grad()
def test_zero_shot_clip_is_clip(tmp_path: Path) -> None:
    folder = clip(tmp_path / "clip")
    names = ["zero", "one", "two_three"]
    net = clip_zero_shot(str(folder), "picture of the digit {} !", names, pretrained=True).eval()
    whole = CLIPModel.from_pretrained(folder)
    spaced = [f"picture of the digit {name} !" for name in ("zero", "one", "two three")]
    ids = [[WORDS.index(word) for word in (*text.split(), "<eos>")] for text in spaced]
    ids = [[*row, *[0] * (max(map(len, ids)) - len(row))] for row in ids]
    tokens = torch.tensor(ids)
    expected = whole(pixel_values=BATCH["image"], input_ids=tokens, attention_mask=(tokens != 0).long())
    network = Network(net)
    assert network.tap(["embedding"], BATCH)["embedding"] == (2, 12)
    torch.testing.assert_close(network(BATCH).logits, expected.logits_per_image)
    for settings, why in [({"prompt": "a photo"}, "must have one"), ({"pretrained": False}, "weights=pretrained")]:
        with pytest.raises(UserError, match=why):
            clip_zero_shot(str(folder), **{"classes": names, "pretrained": True, **settings})


SMALL = ["data.train_size=60", "data.batch_size=30", "trainer.max_epochs=1", "logger=none"]


def test_teachers_in_a_run(compose_train: Compose, tmp_path: Path) -> None:
    given = [*SMALL, "model/teacher=hf_vision", f"teachers.main.net.model={vit(tmp_path / 'vit')}"]
    student = ["model/student=hf_vision", "student.net.model=vit"]
    student += [f"+student.net.config.{key}={value}" for key, value in VIT.items()]
    losses = ["loss/relation=[rkd]", "loss/attention=[vit_attention]"]
    result = train(compose_train(*given, *student, *losses))
    main = result.parts.cfg.teachers.main
    assert (main.input.mean, main.input.size) == ([0.5] * 3, 16)
    assert result.parts.cfg.student.input.size == 16
    assert result.record.teachers["main"]["score"] is not None
    again = train(compose_train(*SMALL, f"teachers.main.weights={result.folder}", run="again"))
    assert again.record.teachers["main"]["score"] == result.record.metrics["last"]["test_score"]


def test_zero_shot_in_a_run(compose_train: Compose, tmp_path: Path) -> None:
    given = [*SMALL, "model/teacher=clip_zero_shot", f"teachers.main.net.model={clip(tmp_path / 'clip')}"]
    parts = build(compose_train(*given, "teachers.main.prompt='the digit {}'"))
    assert parts.cfg.teachers.main.net.prompt == "the digit {}"
    assert list(parts.cfg.teachers.main.net.classes) == [str(digit) for digit in range(10)]
    assert parts.distiller.frozen["main"](parts.example).logits.shape == (8, 10)


def test_a_tower_in_a_run(compose_train: Compose, tmp_path: Path) -> None:
    given = [*SMALL, "model/teacher=hf_vision", f"teachers.main.net.model={clip(tmp_path / 'clip')}"]
    with pytest.raises(UserError, match=r"main network has no classifier: it gives 16 features"):
        build(compose_train(*given))
    parts = build(compose_train(*given, "loss/response=[]", "loss/feature=[hint]", "loss/relation=[rkd]"))
    assert parts.distiller.frozen["main"].other_classes
