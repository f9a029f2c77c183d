"""`teachers.<name>.placement`: a teacher on a device of its own, or divided between two ranks."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distillery.config.build import build_data
from distillery.core.errors import UserError
from distillery.losses.signals import Signals
from distillery.models.adapters import ImageAdapter, TextAdapter
from distillery.models.cnn import SmallCNN
from distillery.models.taps.end_before_head import before_heads
from distillery.models.taps.head import Head
from distillery.teachers.frozen import Teacher
from distillery.teachers.shards import SHARD
from fixtures.composing import Compose
from fixtures.documents import tiny_llama
from fixtures.random import draw
from fixtures.thread_ranks import SEEDED, on_ranks

CPU = torch.device("cpu")
IMAGES = {"image": draw(6, 1, 8, 8).float()}
TEXTS = {"input_ids": torch.arange(24).view(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


def cnn(placement: str | None = None) -> Teacher:
    with SEEDED:
        torch.manual_seed(0)
        teacher = Teacher(SmallCNN(10, 1, (4, 6), norm="batch"), ImageAdapter([0.5], [0.25]))
    teacher.placement = placement
    return teacher


def llama(placement: str | None = None) -> Teacher:
    with SEEDED:
        torch.manual_seed(0)
        net = tiny_llama(90, tie_word_embeddings=True)
    teacher = Teacher(net, TextAdapter(net))
    teacher.placement = placement
    return teacher


def test_it_stays_where_it_is_placed() -> None:
    for placement, own in ((None, "cpu"), ("meta", "meta")):
        teacher = cnn(placement)
        teacher.place(CPU, torch.float64)
        assert teacher.device == torch.device(own)
        assert next(teacher.parameters()).dtype == torch.float64


def test_signals_come_back_from_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors know their device, and refuse to be computed with those of another one."""
    monkeypatch.setattr(torch.random, "fork_rng", lambda _: nullcontext())  # there is no GPU whose state could be read
    for make, taps, attention, given, number in (
        (cnn, ["stages.0", "embedding", "head:weight"], [], IMAGES, 1 + 3),
        (llama, ["model.layers.0"], ["model.layers.1.self_attn"], TEXTS, 1 + 1 + 4 + 1 + 2),  # hidden and head at last
    ):
        with FakeTensorMode():
            with torch.device("cuda:1"):
                teacher = make()
            batch = {name: torch.empty(values.shape, dtype=values.dtype) for name, values in given.items()}
            teacher.tap(taps, batch)
            teacher.tap_attention(attention, batch)
            teacher.known_head = Head("lm_head") if attention else None
            with before_heads([teacher]):
                signals = teacher(batch, training=True)
            found: list[Tensor] = []
            signals.each(lambda tensor, found=found: found.append(tensor) or tensor)
            assert str(teacher.device) == "cuda:1"
            assert len(found) == number
            assert {tensor.device for tensor in found} == {CPU}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("make", "batch", "tap"), [(cnn, IMAGES, "stages.0"), (llama, TEXTS, "model.layers.0")])
def test_shards_give_what_the_whole_gives(
    make: Callable[[str | None], Teacher], batch: Mapping[str, Tensor], tap: str
) -> None:
    """Of a network with blocks and BatchNorm, and of one whose table of tokens is its head, too."""
    plain = make(None)
    plain.tap([tap], batch)
    expected, size = plain(batch), count(plain)
    teachers = [make(SHARD), make(SHARD)]
    for teacher in teachers:  # not in the threads: it restores the generator, of which the other may be drawing
        teacher.tap([tap], batch)

    def work(rank: int) -> tuple[Signals, Signals, int]:
        teacher = teachers[rank]
        before = teacher.fingerprint()
        teacher.place(CPU, torch.float32)
        teacher.place(CPU, torch.float32)  # as before each validation
        kept = teacher.expected_fingerprint()
        teacher.stop_early(batch)
        first = teacher(batch, training=True)
        assert count(teacher) == 0
        signals = teacher(batch)
        assert count(teacher) == 0
        assert teacher.shards is not None
        own = sum(buffer.numel() for buffer in teacher.shards.buffers())
        shard = teacher.shards.get_buffer("units.0.shard")
        value = shard[0].clone()
        assert teacher.fingerprint() == kept != before
        shard[0] += rank  # on one rank alone
        assert (teacher.fingerprint() == kept) == (rank == 0)
        shard[0] = value
        teacher.unshard()
        assert teacher.shards is None
        assert teacher.fingerprint() == before == teacher.sha256
        assert torch.equal(teacher(batch).logits, expected.logits)
        return first, signals, own

    for first, signals, own in on_ranks(work):
        assert size / 2 <= own < size / 2 + 64 * 20  # padding
        assert torch.equal(signals.logits, expected.logits)
        assert first.logits.shape[-1] == 0
        for each in (first, signals):
            assert torch.equal(each.layers[tap], expected.layers[tap])


class Tied(nn.Module):
    """Two blocks share a layer, and two others a bias; a parameter of another data type is of no block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 4))
        self.last = nn.Sequential(self.first[1], nn.Linear(4, 4))
        self.last[1].bias = self.first[0].bias
        self.scale = nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.first(image.flatten(1))) * self.scale


def test_what_two_blocks_share_is_there_in_both() -> None:
    def made() -> Teacher:
        with SEEDED:
            torch.manual_seed(0)
            return Teacher(Tied())

    expected = made()(IMAGES).logits

    def work(_: int) -> Tensor:
        teacher = made()
        teacher.placement = SHARD
        teacher.place(CPU)
        return teacher(IMAGES).logits

    for found in on_ranks(work):
        assert torch.equal(found, expected)


def test_all_ranks_score_a_divided_teacher_on_all_samples(compose_train: Compose) -> None:
    """On shares of the training samples one rank would have a batch more, and wait for the other one forever."""
    data = build_data(compose_train("experiment=digits_demo", "data.train_size=70", "data.eval_batch_size=30"))

    def work(_: int) -> list[int]:
        return [len(list(teacher.batches(data, "train"))) for teacher in (placed(None), placed(SHARD))]

    def placed(placement: str | None) -> Teacher:
        teacher = cnn(placement)
        teacher.place(CPU)
        return teacher

    assert on_ranks(work) == [[2, 3], [1, 3]]


def test_a_tap_of_a_divided_parameter_is_refused() -> None:
    teacher = cnn(SHARD)
    with pytest.raises(UserError, match=r"^teachers\.teacher\.placement=shard: a loss reads the tap 'head:weight'"):
        teacher.tap(["stages.0", "head:weight"], IMAGES)
