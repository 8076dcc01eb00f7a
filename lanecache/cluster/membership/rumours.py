"""What is heard of members, and what this node makes of it (SWIM, section 4.2).

``swim`` says which rules hold. Nothing here sends: news worth telling goes into the queue, and
``wake`` says that there is some.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from lanecache.address import Address
from lanecache.cluster import events
from lanecache.cluster.events import Event, Member
from lanecache.cluster.membership.awareness import Awareness
from lanecache.cluster.membership.dissemination import Dissemination
from lanecache.cluster.membership.members import Entry, Members, fingerprint
from lanecache.cluster.membership.suspicion import Suspicion
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.messages import (
    INCARNATION_MAX,
    Alive,
    Dead,
    Left,
    MemberRecord,
    MemberState,
    Suspect,
)

if TYPE_CHECKING:
    import random

    from lanecache.cluster.counters import Counters
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timers

_ALIVE, _SUSPECT, _DEAD, _LEFT = MemberState
_REPLACED_MAX = 1024  # predecessors at this node's address that are remembered


def member_of(alive: Alive, state: MemberState, incarnation: int, *, is_self: bool) -> Member:
    """Make what the host sees of a member."""
    return Member(
        process=alive.process,
        address=Address(alive.host, alive.port),
        state=state,
        incarnation=incarnation,
        metadata_bytes=alive.metadata,
        keys=alive.keys,
        versions=(alive.version_min, alive.version_max),
        is_self=is_self,
    )


class Rumours:
    """Holds the members and changes them by what is heard, this node's own defence included."""

    def __init__(
        self,
        settings: Settings,
        own: Alive,
        *,
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        emit: Callable[[Event], None],
        wake: Callable[[], None],
    ) -> None:
        """Begin with nobody but this node.

        Args:
            settings: durations and bounds.
            own: what this node says of itself.
            rng: all choices.
            timers: on lived time.
            counters: shared with the node.
            emit: takes what has happened.
            wake: called when there is something to tell.
        """
        self._settings = settings
        self._timers = timers
        self._counters = counters
        self._emit = emit
        self._wake = wake
        self.members = Members(rng)
        self.queue = Dissemination()
        self.awareness = Awareness(settings.awareness_max)
        self.recently_dead: list[Entry] = []
        self.process = own.process
        self.leaving = False
        self._full_said = False
        self._replaced: dict[int, None] = {}
        self.own = own
        self.own_encoded = messages.encode(own)
        self._own_fingerprint = fingerprint(own.process, own.incarnation)

    # This node itself.

    def describe_own(self, own: Alive) -> None:
        """Say something new of this node: with a greater incarnation, to everybody."""
        self.own = own
        self.own_encoded = messages.encode(own)
        self._own_fingerprint = fingerprint(own.process, own.incarnation)
        self.tell(self.process, self.own_encoded)

    def raise_own(self, above: int, **changes: object) -> None:
        """Take an incarnation above ``above`` and the present one, changing what is given.

        Not while leaving: nothing may take the place of that news.
        """
        if self.leaving:
            return
        incarnation = max(above, self.own.incarnation) + 1
        self.describe_own(msgspec.structs.replace(self.own, incarnation=incarnation, **changes))

    def accused(self, incarnation: int, by: int) -> None:
        """Refute that this node is suspect or dead, unless that is refuted already."""
        if incarnation < self.own.incarnation or self.leaving or incarnation >= INCARNATION_MAX:
            return
        self.awareness.apply(1)
        self._counters.refutations += 1
        self.raise_own(incarnation)
        self._emit(events.Refuted(self.own.incarnation, by))

    def digest(self) -> tuple[int, bytes]:
        """Count and hash the live members and this node."""
        return self.members.digest(self._own_fingerprint)

    def tell(self, process: int, message: bytes) -> None:
        """Pass news of a member on; there is none when nobody is there to be told."""
        if self.members.live or self.recently_dead:
            self.queue.put(process, message)
            self._wake()

    # What is heard of others.

    def hear_alive(self, alive: Alive, now: float, *, spread: bool = True) -> None:
        """Take what a process says of itself, whoever passes it on."""
        if alive.process == self.process:
            # Nobody else raises it; whoever has seen a greater one is to see a greater one yet.
            if alive.incarnation > self.own.incarnation and alive.incarnation < INCARNATION_MAX:
                self.raise_own(alive.incarnation)
            return
        entry = self.members.entries.get(alive.process)
        if entry is None:
            if not self._room(now):
                return
            entry = self.members.add(alive, _ALIVE, now)
            self._emit(events.MemberJoined(self.member(entry)))
        else:
            if entry.state is _LEFT or alive.incarnation <= entry.alive.incarnation:
                return
            before = entry.alive
            self.members.describe(entry, alive)
            if alive.incarnation > entry.incarnation:
                entry.incarnation = alive.incarnation
                self._revive(entry, now)
            if entry.place >= 0 and not _same(before, alive):
                self._emit(events.MemberUpdated(self.member(entry)))
        if spread:
            self.tell(alive.process, entry.encoded)
        if (
            entry.place >= 0
            and entry.address.port == self.own.port
            and entry.address.host == self.own.host
        ):
            self._replace(entry, now)

    def hear_suspect(
        self, process: int, incarnation: int, by: int | None, now: float, *, spread: bool = True
    ) -> None:
        """Take that ``by`` suspects a member; None is hearsay, which confirms nothing."""
        entry = self.members.entries.get(process)
        if entry is None or entry.place < 0 or incarnation < entry.incarnation:
            return
        suspicion = entry.suspicion
        if suspicion is not None and incarnation == entry.incarnation:
            if by is None or not suspicion.confirm(by):
                return
            self._await(entry, suspicion)
        else:
            entry.incarnation = incarnation
            self._suspect(entry, by, now)
        if spread:
            # Hearsay goes on as such: nobody may be held to have noticed what nobody has.
            said_by = process if by is None else by
            self.tell(process, messages.encode(Suspect(process, incarnation, said_by)))

    def hear_dead(self, process: int, incarnation: int, by: int, now: float) -> None:
        """Take that a member is dead."""
        entry = self.members.entries.get(process)
        if entry is None or incarnation < entry.incarnation or entry.state is _LEFT:
            return
        if entry.state is _DEAD:
            # The greater incarnation counts as heard, or a stale message could revive it.
            entry.incarnation = incarnation
            return
        entry.incarnation = incarnation
        self._go(entry, _DEAD, now)
        self._counters.deaths += 1
        self._emit(events.MemberFailed(self.member(entry)))
        self.recently_dead.append(entry)
        self.tell(process, messages.encode(Dead(process, incarnation, by)))

    def hear_left(self, process: int, incarnation: int, now: float, *, spread: bool = True) -> None:
        """Take that a member has left, which is final whatever the incarnation."""
        entry = self.members.entries.get(process)
        if entry is None or entry.state is _LEFT:
            return
        entry.incarnation = max(entry.incarnation, incarnation)
        self._go(entry, _LEFT, now)
        self._emit(events.MemberLeft(self.member(entry)))
        if spread:
            self.tell(process, messages.encode(Left(process, incarnation)))

    def hear_record(self, record: MemberRecord, peer: int, now: float, *, spread: bool) -> None:
        """Take what another node holds of a member (push/pull).

        That it holds it suspect or dead is hearsay: the member is asked to refute it.
        """
        alive, state = record.alive, record.state
        process, incarnation = alive.process, alive.incarnation
        if process == self.process:
            if state is _ALIVE:
                self.hear_alive(alive, now)
            elif state is not _LEFT:
                self.accused(incarnation, peer)
            return
        entry = self.members.entries.get(process)
        if entry is None and state >= _DEAD:
            self._remember(record, now)
            return
        if entry is None or incarnation > entry.alive.incarnation:
            if entry is not None and entry.state is _DEAD and state is _DEAD:
                self.members.describe(entry, alive)
                entry.incarnation = max(entry.incarnation, incarnation)
                return
            self.hear_alive(alive, now, spread=spread)
        if state is _LEFT:
            self.hear_left(process, incarnation, now, spread=spread)
        elif state is not _ALIVE:
            self.hear_suspect(process, incarnation, None, now, spread=spread)
            entry = self.members.entries.get(process)
            if state is _DEAD and entry is not None and incarnation >= entry.incarnation:
                suspicion = entry.suspicion
                if suspicion is not None and suspicion.shorten(now):
                    self._await(entry, suspicion)

    def replaced(self, process: int, by: int, now: float) -> None:
        """Take that another process answers at a member's address: so that member is no more."""
        entry = self.members.entries.get(process)
        if entry is not None and entry.place >= 0 and by != process:
            self.hear_dead(process, entry.incarnation, self.process, now)

    def member(self, entry: Entry) -> Member:
        """Make what the host sees of a member."""
        return member_of(entry.alive, entry.state, entry.incarnation, is_self=False)

    def reap(self, now: float) -> None:
        """Forget those who are gone for longer than they are kept."""
        kept_s = self._settings.dead_kept_s
        for entry in [e for e in self.members.gone.values() if e.changed_at + kept_s <= now]:
            self.members.forget(entry)

    def _room(self, now: float) -> bool:
        """Make room for one more member, at the cost of one who is gone; or refuse it."""
        if len(self.members) < self._settings.members_max:
            return True
        if self.members.gone:
            oldest = min(self.members.gone.values(), key=lambda entry: entry.changed_at)
            self.members.forget(oldest)
            return True
        self._counters.members_refused += 1
        if not self._full_said:
            self._full_said = True
            self._emit(events.MembersFull(self._settings.members_max))
        return False

    def _remember(self, record: MemberRecord, now: float) -> None:
        """Hold one of whom nothing was known but that it is gone; it may be found again."""
        gone_at = now - record.gone_s
        is_old = record.gone_s >= self._settings.dead_kept_s
        if is_old or len(self.members) >= self._settings.members_max:
            return
        self.members.add(record.alive, record.state, gone_at)
        self._wake()

    def _replace(self, entry: Entry, now: float) -> None:
        """Deal with another process that says that it has this node's address.

        It is this node's predecessor, which others take for alive. If it lives and refutes, two
        processes advertise one address: that is said once, and left to who answers there.
        """
        if entry.process not in self._replaced:
            if len(self._replaced) >= _REPLACED_MAX:
                del self._replaced[next(iter(self._replaced))]
            self._replaced[entry.process] = None
            self.hear_dead(entry.process, entry.incarnation, self.process, now)
        else:
            processes = (self.process, entry.process)
            self._emit(events.AddressContested(entry.address, processes))

    def _suspect(self, entry: Entry, by: int | None, now: float) -> None:
        settings = self._settings
        count = len(self.members.live) + 1
        wanted = settings.suspicion_multiplier - 2
        if count - 2 < wanted:
            wanted = 0  # there is nobody who could confirm it
        was_alive = entry.state is _ALIVE
        entry.suspicion = Suspicion(
            by,
            wanted=wanted,
            min_s=settings.suspicion_min_s(count),
            max_s=settings.suspicion_max_s(count),
            now=now,
        )
        self._await(entry, entry.suspicion)
        if was_alive:
            self.members.change(entry, _SUSPECT, now)
            self._counters.suspicions += 1
            self._emit(events.MemberSuspected(self.member(entry)))

    def _await(self, entry: Entry, suspicion: Suspicion) -> None:
        self._timers.cancel(entry.timer)
        entry.timer = self._timers.set(suspicion.ends_at, partial(self._run_out, entry))

    def _run_out(self, entry: Entry, now: float) -> None:
        self.hear_dead(entry.process, entry.incarnation, self.process, now)

    def _revive(self, entry: Entry, now: float) -> None:
        """Have a member alive, whatever it was."""
        before = entry.state
        if before is _ALIVE:
            return
        self._settle(entry)
        self.members.change(entry, _ALIVE, now)
        if before is _SUSPECT:
            self._counters.suspicions_refuted += 1
            self._emit(events.MemberRecovered(self.member(entry)))
        else:
            if entry in self.recently_dead:
                self.recently_dead.remove(entry)
            self._emit(events.MemberJoined(self.member(entry)))

    def _go(self, entry: Entry, state: MemberState, now: float) -> None:
        self._settle(entry)
        if state is _LEFT and entry in self.recently_dead:
            self.recently_dead.remove(entry)
        self.members.change(entry, state, now)

    def _settle(self, entry: Entry) -> None:
        self._timers.cancel(entry.timer)
        entry.timer = None
        entry.suspicion = None


def _same(one: Alive, other: Alive) -> bool:
    """Tell whether two messages differ in their incarnation only."""
    return one == msgspec.structs.replace(other, incarnation=one.incarnation)
