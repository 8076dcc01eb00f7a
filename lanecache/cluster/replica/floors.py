"""What makes forgetting safe: how late the writes were that this node no longer knows of.

A key that is not held was perhaps never written; or what was written to it has been evicted, has
expired, or its tombstone was dropped. Then an older write that is still on its way must not come
in: the key would go back. So whatever is forgotten leaves its order here, the greatest one for each
of ``BUCKETS`` groups of keys, and a write to a key that is not held and not above its group's floor
is not stored. A cache may always forget; so it does no harm that a floor is that of other keys too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Order

BUCKETS = 1024
NOTHING: Order = (0, 0)


class Floors:
    """The floors of one node; they only rise.

    Attributes:
        maximum: the greatest of all: above it no look into the buckets is needed.
    """

    __slots__ = ("_buckets", "maximum")

    def __init__(self) -> None:
        self._buckets: list[Order] = [NOTHING] * BUCKETS
        self.maximum: Order = NOTHING

    def of(self, key: str) -> Order:
        """Give the greatest order that may have been forgotten for a key."""
        return self._buckets[crc32(key.encode()) & (BUCKETS - 1)]

    def rise(self, key: str, order: Order) -> None:
        """Take note that what a key had was forgotten."""
        bucket = crc32(key.encode()) & (BUCKETS - 1)
        if order > self._buckets[bucket]:
            self._buckets[bucket] = order
            if order > self.maximum:
                self.maximum = order

    def rise_all(self, order: Order) -> None:
        """Take note that something was forgotten that any key may have had."""
        self.join([order] * BUCKETS)

    def join(self, buckets: Sequence[Order]) -> None:
        """Rise to another node's floors, all ``BUCKETS`` of them."""
        self._buckets = list(map(max, self._buckets, buckets))
        self.maximum = max(self._buckets)

    def buckets(self) -> list[Order]:
        """Copy all floors."""
        return self._buckets.copy()
