"""Fills of several nodes in memory on virtual time, over data that is only as much as they need."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

from lanecache.cluster.fill.fill_answers import (
    Answer,
    Answered,
    Arrived,
    Elsewhere,
    Held,
    Leased,
    Refused,
)
from lanecache.cluster.fill.fills import Fills
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.item import Item, Order
from lanecache.cluster.timers import Timers
from lanecache.cluster.wire.fill_messages import Outcome, decode_run

ANSWER_S = 0.5
LEASE_S = 10.0


class Place:
    """One node: its fills, and what it holds."""

    def __init__(self, world: FillWorld, process: int) -> None:
        self.world = world
        self.process = process
        self.up = True
        self.timers = Timers()
        self.items: dict[str, Item] = {}
        self.removed: dict[str, Order] = {}
        self.cleared: list[tuple[str, Order]] = []
        self.forgotten: set[str] = set()  # keys that it cannot hold
        self.live: list[int] = []
        self.answers: dict[str, list[Answer]] = {}
        self.fills = Fills(
            process,
            self,
            self.timers,
            answer_s=ANSWER_S,
            leases_max=world.leases_max,
            live=lambda: self.live,
            transmit=lambda other, data: world.transmit(process, other, data),
        )

    # As the fills see what is held.

    def base_of(self, key: str) -> Order:
        known = [order for prefix, order in self.cleared if key.startswith(prefix)]
        if key in self.items:
            known.append(self.items[key].order)
        return max([*known, self.removed.get(key, ())])

    order_of = base_of

    def floor_of(self, key: str) -> Order:
        return ()

    def found(self, key: str) -> Item | None:
        item = self.items.get(key)
        if item is None or self.is_outdated(key, item.order, ()):
            return None
        return item

    def is_outdated(self, key: str, order: Order, tags: tuple[str, ...]) -> bool:
        newest = [o for prefix, o in self.cleared if key.startswith(prefix)]
        return max([self.removed.get(key, ()), *newest]) > order

    # What happens to it.

    def call(self, what: Callable[..., None], *arguments: Any, **named: Any) -> None:
        if self.up:
            what(*arguments, now=self.world.now, **named)
            self._take()

    def _take(self) -> None:
        for answer in self.fills.answers():
            self.answers.setdefault(answer.key, []).append(answer)
            for told in list(self.world.told):
                told(self, answer)
        self.world.arm(self)

    def run_timers(self) -> None:
        if self.up:
            self.timers.now = self.world.now
            self.timers.run(self.world.now)
            self.fills.settle(self.world.now)
            self._take()

    def want(self, key: str, lease_s: float = LEASE_S, **named: Any) -> None:
        self.call(lambda now, **more: self.fills.want([key], lease_s, now, **more), **named)

    def finish(self, lease: Held, outcome: Outcome, **named: Any) -> None:
        self.call(lambda now: self.fills.finish(lease, outcome, now, **named))

    def last(self, key: str) -> Answer | None:
        return self.answers.get(key, [None])[-1]

    def lease(self, key: str) -> Held:
        answer = self.last(key)
        assert isinstance(answer, Leased), answer
        return answer.lease

    def settled(self, key: str) -> bool:
        return isinstance(self.last(key), Arrived | Answered | Refused | Leased | Elsewhere)

    # Writes, which reach the others after a while.

    def set(self, key: str, value: Any) -> Order:
        return self._write(key, lambda order: Item(value, order))

    def remove(self, key: str) -> Order:
        return self._write(key, lambda order: order)

    def clear(self, prefix: str) -> None:
        order = self.world.order(self)
        for place in self.world.places:
            self.world.send_data(self, place, place.apply_clear, prefix, order)

    def fill(self, lease: Held, value: Any, base: Order) -> bool:
        """Store what was made, as a node does; false when it was overtaken."""
        if self.base_of(lease.key) > base:
            return False
        order = (*(base or (0, 0))[:2], lease.fence, self.process)
        for place in self.world.places:
            self.world.send_data(self, place, place.apply, lease.key, Item(value, order))
        return True

    def _write(self, key: str, make: Callable[[Order], Any]) -> Order:
        order = self.world.order(self)
        for place in self.world.places:
            self.world.send_data(self, place, place.apply, key, make(order))
        return order

    def apply(self, key: str, what: Item | Order) -> None:
        if isinstance(what, Item):
            if what.order > self.base_of(key) and key not in self.forgotten:
                self.items[key] = what
        elif what > self.base_of(key):
            self.items.pop(key, None)
            self.removed[key] = what
        self.call(lambda now: self.fills.wrote([key], [], now))

    def apply_clear(self, prefix: str, order: Order) -> None:
        self.cleared.append((prefix, order))
        gone = [k for k, i in self.items.items() if k.startswith(prefix) and i.order < order]
        for key in gone:
            del self.items[key]
        self.call(lambda now: self.fills.wrote(gone, [prefix], now))


class FillWorld:
    """The nodes, their links and their clock."""

    def __init__(self, count: int, *, seed: int = 1, leases_max: int = 1000) -> None:
        self.now = 100.0
        self.random = random.Random(seed)
        self.leases_max = leases_max
        self.delay: Callable[[int, int], float] = lambda one, other: 0.001
        self.data_delay_s = 0.001
        self.lost: Callable[[int, int], bool] = lambda one, other: False
        self.cut: set[tuple[int, int]] = set()  # no link between these
        self.told: list[Callable[[Place, Answer], None]] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._clock = itertools.count(1)
        self.places = [Place(self, self.random.getrandbits(62) + 1) for _ in range(count)]
        for place in self.places:
            place.live = sorted(each.process for each in self.places)

    def __getitem__(self, index: int) -> Place:
        return self.places[index]

    def place(self, process: int) -> Place:
        return next(each for each in self.places if each.process == process)

    def order(self, place: Place) -> Order:
        return (next(self._clock), place.process)

    def linked(self, process: int) -> set[int]:
        return {
            each.process
            for each in self.places
            if each.process != process and frozenset((process, each.process)) not in self._cuts
        }

    @property
    def _cuts(self) -> set[frozenset[int]]:
        return {frozenset(pair) for pair in self.cut}

    def transmit(self, one: int, other: int, data: bytes) -> None:
        if not self.lost(one, other) and other in self.linked(one):
            run = decode_run(data)
            target = self.place(other)
            self.at(
                self.now + self.delay(one, other),
                lambda: target.call(lambda now: target.fills.receive(one, run, now)),
            )

    def send_data(self, one: Place, other: Place, apply: Callable[..., None], *what: Any) -> None:
        if one is other:
            apply(*what)
        elif frozenset((one.process, other.process)) not in self._cuts:
            self.at(self.now + self.data_delay_s, lambda: apply(*what) if other.up else None)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._count), what))

    def arm(self, place: Place) -> None:
        at = place.timers.next_at()
        if at is not None:
            self.at(max(at, self.now), lambda: self._fire(place, at))

    def _fire(self, place: Place, at: float) -> None:
        if place.timers.next_at() == at:
            place.run_timers()

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.now = until

    def run_for(self, duration_s: float) -> None:
        self.run(self.now + duration_s)

    def until(self, met: Callable[[], bool], limit_s: float = 60.0) -> None:
        end = self.now + limit_s
        while not met():
            assert self._heap, "nothing more happens"
            assert self._heap[0][0] <= end, "it takes too long"
            self.now, _, what = heapq.heappop(self._heap)
            what()

    def kill(self, place: Place) -> None:
        """End a process, as all others are told at once."""
        place.up = False
        for other in self.places:
            if place.process in other.live:
                other.live.remove(place.process)
        for other in self.places:
            if other is not place:
                other.call(lambda now, other=other: other.fills.members_changed(now))

    def owner(self, key: str) -> Place:
        from lanecache.cluster.fill.owners import owner_of

        found = owner_of(key, [each.process for each in self.places if each.up])
        assert found is not None
        return self.place(found)

    def key_of(self, place: Place, prefix: str = "key") -> str:
        """Find a key that a node owns."""
        return next(k for k in (f"{prefix}{n}" for n in range(10_000)) if self.owner(k) is place)


__all__ = ["ABSENT", "ANSWER_S", "LEASE_S", "FillWorld", "Place"]
