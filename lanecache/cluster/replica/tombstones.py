"""What keeps deleted things deleted: tombstones of keys, of prefixes, and of tags.

A write that was made before a deletion may arrive after it. It must lose, so the deletion leaves
its order behind: for a key, for everything below a prefix, or for everything with a tag. Each
record is dropped when no such write can be on its way any more, or after a grace, or when there are
too many; what dropping leaves behind is a floor (``floors``), so that it is always safe. A dropped
tag leaves one floor for all values with tags.

At an equal order the tombstone wins: a value and its deletion can have the same order when a node
turns a value into a tombstone, because its source's turn was over (``sources``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.replica.floors import NOTHING, Floors

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Item, Order, Stamp

PREFIXES_MAX = 1024


class Tombstone(msgspec.Struct, gc=False):
    """A deletion.

    Attributes:
        order: its order.
        stamp: of the entry that it came with.
        at: when it came, by the monotonic clock in seconds.
    """

    order: Order
    stamp: Stamp
    at: float

    @property
    def origin(self) -> int:
        """In whose log its entry is."""
        return self.order[-1] if len(self.order) != 2 else self.order[1]


Droppable = Callable[[Tombstone], bool]


class Tombstones:
    """All tombstones of a node; ``len`` counts them.

    Args:
        most: how many there may be, of all kinds; a quarter of prefixes and a quarter of tags.
        floors: what is left of those that are dropped.
    """

    __slots__ = ("_most", "keys", "prefixes", "tags")

    def __init__(self, most: int, floors: Floors) -> None:
        part = max(1, most // 4)
        self.keys = KeyTombstones(floors)
        self.prefixes = PrefixTombstones(floors, min(part, PREFIXES_MAX))
        self.tags = TagTombstones(part)
        self._most = most

    def __len__(self) -> int:
        return len(self.keys.records) + len(self.prefixes.records) + len(self.tags.records)

    def over_key(self, key: str) -> Order:
        """Give the order of the latest deletion that reaches a key."""
        record = self.keys.records.get(key)
        return max(NOTHING if record is None else record.order, self.prefixes.of(key))

    def bound(self) -> None:
        """Drop the oldest ones of keys until there are not too many."""
        while len(self) > self._most and self.keys.records:
            self.keys.drop_oldest()


class KeyTombstones:
    """The tombstones of keys, oldest first.

    Attributes:
        records: by key.
        maximum: an order that none of them is above.
    """

    __slots__ = ("_floors", "maximum", "records")

    def __init__(self, floors: Floors) -> None:
        self.records: dict[str, Tombstone] = {}
        self.maximum: Order = NOTHING
        self._floors = floors

    def bury(self, key: str, order: Order, stamp: Stamp, now: float) -> None:
        """Take note of a deletion that no other one of the key is later than."""
        records = self.records
        records.pop(key, None)
        records[key] = Tombstone(order, stamp, now)
        if order > self.maximum:
            self.maximum = order

    def drop_oldest(self) -> None:
        """Drop one."""
        self._drop(next(iter(self.records)))

    def sweep(self, droppable: Droppable, limit: int) -> int:
        """Drop what may be dropped of the oldest ``limit``, and say how many these were."""
        found = []
        for key, record in self.records.items():
            limit -= 1
            if limit < 0:
                break
            if droppable(record):
                found.append(key)
        for key in found:
            self._drop(key)
        return len(found)

    def _drop(self, key: str) -> None:
        self._floors.rise(key, self.records.pop(key).order)
        if not self.records:
            self.maximum = NOTHING


class PrefixTombstones:
    """The tombstones of prefixes.

    Attributes:
        records: by prefix.
        maximum: the greatest order.
    """

    __slots__ = ("_floors", "_lengths", "_most", "maximum", "records")

    def __init__(self, floors: Floors, most: int) -> None:
        self.records: dict[str, Tombstone] = {}
        self.maximum: Order = NOTHING
        self._lengths: tuple[int, ...] = ()
        self._floors = floors
        self._most = most

    def add(self, prefix: str, order: Order, stamp: Stamp, now: float) -> None:
        """Take note of a clear; those below it that are not later go."""
        if self.of(prefix) >= order:
            return
        for other in [other for other in self.records if other.startswith(prefix)]:
            if self.records[other].order <= order:
                del self.records[other]
        self.records[prefix] = Tombstone(order, stamp, now)
        if len(self.records) > self._most:
            oldest = min(self.records, key=lambda other: self.records[other].order)
            self._floors.rise_all(self.records.pop(oldest).order)
        self._index()

    def of(self, key: str) -> Order:
        """Give the order of the latest clear that reaches a key."""
        return max((record.order for record in self._over(key)), default=NOTHING)

    def over(self, key: str) -> Tombstone | None:
        """Give the latest clear that reaches a key."""
        return max(self._over(key), key=lambda record: record.order, default=None)

    def sweep(self, droppable: Droppable) -> int:
        """Drop what may be dropped, and say how many these were."""
        found = [prefix for prefix, record in self.records.items() if droppable(record)]
        if found:
            self._floors.rise_all(max(self.records.pop(prefix).order for prefix in found))
            self._index()
        return len(found)

    def _over(self, key: str) -> Iterator[Tombstone]:
        for length in self._lengths:
            record = self.records.get(key[:length])
            if record is not None and len(key) >= length:
                yield record

    def _index(self) -> None:
        self._lengths = tuple(sorted({len(prefix) for prefix in self.records}))
        self.maximum = max((each.order for each in self.records.values()), default=NOTHING)


class TagTombstones:
    """The invalidated tags, oldest first.

    Attributes:
        records: by tag.
        floor: the greatest order of those dropped: nothing with tags that is not above it comes in.
        maximum: the greatest order, dropped ones too.
    """

    __slots__ = ("_most", "floor", "maximum", "records")

    def __init__(self, most: int) -> None:
        self.records: dict[str, Tombstone] = {}
        self.floor: Order = NOTHING
        self.maximum: Order = NOTHING
        self._most = most

    def add(self, tag: str, order: Order, stamp: Stamp, now: float) -> bool:
        """Take note of an invalidation; true when there are too many records now."""
        known = self.records.get(tag)
        if known is None or known.order < order:
            self.records.pop(tag, None)
            self.records[tag] = Tombstone(order, stamp, now)
            self.maximum = max(self.maximum, order)
        return len(self.records) > self._most

    def of(self, tags: Iterable[str]) -> Order:
        """Give the order of the latest invalidation of any of some tags."""
        records = self.records
        return max((records[tag].order for tag in tags if tag in records), default=NOTHING)

    def is_current(self, item: Item) -> bool:
        """Say whether no tag of an item that is held was invalidated after it was written."""
        order, find = item.order, self.records.get
        for tag in item.tags:
            record = find(tag)
            if record is not None and record.order > order:
                return False
        return True

    def covers(self, order: Order, tags: Iterable[str]) -> bool:
        """Say whether what arrives with such tags was, or may have been, invalidated."""
        return order <= self.floor or (order < self.maximum and self.of(tags) > order)

    def due(self, droppable: Droppable) -> list[str]:
        """List what may be dropped, and what has to be as there are too many, with room to spare.

        Before they are dropped, everything that is held with them has to be looked at.
        """
        found = [tag for tag, record in self.records.items() if droppable(record)]
        if len(self.records) - len(found) > self._most:
            spare = len(self.records) - math.floor(self._most * 0.9)
            found = list(dict.fromkeys([*found, *list(self.records)[:spare]]))
        return found

    def drop(self, tags: Iterable[str]) -> None:
        """Drop records of which nothing that is held is older."""
        self.rise(max((self.records.pop(tag).order for tag in tags), default=NOTHING))

    def rise(self, order: Order) -> None:
        """Raise the floor."""
        self.floor = max(self.floor, order)
        self.maximum = max(self.maximum, order)
