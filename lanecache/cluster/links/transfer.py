"""A whole state from one node to another: where entries alone cannot bring somebody up to date.

Who asks stages what comes and merges it in one step when it is whole; cut half way, it is dropped
whole, and somebody else is asked. Who gives sends at the pace at which the other one reads: so much
at a time, and nothing while much waits to be written. Giving and taking at once is fine: a state is
joined to what is held, so two nodes that take each other's end equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from lanecache.cluster import events
from lanecache.cluster.wire.data_messages import (
    StateChunk,
    StateEnd,
    StateRefused,
    StateRequest,
    encode_data,
)
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    import random

    from lanecache.cluster.counters import Counters
    from lanecache.cluster.links.link import Link
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.replica.state import Staged
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

GIVING_MAX = 4  # states that one node gives at a time
ROOM_BYTES = 1024 * 1024  # of a state that may wait to be written
STEP_BYTES = 512 * 1024  # of a state that is made at a time
_FULL = 0.9  # of the most that one of them holds
_AGAIN_S = 0.5  # until somebody is asked anew where nobody gives one


class Giving:
    """A state on its way to a peer."""

    __slots__ = ("chunks", "number")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks = chunks
        self.number = 0


class Taking:
    """A state on its way to this node."""

    __slots__ = ("bytes", "chunks", "link", "moved_at", "staged", "started_at")

    def __init__(self, link: Link, staged: Staged, now: float) -> None:
        self.link = link
        self.staged = staged
        self.chunks = 0
        self.bytes = 0
        self.started_at = now
        self.moved_at = now


class Transfers:
    """Gives states to those who ask, and takes one when this node needs it."""

    def __init__(
        self,
        settings: Settings,
        *,
        replica: Replica,
        links: dict[int, Link],
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        emit: Callable[[events.Event], None],
        lacks: Callable[[Link], bool],
        changed: Callable[[float], None],
        merged: Callable[[dict[int, int], float], None],
    ) -> None:
        """Begin with neither.

        Args:
            settings: durations.
            replica: what is given, and what it is merged into.
            links: those that stand, by process.
            rng: chooses who is asked.
            timers: on lived time.
            counters: shared with the node.
            emit: takes what has happened.
            lacks: whether a peer has what this node lacks.
            changed: called when a state is needed, or not any more.
            merged: called after a state was merged, with the digest before it.
        """
        self._settings = settings
        self._replica = replica
        self._links = links
        self._random = rng
        self._timers = timers
        self._counters = counters
        self._emit = emit
        self._lacks = lacks
        self._changed = changed
        self._merged = merged
        self._timer: Timer | None = None
        self.needed = False
        """Whether this node cannot be brought up to date without one."""
        self.taking: Taking | None = None

    # Taking.

    def need(self, now: float) -> None:
        """Ask somebody for a state, unless that is under way."""
        if self.needed:
            return
        self.needed = True
        self._changed(now)
        self._ask(now)

    def _ask(self, now: float) -> None:
        self._timer = None
        if not self.needed or self.taking is not None:
            return
        able = [link for link in self._links.values() if self._lacks(link)]
        if not able:
            self.needed = False
            self._changed(now)
            return
        recently = now - self._settings.transfer_timeout_s
        rested = [link for link in able if link.state_asked_at < recently]
        whole = [link for link in rested if link.ready]
        among = whole or rested
        if not among:
            soonest = min(link.state_asked_at for link in able)
            wait_s = max(_AGAIN_S, soonest + self._settings.transfer_timeout_s - now)
            self._timer = self._timers.set(now + min(wait_s, 4 * _AGAIN_S), self._forget_asked)
            return
        # One with a small store can give no more than it holds.
        least = _FULL * max(link.held for link in among)
        among = [link for link in among if link.held >= least]
        link = among[int(self._random.random() * len(among))]
        link.state_asked_at = now
        staged = self._replica.begin_state(self._timers.host_now)
        self.taking = Taking(link, staged, now)
        link.streams.send(link.stream, encode_data(StateRequest()))
        link.streams.flush(link.stream)
        self._watch(now)

    def _forget_asked(self, now: float) -> None:
        for link in self._links.values():
            link.state_asked_at = float("-inf")
        self._ask(now)

    def _watch(self, now: float) -> None:
        taking = self.taking
        if taking is None:
            return
        end_at = taking.moved_at + self._settings.transfer_timeout_s
        if end_at <= now:
            self._cut(now, "nothing more came in time")
        else:
            self._timers.cancel(self._timer)
            self._timer = self._timers.set(end_at, self._watch)

    def take_chunk(self, link: Link, said: StateChunk, now: float) -> None:
        """Stage a part of a state.

        Raises:
            Refused: it is none, or not the next one.
        """
        taking = self.taking
        if taking is None or taking.link is not link:
            self._counters.state_chunks_late += 1  # of one that was given up
            return
        if said.number != taking.chunks + 1:
            raise Refused(Refusal.GARBAGE, f"part {said.number} of a state in place of the next")
        taking.chunks += 1
        taking.bytes += len(said.data)
        taking.moved_at = now
        try:
            taking.staged.take(said.data)
        except ValueError as error:
            raise Refused(Refusal.GARBAGE, "a part of a state that is none") from error

    def take_end(self, link: Link, said: StateEnd, now: float) -> None:
        """Merge the state: it is whole.

        Raises:
            Refused: it is not.
        """
        taking = self.taking
        if taking is None or taking.link is not link:
            return
        if said.chunks != taking.chunks:
            raise Refused(Refusal.TRUNCATED, f"a state of {taking.chunks} of {said.chunks} parts")
        before = dict(self._replica.digest)
        try:
            self._replica.merge(taking.staged, self._timers.host_now)
        except ValueError as error:
            raise Refused(Refusal.TRUNCATED, "a state in which something is missing") from error
        self._end()
        self.needed = False
        _forget_retired(link, taking.staged.digest)
        self._counters.states_taken += 1
        self._counters.states_taken_bytes += taking.bytes
        self._emit(events.StateTaken(link.process, taking.bytes, now - taking.started_at))
        self._merged(before, now)

    def refused(self, link: Link, now: float) -> None:
        """Hear that a peer does not give its state now."""
        if self.taking is not None and self.taking.link is link:
            self._end()
            self._ask(now)

    def lost(self, link: Link, now: float) -> None:
        """Hear that a link is over: what was on its way is dropped whole."""
        link.giving = None
        if self.taking is not None and self.taking.link is link:
            self._cut(now, "the link was lost")

    def stop(self) -> None:
        """Take nothing any more."""
        self._end()
        self.needed = False

    def _cut(self, now: float, reason: str) -> None:
        taking = self.taking
        assert taking is not None
        self._end()
        self._counters.states_cut += 1
        self._emit(events.StateCut(taking.link.process, reason))
        self._ask(now)

    def _end(self) -> None:
        self.taking = None
        self._timers.cancel(self._timer)
        self._timer = None

    # Giving.

    def asked(self, link: Link) -> None:
        """Begin to give a state to a peer."""
        giving = sum(other.giving is not None for other in self._links.values())
        if link.giving is not None or giving >= GIVING_MAX:
            self._counters.states_refused += 1
            link.streams.send(link.stream, encode_data(StateRefused()))
            return
        link.giving = Giving(self._replica.snapshot(self._timers.host_now))

    def give(self, link: Link, room_bytes: int) -> None:
        """Send the next part of the state that a peer asked for."""
        giving = link.giving
        assert giving is not None
        sent = 0
        while sent < room_bytes:
            data = next(giving.chunks, None)
            if data is None:
                link.giving = None
                link.streams.send(link.stream, encode_data(StateEnd(giving.number)))
                self._counters.states_given += 1
                self._emit(events.StateGiven(link.process))
                return
            giving.number += 1
            message = encode_data(StateChunk(giving.number, data))
            link.streams.send(link.stream, message)
            sent += len(message)


def _forget_retired(link: Link, digest: Mapping[int, int]) -> None:
    """Forget of a peer what neither its ring nor its state has: it has retired these origins."""
    for origin in [origin for origin in link.gone if origin not in digest]:
        link.digest.pop(origin, None)
        link.needed.pop(origin, None)
        del link.gone[origin]
