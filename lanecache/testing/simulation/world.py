"""Virtual time: one heap of what is to happen, one seed that decides everything, and a trace.

Nothing here or above asks a real clock or a shared random generator. Generators are derived from
the seed by name (`World.random`), so that what one part draws does not shift what another gets: a
fault schedule stays the same when the network draws once more.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

TRACE_KEPT = 50_000  # the last events, from which a failure's story is told

# When, which host, what, and whatever tells more (spelled only when somebody reads it).
TraceEntry: TypeAlias = tuple[float, str, str, tuple[Any, ...]]


class World:
    """Time, what is to happen, and what has happened."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now = 0.0
        self.steps = 0
        self.trace: deque[TraceEntry] = deque(maxlen=TRACE_KEPT)
        self.on_trace: Callable[[TraceEntry], None] | None = None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._pushed = 0

    def random(self, name: str) -> random.Random:
        """Derive a generator of its own for ``name``."""
        return random.Random(f"{self.seed}/{name}")

    def at(self, when: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let ``call`` happen at the virtual time ``when``, after what was asked for earlier."""
        self._pushed += 1
        heapq.heappush(self._heap, (max(when, self.now), self._pushed, call, arguments))

    def after(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        """Let ``call`` happen in ``delay_s`` seconds of virtual time."""
        self._pushed += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._pushed, call, arguments))

    def run(self, until: float) -> None:
        """Let everything happen up to the virtual time ``until``, and stop there."""
        heap = self._heap
        pop = heapq.heappop
        while heap and heap[0][0] <= until:
            self.now, _, call, arguments = pop(heap)
            self.steps += 1
            call(*arguments)
        self.now = max(self.now, until)

    def step(self, until: float) -> bool:
        """Let the next thing happen, if it is due up to the virtual time ``until``."""
        if not self._heap or self._heap[0][0] > until:
            self.now = max(self.now, until) if until < math.inf else self.now
            return False
        self.now, _, call, arguments = heapq.heappop(self._heap)
        self.steps += 1
        call(*arguments)
        return True

    def record(self, host: str, what: str, *more: Any) -> None:
        """Add to the trace. ``more`` is spelled later and must not change."""
        entry = (self.now, host, what, more)
        self.trace.append(entry)
        if self.on_trace is not None:
            self.on_trace(entry)

    def history(self, hosts: frozenset[str], count: int) -> Iterator[TraceEntry]:
        """Give the last ``count`` events in which one of ``hosts`` had a part."""
        found: list[TraceEntry] = []
        for entry in reversed(self.trace):
            if entry[1] in hosts or any(part in hosts for part in entry[3] if type(part) is str):
                found.append(entry)
                if len(found) == count:
                    break
        return reversed(found)
