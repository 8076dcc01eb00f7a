"""The one timer of a node on an asyncio loop, set again after each step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# uvloop counts in milliseconds; a timer that is set to less would fire at once, again and again.
_DELAY_S_MIN = 0.001


class OneTimer:
    """Calls when it is due.

    Args:
        due_at: says when that is, on ``time.monotonic``; None: not at all.
        fire: called then.
    """

    def __init__(self, due_at: Callable[[], float | None], fire: Callable[[], None]) -> None:
        self._due_at = due_at
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None
        self._at = 0.0

    def arm(self) -> None:
        """See to it that it fires when it is due.

        A timer that is set to an earlier time is left: it looks again when it fires.
        """
        at = self._due_at()
        if at is None:
            self.disarm()
            return
        if self._handle is not None:
            if at >= self._at:
                return
            self._handle.cancel()
        self._at = at
        delay_s = max(_DELAY_S_MIN, at - time.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._look)

    def disarm(self) -> None:
        """Fire no more, until it is armed again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        self._handle = None
        at = self._due_at()
        if at is not None and time.monotonic() >= at:
            self._fire()
        else:
            self.arm()
