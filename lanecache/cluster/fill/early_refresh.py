"""When to make a value again before it expires, so that nobody has to wait for it.

XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, PVLDB 8,
2015): each reader throws a die, whose throws come the earlier the longer the value takes to make.
"""

from __future__ import annotations

import math

QUIET_MAX = 4096


def is_due(now: float, deadline: float, took_s: float, beta: float, throw: float) -> bool:
    """Say whether a reader begins to refresh a value now.

    Args:
        now: in seconds.
        deadline: when the value expires.
        took_s: how long it took to make (δ).
        beta: above 1: earlier; below 1: later; 0: not before the deadline.
        throw: random, from 0 (never reached) to 1.
    """
    return now - took_s * beta * math.log(throw) >= deadline


class Quiet:
    """Keys that are not to be refreshed for a while, since another node does, or it has failed."""

    def __init__(self) -> None:
        """Begin with none."""
        self._until: dict[str, float] = {}

    def hush(self, key: str, until: float, now: float) -> None:
        """Leave a key alone until then."""
        if len(self._until) >= QUIET_MAX:
            self._until = {key: at for key, at in self._until.items() if at > now}
            if len(self._until) >= QUIET_MAX:
                self._until.clear()  # to ask once more does no harm
        self._until[key] = until

    def __call__(self, key: str, now: float) -> bool:
        """Say whether a key is to be left alone."""
        return self._until.get(key, now) > now
