"""Which logs there are: up to where each was applied, and those that are over.

A log ends with its process, and every start begins a new one, so the digest would grow for ever. An
origin from which nothing has come for ``origin_kept_s``, and whose process is not linked, is
*retired*: it leaves the digest, and is remembered aside, within a bound, so that what others still
tell of it is no gap. (The last of them are still told of: see ``Replica.applied``.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanecache.cluster.settings import Settings

RETIRED_MAX = 16_384


class Origins:
    """The digest, and beside it the retired origins."""

    def __init__(
        self,
        settings: Settings,
        digest: dict[int, int],
        own: int,
        retired: Callable[[int], None],
    ) -> None:
        """Begin with none that is retired.

        Args:
            settings: durations.
            digest: up to where each origin was applied: the replica's own table.
            own: this node's log, which is never retired.
            retired: told of each one that is.
        """
        self._settings = settings
        self._digest = digest
        self._own = own
        self._told = retired
        self._active_at: dict[int, float] = {}
        self.retired: OrderedDict[int, int] = OrderedDict()

    def have(self, origin: int) -> int:
        """Say up to where an origin was applied here."""
        seq = self._digest.get(origin)
        return self.retired.get(origin, 0) if seq is None else seq

    def revive(self, origin: int, now: float) -> None:
        """Hear that more of an origin has come."""
        self._active_at[origin] = now
        if origin in self.retired and origin not in self._digest:
            self._digest[origin] = self.retired.pop(origin)

    def sweep(self, now: float, linked: Iterable[int]) -> None:
        """Retire those that are silent for long, except those of linked processes."""
        kept = {self._own, *linked}
        limit = now - self._settings.origin_kept_s
        active_at = self._active_at
        for origin in list(self._digest):
            if active_at.setdefault(origin, now) <= limit and origin not in kept:
                self.retired[origin] = self._digest.pop(origin)
                del active_at[origin]
                self._told(origin)
        while len(self.retired) > RETIRED_MAX:
            self.retired.popitem(last=False)
