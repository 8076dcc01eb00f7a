"""The fills as a part of a node: what they know of its data, its members and its links."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lanecache.cluster.fill.fill_answers import Leased
from lanecache.cluster.fill.fills import Fills
from lanecache.cluster.links.readings import Readings
from lanecache.cluster.replica.entry import Clear, InvalidateTag
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.wire.fill_messages import Outcome, Reading, decode_run

if TYPE_CHECKING:
    from lanecache.cluster.fill.fill_answers import Answer
    from lanecache.cluster.membership.members import Members
    from lanecache.cluster.replica.entry import Operation
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.timers import Timer, Timers

READINGS_S = 1.0  # how often the others are asked for their clocks, while there are fills
# How long a fill waits for them when what it makes could not be held as things are.
_PATIENCE_S = 0.25


class NodeFills(Fills):
    """The fills of one node."""

    def __init__(
        self,
        settings: Settings,
        process: int,
        replica: Replica,
        members: Members,
        timers: Timers,
        *,
        send: Callable[[int, bytes], object],
    ) -> None:
        """Begin with nothing to fill.

        Args:
            settings: bounds.
            process: this node's.
            replica: what is held; its ``touched`` is to be ``self.touched``.
            members: all others.
            timers: on lived time.
            send: sends a message to a process, if there is a link with it.
        """
        self._replica = replica
        self._members = members
        self._review: Timer | None = None
        self._live_known: dict[int, None] | None = None  # in order
        self._readings = Readings(replica.digest, settings.stream_timeout_s)
        self._asked_at = float("-inf")
        self._parked: dict[str, tuple[Leased, Timer]] = {}  # fills that wait for the clocks
        super().__init__(
            process,
            self,
            timers,
            answer_s=settings.fill_answer_s,
            leases_max=settings.leases_max,
            live=self._live_processes,
            transmit=send,
        )

    # What is held: ``Holdings``.

    def held(self, key: str) -> Item | None:
        """Give what is held, expired or not, but nothing that was invalidated; counts nothing."""
        return self._replica.store.held(key)

    def found(self, key: str) -> Item | None:
        """Give what answers a question for the key: what is fresh, or a known absence."""
        store = self._replica.store
        item = store.peek(key)
        if item is None:
            item = store.held(key)
            if item is not None and item.value is not ABSENT:
                return None
        return item

    def order_of(self, key: str, tags: Sequence[str] = ()) -> Order:
        """Give the greatest order that is known of a key, or of anything with one of the tags.

        What was only forgotten (``floors``) does not count: that may be of other keys.
        """
        replica = self._replica
        held = replica.store.find(key)
        order = replica.tombstones.over_key(key) if held is None else held.order
        if tags or (held is not None and held.tags):
            known = replica.tombstones.tags
            order = max(order, known.of(tags), known.of(held.tags if held is not None else ()))
            if tags:
                order = max(order, known.floor)
        return order

    def base_of(self, key: str, tags: Sequence[str] = ()) -> Order:
        """Give the order that a fill of the key which starts now is based on.

        It is what is known of the key, or what nothing unknown can be below, see ``readings``.
        """
        replica = self._replica
        known = replica.store.find(key) or replica.tombstones.keys.records.get(key)
        base = self.order_of(key, tags)
        if known is not None and known.stamp is not None and known.stamp.source:
            # Made from what a source has brought, it has to go with that (``sources``).
            return base
        return max(base, (self._least_clock(), 0))

    def floor_of(self, key: str) -> Order:
        """Give the order that something has to be above to be held, if the key is not."""
        return self._replica.registers.floors.of(key)

    def is_outdated(self, key: str, order: Order, tags: tuple[str, ...]) -> bool:
        """Say whether this node knows of something that makes that write of the key void."""
        return self.order_of(key) > order or self._replica.tombstones.tags.of(tags) > order

    # What happens.

    def touched(self, operations: Sequence[Operation] | None) -> None:
        """Hear what a step of the replica was made of; None: of a whole state."""
        if self.is_idle:
            return
        keys, prefixes = ([], [""]) if operations is None else _touched_by(operations)
        self.wrote(keys, prefixes, self._timers.now)

    def receive_fill(self, process: int, message: bytes, now: float) -> None:
        """Take a message that a process has sent: part of ``links.FillTaker``.

        Raises:
            ValueError: it is none.
        """
        if self._review is not None:
            # Who has become an owner by that has to know of this process's leases when it is asked.
            self._timers.cancel(self._review)
            self._look_at_members(now)
        self.receive(process, decode_run(message), now)

    def linked(self, process: int, now: float) -> None:
        """Hear that there is a link with a process: part of ``links.FillTaker``."""
        self._send(process, self._reading(answer=False))
        self.found_link(process, now)

    def unlinked(self, process: int, now: float) -> None:
        """Hear that the link with a process is over: part of ``links.FillTaker``."""
        self.lost(process, now)

    def membership_changed(self) -> None:
        """Hear that a member has come or gone; looked at with the next turn of the timer."""
        self._live_known = None
        if self._review is None:
            self._review = self._timers.set(self._timers.now, self._look_at_members)

    def stop(self) -> None:
        """Do nothing any more."""
        self._timers.cancel(self._review)

    def _look_at_members(self, now: float) -> None:
        self._review = None
        self._readings.forget_others(self._others())
        self.members_changed(now)

    def _live_processes(self) -> Collection[int]:
        live = self._live_known
        if live is None:
            live = dict.fromkeys(entry.process for entry in self._members.live)
            live[self._process] = None
            self._live_known = live
        return live.keys()

    def _others(self) -> list[int]:
        return [process for process in self._live_processes() if process != self._process]

    # Clocks.

    def want(
        self,
        keys: Iterable[str],
        lease_s: float,
        now: float,
        *,
        beyond: Order = (),
        refresh: bool = False,
    ) -> None:
        """Begin to want keys, see ``Wants.want``; what waits for the clocks is decided."""
        rest = [key for key in keys if key not in self._parked]
        super().want(rest, lease_s, now, beyond=beyond, refresh=refresh)

    def withdraw(self, key: str) -> None:
        """Stop wanting a key."""
        parked = self._parked.pop(key, None)
        if parked is None:
            super().withdraw(key)
            return
        leased, timer = parked
        self._timers.cancel(timer)
        self.finish(leased.lease, Outcome.GONE, self._timers.now)

    def _answer(self, answer: Answer) -> None:
        """Hand on what has come of a want; a fill that could not be held waits for the clocks."""
        if isinstance(answer, Leased) and not self._is_above_floors(answer):
            now = self._timers.now
            timer = self._timers.set(now + _PATIENCE_S, partial(self._release, answer.key))
            self._parked[answer.key] = answer, timer
            self._ask_clocks(now)
        else:
            super()._answer(answer)

    def _is_above_floors(self, leased: Leased) -> bool:
        key = leased.key
        if self._replica.store.find(key) is not None:
            return True
        return self.base_of(key) >= max(self.floor_of(key), leased.lease.floor)

    def _release(self, key: str, now: float) -> None:
        leased, timer = self._parked.pop(key)
        self._timers.cancel(timer)
        super()._answer(leased)

    def counted(self) -> set[int]:
        """Give the live members of whose clocks there is a promise."""
        return self._readings.counted() & set(self._others())

    def _least_clock(self) -> int:
        own = self._replica.clock.reading(self._timers.host_now)
        return self._readings.least(own, self._others(), self._timers.now)

    def _begun(self, now: float) -> None:
        """Ask for the others' clocks, now that somebody fills."""
        if now - self._asked_at >= READINGS_S:
            self._ask_clocks(now)

    def _ask_clocks(self, now: float) -> None:
        self._asked_at = now
        reading = self._reading(answer=True)
        for process in self._others():
            self._send(process, reading)

    def _take_reading(self, sender: int, reading: Reading) -> None:
        self._readings.heard(sender, reading.origin, reading.seq, reading.clock)
        for key, (leased, _) in list(self._parked.items()):
            if self._is_above_floors(leased):
                self._release(key, self._timers.now)
        if reading.answer:
            self._send(sender, self._reading(answer=False))

    def _reading(self, *, answer: bool) -> Reading:
        replica = self._replica
        clock = replica.clock.reading(self._timers.host_now)
        return Reading(replica.origin, replica.digest[replica.origin], clock, answer)


def _touched_by(operations: Sequence[Operation]) -> tuple[list[str], list[str]]:
    keys: list[str] = []
    prefixes: list[str] = []
    for operation in operations:
        if isinstance(operation, Clear):
            prefixes.append(operation.prefix)
        elif isinstance(operation, InvalidateTag):
            prefixes.append("")
        else:
            keys.append(operation.key)
    return keys, prefixes
