"""When to look again at what did not fit: soon at first, then ever more seldom. No clock here."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

import msgspec

DELAY_MIN_S: Final = 1.0
DELAY_MAX_S: Final = 300.0


class _Look(msgspec.Struct):
    at: float
    delay_s: float


class Looks:
    """The times at which things were looked at that do not fit, each with its own back-off.

    Args:
        clock: seconds that never go back; without one, nothing is ever due.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._looks: dict[Hashable, _Look] = {}

    def looked(self, what: Hashable) -> None:
        """Take note that it was looked at just now; the next look is due later than the last."""
        if self._clock is None:
            return
        known = self._looks.get(what)
        delay_s = DELAY_MIN_S if known is None else min(2 * known.delay_s, DELAY_MAX_S)
        self._looks[what] = _Look(self._clock(), delay_s)

    def due(self, what: Hashable) -> bool:
        """Tell whether it is time to look again."""
        if self._clock is None:
            return False
        look = self._looks.get(what)
        return look is None or self._clock() - look.at >= look.delay_s

    def forget(self, what: Hashable) -> None:
        """It fits now, or is another by now: begin anew when it is looked at next."""
        self._looks.pop(what, None)
