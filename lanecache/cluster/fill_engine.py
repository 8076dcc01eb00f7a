"""The filler's way to its node: every wish a step of the engine, every value an entry."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lanecache.cluster.replica.entry import Fill
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.values import check_key, check_tags, check_ttl, encode_value

if TYPE_CHECKING:
    from lanecache.cluster.engine import Engine
    from lanecache.cluster.fill.fill_answers import Held
    from lanecache.cluster.fill.fill_counters import FillCounters
    from lanecache.cluster.fill.fill_options import FillPlan
    from lanecache.cluster.fill.fill_port import Made
    from lanecache.cluster.fill.node_fills import NodeFills
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.store.values import Limits
    from lanecache.cluster.wire.fill_messages import Outcome

_PART_BYTES_MAX = 1024 * 1024  # of what is stored in one entry, unless one value is larger


class EnginePort:
    """The node of an engine, as ``fill_port.Port`` has it."""

    def __init__(self, engine: Engine) -> None:
        """Begin; the node need not have started."""
        self._engine = engine

    @property
    def counters(self) -> FillCounters:
        """Where to count."""
        return self._fills.counters

    @property
    def _fills(self) -> NodeFills:
        return self._engine.node.fills

    def now(self) -> float:
        """Read the clock by which deadlines are kept."""
        return time.monotonic()

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Read several keys."""
        return self._engine.running_node.store.get_many(keys)

    def held(self, key: str) -> Item | None:
        """Give what is held, expired or not; see ``NodeFills.held``."""
        return self._fills.held(key)

    def found(self, key: str) -> Item | None:
        """Give what answers a question; see ``NodeFills.found``."""
        return self._fills.found(key)

    def order_of(self, key: str, tags: Sequence[str]) -> Order:
        """See ``NodeFills.order_of``."""
        return self._fills.order_of(key, tags)

    def base_of(self, key: str, tags: Sequence[str]) -> Order:
        """See ``NodeFills.base_of``."""
        return self._fills.base_of(key, tags)

    def check(self, key: str, plan: FillPlan) -> None:
        """Refuse a key, TTL or tags that could never be stored."""
        check_key(key, self._engine.plan.settings)
        check_ttl(plan.ttl_s, key)
        check_tags(plan.tags, key, self._engine.plan.settings)

    def check_value(self, key: str, value: Any) -> None:
        """Refuse a value that cannot be stored."""
        encode_value(value, self._engine.plan.settings, key)

    def keep(self, made: Sequence[Made]) -> None:
        """Store here and send to all, in as few entries as they fit in."""
        for part in self._parts(made):
            self._engine.write(part)

    def want(self, keys: Sequence[str], lease_s: float, *, beyond: Order, refresh: bool) -> None:
        """See ``Fills.want``."""
        fills = self._fills
        self._engine.call_fills(
            lambda now: fills.want(keys, lease_s, now, beyond=beyond, refresh=refresh)
        )

    def withdraw(self, key: str) -> None:
        """See ``Fills.withdraw``."""
        self._fills.withdraw(key)

    def finish(self, lease: Held, outcome: Outcome, *, text: str = "", error_s: float = 0) -> None:
        """See ``Fills.finish``."""
        fills = self._fills
        self._engine.call_fills(
            lambda now: fills.finish(lease, outcome, now, text=text, error_s=error_s)
        )

    def _parts(self, made: Sequence[Made]) -> Iterator[list[Fill]]:
        part: list[Fill] = []
        size = 0
        for each in made:
            fill = fill_of(each, self._engine.plan.settings)
            if part and size + fill.size + len(fill.key) > _PART_BYTES_MAX:
                yield part
                part, size = [], 0
            part.append(fill)
            size += fill.size + len(fill.key)
        yield part


def fill_of(made: Made, limits: Limits) -> Fill:
    """Make the operation that stores what a filler has made."""
    absent = made.value is ABSENT
    value = None if absent else made.value
    return Fill(
        key=made.key,
        value=value,
        size=len(encode_value(value, limits, made.key)),
        base=made.base,
        fence=made.fence,
        ttl_ms=None if made.ttl_s is None else max(1, round(made.ttl_s * 1000)),
        tags=made.tags,
        stale_ms=round(made.stale_s * 1000),
        took_ms=round(made.took_s * 1000),
        absent=absent,
    )
