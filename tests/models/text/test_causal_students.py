"""Students cut from causal models: equal where nothing is left out, and sliced by hand where something is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillery.core.errors import UserError
from distillery.models.text.initialise import initialise
from distillery.models.text.transformer import transformer
from fixtures.documents import TINY, tiny_llama

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
WIDE = {"hidden_size": 30, "intermediate_size": 20, "num_hidden_layers": 3} | {
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
}
HIDDEN, HEAD = 30, 4
IDS = torch.randint(0, 90, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)


def network(kind: str = "llama", seed: int = 0, **config: Any) -> Any:
    sizes = dict(TINY)
    if kind == "gpt2":
        for key in ("num_key_value_heads", "intermediate_size"):
            del sizes[key]
    net: Any = transformer(kind, "causal_lm", 90, sizes | config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def test_with_all_layers_and_widths_it_is_the_source() -> None:
    for kind, keep in zip(KINDS, ("first", "magnitude", "activation", "magnitude", "activation"), strict=True):
        source, student = (network(kind, seed, tie_word_embeddings=keep == "activation") for seed in (0, 1))
        filled = initialise(student, source, keep=keep)  # type: ignore[arg-type]
        assert filled.names == [name for name, _ in student.named_parameters()]
        assert torch.equal(student(input_ids=IDS).logits, source(input_ids=IDS).logits), kind
        assert len(filled.remarks) == 1


def test_chosen_layers_of_a_longer_vocabulary() -> None:
    """The source's table is padded; the student has the tokenizer's rows."""
    for kind in KINDS:
        source, student = network(kind, num_hidden_layers=4, vocab_size=96), network(kind, 1, num_hidden_layers=2)
        initialise(student, source, layers=[0, 3])
        body = source.base_model
        stack = body.h if kind == "gpt2" else body.layers
        del stack[1:3]
        assert torch.equal(student(input_ids=IDS).logits, source(input_ids=IDS).logits[..., :90]), kind


def expected_scores(source: Any, keep: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of heads, neurons and hidden channels: from weights, or from a forward that is written out."""
    parts = source.model.layers[layer]
    attention, mlp = parts.self_attn, parts.mlp
    if keep == "magnitude":
        heads = []
        for head in range(6):
            queries = attention.q_proj.weight[head * HEAD : (head + 1) * HEAD]
            results = attention.o_proj.weight[:, head * HEAD : (head + 1) * HEAD]
            shared = [m.weight[head // 2 * HEAD : (head // 2 + 1) * HEAD] for m in (attention.k_proj, attention.v_proj)]
            squares = [each.square().sum() for each in (queries, results, shared[0] / 2**0.5, shared[1] / 2**0.5)]
            heads.append(torch.stack(squares).sum().sqrt())
        columns = torch.cat([mlp.gate_proj.weight.T, mlp.up_proj.weight.T, mlp.down_proj.weight])
        every = list(source.model.parameters())
        rows = [p if p.shape[-1] == HIDDEN else p.T for p in every if p.dim() == 2]
        norms = [parameter[None] for parameter in every if parameter.dim() == 1]
        return torch.stack(heads), columns.square().sum(0).sqrt(), torch.cat([*rows, *norms]).square().sum(0).sqrt()
    given: dict[str, tuple[Tensor, ...]] = {}
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: given.update({name: (*inputs, output)}))
        for name, module in source.named_modules()
        if name
    ]
    with torch.no_grad():
        source(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    results = given[f"model.layers.{layer}.self_attn.o_proj"][0].view(3, 7, 6, HEAD).norm(dim=-1)
    neurons = given[f"model.layers.{layer}.mlp.down_proj"][0].abs()
    channels = torch.cat([each[-1].abs().mean(1) for name, each in given.items() if name.endswith("norm")])
    return results.mean(1).norm(dim=0), neurons.mean(1).norm(dim=0), channels.norm(dim=0)


def best(scores: Tensor, number: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:number])


def test_heads_groups_neurons_and_channels() -> None:
    """6 heads in 3 groups → 2 heads in 2 groups, 20 neurons → 10, 30 hidden channels → 12."""
    source = network(**WIDE)
    small = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 10}
    for keep in ("first", "magnitude", "activation"):
        student = network(seed=1, **small, hidden_size=12)
        remarks = initialise(student, source, keep=keep, batches=[({"input_ids": IDS}, MASK)]).remarks
        assert "2 heads of width 4, 10 neurons, 12 hidden channels, of 6 heads in 3 groups of width 4" in remarks[1]
        for ours, theirs in ((0, 0), (1, 2)):
            scores = [torch.arange(0.0, -number, -1) for number in (6, 20, 30)]
            if keep != "first":
                scores = list(expected_scores(source, keep, theirs))
            groups = best(scores[0].view(3, 2).sum(1), 2)
            heads = [2 * group + int(scores[0][2 * group + 1] > scores[0][2 * group]) for group in groups]
            neurons, channels = best(scores[1], 10), best(scores[2], 12)
            queries, keys = ([HEAD * n + i for n in numbers for i in range(HEAD)] for numbers in (heads, groups))
            mine, layer = student.model.layers[ours], source.model.layers[theirs]
            expected = {
                "self_attn.q_proj": layer.self_attn.q_proj.weight[queries][:, channels],
                "self_attn.k_proj": layer.self_attn.k_proj.weight[keys][:, channels],
                "self_attn.v_proj": layer.self_attn.v_proj.weight[keys][:, channels],
                "self_attn.o_proj": layer.self_attn.o_proj.weight[channels][:, queries],
                "mlp.gate_proj": layer.mlp.gate_proj.weight[neurons][:, channels],
                "mlp.down_proj": layer.mlp.down_proj.weight[channels][:, neurons],
                "input_layernorm": layer.input_layernorm.weight[channels],
            }
            for name, weight in expected.items():
                assert torch.equal(mine.get_submodule(name).weight, weight), (keep, ours, name)
        assert torch.equal(student.lm_head.weight, source.lm_head.weight[:, channels])
        assert torch.equal(student.model.embed_tokens.weight, source.model.embed_tokens.weight[:, channels])


def test_what_is_left_computes_what_it_did() -> None:
    """Without the heads and neurons that are left out, the source gives the student's logits."""
    source = network("qwen3", **WIDE)
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 10}
    student = network("qwen3", 1, **WIDE | small)
    initialise(student, source, keep="activation", batches=[({"input_ids": IDS}, MASK)])
    kept = [{tuple(row.tolist()) for row in layer.self_attn.q_proj.weight} for layer in student.model.layers]
    neurons = [{tuple(row.tolist()) for row in layer.mlp.up_proj.weight} for layer in student.model.layers]
    with torch.no_grad():
        for number, layer in enumerate(source.model.layers):
            out = [tuple(row.tolist()) not in kept[number] for row in layer.self_attn.q_proj.weight]
            layer.self_attn.o_proj.weight[:, out] = 0
            layer.mlp.down_proj.weight[
                :, [tuple(r.tolist()) not in neurons[number] for r in layer.mlp.up_proj.weight]
            ] = 0
        assert sum(out) == 8
    torch.testing.assert_close(student(input_ids=IDS).logits, source(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_padding_has_no_say() -> None:
    source = network(**WIDE)
    padded, mask = torch.cat([IDS, IDS[:, :3]], 1), torch.cat([MASK, MASK[:, :3] * 0], 1)
    students = [network(seed=1, **WIDE | {"num_attention_heads": 3}) for _ in range(2)]
    for student, ids, counts in zip(students, (IDS, padded), (MASK, mask), strict=True):
        initialise(student, source, keep="activation", batches=[({"input_ids": ids}, counts)])
    assert all(map(torch.equal, students[0].parameters(), students[1].parameters()))


def test_a_causal_model_keeps_its_kind_of_layers_in_a_folder(tmp_path: Any) -> None:
    """Qwen's and Gemma's config names the kind of each layer: with fewer layers there are fewer kinds."""
    for kind in ("qwen2", "gemma3_text"):
        source = tiny_llama(320, kind=kind, num_hidden_layers=4, pad_token_id=None)
        source.save_pretrained(tmp_path / kind)
        net: Any = transformer(str(tmp_path / kind), "causal_lm", 320, {"num_hidden_layers": 2, "head_dim": 8})
        assert len(net.config.layer_types) == len(net.model.layers) == 2


def test_refusals() -> None:
    source: nn.Module = network(**WIDE)
    sliding = network("qwen3", num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    for given, other, message in (
        (
            {"num_key_value_heads": 2},
            None,
            r"share one of 2 key-value heads, in the source 2 share one of 3",
        ),
        ({"head_dim": 2, "num_key_value_heads": 3}, None, r"rotated in pairs\. Set \+student\.net\.config\.head_dim=4"),
        ({"rms_norm_eps": 1e-3}, None, r"with rms_norm_eps=0\.001 the student would compute something else"),
        ({"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}}, None, "rope_parameters=.*; the source has"),
        ({"vocab_size": 100}, None, "vocabulary has 100 tokens, the source's 90"),
        ({}, sliding, r"layer_types=\['full_attention', 'full_attention'\].*\['full_attention', 'sliding_attention'\]"),
    ):
        kind = "llama" if other is None else "qwen3"
        student = network(kind, 1, **({} if other else WIDE | {"num_attention_heads": 6}) | given)
        with pytest.raises(UserError, match=message):
            initialise(student, other or source)
    with pytest.raises(UserError, match=r"single attention heads in the layers of GPT2Model"):
        initialise(network("gpt2", 1, hidden_size=8), network("gpt2"))
    with pytest.raises(UserError, match=r"keep=activations\. Did you mean 'activation'"):
        initialise(network(), network(), keep="activations")  # type: ignore[arg-type]
