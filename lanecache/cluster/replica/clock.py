"""A hybrid logical clock: by it the writes of all nodes are ordered (Kulkarni et al., 2014).

A reading is milliseconds since 1970 shifted left by 16 bits, plus a counter. Physical time is the
wall clock as it was read once, at the start, plus what a monotonic clock has counted since: a wall
clock that is set back or forth while the process runs changes nothing. ``tick`` gives a reading
above all that were given or observed, so a write is later than everything its node had seen when it
was made. A reading far ahead of this node's time is not observed, or one wrong clock would push all
others ahead of theirs for good.

The monotonic clock of a host that was suspended may not have counted that time, and all others
would seem too far ahead for ever. ``catch_up`` moves the physical time then, as far as both the
wall clock, read again, and another node say. It never goes back.
"""

from __future__ import annotations

from collections.abc import Callable

COUNTER_BITS = 16
CLOCK_MAX = 2**63 - 1


class HybridClock:
    """The clock of one node.

    Attributes:
        last: the greatest reading given or observed.
    """

    __slots__ = ("_ahead_max", "_offset_ms", "_wall", "last")

    def __init__(self, wall: Callable[[], float], now: float, drift_max_s: float) -> None:
        """Set the clock.

        Args:
            wall: reads the wall clock: seconds since 1970.
            now: the monotonic clock, in seconds; every later ``now`` is by the same clock.
            drift_max_s: by how much a reading may be ahead of this node's time.
        """
        self._wall = wall
        self._offset_ms = (wall() - now) * 1000
        self._ahead_max = int(drift_max_s * 1000) << COUNTER_BITS
        self.last = 0

    def physical(self, now: float) -> int:
        """Give this node's time as a reading, whatever was observed."""
        return int(now * 1000 + self._offset_ms) << COUNTER_BITS

    def tick(self, now: float) -> int:
        """Give a reading above all that were given or observed."""
        reading = int(now * 1000 + self._offset_ms) << COUNTER_BITS
        if reading <= self.last:
            reading = self.last + 1
        self.last = reading
        return reading

    def reading(self, now: float) -> int:
        """Give what the clock shows, to tell others; changes nothing."""
        return max(self.last, self.physical(now))

    def observe(self, reading: int, now: float) -> bool:
        """Move up to another node's reading; false, and nothing changes, if it is too far ahead."""
        if reading > self.last:
            if reading - self._ahead_max > self.physical(now):
                return False
            self.last = reading
        return True

    def ahead_s(self, reading: int, now: float) -> float:
        """Say by how much a reading is ahead of this node's time, in seconds; negative: behind."""
        return ((reading >> COUNTER_BITS) - (self.physical(now) >> COUNTER_BITS)) / 1000

    def catch_up(self, ahead_s: float, now: float) -> None:
        """Move the physical time up by so much, or as far as the wall clock goes now."""
        told_ms = self._offset_ms + ahead_s * 1000
        self._offset_ms = max(self._offset_ms, min(told_ms, (self._wall() - now) * 1000))


def wall_s_of(reading: int) -> float:
    """Give a reading as seconds since 1970, as its node's clock had it."""
    return (reading >> COUNTER_BITS) / 1000
