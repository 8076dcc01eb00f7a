"""What the shell of the fills needs of its node, and what it hands over to be stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from lanecache.cluster.fill.fill_answers import Held
    from lanecache.cluster.fill.fill_counters import FillCounters
    from lanecache.cluster.fill.fill_options import FillPlan
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.wire.fill_messages import Outcome


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A value that a filler has made, on its way into the store and to all nodes.

    ``value`` is ``ABSENT`` for a known absence. ``base`` and ``fence`` are what its order is made
    of: it takes the place of what it was made from, and of nothing that was written since.
    """

    key: str
    value: Any
    base: Order
    fence: int
    ttl_s: float | None = None
    tags: tuple[str, ...] = ()
    stale_s: float = 0.0
    took_s: float = 0.0


class Port(Protocol):
    """What the filler needs of its node; every call is synchronous."""

    @property
    def counters(self) -> FillCounters:
        """Where to count."""

    def now(self) -> float:
        """Read the clock by which deadlines are kept."""

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Read several keys."""

    def held(self, key: str) -> Item | None:
        """Give what is held, expired or not, but nothing that was invalidated; counts nothing."""

    def found(self, key: str) -> Item | None:
        """Give what is held and fresh, or a known absence; counts nothing."""

    def order_of(self, key: str, tags: Sequence[str]) -> Order:
        """Give the greatest order known of the key, or of anything with one of the tags."""

    def base_of(self, key: str, tags: Sequence[str]) -> Order:
        """Give the order that a fill which starts now is based on."""

    def check(self, key: str, plan: FillPlan) -> None:
        """Refuse a key or tags that could never be stored."""

    def check_value(self, key: str, value: Any) -> None:
        """Refuse a value that cannot be stored."""

    def keep(self, made: Sequence[Made]) -> None:
        """Store here and send to all; what was overtaken is left out everywhere."""

    def want(self, keys: Sequence[str], lease_s: float, *, beyond: Order, refresh: bool) -> None:
        """See ``Fills.want``; the answers come through ``Runs.answered``, perhaps at once."""

    def withdraw(self, key: str) -> None:
        """See ``Fills.withdraw``."""

    def finish(self, lease: Held, outcome: Outcome, *, text: str = "", error_s: float = 0) -> None:
        """See ``Fills.finish``."""
