"""Lived time: the host's clock less what this process did not live through.

A call that comes more than ``stall_s`` after it was due shows that the process was stopped or its
loop blocked. Nothing may run out for what could not be heard meanwhile, so lived time goes on from
when the call was due, and what is due then gets ``stall_s`` more: the answers are still in the
sockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanecache.cluster.timers import Timers


class LivedTime:
    """Sets the time of a node's timers with each call from outside."""

    def __init__(self, timers: Timers, stall_s: float) -> None:
        """Begin with nothing missed."""
        self._timers = timers
        self._stall_s = stall_s
        self._missed_s = 0.0

    def start(self, now: float) -> None:
        """Begin at the host's time."""
        self._timers.now = self._timers.host_now = now

    def enter(self, now: float) -> tuple[float, float]:
        """Take the host's time; give lived time, and by how much the call is late, or 0."""
        timers = self._timers
        timers.host_now = now
        lived = now - self._missed_s
        late_s = 0.0
        due_at = timers.next_at()
        if due_at is not None and lived - due_at > self._stall_s:
            late_s = lived - due_at
            lived = max(timers.now, due_at - self._stall_s)
            self._missed_s = now - lived
        elif lived < timers.now:
            lived = timers.now
        timers.now = lived
        return lived, late_s

    def host_time(self, at: float | None) -> float | None:
        """Say when that is by the host's clock."""
        return None if at is None else at + self._missed_s
