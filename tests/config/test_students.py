"""The student of a config: less memory by checkpointing, LoRA, and what it is cut from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoTokenizer

from distillery.config.build import build_data
from distillery.config.check import check
from distillery.config.students import build_student
from distillery.core.errors import UserError
from distillery.data.module import Data
from fixtures.building import build
from fixtures.documents import documents, tiny_llama, write_bpe, write_texts
from fixtures.runs import config

IDS = torch.randint(0, 90, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, a tokenizer, and a model with three more logits than it has tokens."""
    folder = tmp_path_factory.mktemp("documents")
    write_bpe(folder / "bpe")
    write_texts(folder / "texts", documents(20))
    source: Any = tiny_llama(323, num_hidden_layers=4, num_key_value_heads=2)
    source.save_pretrained(folder / "source")
    AutoTokenizer.from_pretrained(folder / "bpe").save_pretrained(folder / "source")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    return build_data(config(folder / "run", *given(folder)))


def given(folder: Path, *overrides: str) -> list[str]:
    return [
        *("data=plain_text", f"data.source.path={folder}/texts", f"data.tokenizer={folder}/source"),
        *("data.source.test_fraction=0.2", "data.max_length=32", "data.batch_size=2", "task=causal_lm"),
        *("model/student=pretrained_lm", f"student.net.model={folder}/source", "model/teacher=none"),
        *("callbacks.scale_report=null", *overrides),
    ]


def test_a_student_cut_from_a_model(folder: Path, data: Data, tmp_path: Path) -> None:
    """Its vocabulary is the tokenizer's; a model with another one is refused."""
    sizes = "+student.net.config={num_hidden_layers: 2, intermediate_size: 12}"
    cut = [f"student.initialise={{source: {folder}/source, keep: activation, samples: 6}}", "student.weights=null"]
    distiller = build(config(tmp_path / "run", *given(folder, *cut, sizes)), data=data).distiller
    source: Any = tiny_llama(323, num_hidden_layers=4, num_key_value_heads=2)
    net: Any = distiller.student.net
    assert torch.equal(net.lm_head.weight, source.lm_head.weight[:320])
    assert torch.equal(net.model.layers[1].self_attn.q_proj.weight, source.model.layers[3].self_attn.q_proj.weight)
    assert "student: its layers are 0, 3 of the source's 0 to 3" in distiller.remarks
    other = [f"data.tokenizer={folder}/bpe"]
    write_bpe(folder / "bpe", size=300)
    with pytest.raises(UserError, match=r"student\.initialise\.source network was made for the tokenizer"):
        build(config(tmp_path / "run", *given(folder, *cut, sizes, *other)))


def test_a_new_model_knows_the_tokenizers_special_tokens(folder: Path, data: Data, tmp_path: Path) -> None:
    """Of a type whose own padding token is beyond this vocabulary."""
    sizes = "+student.net.config={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    small = ["student.net.model=phi3", "student.weights=null", sizes]
    net: Any = build(config(tmp_path / "run", *given(folder, *small)), data=data).distiller.student.net
    end = AutoTokenizer.from_pretrained(folder / "source").eos_token_id
    assert [net.config.eos_token_id, net.generation_config.eos_token_id] == [end, end]
    assert net.config.pad_token_id is None
    assert net.get_input_embeddings().padding_idx is None


class Saved:
    """Counts the numbers that are kept for the backward."""

    def __init__(self) -> None:
        self.numbers = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.numbers += tensor.numel()
        return tensor


def test_gradient_checkpointing(folder: Path, data: Data, tmp_path: Path) -> None:
    """The same loss and gradients, of taps too, with less that is kept; nothing changes where no gradient is taken."""
    found = []
    for on in (False, True):
        cfg = config(tmp_path / "run", *given(folder, f"student.gradient_checkpointing={on}"))
        student = build(cfg, data=data).distiller.student.train()
        batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        student.tap(["model.layers.1.mlp"], batch)
        saved = Saved()
        with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            signals = student(batch)
            loss = signals.logits.logsumexp(-1).mean() + signals.layers["model.layers.1.mlp"].square().mean()
        loss.backward()
        gradients = [parameter.grad for parameter in student.net.parameters()]
        found.append((loss, gradients, saved.numbers))
        with torch.no_grad():
            assert student.net(input_ids=IDS, use_cache=True).past_key_values.get_seq_length() == 9
    (loss, gradients, numbers), (other, others, fewer) = found
    assert torch.equal(loss, other)
    for mine, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert fewer < 0.5 * numbers


def test_refusals(folder: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (["student.initialise={layers: even}"], r"^student\.initialise\.source: name the network"),
        (["student.initialise={source: a, kept: first}"], r"student\.initialise\.kept'?\b.*Did you mean"),
        (["student.lora={r: 0}"], r"^student\.lora\.r=0: it must be a whole number of at least 1"),
        (["student.lora={r: 2}", "student.weights=null"], r"^student\.lora: .*a student that is trained already"),
        (["student.lora={r: 2}", "student.qat=8da4w"], r"^student\.qat rounds the weights that are trained, and with"),
        (["student.qat=int4"], r"^student\.qat=int4\. Choose from: .*int4_weight_only"),
    ):
        with pytest.raises(UserError, match=message):
            check(config(tmp_path / "run", *given(folder, *overrides)))
    net = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2}
    student = OmegaConf.create({"net": net, "weights": None, "gradient_checkpointing": True, "input": {}})
    with pytest.raises(UserError, match="gradient_checkpointing=true: a Linear cannot"):
        build_student(student)
