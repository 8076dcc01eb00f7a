"""The service in a simulated process that fills: the filler's port, and who calls it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lanecache.cluster.fill.filler import MISSING, Filler
from lanecache.cluster.fill.flights import flight_inside
from lanecache.cluster.fill_engine import fill_of
from lanecache.cluster.replica.entry import Clear, InvalidateTag, Operation, Put, Remove
from lanecache.cluster.store.values import encode_value
from lanecache.errors import CacheStopped, FillError
from lanecache.testing.simulation.fills import (
    KEYS,
    TAG,
    Change,
    DatabaseDown,
    Fill,
    FillSafety,
    known_part,
)
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import ExitStack

    from lanecache.cluster.fill.fill_answers import Held
    from lanecache.cluster.fill.fill_counters import FillCounters
    from lanecache.cluster.fill.fill_options import FillOptions, FillPlan
    from lanecache.cluster.fill.fill_port import Made
    from lanecache.cluster.node import Node
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.wire.fill_messages import Outcome
    from lanecache.testing.simulation.hosts import Host

_POLL_S = 0.05


@dataclass
class App:
    """The service in one process: the filler's port, and who calls it."""

    host: Host
    node: Node
    safety: FillSafety
    chance: random.Random
    serving: ExitStack
    takes_s: Callable[[], float]
    filler: Filler = field(init=False)
    later: list[Callable[[], None]] = field(default_factory=list)
    calls: int = 0
    open_calls: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the filler."""
        self.filler = Filler(self, rng=self.chance)
        self.safety.watch_bases(self.node)

    @property
    def up(self) -> bool:
        """Whether the process still runs."""
        return self.host.node is self.node

    def end(self) -> None:
        """End with the process."""
        self.serving.close()

    def answer(self, answers: Sequence[Any]) -> None:
        """Hand on what the node has answered."""
        if self.up:
            self.filler.answered(answers)

    def _do(self, what: str, call: Callable[[float], None]) -> None:
        if not self.up:
            return
        if not self.host.paused and not self.later:
            self.host.do(what, call)
            return
        if not self.later:
            self.host.world.after(_POLL_S, self._catch_up)
        self.later.append(lambda: self.host.do(what, call))

    def _catch_up(self) -> None:
        if self.up and self.host.paused:
            self.host.world.after(_POLL_S, self._catch_up)
        elif self.up:
            later, self.later = self.later, []
            for call in later:
                call()

    # The filler's port.

    @property
    def counters(self) -> FillCounters:
        """Where to count."""
        return self.node.fills.counters

    def now(self) -> float:
        """Read the host's clock."""
        return self.host.clock.read()

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Read several."""
        return self.node.store.get_many(keys)

    def held(self, key: str) -> Item | None:
        """See ``NodeFills.held``."""
        return self.node.fills.held(key)

    def found(self, key: str) -> Item | None:
        """See ``NodeFills.found``."""
        return self.node.fills.found(key)

    def order_of(self, key: str, tags: Sequence[str]) -> Order:
        """See ``NodeFills.order_of``."""
        return self.node.fills.order_of(key, tags)

    def base_of(self, key: str, tags: Sequence[str]) -> Order:
        """See ``NodeFills.base_of``."""
        return self.node.fills.base_of(key, tags)

    def check(self, key: str, plan: FillPlan) -> None:
        """Take any key."""

    def check_value(self, key: str, value: Any) -> None:
        """Take any value."""

    def keep(self, made: Sequence[Made]) -> None:
        """Write what was made."""
        fills = [fill_of(each, self.safety.settings) for each in made]
        self._do("fill", lambda now: void(self.node.write(fills, now)))

    def want(self, keys: Sequence[str], lease_s: float, *, beyond: Order, refresh: bool) -> None:
        """See ``Fills.want``."""
        fills = self.node.fills
        self._call(lambda now: fills.want(keys, lease_s, now, beyond=beyond, refresh=refresh))

    def withdraw(self, key: str) -> None:
        """See ``Fills.withdraw``."""
        if self.up:
            self.node.fills.withdraw(key)

    def finish(self, lease: Held, outcome: Outcome, *, text: str = "", error_s: float = 0) -> None:
        """See ``Fills.finish``."""
        fills = self.node.fills
        self._call(lambda now: fills.finish(lease, outcome, now, text=text, error_s=error_s))

    def _call(self, call: Callable[[float], None]) -> None:
        self._do("fills", lambda now: self.node.call_fills(call, now))

    # What the service does.

    async def ask(self, key: str, options: FillOptions) -> Any:
        """Ask for a key as somebody in this process does; None when the process is gone.

        Raises:
            Violation: the answer is older than what this node had applied when it was asked.
        """
        await self._awake()
        if not self.up:
            return None
        least = self.safety.winner(self.node, key)
        self.calls += 1
        number = self.calls
        self.open_calls[number] = key
        value: Any = None
        held = self.node.store.get(key, MISSING)
        try:
            value = await self.filler.get_or_fill(key, self._fill, 60.0, None, options, held)
        except (FillError, CacheStopped, DatabaseDown):
            return None
        finally:
            del self.open_calls[number]
        if least is not None and not self.host.is_small and self._is_older(value, least):
            message = f"{self.host.name} is given {value} for {key}, and had applied {least} before"
            raise Violation("stale answer", message, self.host.name)
        return value

    def _is_older(self, value: Any, change: Change) -> bool:
        kind, number = value
        if kind == "fill":
            fill = self.safety.fills[number]
            older: bool = fill.version < change.version and fill.base < change.order
            return older
        changes = self.safety.changes[change.key]
        return any(each.version == number and each.order < change.order for each in changes)

    def version_of(self, value: Any) -> int:
        """Give the version of the database that a value stands for."""
        kind, number = value
        version: int = self.safety.fills[number].version if kind == "fill" else number
        return version

    async def _fill(self, key: str) -> Any:
        await self._awake()
        fills = self.node.fills
        flight = flight_inside(key)
        if flight is None or flight.lease is None:
            raise DatabaseDown  # it has been given up meanwhile
        lease = flight.lease
        fill = Fill(
            key,
            self.safety.database[key],
            self.host.process,
            max(fills.order_of(key, ()), known_part(flight.base)),
            flight.base,
            lease,
            self.host.world.now,
            self.safety.bases.get(flight.base),
        )
        number = self.safety.begun(self.host, fill)
        try:
            await asyncio.sleep(self.takes_s())
            await self._awake()
        finally:
            fill.over = True
        if self.chance.random() < 0.05:
            raise DatabaseDown
        return ["fill", number]

    async def _awake(self) -> None:
        while self.up and self.host.paused:  # noqa: ASYNC110 - a process that stands still
            await asyncio.sleep(_POLL_S)

    def change(self, key: str, kind: str) -> None:
        """Change the database, and tell the cache."""
        safety = self.safety
        if not self.up or self.host.paused:
            return
        keys = KEYS if kind in ("clear", "tag") else (key,)
        for each in keys:
            safety.database[each] += 1
        operation: Operation
        if kind == "set":
            value = ["set", safety.database[key]]
            size = len(encode_value(value, safety.settings, key))
            operation = Put(key, value, size, None, (TAG,))
        elif kind == "clear":
            operation = Clear("f:")
        elif kind == "tag":
            operation = InvalidateTag(TAG)
        else:
            operation = Remove(key)

        def write(now: float) -> None:
            seq = self.node.write([operation], now)
            order = (self.node.replica.clock.last, self.node.replica.origin)
            for each in keys:
                version = safety.database[each]
                origin = self.node.replica.origin
                told = Change(each, version, origin, seq, order, self.host.process)
                safety.changes[each].append(told)
            self.host.world.record(self.host.name, "changes", kind, keys, seq, order)

        self.host.do("write", write)


def void(_: object) -> None:
    """Pass over what a call has given."""
