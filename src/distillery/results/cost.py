"""What a network costs: parameters, FLOPs, latency."""

import statistics
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillery.tapped import evaluating

WARM_UP = 10


def count_parameters(net: nn.Module) -> int:
    """Number of parameters, trainable or not; one that is shared counts once."""
    return sum(parameter.numel() for parameter in net.parameters())


def count_flops(net: nn.Module, example: Tensor) -> int:
    """FLOPs of one forward of the first sample of `example` [B,C,H,W]: 2 × MACs.

    Convolutions, matrix products and attention count; biases, normalisation and element-wise operations do
    not, as in the tables of the literature (many of which give MACs, half of this, under the name FLOPs).
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # the counter takes the CPU's fused attention and nn.MultiheadAttention's fast path for 0: neither is used
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        with evaluating(net), sdpa_kernel(SDPBackend.MATH), counter:
            net(example[:1])
        return counter.get_total_flops()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def measure_latency(net: nn.Module, example: Tensor, repeats: int = 100) -> float:
    """Median milliseconds of `repeats` forwards of the first sample of `example` [B,C,H,W], on one thread.

    Runs where `example` and `net` are: on a GPU the time runs until the device has finished.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluating(net):
            sample = example[:1]
            times = [_seconds(net, sample) for _ in range(WARM_UP + repeats)]
        return 1000 * statistics.median(times[WARM_UP:])
    finally:
        torch.set_num_threads(threads)


def _seconds(net: nn.Module, sample: Tensor) -> float:
    start = perf_counter()
    net(sample)
    if sample.is_cuda:
        torch.cuda.synchronize(sample.device)
    return perf_counter() - start
