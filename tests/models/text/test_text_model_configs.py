"""Each student and teacher of texts composes at its place, and builds once its open places are filled."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

CONFIGS = Path(__file__).parents[3] / "configs"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=list(overrides))


def logits(net: DictConfig, tokens: Mapping[str, Tensor], **settings: str) -> Tensor:
    output = instantiate(net, num_classes=3, **settings)(**tokens)
    return output if isinstance(output, Tensor) else output.logits


@pytest.mark.parametrize("choice", ["transformer", "encoder", "bilstm"])
def test_student(choice: str, minilm: str, tokens: Mapping[str, Tensor]) -> None:
    student = composed(f"+model/student={choice}").student
    assert student.keys() - {"qat"} == {"net", "weights", "initialise", "input"}
    assert student.weights is None
    assert student.initialise is None
    assert student.input == {"tokenizer": None}
    if choice == "bilstm":
        student.net.vocab_size = 50
        assert logits(student.net, tokens).shape == (2, 3)
        return
    assert student.net.head is None
    if choice == "encoder":
        student.net.config.vocab_size = 50
    else:
        assert OmegaConf.is_missing(student.net, "model")
        student.net.model = minilm
    assert logits(student.net, tokens, head="sequence_classification").shape == (2, 3)


def test_settings_and_initialisation_on_the_command_line(minilm: str, tokens: Mapping[str, Tensor]) -> None:
    student = composed(
        "+model/student=transformer",
        f"student.net.model={minilm}",
        "+student.net.config.num_hidden_layers=1",
        "student.initialise={source: folder, layers: [5]}",
    ).student
    assert student.initialise == {"source": "folder", "layers": [5]}
    net = instantiate(student.net, num_classes=3, head="sequence_classification")
    assert len(net.bert.encoder.layer) == 1


def test_teacher(minilm: str, tokens: Mapping[str, Tensor]) -> None:
    teacher = composed("+model/teacher=transformer").teachers.main
    assert teacher.keys() == {"net", "weights", "classes", "input", "bn_mode", "precision", "placement", "cache"}
    assert (teacher.weights, teacher.bn_mode, teacher.cache) == ("pretrained", "eval", False)
    teacher.net.model = minilm
    net = instantiate(teacher.net, head="masked_lm", num_classes=30522, pretrained=True)
    assert net(**tokens).logits.shape == (2, 7, 30522)


def test_causal_lm(tokens: Mapping[str, Tensor]) -> None:
    """A new Llama by its sizes, and a pretrained teacher by its name."""
    student = composed("+model/student=causal_lm", "student.net.config.hidden_size=32").student
    assert student.keys() == {"net", "weights", "initialise", "lora", "gradient_checkpointing", "qat", "input"}
    pretrained = composed("+model/student=pretrained_lm").student
    assert pretrained.keys() == student.keys()
    assert (pretrained.weights, pretrained.net.config) == ("pretrained", {})
    net = instantiate(student.net, num_classes=60)
    given = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    assert net(**given).logits.shape == (2, 7, 60)
    assert type(net).__name__ == "LlamaForCausalLM"
    assert net.lm_head.weight is net.model.embed_tokens.weight
    padded = composed("+model/student=causal_lm", "+student.net.config.vocab_size=64").student  # to be a round number
    assert instantiate(padded.net, num_classes=60)(**given).logits.shape == (2, 7, 64)
    padded.net.config.vocab_size = 50
    with pytest.raises(InstantiationException, match=r"vocab_size=50, but causal_lm predicts 60 tokens"):
        instantiate(padded.net, num_classes=60)
    teacher = composed("+model/teacher=causal_lm").teachers.main
    assert teacher.keys() == {"net", "weights", "classes", "input", "bn_mode", "precision", "placement", "cache"}
    assert (teacher.weights, teacher.net.head) == ("pretrained", "causal_lm")
    assert OmegaConf.is_missing(teacher.net, "model")
