"""Parameters and FLOPs against counting by hand; latency leaves everything as it was."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from distillery.core import latency
from distillery.models.cost import count_embedding_parameters, count_flops, count_parameters, measure_latency


class Noting(nn.Module):
    """Notes under which conditions it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool, int, int]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append((self.training, torch.is_grad_enabled(), torch.get_num_threads(), len(image)))
        return image


def test_parameters_count_once_and_also_when_frozen() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 8))
    net[3].weight = net[2].weight
    net.requires_grad_(False)
    assert count_parameters(net) == (3 * 8 * 9 + 8) + 2 * 8 + (8 * 8 + 8) + 8


def test_a_shared_embedding_counts_once_and_a_linear_layer_never() -> None:
    net = nn.Sequential(nn.Embedding(50, 8), nn.Embedding(50, 8), nn.Embedding(4, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight
    assert count_embedding_parameters(net) == 50 * 8 + 4 * 8


def test_flops_are_two_for_each_multiply_accumulate_of_one_sample() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(200, 7)
    )
    conv = 8 * 5 * 5 * (4 // 2) * 9  # output positions × MACs of each
    linear = 200 * 7
    assert count_flops(net, partial(net, torch.rand(1, 4, 10, 10))) == 2 * (conv + linear)


def test_attention_counts_although_it_runs_fused() -> None:
    length, width, hidden = 10, 32, 64
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True)
    projections = length * (4 * width * width + 2 * width * hidden)
    attention = 2 * length * length * width  # scores, and the weighted sum of the values
    fast_path = torch.backends.mha.get_fastpath_enabled()
    assert count_flops(layer, partial(layer, torch.rand(1, length, width))) == 2 * (projections + attention)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_recurrent_layers_count_for_each_token() -> None:
    length, width, hidden = 7, 16, 32
    layer = nn.LSTM(width, hidden, num_layers=2, bidirectional=True, batch_first=True)
    first, second = 4 * hidden * (width + hidden), 4 * hidden * (2 * hidden + hidden)  # four gates: of input and state
    assert count_flops(layer, partial(layer, torch.rand(1, length, width))) == 2 * length * 2 * (first + second)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled


def clock(monkeypatch: pytest.MonkeyPatch, walls: Sequence[float], own: Sequence[float] | None = None) -> None:
    """Forwards take so many seconds, and the thread computes for so many of them: for all, if that is not given."""
    for name, durations in (("perf_counter", walls), ("thread_time", walls if own is None else own)):
        ticks = [tick for i, duration in enumerate(durations) for tick in (1000.0 * i, 1000.0 * i + duration)]
        monkeypatch.setattr(latency, name, partial(next, iter(ticks)))


def test_latency_is_the_median_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch, [50.0] * latency.WARM_UP + [1.0, 2.0, 3.0, 100.0, 2.5])
    found = measure_latency(nn.Identity(), lambda: None, repeats=5, seconds=1000)
    assert (found.median, found.minimum, found.repeats) == (2500, 1000, 5)
    assert found.spread == pytest.approx((3.0 - 2.0) / 2.5)
    clock(monkeypatch, [9.0, 4.0, 3.0, 2.0, 3.0])  # of a slow network, which has been measured for ten seconds then
    assert measure_latency(nn.Identity(), lambda: None).median == pytest.approx(3000)


def test_clocks_take_no_part_in_the_share_of_a_very_small_network() -> None:
    net = nn.Identity()
    shares = [measure_latency(net, partial(net, torch.ones(1))).cpu_share for _ in range(3)]
    assert max(share for share in shares if share is not None) > latency.LEAST_CPU_SHARE


WARM = [1.0] * latency.WARM_UP


@pytest.mark.parametrize(
    ("walls", "own", "busy"),
    [
        ([1.0, 1.01, 1.02, 1.0, 1.1], [1.0] * 5, False),
        ([1.0, 1.0, 1.0, 1.0, 60.0], [1.0] * 5, False),  # one of five was interrupted: the median was not
        ([16.0, 15.0, 15.5, 16.0, 15.0], [1.0] * 5, True),  # alike slow, as a thread that has a part of a core is
        ([1.0, 1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 2.0, 2.0, 3.0], True),  # others slow the memory or the clock down
    ],
)
def test_a_busy_machine_shows(
    walls: list[float], own: list[float], busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, WARM + walls, WARM + own)
    found = measure_latency(nn.Linear(1, 1), lambda: None, repeats=5, seconds=1000)
    assert found.busy is busy, found


def test_latency_is_measured_on_one_thread_in_evaluation_mode_and_leaves_no_trace() -> None:
    noting, frozen = Noting(), nn.BatchNorm2d(3)
    net = nn.Sequential(noting, frozen).train()
    frozen.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        milliseconds = measure_latency(net, partial(net, torch.rand(1, 3, 4, 4))).median
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert milliseconds > 0
    assert len(noting.calls) >= 100
    assert set(noting.calls) == {(False, False, 1, 1)}
    assert net.training
    assert noting.training
    assert not frozen.training
    assert torch.equal(frozen.running_mean, torch.zeros(3))


def test_threads_come_back_when_the_network_fails() -> None:
    net = nn.Linear(3, 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError):
            measure_latency(net, partial(net, torch.rand(1, 5)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_clock_waits_for_the_device() -> None:
    size = 4096
    net = nn.Linear(size, size).cuda()
    example = torch.rand(1, size, size, device="cuda")
    assert measure_latency(net, partial(net, example), repeats=20).median > 0.05  # a launch alone takes about 0.01 ms
