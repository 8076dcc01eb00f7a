"""Entries that arrive: applied in order, whole, and kept for others; or held until they can be.

What arrives is applied at once where it is the next one of its origin. Two kinds wait, within a
bound in bytes: entries that come while a state is taken, which lie beyond what was applied so far,
and those whose source's base has not been applied yet. Everything else that is not next is let go
of: it is asked for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster.replica.entry import decode_entry
from lanecache.cluster.replica.replica import Outcome
from lanecache.cluster.wire.data_messages import ORIGINS_MAX
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.links.origins import Origins
    from lanecache.cluster.links.repair import Repair
    from lanecache.cluster.links.ring import Ring
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.timers import Timers
    from lanecache.cluster.wire.data_messages import Entries

_OVERHEAD_BYTES = 160  # of one entry that waits, beside its bytes


class Arrivals:
    """Takes the entries of all links."""

    def __init__(
        self,
        *,
        held_bytes_max: int,
        replica: Replica,
        origins: Origins,
        ring: Ring,
        repair: Repair,
        timers: Timers,
        counters: Counters,
        applied: Callable[[int], None],
        refuse_clock: Callable[[Link | None, int, int], None],
    ) -> None:
        """Begin with nothing.

        Args:
            held_bytes_max: how much may wait.
            replica: applies.
            origins: up to where each was applied.
            ring: keeps what was applied for others.
            repair: is told what is lacking.
            timers: for the time.
            counters: shared with the node.
            applied: told of an origin of which more was applied.
            refuse_clock: told of an entry's origin and reading, which is too far ahead.
        """
        self._replica = replica
        self._origins = origins
        self._have = origins.have
        self._ring = ring
        self._repair = repair
        self._timers = timers
        self._counters = counters
        self._applied = applied
        self._refuse_clock = refuse_clock
        self._held_bytes_max = held_bytes_max
        self._held_bytes = 0
        self._held: dict[int, deque[tuple[int, bytes, float]]] = {}
        self.waiting: set[int] = set()
        """Origins whose next entry is here, but waits for another origin's."""
        self.holding = False
        """Whether what lies beyond a gap is held: a state is being taken."""

    def take(self, link: Link, said: Entries) -> None:
        """Take a message of entries.

        Raises:
            Refused: it is none that a node would send.
        """
        origin, first, payloads = said.origin, said.first, said.payloads
        count = len(payloads)
        if not count or len(said.ages_ms) != count:
            raise Refused(Refusal.GARBAGE, "entries that have not one age each")
        last = first + count - 1
        if origin not in link.digest and len(link.digest) >= ORIGINS_MAX:
            raise Refused(Refusal.OVERSIZED, f"entries of more than {ORIGINS_MAX} logs")
        link.has(origin, last)
        have = self._have(origin)
        if last <= have:
            self._counters.entries_duplicate += count
            self._repair.duplicate(link, origin)
            return
        now = self._timers.host_now
        if origin in self._held or first > have + 1:
            self._hold(origin, first, payloads, said.ages_ms, now)
            if origin not in self.waiting:
                self._repair.told(origin, last, self._timers.now)
            return
        self._repair.fed(link, origin)
        self._origins.revive(origin, self._timers.now)
        skip = have + 1 - first
        self._counters.entries_duplicate += skip
        receive, append = self._replica.receive, self._ring.append
        seq = have
        for at in range(skip, count):
            payload, age_ms = payloads[at], said.ages_ms[at]
            outcome = receive(origin, payload, age_ms, now)
            if outcome is not Outcome.APPLIED:
                break
            seq += 1
            append(origin, seq, payload, now - age_ms / 1000)
        if seq > have:
            self._counters.entries_received += seq - have
            self._applied(origin)
        if seq < last:
            at = seq + 1 - first
            self._not_applied(outcome, link, origin, payloads[at])
            if outcome is Outcome.WAITS:
                self._hold(origin, seq + 1, payloads[at:], said.ages_ms[at:], now)
        if seq > have and self.waiting:
            self.retry()

    def retry(self) -> None:
        """Apply what is held as far as it can be by now."""
        again = True
        while again:
            again = False
            for origin in list(self._held):
                again |= self._retry(origin)

    def drop(self) -> None:
        """Let go of all that is held."""
        self._held.clear()
        self._held_bytes = 0
        self.waiting.clear()

    def _retry(self, origin: int) -> bool:
        held = self._held[origin]
        now = self._timers.host_now
        have = seq = self._have(origin)
        was_waiting = origin in self.waiting
        self._origins.revive(origin, self._timers.now)
        self.waiting.discard(origin)
        while held and held[0][0] <= seq + 1:
            number, payload, born_at = held[0]
            if number == seq + 1:
                age_ms = max(0, int((now - born_at) * 1000))
                outcome = self._replica.receive(origin, payload, age_ms, now)
                if outcome is Outcome.WAITS:
                    self._wait(origin, payload)
                    break
                if outcome is not Outcome.APPLIED:
                    self._release(origin)
                    self._not_applied(outcome, None, origin, payload)
                    break
                seq += 1
                self._ring.append(origin, seq, payload, born_at)
            held.popleft()
            self._held_bytes -= len(payload) + _OVERHEAD_BYTES
        if not held or not (self.holding or origin in self.waiting):
            self._release(origin)
        if seq > have:
            self._counters.entries_received += seq - have
            self._applied(origin)
        return seq > have or (was_waiting and origin not in self.waiting)

    def _not_applied(
        self, outcome: Outcome, link: Link | None, origin: int, payload: bytes
    ) -> None:
        if outcome is Outcome.WAITS:
            self._wait(origin, payload)
        elif outcome is Outcome.REFUSED_CLOCK:
            self._refuse_clock(link, origin, decode_entry(payload).clock)
        elif link is not None:
            raise Refused(Refusal.GARBAGE, "an entry that none of lanecache's nodes makes")
        else:
            self._counters.refuse("entry_garbage")

    def _wait(self, origin: int, payload: bytes) -> None:
        self.waiting.add(origin)
        needs = self._replica.waits_for(origin)
        if needs is not None:
            self._repair.told(needs[0], needs[1], self._timers.now)

    def _hold(
        self, origin: int, first: int, payloads: list[bytes], ages_ms: list[int], now: float
    ) -> None:
        """Keep what may be applied later, if there is room, and nothing is left out before it."""
        if not (self.holding or origin in self.waiting):
            self._counters.entries_early += len(payloads)
            return
        held = self._held.setdefault(origin, deque())
        next_seq = held[-1][0] + 1 if held else first
        for seq, (payload, age_ms) in enumerate(zip(payloads, ages_ms, strict=True), first):
            size = len(payload) + _OVERHEAD_BYTES
            if seq != next_seq or self._held_bytes + size > self._held_bytes_max:
                if seq >= next_seq:
                    self._counters.entries_early += 1
                continue
            held.append((seq, payload, now - age_ms / 1000))
            self._held_bytes += size
            next_seq += 1

    def _release(self, origin: int) -> None:
        held = self._held.pop(origin, ())
        self._held_bytes -= sum(len(payload) + _OVERHEAD_BYTES for _, payload, _ in held)
