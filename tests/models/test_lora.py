"""LoRA: what is trained, what is not, and merged weights; against peft's own wrapper."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from distillery.config.students import exported_student
from distillery.core.errors import UserError
from distillery.models.adapters import TextAdapter
from distillery.models.lora import add_lora, merged_state
from distillery.models.taps.network import Network
from fixtures.documents import tiny_llama

IDS = torch.randint(0, 90, (2, 9), generator=torch.Generator().manual_seed(0))


def trained(net: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.AdamW([each for each in net.parameters() if each.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        net(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return net


def test_it_trains_and_merges_as_peft_does() -> None:
    for targets in ("all-linear", ["q_proj", "v_proj"]):
        base: Any = tiny_llama(90)
        ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
        torch.manual_seed(0)
        add_lora(ours, r=3, alpha=5, target_modules=targets)
        torch.manual_seed(0)
        wrapped = get_peft_model(theirs, LoraConfig(r=3, lora_alpha=5, target_modules=targets))
        assert torch.equal(ours(input_ids=IDS).logits, base(input_ids=IDS).logits)
        assert all("lora_" in name for name, each in ours.named_parameters() if each.requires_grad)
        merged, state = trained(wrapped).merge_and_unload(), merged_state(trained(ours))
        assert state is not None
        for name, tensor in merged.state_dict().items():
            torch.testing.assert_close(state[name], tensor)
        plain: Any = tiny_llama(90, seed=1)
        plain.load_state_dict(state)
        torch.testing.assert_close(plain(input_ids=IDS).logits, ours(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(plain(input_ids=IDS).logits, base(input_ids=IDS).logits, atol=1e-2)
        frozen = {name.replace(".base_layer.", "."): each for name, each in ours.named_parameters()}
        assert all(torch.equal(frozen[name], each) for name, each in base.named_parameters())


def test_a_new_head_is_trained_too() -> None:
    net: Any = tiny_llama(90)
    net.new_weights = ["lm_head.weight"]
    add_lora(net, target_modules=["q_proj"])
    assert {name.split(".")[-2] for name, each in net.named_parameters() if each.requires_grad} == {
        "default",
        "lm_head",
    }


def test_without_it_nothing_is_copied() -> None:
    net: Any = tiny_llama(90)
    network = Network(net, TextAdapter(net))
    assert exported_student({}, network) is network  # type: ignore[arg-type]


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"target_modules=\['query'\]: "):
        add_lora(tiny_llama(90), target_modules=["query"])
    with pytest.raises(UserError, match=r"embed_tokens shares its weights with lm_head\.weight"):
        add_lora(tiny_llama(90, tie_word_embeddings=True), target_modules=["embed_tokens"])
