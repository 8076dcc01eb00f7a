"""A machine's monotonic clock: with a beginning and a pace of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanecache.testing.simulation.world import World


class Clock:
    """Seconds since some instant that only this machine knows; they never go back."""

    def __init__(self, world: World, offset_s: float) -> None:
        self.rate = 1.0
        self._world = world
        self._offset_s = offset_s
        self._read_at = 0.0

    def read(self, at_least: float | None = None) -> float:
        """Read it; ``at_least`` is an instant that has come but for a float's rounding."""
        now = self._offset_s + self._world.now * self.rate
        self._read_at = max(self._read_at, now, at_least or now)
        return self._read_at

    def virtual(self, reading: float) -> float:
        """Say at which virtual time it reads that."""
        return (reading - self._offset_s) / self.rate

    def drift(self, rate: float) -> None:
        """Let it run at another rate from now on."""
        self._offset_s += self._world.now * (self.rate - rate)
        self.rate = rate
