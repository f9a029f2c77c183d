"""Attention taps: what is recorded is what the network's own attention computes with, and nothing is left behind."""

import math
from collections.abc import Iterator, Mapping

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from distillery.core.errors import UserError
from distillery.losses.attention.minilmv2 import MiniLMv2
from distillery.losses.attention.vit_attention import ViTAttention
from distillery.losses.feature.hidden_mse import HiddenMSE
from distillery.losses.signals import Attention
from distillery.models.adapters import ImageAdapter
from distillery.models.taps.attention_recorder import Recorders, attention_modules
from distillery.models.taps.layer_pairs import attention_layers
from distillery.models.taps.network import Network
from distillery.teachers.frozen import Teacher
from distillery.training.wiring import wire

WIDTH, HEADS, DEPTH = 32, 2, 2
BATCH = {"image": torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))}


def vit(**options: object) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
    size = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return timm.create_model("vit_tiny_patch16_224", **(shape | size | options))


def network(net: nn.Module) -> Network:
    return Network(net, ImageAdapter([0.5], [0.5]), name="student")


def bert(implementation: str, **options: object) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=48,
        **options,
    )
    return BertModel._from_config(config, attn_implementation=implementation).eval()


@pytest.fixture
def without_fused_attention() -> Iterator[None]:
    set_fused_attn(False)
    yield
    set_fused_attn(True)


class TestProbabilities:
    """They equal those of the network's own unfused attention."""

    @pytest.mark.parametrize("qk_norm", [False, True])
    def test_of_timm(self, qk_norm: bool) -> None:
        tapped = network(vit(qk_norm=qk_norm)).eval()
        entered: dict[str, Tensor] = {}
        block = tapped.net.get_submodule("blocks.1.attn")
        block.register_forward_pre_hook(lambda _, inputs: entered.setdefault("x", inputs[0]))
        tapped.tap_attention(["blocks.1.attn"], BATCH)
        entered.clear()
        attention = tapped(BATCH).attention["blocks.1.attn"]

        length, width = entered["x"].shape[1], WIDTH // HEADS
        qkv = block.qkv(entered["x"]).reshape(3, length, 3, HEADS, width)
        for sample in range(3):
            for head in range(HEADS):
                query, key = (qkv[sample, :, part, head] for part in (0, 1))
                query, key = block.q_norm(query), block.k_norm(key)
                expected = (query @ key.T / math.sqrt(width)).softmax(-1)
                torch.testing.assert_close(attention.masked_scores().log_softmax(-1)[sample, head].exp(), expected)
                torch.testing.assert_close(attention.value[sample, head], qkv[sample, :, 2, head])

    @pytest.mark.parametrize("decoder", [False, True])
    def test_of_bert_with_padding(self, decoder: bool) -> None:
        """A decoder is causal: without padding that is not a mask but a flag."""
        tokens = torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(0))
        padding = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7])
        for mask in (padding, torch.ones_like(padding)):
            fused, eager = bert("sdpa", is_decoder=decoder), bert("eager", is_decoder=decoder)
            kept: list[Attention] = []
            Recorders().attach(fused.get_submodule("encoder.layer.1.attention.self"), "", kept.append)
            with torch.no_grad():
                fused(tokens, attention_mask=mask)
                expected = eager(tokens, attention_mask=mask, output_attentions=True).attentions[1]
            (attention,) = kept
            counts = mask.bool()[:, None, :, None].expand_as(expected)  # what padding itself attends to is not used
            torch.testing.assert_close(attention.masked_scores().log_softmax(-1).exp()[counts], expected[counts])

    def test_of_grouped_queries(self) -> None:
        draw = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(2, heads, 5, 4, generator=draw) for heads in (4, 2, 2))
        module = Attend(enable_gqa=True, scale=0.3)
        kept: list[Attention] = []
        Recorders().attach(module, "", kept.append)
        output = module(query, key, value)
        (attention,) = kept
        torch.testing.assert_close(attention.masked_scores().log_softmax(-1).exp() @ attention.value, output)
        for head in range(4):
            torch.testing.assert_close(attention.key[:, head], key[:, head // 2])

    def test_of_an_added_mask(self) -> None:
        draw = torch.Generator().manual_seed(0)
        query, key, value = torch.randn(3, 2, 2, 5, 4, generator=draw)
        bias = torch.randn(5, 5, generator=draw)
        bias[:, 3] = -torch.inf
        module = Attend(attn_mask=bias)
        kept: list[Attention] = []
        Recorders().attach(module, "", kept.append)
        output = module(query, key, value)
        torch.testing.assert_close(kept[0].masked_scores().log_softmax(-1).exp() @ value, output)
        assert kept[0].masked_scores().log_softmax(-1).isfinite().all()

    def test_tokens_that_do_not_count_are_not_attended_to(self) -> None:
        query, key, value = torch.randn(3, 2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
        attention = Attention(query, key, value, None, 1.0)
        masked = attention.masked_scores(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])).softmax(-1)
        kept = [0, 1, 3]
        torch.testing.assert_close(masked[0][..., kept], attention.scores()[0][..., kept].softmax(-1))
        assert not masked[0][..., 2].any()
        torch.testing.assert_close(masked[1], torch.full((2, 4, 4), 0.25))


class Attend(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, **self.options)  # type: ignore[arg-type]


class TestTap:
    def test_recording_changes_no_output_and_no_gradient(self) -> None:
        plain, tapped = network(vit()), network(vit())
        shapes = tapped.tap_attention(["blocks.0.attn", "blocks.1.attn"], BATCH)
        assert shapes == {f"blocks.{i}.attn": (3, HEADS, 17, WIDTH // HEADS) for i in range(DEPTH)}
        for net in (plain, tapped):
            net(BATCH).logits.square().sum().backward()
        for ours, theirs in zip(tapped.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            assert torch.equal(ours.grad, theirs.grad)

    def test_student_learns_through_its_attention(self) -> None:
        tapped = network(vit())
        tapped.tap_attention(["blocks.1.attn"], BATCH)
        attention = tapped(BATCH).attention["blocks.1.attn"]
        attention.scores().square().sum().backward()
        assert tapped.net.get_submodule("blocks.1.attn.qkv").weight.grad.any()
        assert tapped.net.get_submodule("patch_embed.proj").weight.grad.any()

    def test_tap_replaces_the_taps_before_it(self) -> None:
        tapped = network(vit())
        tapped.tap_attention(["blocks.0.attn"], BATCH)
        tapped.tap_attention(["blocks.1.attn"], BATCH)
        assert list(tapped(BATCH).attention) == ["blocks.1.attn"]
        assert tapped.tap_attention([], BATCH) == {}
        assert tapped(BATCH).attention == {}

    def test_beside_a_tap_on_the_same_module(self) -> None:
        tapped = network(vit())
        tapped.tap_attention(["blocks.1.attn"], BATCH)
        tapped.tap(["blocks.1.attn"], BATCH)
        signals = tapped(BATCH)
        assert signals.layers["blocks.1.attn"].shape == (3, 17, WIDTH)
        assert signals.attention["blocks.1.attn"].query.shape == (3, HEADS, 17, WIDTH // HEADS)

    @pytest.mark.slow
    def test_compiled_network_is_recorded_too(self) -> None:
        plain, tapped = network(vit()), network(vit())
        for net in (plain, tapped):
            net.tap_attention(["blocks.1.attn"], BATCH)
        tapped.net.compile(backend="aot_eager")
        for net in (plain, tapped):
            net(BATCH).attention["blocks.1.attn"].scores().square().sum().backward()
        ours, theirs = (net.net.get_submodule("blocks.0.attn.qkv").weight.grad for net in (tapped, plain))
        assert ours.any()
        torch.testing.assert_close(ours, theirs)


class TestWiring:
    """A loss on attention finds its layers, and learns from a teacher that ends its forward there."""

    def test_loss_moves_the_student_towards_the_teacher(self) -> None:
        student = network(vit())
        teacher = Teacher(vit(embed_dim=48, depth=4, num_heads=3), ImageAdapter([0.5], [0.5]), name="main")
        terms = {"minilmv2": MiniLMv2(relation_heads=4), "vit_attention": ViTAttention(), "hidden_mse": HiddenMSE()}
        wire(terms, student, {"main": teacher}, BATCH)
        assert terms["minilmv2"].layers == {"blocks.1.attn": "blocks.3.attn"}
        assert terms["vit_attention"].layers == {f"blocks.{i}.attn": f"blocks.{2 * i + 1}.attn" for i in range(2)}
        assert teacher.stops_at == "blocks.3"

        whole, ended = teacher(BATCH).attention, teacher(BATCH, training=True)
        assert ended.logits.shape == (3, 0)
        for tap, attention in ended.attention.items():
            assert torch.equal(attention.query, whole[tap].query)
            assert not attention.query.requires_grad
        for term in terms.values():
            optimizer = torch.optim.Adam([*student.parameters(), *term.parameters()], lr=1e-3)
            losses = []
            for _ in range(6):
                losses.append(term(student(BATCH), teacher(BATCH, training=True), BATCH).mean())
                optimizer.zero_grad()
                losses[-1].backward()
                optimizer.step()
            assert losses[-1] < 0.98 * losses[0]

    def test_layers_by_wildcard(self) -> None:
        student, teacher = network(vit()), Teacher(vit(), ImageAdapter([0.5], [0.5]), name="main")
        term = MiniLMv2(layers={"blocks.*.attn": "blocks.*.attn"})
        wire({"minilmv2": term}, student, {"main": teacher}, BATCH)
        assert term.layers == {f"blocks.{i}.attn": f"blocks.{i}.attn" for i in range(DEPTH)}

    def test_convolutional_student_is_refused(self) -> None:
        student = network(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.LazyLinear(10)))
        teacher = Teacher(vit(), ImageAdapter([0.5], [0.5]), name="main")
        with pytest.raises(UserError, match=r"loss.minilmv2.*the student network has none.*Choose a transformer"):
            wire({"minilmv2": MiniLMv2()}, student, {"main": teacher}, BATCH)


class TestRefusals:
    def test_unknown_module(self) -> None:
        with pytest.raises(UserError, match=r"'blocks\.1\.atn' of the student network.*Did you mean 'blocks\.1\.attn'"):
            network(vit()).tap_attention(["blocks.1.atn"], BATCH)

    def test_module_around_the_one_that_attends(self) -> None:
        with pytest.raises(UserError, match=r"no module of that path computes attention.*blocks\.1\.attn"):
            network(vit()).tap_attention(["blocks.1"], BATCH)

    def test_timm_without_fused_attention(self, without_fused_attention: None) -> None:
        with pytest.raises(UserError, match=r"set_fused_attn\(True\)"):
            network(vit()).tap_attention(["blocks.1.attn"], BATCH)

    def test_eager_bert(self) -> None:
        net = bert("eager")
        tokens = torch.randint(50, (2, 5))
        assert attention_modules(net, lambda: net(tokens)) == []
        Recorders().attach(net.get_submodule("encoder.layer.1.attention.self"), "Tap 'x'", lambda _: None)
        with pytest.raises(UserError, match=r"Tap 'x': no attention ran.*attn_implementation='sdpa'"):
            net(tokens)


class Failing(nn.Module):
    """Attends, then raises while `error` is set."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        output = nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        if self.error is not None:
            raise self.error
        return output


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Failing()

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image[:, 0]).mean(1)


@pytest.mark.parametrize("error", [ValueError("in the forward"), KeyboardInterrupt("in the forward")])
def test_forward_that_raises_leaves_no_recorder_behind(error: BaseException) -> None:
    tapped = network(Images())
    tapped.tap_attention(["inner"], BATCH)
    inner = tapped.net.get_submodule("inner")
    inner.error = error
    with pytest.raises(type(error), match="in the forward"):
        tapped(BATCH)
    assert not torch.overrides._get_current_function_mode_stack()
    inner.error = None
    assert list(tapped(BATCH).attention) == ["inner"]
    assert not torch.overrides._get_current_function_mode_stack()


class TestAutoLayers:
    def test_modules_are_found_in_the_order_in_which_they_run(self) -> None:
        assert network(vit(depth=11)).attention_modules(BATCH) == [f"blocks.{i}.attn" for i in range(11)]
        net = bert("sdpa")
        found = attention_modules(net, lambda: net(torch.randint(50, (2, 5))))
        assert found == [f"encoder.layer.{i}.attention.self" for i in range(DEPTH)]

    @pytest.mark.parametrize(("student", "teacher"), [(4, 12), (6, 12), (3, 6), (6, 6), (1, 5)])
    def test_layer_i_of_n_learns_from_the_last_of_its_share(self, student: int, teacher: int) -> None:
        """TinyBERT's map: teacher layer i · m/n + m/n - 1, layers counted from 0."""
        ours, theirs = [f"s{i}" for i in range(student)], [f"t{i}" for i in range(teacher)]
        share = teacher // student
        expected = {f"s{i}": f"t{i * share + share - 1}" for i in range(student)}
        assert attention_layers(ours, theirs, "all") == expected
        assert attention_layers(ours, theirs, "last") == {f"s{student - 1}": f"t{teacher - 1}"}

    def test_network_without_attention(self) -> None:
        with pytest.raises(UserError, match="the teacher network has none"):
            attention_layers(["a"], [], "all")


def test_signals_are_of_this_forward_alone() -> None:
    """Neither the graph of the last step nor its activations live on in the network."""
    tapped = network(vit())
    tapped.tap_attention(["blocks.1.attn"], BATCH)
    first: Mapping[str, Attention] = tapped(BATCH).attention
    second = tapped({"image": 1 - BATCH["image"]}).attention
    assert not torch.equal(first["blocks.1.attn"].query, second["blocks.1.attn"].query)
    assert tapped._attention == {}
