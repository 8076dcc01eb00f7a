"""The table of members: what is held of each, who is live, whose turn it is to be probed.

This node itself is not in it. All choices are made by the generator that was handed in, over lists
whose order depends on nothing but the calls that came before.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

from lanecache.address import Address
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.messages import Alive, MemberState

if TYPE_CHECKING:
    import random

    from lanecache.cluster.membership.suspicion import Suspicion
    from lanecache.cluster.timers import Timer

_DIGEST_MASK = 2**128 - 1
_AS_LEFT = 2**63  # in place of an incarnation: left is left, whatever it was


def fingerprint(process: int, incarnation: int) -> int:
    """Hash one live member; the sum of these, modulo 2**128, is that of a set of members."""
    data = process.to_bytes(8, "big") + incarnation.to_bytes(8, "big")
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "big")


class Entry:
    """What is held of one member. Only ``Members`` and ``Swim`` change it.

    ``incarnation`` may be ahead of ``alive.incarnation``: a suspicion can be heard of before the
    message that it suspects. The message is then still taken when it comes.
    """

    __slots__ = (
        "address",
        "alive",
        "changed_at",
        "encoded",
        "fingerprint",
        "incarnation",
        "place",
        "process",
        "state",
        "suspicion",
        "tcp_only",
        "timer",
        "udp_said",
    )

    def __init__(self, alive: Alive, state: MemberState, now: float) -> None:
        self.process = alive.process
        self.incarnation = alive.incarnation
        self.state = state
        self.changed_at = now  # lived seconds
        self.suspicion: Suspicion | None = None
        self.timer: Timer | None = None  # the suspicion's end
        self.place = -1  # in Members.live
        self.tcp_only = 0  # probes in a row that only TCP answered
        self.udp_said = False
        self.alive = alive
        self.address = Address(alive.host, alive.port)
        self.encoded = messages.encode(alive)
        self.fingerprint = fingerprint(alive.process, alive.incarnation)


class Members:
    """All members but this node, by process id."""

    def __init__(self, rng: random.Random) -> None:
        """Start empty."""
        self._random = rng
        self.entries: dict[int, Entry] = {}
        self.live: list[Entry] = []  # alive and suspect, in no order; Entry.place points into it
        self.gone: dict[int, Entry] = {}  # dead and left, the oldest known so first
        self._at: dict[Address, tuple[int, ...]] = {}  # live ones by address
        self._turns: list[int] = []  # this round of probes
        self._turn = 0
        self._digest = 0
        self._left = 0  # how many of those who are gone have left

    def __len__(self) -> int:
        """Count all, the dead included."""
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        """Go through all, in the order in which they were first heard of."""
        return iter(self.entries.values())

    def add(self, alive: Alive, state: MemberState, now: float) -> Entry:
        """Hold a member that is not held yet."""
        entry = self.entries[alive.process] = Entry(alive, state, now)
        if state <= MemberState.SUSPECT:
            self._enter(entry)
        else:
            self.gone[entry.process] = entry
            self._count_left(entry, 1)
        return entry

    def describe(self, entry: Entry, alive: Alive) -> None:
        """Take what a member says of itself in place of what it said before."""
        live = entry.place >= 0
        if live:
            self._leave_address(entry)
            self._digest -= entry.fingerprint
        entry.alive = alive
        entry.encoded = messages.encode(alive)
        entry.address = Address(alive.host, alive.port)
        entry.fingerprint = fingerprint(alive.process, alive.incarnation)
        if live:
            self._at[entry.address] = (*self._at.get(entry.address, ()), entry.process)
            self._digest += entry.fingerprint

    def change(self, entry: Entry, state: MemberState, now: float) -> None:
        """Give a member another state."""
        self._count_left(entry, -1)
        entry.state = state
        self._count_left(entry, 1)
        entry.changed_at = now
        if state <= MemberState.SUSPECT:
            if entry.place < 0:
                self.gone.pop(entry.process, None)
                self._enter(entry)
        elif entry.place >= 0:
            self._leave(entry)
            self.gone[entry.process] = entry

    def forget(self, entry: Entry) -> None:
        """Stop holding one that is dead or has left."""
        self._count_left(entry, -1)
        del self.entries[entry.process]
        del self.gone[entry.process]

    def at(self, address: Address) -> tuple[int, ...]:
        """List the live members that say they are at that address: one, unless they disagree."""
        return self._at.get(address, ())

    def digest(self, *more: int) -> tuple[int, bytes]:
        """Count and hash the live members and those who left, and the fingerprints ``more``.

        Whoever is suspect counts as alive here: suspicions pass by themselves. Whoever is dead
        does not count: those who know of the death are the same that knew of the life.
        """
        total = (self._digest + sum(more)) & _DIGEST_MASK
        return len(self.live) + self._left + len(more), total.to_bytes(16, "big")

    def next_turn(self) -> Entry | None:
        """Give the live member to probe next: each once per round, in a new order each round."""
        for _ in range(2):
            while self._turn < len(self._turns):
                entry = self.entries.get(self._turns[self._turn])
                self._turn += 1
                if entry is not None and entry.place >= 0:
                    return entry
            self._turns = [entry.process for entry in self.live]
            self._random.shuffle(self._turns)
            self._turn = 0
        return None

    def sample(self, count: int, among: list[Entry], without: int = 0) -> list[Entry]:
        """Choose up to ``count`` different ones at random, but not the process ``without``."""
        size = len(among)
        if size <= count + 1:
            chosen = [entry for entry in among if entry.process != without]
            self._random.shuffle(chosen)
            return chosen[:count]
        found: list[Entry] = []
        while len(found) < count:
            entry = among[int(self._random.random() * size)]
            if entry.process != without and entry not in found:
                found.append(entry)
        return found

    def _count_left(self, entry: Entry, sign: int) -> None:
        if entry.state is MemberState.LEFT:
            self._left += sign
            self._digest += sign * fingerprint(entry.process, _AS_LEFT)

    def _enter(self, entry: Entry) -> None:
        entry.place = len(self.live)
        self.live.append(entry)
        self._digest += entry.fingerprint
        self._at[entry.address] = (*self._at.get(entry.address, ()), entry.process)
        # Somewhere among those whose turn is still to come: at the end, one who joins a large
        # cluster would be probed late; without a turn in this round, later still.
        turns = self._turns
        turn = self._turn + int(self._random.random() * (len(turns) - self._turn + 1))
        if turn == len(turns):
            turns.append(entry.process)
        else:
            turns.append(turns[turn])
            turns[turn] = entry.process

    def _leave(self, entry: Entry) -> None:
        last = self.live.pop()
        if last is not entry:
            self.live[entry.place] = last
            last.place = entry.place
        entry.place = -1
        self._digest -= entry.fingerprint
        self._leave_address(entry)

    def _leave_address(self, entry: Entry) -> None:
        left = tuple(other for other in self._at[entry.address] if other != entry.process)
        if left:
            self._at[entry.address] = left
        else:
            del self._at[entry.address]
