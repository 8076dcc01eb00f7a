"""Several nodes that fill, as asyncio runs them, in memory and on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import anyio

from lanecache.cluster.fill.fill_answers import Held
from lanecache.cluster.fill.fill_options import FillOptions, FillPlan
from lanecache.cluster.fill.fill_port import Made
from lanecache.cluster.fill.filler import MISSING, Filler
from lanecache.cluster.fill.fills import Fills
from lanecache.cluster.settings import Settings
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.item import Item, Order
from lanecache.cluster.store.lru import LruStore
from lanecache.cluster.store.values import check_key, encode_value
from lanecache.cluster.timers import Timers
from lanecache.cluster.wire.fill_messages import Outcome, decode_run

ANSWER_S = 0.5
LIMITS = Settings()


class Shell:
    """One node: a store, the fills and the filler, joined as the engine joins them."""

    def __init__(self, group: Shells, process: int) -> None:
        self.group = group
        self.process = process
        self.up = True
        self.timers = Timers()
        self.store = LruStore(
            keys_max=1000,
            bytes_max=10_000_000,
            clock=self.now,
            is_current=lambda item: not self._is_void(item.order, item.tags),
        )
        self.get = self.store.get
        self.get_many = self.store.get_many
        self.removed: dict[str, Order] = {}
        self.floors: dict[str, Order] = {}
        self.cleared: list[tuple[str, Order]] = []
        self.invalid: dict[str, Order] = {}
        self.live: list[int] = []
        self._handle: asyncio.TimerHandle | None = None
        self.fills = Fills(
            process,
            self,
            self.timers,
            answer_s=ANSWER_S,
            leases_max=1000,
            live=lambda: self.live,
            transmit=lambda other, data: group.transmit(process, other, data),
        )
        self.counters = self.fills.counters
        self.filler = Filler(self, rng=random.Random(process))

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # The cache's face.

    async def get_or_fill(
        self, key: str, fill: Any, ttl_s: float | None = None, default: Any = None, **options: Any
    ) -> Any:
        value = self.get(key, MISSING)
        return await self.filler.get_or_fill(
            key, fill, ttl_s, default, FillOptions(**options), value
        )

    async def get_or_fill_many(
        self, keys: Iterable[str], fill: Any, ttl_s: float | None = None, **options: Any
    ) -> dict[str, Any]:
        return await self.filler.get_or_fill_many(keys, fill, ttl_s, FillOptions(**options))

    def set(
        self, key: str, value: Any, ttl_s: float | None = None, tags: tuple[str, ...] = ()
    ) -> None:
        order = self.group.order(self)
        deadline = None if ttl_s is None else self.now() + ttl_s
        self.group.spread(
            self, lambda node: node.apply(key, Item(value, order, deadline, tags=tags))
        )

    def delete(self, key: str) -> None:
        order = self.group.order(self)
        self.group.spread(self, lambda node: node.apply_remove(key, order))

    def clear(self, prefix: str) -> None:
        order = self.group.order(self)
        self.group.spread(self, lambda node: node.apply_clear(prefix, order))

    def invalidate_tag(self, tag: str) -> None:
        order = self.group.order(self)
        self.group.spread(self, lambda node: node.invalid.__setitem__(tag, order))

    # The filler's port.

    def held(self, key: str) -> Item | None:
        return self.store.held(key)

    def found(self, key: str) -> Item | None:
        item = self.store.held(key)
        if item is None or item.value is ABSENT or item.deadline is None:
            return item
        return item if item.deadline > self.now() else None

    def base_of(self, key: str, tags: Sequence[str] = ()) -> Order:
        known = [self.invalid.get(tag, ()) for tag in tags]
        known += [order for prefix, order in self.cleared if key.startswith(prefix)]
        item = self.store.find(key)
        if item is not None:
            known.append(item.order)
        return max([*known, self.removed.get(key, ())])

    order_of = base_of

    def floor_of(self, key: str) -> Order:
        return self.floors.get(key, ())

    def is_outdated(self, key: str, order: Order, tags: tuple[str, ...]) -> bool:
        known = [o for prefix, o in self.cleared if key.startswith(prefix)]
        return max([*known, self.removed.get(key, ())]) > order or self._is_void(order, tags)

    def _is_void(self, order: Order, tags: tuple[str, ...]) -> bool:
        return any(self.invalid.get(tag, ()) > order for tag in tags)

    def check(self, key: str, plan: FillPlan) -> None:
        check_key(key, LIMITS)

    def check_value(self, key: str, value: Any) -> None:
        encode_value(value, LIMITS, key)

    def want(self, keys: Sequence[str], lease_s: float, *, beyond: Order, refresh: bool) -> None:
        self._step(lambda now: self.fills.want(keys, lease_s, now, beyond=beyond, refresh=refresh))

    def withdraw(self, key: str) -> None:
        self.fills.withdraw(key)

    def finish(self, lease: Held, outcome: Outcome, *, text: str = "", error_s: float = 0) -> None:
        self._step(lambda now: self.fills.finish(lease, outcome, now, text=text, error_s=error_s))

    def keep(self, made: Sequence[Made]) -> None:
        for each in made:
            order = (*(each.base or (0, 0))[:2], each.fence, self.process)
            ends = None if each.ttl_s is None else self.now() + each.ttl_s
            absent = each.value is ABSENT
            item = Item(
                each.value,
                order,
                self.now() if absent else ends,
                tags=each.tags,
                kept_until=ends if absent else None if ends is None else ends + each.stale_s,
                took_s=each.took_s,
            )
            self.group.spread(
                self, lambda node, key=each.key, item=item: node.apply(key, copy(item))
            )

    # What happens.

    def apply(self, key: str, item: Item) -> None:
        known = max(self.base_of(key), self.floor_of(key))
        if item.order > known and not self._is_void(item.order, item.tags):
            self.store.put(key, copy(item), warm=False)
        self._step(lambda now: self.fills.wrote([key], [], now))

    def apply_remove(self, key: str, order: Order) -> None:
        if order > self.base_of(key):
            self.store.remove(key)
            self.removed[key] = order
        self._step(lambda now: self.fills.wrote([key], [], now))

    def apply_clear(self, prefix: str, order: Order) -> None:
        self.cleared.append((prefix, order))
        gone = self.store.keys_below(prefix)
        for key in gone:
            self.store.remove(key)
        self._step(lambda now: self.fills.wrote(gone, [prefix], now))

    def evict(self, key: str) -> None:
        item = self.store.remove(key)
        if item is not None:
            self.floors[key] = item.order

    def _step(self, call: Callable[[float], None]) -> None:
        if not self.up:
            return
        self.timers.now = now = self.now()
        call(now)
        answers = self.fills.answers()
        if answers:
            self.filler.answered(answers)
        at = self.timers.next_at()
        if self._handle is not None:
            self._handle.cancel()
        if at is not None:
            self._handle = asyncio.get_running_loop().call_at(at, self._fire)

    def _fire(self) -> None:
        def run(now: float) -> None:
            self.timers.run(now)
            self.fills.settle(now)

        self._step(run)


def _apply_copy(key: str, item: Item, node: Shell) -> None:
    node.apply(key, copy(item))


def copy(item: Item) -> Item:
    return Item(
        item.value,
        item.order,
        item.deadline,
        tags=item.tags,
        kept_until=item.kept_until,
        took_s=item.took_s,
    )


class Shells:
    """The nodes and what is between them."""

    def __init__(self, count: int, seed: int = 1) -> None:
        dice = random.Random(seed)
        self.nodes = [Shell(self, dice.getrandbits(62) + 1) for _ in range(count)]
        self.delay_s = 0.001
        self.data_delay_s = 0.001
        self.cut: set[int] = set()
        self.sides: dict[int, int] = {}  # processes on different sides do not reach each other
        self.sent = 0  # messages of fills
        self._clock = 0
        for node in self.nodes:
            node.live = [each.process for each in self.nodes]

    def __getitem__(self, index: int) -> Shell:
        return self.nodes[index]

    def order(self, node: Shell) -> Order:
        self._clock += 1
        return (self._clock, node.process)

    def linked(self, one: int, other: int) -> bool:
        if self.sides and self.sides[one] != self.sides[other]:
            return False
        return one not in self.cut and other not in self.cut

    def transmit(self, one: int, other: int, data: bytes) -> None:
        if not self.linked(one, other):
            return
        self.sent += 1
        run = decode_run(data)
        target = next(node for node in self.nodes if node.process == other)
        asyncio.get_running_loop().call_later(
            self.delay_s,
            lambda: target._step(lambda now: target.fills.receive(one, run, now)),
        )

    def spread(self, origin: Shell, apply: Callable[[Shell], None]) -> None:
        if not origin.up:
            return
        apply(origin)
        for node in self.nodes:
            if node is not origin and self.linked(origin.process, node.process):
                asyncio.get_running_loop().call_later(self.data_delay_s, self._apply, node, apply)

    @staticmethod
    def _apply(node: Shell, apply: Callable[[Shell], None]) -> None:
        if node.up:
            apply(node)

    def part(self) -> None:
        """Part the nodes into two halves, each of which soon takes the other for dead."""
        half = len(self.nodes) // 2
        self.sides = {node.process: index < half for index, node in enumerate(self.nodes)}

        def notice() -> None:
            for node in self.nodes:
                side = self.sides[node.process]
                node.live = [each for each in node.live if self.sides[each] == side]
                node._step(node.fills.members_changed)

        asyncio.get_running_loop().call_later(3.0, notice)

    async def kill(self, node: Shell) -> None:
        """End a node; the others hear of it at once."""
        node.up = False
        for other in self.nodes:
            if node.process in other.live:
                other.live.remove(node.process)
        for other in self.nodes:
            if other is not node:
                other._step(other.fills.members_changed)


@asynccontextmanager
async def shells(count: int = 1, seed: int = 1) -> AsyncIterator[Shells]:
    """Run some."""
    group = Shells(count, seed)
    async with anyio.create_task_group() as tasks:
        with ExitStack() as stack:
            for node in group.nodes:
                stack.enter_context(node.filler.serving(tasks))
            yield group
        tasks.cancel_scope.cancel()
