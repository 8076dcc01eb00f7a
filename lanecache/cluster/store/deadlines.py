"""Which keys expire when, so that a sweep looks only at what has expired."""

from __future__ import annotations

import heapq
import math

_STALE_MIN = 64  # so few left-over ticks are not worth a rebuild


class Deadlines:
    """Keys by the second in which they expire. Every change takes O(1) but for a new second.

    A key that is written again is taken out of its old second at once: a key that is rewritten a
    thousand times with a TTL of an hour stands here once.
    """

    __slots__ = ("_keys", "_ticks")

    def __init__(self) -> None:
        """Begin with none."""
        # By second: its only key, or several. (A dict as a set that keeps its order, so that the
        # same run gives the same sweep.) Where the TTL is long, most seconds have one, and a dict
        # for each would take more memory than the items.
        self._keys: dict[int, str | dict[str, None]] = {}
        self._ticks: list[int] = []  # a heap: all of _keys', and some whose keys are gone

    def add(self, key: str, deadline: float) -> None:
        """Take up a key that is not here."""
        tick = math.floor(deadline)
        keys = self._keys.get(tick)
        if keys is None:
            self._keys[tick] = key
            heapq.heappush(self._ticks, tick)
            if len(self._ticks) > 2 * len(self._keys) + _STALE_MIN:
                self._ticks = sorted(self._keys)
        elif isinstance(keys, str):
            self._keys[tick] = {keys: None, key: None}
        else:
            keys[key] = None

    def drop(self, key: str, deadline: float) -> None:
        """Let go of a key that was added with this deadline."""
        tick = math.floor(deadline)
        keys = self._keys[tick]
        if not isinstance(keys, str):
            del keys[key]
            if keys:
                return
        del self._keys[tick]

    def take(self, now: float) -> str | None:
        """Take out a key whose second is over; None when there is none."""
        ticks = self._ticks
        while ticks and ticks[0] + 1 <= now:
            keys = self._keys.get(ticks[0])
            if isinstance(keys, dict):
                key, _ = keys.popitem()
                if not keys:
                    del self._keys[heapq.heappop(ticks)]
                return key
            tick = heapq.heappop(ticks)
            if keys is not None:
                del self._keys[tick]
                return keys
        return None

    def next_at(self) -> float | None:
        """Give the instant before which ``take`` has nothing to give; None: no key is here."""
        ticks = self._ticks
        while ticks and ticks[0] not in self._keys:
            heapq.heappop(ticks)
        return float(ticks[0] + 1) if ticks else None
