"""What a network costs: parameters, FLOPs, latency."""

import statistics
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from operator import truediv
from time import perf_counter, thread_time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillery.models.evaluation_mode import evaluating

WARM_UP = 10
# Of an undisturbed measurement. On a core with another process, forwards of less than a time slice differ, as some are
# interrupted, and of longer ones each thread has a part of the time.
MOST_SPREAD, LEAST_CPU_SHARE = 0.25, 0.9
FEWEST, LEAST = 5, 3  # forwards of a slow network: in all, and those that are measured


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, trainable or not; shared ones count once."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_embedding_parameters(net: nn.Module) -> int:
    """Number of parameters of lookup tables (words, positions, types), which no multiplication goes through."""
    tables = (module.weight for module in net.modules() if isinstance(module, nn.Embedding))
    return sum(table.numel() for table in dict.fromkeys(tables))


def count_flops(net: nn.Module, forward: Callable[[], object]) -> int:
    """FLOPs of one `forward` of `net`: 2 × MACs.

    Convolutions, matrix products, attention and recurrent layers count; biases, normalisation and element-wise
    operations do not, as in the tables of the literature (many of which give MACs, half of this, under the name FLOPs).
    """
    counter = FlopCounterMode(display=False)
    with evaluating(net), _plain_kernels(), counter:
        forward()
    return counter.get_total_flops()


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Disables kernels that the counter takes as 0: nn.MultiheadAttention's fast path, fused attention, whole LSTMs."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    off = {"enabled": False, "deterministic": None, "allow_tf32": None, "fp32_precision": None}  # None: unchanged
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(**off), torch.backends.cudnn.flags(**off):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@dataclass(frozen=True)
class Latency:
    """Times of single forwards on one thread.

    Attributes:
        median, minimum: in milliseconds.
        spread: the interquartile range ÷ the median.
        cpu_share: the median share of a forward's time in which the thread computed; None where another device does.
        repeats: how many were measured.
    """

    median: float
    minimum: float
    spread: float
    cpu_share: float | None
    repeats: int

    @property
    def busy(self) -> bool:
        """Whether something else took the machine's time, so that the median says little of the network."""
        return self.spread > MOST_SPREAD or (self.cpu_share is not None and self.cpu_share < LEAST_CPU_SHARE)


def measure_latency(
    net: nn.Module, forward: Callable[[], object], repeats: int = 100, seconds: float = 10.0
) -> Latency:
    """Time `forward` of `net`, `repeats` times on one thread; fewer times if they take over `seconds`.

    Runs on the device of `net`; on a GPU it waits until the device has finished.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluating(net):
            devices = {parameter.device for parameter in net.parameters()}
            times: list[tuple[float, float]] = []
            while len(times) < WARM_UP + repeats and (len(times) < FEWEST or sum(t for t, _ in times) < seconds):
                times.append(_seconds(forward, devices))
    finally:
        torch.set_num_threads(threads)
    walls, own = zip(*times[min(WARM_UP, len(times) - LEAST) :], strict=True)
    median = statistics.median(walls)
    low, _, high = statistics.quantiles(walls, n=4, method="inclusive")
    on_cpu = all(device.type == "cpu" for device in devices)
    share = statistics.median(map(truediv, own, walls)) if on_cpu else None
    return Latency(1000 * median, 1000 * min(walls), (high - low) / median, share, len(walls))


def _seconds(forward: Callable[[], object], devices: Set[torch.device]) -> tuple[float, float]:
    """How long a forward took, and how long of it this thread computed."""
    own = thread_time()  # before the other clock: asking takes a fifth of the time of a very small network
    start = perf_counter()
    forward()
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    wall = perf_counter() - start
    return wall, min(wall, thread_time() - own)
