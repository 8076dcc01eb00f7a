"""Letting go of what nobody needs any more: expired values, tombstones, logs that are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.cluster.wire.messages import MemberState

if TYPE_CHECKING:
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.links.origins import Origins
    from lanecache.cluster.links.source_watch import SourceWatch
    from lanecache.cluster.membership.members import Members
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

SWEEP_S = 1.0


class Sweeping:
    """Sweeps the replica, once a second."""

    def __init__(
        self,
        settings: Settings,
        *,
        replica: Replica,
        members: Members,
        links: dict[int, Link],
        origins: Origins,
        watch: SourceWatch,
        timers: Timers,
    ) -> None:
        """Begin without a timer.

        Args:
            settings: durations.
            replica: is swept.
            members: all others.
            links: those that stand, by process.
            origins: up to where each was applied.
            watch: looks at the ages of the sources.
            timers: on lived time.
        """
        self._settings = settings
        self._replica = replica
        self._members = members
        self._links = links
        self._origins = origins
        self._watch = watch
        self._timers = timers
        self._timer: Timer | None = None

    def start(self, now: float) -> None:
        """Begin."""
        self._timer = self._timers.set(now + SWEEP_S, self._sweep)

    def stop(self) -> None:
        """End."""
        self._timers.cancel(self._timer)

    def _sweep(self, now: float) -> None:
        self._timer = self._timers.set(now + SWEEP_S, self._sweep)
        self._origins.sweep(now, (link.origin for link in self._links.values()))
        host_now = self._timers.host_now
        self._watch.look(host_now)
        next_at = host_now + SWEEP_S
        is_calm = len(self._replica.tombstones) > 0 and self.is_calm(now)
        self._replica.sweep(host_now, self.is_stable, is_calm, next_at=next_at)

    def is_stable(self, origin: int, seq: int) -> bool:
        """Say whether every live member is known to have applied an origin up to that entry."""
        links = self._links
        for entry in self._members.live:
            link = links.get(entry.process)
            if link is None or (link.origin != origin and link.digest.get(origin, 0) < seq):
                return False
        return self._origins.have(origin) >= seq

    def is_calm(self, now: float) -> bool:
        """Say whether nobody is suspect, nor has been dead for less than the grace."""
        if any(entry.state is MemberState.SUSPECT for entry in self._members.live):
            return False
        since = now - self._settings.tombstone_grace_s
        for entry in reversed(self._members.gone.values()):
            if entry.changed_at < since:
                break
            if entry.state is MemberState.DEAD:
                return False
        return True
