"""Says once when what is held of a source has become older than it may be, and when it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster import events

if TYPE_CHECKING:
    from lanecache.cluster.replica.source_ages import SourceAges


class SourceWatch:
    """Looks at the ages of the sources, as often as it is told to.

    Args:
        ages: of all sources.
        age_max_s: how old they may be; 0: as old as they like.
        emit: takes what has happened.
    """

    def __init__(
        self, ages: SourceAges, age_max_s: float, emit: Callable[[events.Event], None]
    ) -> None:
        self._ages = ages
        self._age_max_s = age_max_s
        self._emit = emit
        self._stale: set[str] = set()

    def look(self, now: float) -> None:
        """Look; ``now`` is by the host's monotonic clock."""
        stale = dict(self._ages.stale(self._age_max_s, now))
        for name in sorted(self._stale - stale.keys()):
            self._emit(events.SourceFresh(name))
        for name, reason in stale.items():
            if name not in self._stale:
                self._emit(events.SourceStale(name, reason))
        self._stale = set(stale)
