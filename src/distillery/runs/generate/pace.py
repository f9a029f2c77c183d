"""Limits of requests and tokens a minute."""

import threading
import time
from collections.abc import Callable


class Pace:
    """Holds requests back so that they keep to a server's limits: a token bucket for each of them.

    A bucket holds what a minute allows, and fills evenly. A request takes its tokens beforehand, as an estimate, and
    the difference when it is known.

    Args:
        requests, tokens: a minute; None: no limit.
        sleep, clock: those of the time that passes.
    """

    def __init__(
        self,
        requests: float | None,
        tokens: float | None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = [None if rate is None else rate / 60 for rate in (requests, tokens)]
        self._held = [rate or 0.0 for rate in (requests, tokens)]
        self._sleep, self._clock, self._filled = sleep, clock, clock()
        self._lock = threading.Lock()

    def wait(self, tokens: float) -> None:
        """Wait until a request of so many tokens may be sent. One of more than a minute allows waits for a minute's."""
        with self._lock:
            self._fill()
            needed = zip(self._rates, self._held, (1.0, tokens), strict=True)
            seconds = max(0.0 if rate is None else (min(take, 60 * rate) - held) / rate for rate, held, take in needed)
            if seconds > 0:
                self._sleep(seconds)
                self._fill()
            self._held = [held - take for held, take in zip(self._held, (1.0, tokens), strict=True)]

    def correct(self, estimated: float, tokens: float) -> None:
        """A request has had so many tokens."""
        with self._lock:
            self._held[1] += estimated - tokens

    def _fill(self) -> None:
        now = self._clock()
        passed, self._filled = now - self._filled, now
        for place, rate in enumerate(self._rates):
            if rate is not None:
                self._held[place] = min(60 * rate, self._held[place] + passed * rate)
