"""What a network costs: parameters, FLOPs, latency."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillery.core.latency import Latency, timed
from distillery.models.evaluation_mode import evaluating


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


def measure_latency(
    net: nn.Module, forward: Callable[[], object], repeats: int = 100, seconds: float = 10.0
) -> Latency:
    """Time `forward` of `net` on one thread, see `timed`.

    Runs on the device of `net`; on a GPU it waits until the device has finished.
    """
    devices = {parameter.device for parameter in net.parameters()}

    def finished() -> None:
        forward()
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with evaluating(net):
            return timed(finished, repeats, seconds, on_cpu=all(device.type == "cpu" for device in devices))
    finally:
        torch.set_num_threads(threads)
