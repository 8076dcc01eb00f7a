"""What the engine feeds, and the versions that it gives to what it feeds."""

from __future__ import annotations

import secrets
import time
from typing import Protocol

from lanecache.operation import Transaction, Version


class Outlet(Protocol):
    """Where transactions go: one per sink."""

    @property
    def full(self) -> bool:
        """Whether ``wait_room`` has to be awaited before more is offered."""
        ...

    def offer(self, transaction: Transaction) -> None:
        """Take the next transaction."""
        ...

    async def wait_room(self) -> None:
        """Wait until there is room."""
        ...


class Versions:
    """Gives out versions that rise in binlog order, above what a target has stored."""

    def __init__(self) -> None:
        self._origin = secrets.randbits(64)
        self._clock = 0

    def stay_above(self, version: Version) -> None:
        """Give out nothing at or below ``version``."""
        self._clock = max(self._clock, version.clock)

    def next(self) -> Version:
        """Give the next version: the wall clock in milliseconds, shifted, or one more than last."""
        clock, now = self._clock + 1, time.time_ns() // 1_000_000 << 16
        self._clock = clock = now if now > clock else clock
        return Version(clock, self._origin)
