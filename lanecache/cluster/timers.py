"""What is due when, of one node: a heap of callbacks on lived time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

# A deadline goes to the shell as host time and comes back as lived time: the two roundings may
# leave it this much short, and a timer that is not due then would be asked for again at once.
_ROUNDING_S = 1e-6


class Timer:
    """One callback to come; cancel it through ``Timers.cancel``."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[float], Any]) -> None:
        self.at = at
        self.callback: Callable[[float], Any] | None = callback


class Timers:
    """Callbacks in order of their time; those of the same time in the order they were set."""

    __slots__ = ("_heap", "_set", "host_now", "now")

    def __init__(self) -> None:
        """Start with nothing due."""
        self.now = 0.0  # lived seconds: set by the node with every call from outside
        self.host_now = 0.0  # the host's clock, as it was handed in with the call
        self._heap: list[tuple[float, int, Timer]] = []
        self._set = 0

    def set(self, at: float, callback: Callable[[float], Any]) -> Timer:
        """Have ``callback(now)`` called at ``at``."""
        timer = Timer(at, callback)
        self._set += 1
        heapq.heappush(self._heap, (at, self._set, timer))
        return timer

    @staticmethod
    def cancel(timer: Timer | None) -> None:
        """Take a timer back; None, one that has run or one that is cancelled already is fine."""
        if timer is not None:
            timer.callback = None

    def next_at(self) -> float | None:
        """Say when the next one is due, or None."""
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run(self, now: float) -> None:
        """Call what is due; what a callback sets for now or earlier waits for the next call."""
        heap = self._heap
        newest = self._set
        later: list[tuple[float, int, Timer]] = []
        while heap and heap[0][0] <= now + _ROUNDING_S:
            item = heapq.heappop(heap)
            callback = item[2].callback
            if callback is None:
                continue
            if item[1] > newest:
                later.append(item)
                continue
            item[2].callback = None
            callback(now)
        for item in later:
            heapq.heappush(heap, item)

    def clear(self) -> None:
        """Forget everything."""
        self._heap.clear()
