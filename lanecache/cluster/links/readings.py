"""Up to which clock everything is known: what a fill may safely be above.

A fill has the order of what it was made from, so that it loses to everything newer. Of a key of
which nothing is known, that would be next to nothing, and every node that has forgotten something
later of another key could not tell the fill from what it has forgotten, and would not keep it
(``floors``). But the live members tell each other their clocks: whatever one of them writes from
then on is not below its reading. Where all that they had written before has been applied here too,
nothing below the least of the readings can be unknown, so a fill that begins now may be as high.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class _Promise(NamedTuple):
    origin: int
    seq: int
    clock: int


class Readings:
    """What the others have promised."""

    def __init__(self, digest: Mapping[int, int], patience_s: float) -> None:
        """Begin without a promise.

        Args:
            digest: for each origin, up to which entry everything was applied here; kept up to date.
            patience_s: for how long a member that has promised nothing yet is waited for. Who
                never does is one without a link to this node; it does not hold up the others.
        """
        self._digest = digest
        self._patience_s = patience_s
        self._seen_at: dict[int, float] = {}  # when a process without a promise was first looked at
        self._kept: dict[int, int] = {}  # process -> the clock that it is not below any more
        self._promises: dict[int, _Promise] = {}  # process -> the last one, not known to be kept

    def heard(self, process: int, origin: int, seq: int, clock: int) -> None:
        """Hear what a process promises."""
        self._check(process)
        self._promises[process] = _Promise(origin, seq, clock)

    def forget_others(self, live: Iterable[int]) -> None:
        """Forget all but these processes."""
        kept = set(live)
        known: dict[int, Any]
        for known in (self._promises, self._kept, self._seen_at):
            for process in known.keys() - kept:
                del known[process]

    def least(self, own: int, live: Iterable[int], now: float) -> int:
        """Give the clock below which nothing of the live members is unknown here; 0: none.

        Args:
            own: what this node's own clock shows.
            live: the other live members.
            now: in seconds.
        """
        least = own
        for process in live:
            self._check(process)
            kept = self._kept.get(process)
            if kept is not None:
                least = min(least, kept)
            elif now - self._seen_at.setdefault(process, now) < self._patience_s:
                return 0
        return least

    def counted(self) -> set[int]:
        """Give the processes whose promise is known to be kept."""
        for process in list(self._promises):
            self._check(process)
        return set(self._kept)

    def _check(self, process: int) -> None:
        promise = self._promises.get(process)
        if promise is None or self._digest.get(promise.origin, 0) < promise.seq:
            return
        self._kept[process] = max(promise.clock, self._kept.get(process, 0))
