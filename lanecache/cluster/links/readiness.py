"""Whether this node may be asked: it has joined, is linked, and has what the others had.

It becomes ready once; after that it is not ready only while it needs a state: what it lacks then
can be got no other way. A node without peers is ready at once, one whose peers are all silent after
``alone_after_s``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster import events

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lanecache.cluster.links.dialling import Dialling
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.links.transfer import Transfers
    from lanecache.cluster.membership.members import Entry, Members
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

_LOOKS = 4  # in the time after which a node that hears from nobody is alone


class Readiness:
    """Watches how far a node is, and says what it waits for."""

    def __init__(
        self,
        settings: Settings,
        *,
        seeds: Sequence[str],
        joined: Callable[[], bool],
        alone: Callable[[], bool],
        members: Members,
        links: dict[int, Link],
        clocks: dict[int, str],
        dialling: Dialling,
        transfers: Transfers,
        lacks: Callable[[Link], bool],
        have: Callable[[int], int],
        timers: Timers,
        emit: Callable[[events.Event], None],
        changed: Callable[[float], None],
    ) -> None:
        """Begin not ready.

        Args:
            settings: durations.
            seeds: for what to say.
            joined: whether the node knows its cluster.
            alone: whether it has nobody to join.
            members: all others.
            links: those that stand, by process.
            clocks: members whose clock and this node's do not agree, and what to say of it.
            dialling: knows what became of tries.
            transfers: knows whether a state is needed.
            lacks: whether a peer has what this node lacks.
            have: up to where an origin was applied.
            timers: on lived time.
            emit: takes what has happened.
            changed: called when the node becomes ready, or is not any more.
        """
        self._settings = settings
        self._seeds = seeds
        self._joined = joined
        self._alone = alone
        self._members = members
        self._links = links
        self._clocks = clocks
        self._dialling = dialling
        self._transfers = transfers
        self._lacks = lacks
        self._have = have
        self._timers = timers
        self._emit = emit
        self._changed = changed
        self._started_at: float | None = None
        self._alone_timer: Timer | None = None
        self._told = False
        self._linked_at: float | None = None
        self.fresh = True
        """Whether this node has nothing yet of what the others have."""
        self.was_ready = False

    @property
    def ready(self) -> bool:
        """Whether it is ready now."""
        return self.was_ready and not self._transfers.needed

    def start(self, now: float) -> None:
        """Begin to count the time in which somebody might answer."""
        self._started_at = now
        self._alone_timer = self._timers.set(now + self._settings.alone_after_s, self._look)
        self._look(now)

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._timers.cancel(self._alone_timer)

    def review(self, now: float) -> None:
        """Look again: something has changed."""
        if self._started_at is None or (self.was_ready and self.ready is self._told):
            return
        if not self.was_ready:
            self._leave_freshness(now)
            if self.not_ready_because():
                return
            self.was_ready = True
            self.fresh = False
        if self.ready is not self._told:
            self._told = self.ready
            because = self.not_ready_because()
            self._emit(events.FellBehind(because) if because else events.CaughtUp())
            self._changed(now)

    def not_ready_because(self) -> str:
        """Say what it waits for, in one sentence; nothing when it is ready."""
        if self.ready:
            return ""
        if self._started_at is None:
            return "it has not been started"
        taking = self._transfers.taking
        if taking is not None:
            return (
                f"it takes over the state of {self._name(taking.link.process)}:"
                f" {taking.bytes} bytes in {taking.chunks} parts have come"
            )
        if self._transfers.needed:
            return (
                "it lacks what no member can send as single entries any more, and waits for one"
                " that gives it a state"
            )
        waited_s = self._timers.now - self._started_at
        over = waited_s >= self._settings.alone_after_s
        if not self._links:
            return self._unlinked_because(over)
        obstacle = next(iter(self._obstacles(self._timers.now)), None)
        if obstacle is not None:
            return f"it has no link yet with {obstacle.address}"
        if self.fresh:
            return "it has not been given yet what the others hold"
        for link in self._links.values():
            lacking = sum(max(0, s - self._have(o)) for o, s in link.needed.items())
            if lacking:
                return f"it lacks {lacking} entries of what {self._name(link.process)} holds"
        return ""

    def _unlinked_because(self, over: bool) -> str:
        live = self._members.live
        if live:
            for entry in live:
                if entry.process in self._clocks:
                    return self._clocks[entry.process]
            attempt = self._dialling.tried(live[0].process)
            reason = attempt.reason if attempt is not None else ""
            return (
                f"it has no link yet with any of {len(live)} live members, such as"
                f" {live[0].address}{f': {reason}' if reason else ''}"
            )
        if over or self._alone():
            return ""
        if self._joined():
            return "it waits for members to be heard from"
        return f"it has reached none of {', '.join(self._seeds)} yet"

    def _obstacles(self, now: float) -> list[Entry]:
        """List the members to be waited for: there may be a link with them in a moment."""
        if not self._dialling.is_mesh:
            return []
        found = []
        for entry in self._members.live:
            if entry.process in self._links or entry.process in self._clocks:
                continue
            attempt = self._dialling.tried(entry.process)
            waits_s = 0.0 if attempt is None else now - attempt.first_at
            if waits_s < self._settings.alone_after_s and not (attempt and attempt.reason):
                found.append(entry)
        return found

    def _leave_freshness(self, now: float) -> None:
        """See whether there is anything to begin with, and whom to get it from."""
        if not self.fresh or self._transfers.needed or not self._links:
            return
        full = [link for link in self._links.values() if not link.fresh]
        if self._linked_at is None:
            self._linked_at = now
        # The first one that answers need not hold the most.
        late = now - self._linked_at >= self._settings.alone_after_s / _LOOKS
        if not self._obstacles(now) or (late and any(link.ready for link in full)):
            if any(self._lacks(link) for link in full):
                self._transfers.need(now)
            elif full or not self._obstacles(now):
                self.fresh = False
                self._changed(now)

    def _look(self, now: float) -> None:
        self.review(now)
        if not self.was_ready:
            pause_s = max(0.05, self._settings.alone_after_s / _LOOKS)
            self._timers.cancel(self._alone_timer)
            self._alone_timer = self._timers.set(now + pause_s, self._look)

    def _name(self, process: int) -> str:
        entry = self._members.entries.get(process)
        return str(entry.address) if entry is not None else f"{process:016x}"
