"""How long single calls take on one thread. Of the standard library alone: exports are timed by it without the rest."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from operator import truediv
from time import perf_counter, thread_time

WARM_UP = 10
# Of an undisturbed measurement. On a core with another process, forwards of less than a time slice differ, as some are
# interrupted, and of longer ones each thread has a part of the time.
MOST_SPREAD, LEAST_CPU_SHARE = 0.25, 0.9
FEWEST, LEAST = 5, 3  # forwards of a slow network: in all, and those that are measured


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


def timed(forward: Callable[[], object], repeats: int = 100, seconds: float = 10.0, on_cpu: bool = True) -> Latency:
    """Time `forward`, which computes on this thread, `repeats` times; fewer times if they take over `seconds`.

    Args:
        on_cpu: False: another device computes, and `forward` waits for it.
    """
    times: list[tuple[float, float]] = []
    while len(times) < WARM_UP + repeats and (len(times) < FEWEST or sum(wall for wall, _ in times) < seconds):
        own = thread_time()  # before the other clock: asking takes a fifth of the time of a very small network
        start = perf_counter()
        forward()
        wall = perf_counter() - start
        times.append((wall, min(wall, thread_time() - own)))
    walls, own_times = zip(*times[min(WARM_UP, len(times) - LEAST) :], strict=True)
    median = statistics.median(walls)
    low, _, high = statistics.quantiles(walls, n=4, method="inclusive")
    share = statistics.median(map(truediv, own_times, walls)) if on_cpu else None
    return Latency(1000 * median, 1000 * min(walls), (high - low) / median, share, len(walls))
