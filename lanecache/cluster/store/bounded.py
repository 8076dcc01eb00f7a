"""What every store does alike: its bounds, deadlines and counts. The policies are in ``store``."""

from __future__ import annotations

import abc
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from lanecache.cluster.store.deadlines import Deadlines
from lanecache.cluster.store.item import Item, charge_of

Forgotten = Callable[[str, Item], None]
IsCurrent = Callable[[Item], bool]
# No instant is later, and yet it is before ``Item.until`` of what never expires.
HORIZON_MAX = sys.float_info.max
_MISSING = object()


class StoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A store at one moment; counts run from its making and never fall.

    Attributes:
        gets: keys that were asked for: ``hits`` + ``misses``.
        hits: ... and were there.
        misses: ... and were not, or had expired.
        sets: values that this process itself set (``warm``).
        evictions: items that went for want of room, one too large for the whole store too.
        expirations: items that went because their time was over.
        invalidations: items that went because one of their tags was invalidated.
        entries: items held, expired ones that nobody has come upon too.
        bytes: what they count for (``charge_of``).
    """

    gets: int
    hits: int
    misses: int
    sets: int
    evictions: int
    expirations: int
    invalidations: int
    entries: int
    bytes: int


class Store(abc.ABC):
    """A container for items that is bounded by count and by bytes; local, and told nothing else.

    It never holds more than ``keys_max`` items or ``bytes_max`` bytes (``charge_of``): what has to
    go for that goes silently but for the call of ``forgotten(key, item)``, which also tells of
    expired and invalidated items (not of removed and replaced ones). ``forgotten`` is called when
    the item is out, and must not change the store.

    An item expires when ``clock()`` reaches its deadline. One that is asked for after that is let
    go of then, others by ``expire``.

    Attributes:
        get: ``get(key, default=None)``: the value held for a key. Counts, and tells the policy
            that the key was used. A closure, since a method would cost half as much again.
        bytes: what the items held count for.
        overhead_bytes: what an item counts for beside the bytes of its key, its encoded value and
            its tags: what it takes by measurement (tests/test_cluster_store.py): the Item itself,
            its order and deadline, the heads of the key's and the value's objects, and its places
            in the tables, which are larger just after they grew: it is the middle.
    """

    overhead_bytes: ClassVar[int]
    get: Callable[..., Any]
    _items: dict[str, Item]
    _reads: Callable[[], tuple[int, int]]
    _set_horizon: Callable[[float], None]

    def __init__(
        self,
        *,
        keys_max: int,
        bytes_max: int,
        clock: Callable[[], float],
        forgotten: Forgotten | None = None,
        is_current: IsCurrent | None = None,
    ) -> None:
        """Begin empty.

        Args:
            keys_max: greatest number of items; 1 or more.
            bytes_max: the most that they count for together.
            clock: monotonic, in seconds.
            forgotten: is told what went without anybody asking for it.
            is_current: says of an item with tags whether none of them was invalidated since.
        """
        self.bytes = 0
        self._keys_max = keys_max
        self._bytes_max = bytes_max
        self._clock = clock
        self._forgotten = forgotten
        self._is_current = is_current
        self._deadlines = Deadlines()
        self._sets = self._evictions = self._expirations = self._invalidations = 0
        self._begin()

    @property
    def entries(self) -> int:
        """Count the items held."""
        return len(self._items)

    def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Give what is held of some keys, in their order; as so many calls of ``get``."""
        get, missing = self.get, _MISSING
        return {key: value for key in keys if (value := get(key, missing)) is not missing}

    def peek(self, key: str) -> Item | None:
        """Give the item of a key without counting or telling the policy.

        One that has expired, or is not current, is let go of and is None.
        """
        item = self.find(key)
        return item if item is None or item.until > HORIZON_MAX else self._look_closer(key, item)

    def held(self, key: str) -> Item | None:
        """Give the item of a key without counting, an expired one too that is kept for fills."""
        item = self.find(key)
        if item is None or self.peek(key) is item:
            return item
        item = self.find(key)  # let go of, unless it is kept
        if item is None or not item.tags or self._is_current is None or self._is_current(item):
            return item
        return None

    def find(self, key: str) -> Item | None:
        """Give what is in the tables for a key, whether it may be handed out or not."""
        return self._items.get(key)

    def all_items(self) -> list[tuple[str, Item]]:
        """List what is in the tables, the coldest first, whether it may be handed out or not."""
        items = self._items
        return [(key, items[key]) for key in self._keys()]

    def put(self, key: str, item: Item, *, warm: bool) -> None:
        """Hold an item, which is in no store yet, in place of what is held for the key.

        An item that counts for more than ``bytes_max`` alone takes the place of what was held and
        is evicted at once; no other item goes for it.

        Args:
            key: where.
            item: what.
            warm: whether this is a use of the key (a local ``set``), which is counted and told to
                the policy. Otherwise a key that is held keeps its place; a new one comes in at the
                hot end all the same.
        """
        if warm:
            self._sets += 1
        charge = charge_of(key, item.size_bytes, item.tags, self.overhead_bytes)
        if charge > self._bytes_max:
            self.remove(key)
            self._tell_evicted(key, item)
            return
        self._place(key, _prepared(item, charge), warm)
        if (end := _end_of(item)) is not None:
            self._deadlines.add(key, end)
        if self.bytes > self._bytes_max or self.entries > self._keys_max:
            self._shrink(key if warm else None)

    def put_cold(self, key: str, item: Item) -> None:
        """Hold an item that came with a peer's state: at the cold end when the key is new.

        Call it for the hottest item first, so that they end in the sender's order. A new one for
        which there is no room is evicted at once, and nothing goes for it.
        """
        if self.find(key) is not None:
            self.put(key, item, warm=False)
            return
        charge = charge_of(key, item.size_bytes, item.tags, self.overhead_bytes)
        if self.entries >= self._keys_max or self.bytes + charge > self._bytes_max:
            self._tell_evicted(key, item)
            return
        self._place_cold(key, _prepared(item, charge))
        if (end := _end_of(item)) is not None:
            self._deadlines.add(key, end)

    def remove(self, key: str) -> Item | None:
        """Let go of a key and give what was held, expired or not; nobody is told."""
        item = self._take(key)
        if item is not None and (end := _end_of(item)) is not None:
            self._deadlines.drop(key, end)
        return item

    def keys_below(self, prefix: str) -> list[str]:
        """Give the keys held that begin with a prefix, coldest first. Looks at every key."""
        return [key for key in self._keys() if key.startswith(prefix)]

    def items(self) -> Iterator[tuple[str, Item]]:
        """Go through what is held at the start, coldest first; the store may change meanwhile.

        What was let go of by the time it is reached is passed over, and so is what has expired or
        is not current; what was replaced is given as it is then.
        """
        for key in self._keys():
            item = self.peek(key)
            if item is not None:
                yield key, item

    def expire(self, now: float, limit: int, *, next_at: float = math.inf) -> int:
        """Let go of at most ``limit`` expired items and give how many there were.

        It looks at nothing else: with nothing expired it takes O(1). An item goes here up to a
        second after its deadline; ``get`` does not give it meanwhile.

        Args:
            now: by the monotonic clock.
            limit: the most to let go of; when so many went, there may be more.
            next_at: the caller promises to call again by then. Until then ``get`` does not read
                the clock, which costs it half as much again, for items whose deadline is later
                than that. Should the process be stalled beyond ``next_at``, such an item can
                outlive its deadline by as long as this call is late. Without a promise every
                deadline is compared with the clock.
        """
        self._set_horizon(min(next_at, HORIZON_MAX))
        gone = 0
        while gone < limit and (key := self._deadlines.take(now)) is not None:
            item = self._take(key)
            assert item is not None
            self._expirations += 1
            gone += 1
            if self._forgotten is not None:
                self._forgotten(key, item)
        return gone

    def expire_at(self) -> float | None:
        """Give when ``expire`` will next find something; None: never as things are."""
        return self._deadlines.next_at()

    def statistics(self) -> StoreStatistics:
        """Take the counts."""
        hits, misses = self._reads()
        return StoreStatistics(
            gets=hits + misses,
            hits=hits,
            misses=misses,
            sets=self._sets,
            evictions=self._evictions,
            expirations=self._expirations,
            invalidations=self._invalidations,
            entries=self.entries,
            bytes=self.bytes,
        )

    def _look_closer(self, key: str, item: Item) -> Item | None:
        """Give an item back if it may be handed out now, else let go of it."""
        if item.deadline is not None and item.deadline <= (now := self._clock()):
            if item.kept_until is not None and item.kept_until > now:
                return None
            self._expirations += 1
        elif not item.tags or self._is_current is None or self._is_current(item):
            return item
        else:
            self._invalidations += 1
        self.remove(key)
        if self._forgotten is not None:
            self._forgotten(key, item)
        return None

    def _tell_evicted(self, key: str, item: Item) -> None:
        self._evictions += 1
        if self._forgotten is not None:
            self._forgotten(key, item)

    def _evict(self, key: str, item: Item) -> None:
        """Tell that an item which is out of the tables was evicted."""
        self.bytes -= item.charge_bytes
        if (end := _end_of(item)) is not None:
            self._deadlines.drop(key, end)
        self._tell_evicted(key, item)

    def _replaced(self, key: str, old: Item) -> None:
        """Forget what an item that has just been replaced stood for."""
        self.bytes -= old.charge_bytes
        if (end := _end_of(old)) is not None:
            self._deadlines.drop(key, end)

    @abc.abstractmethod
    def _begin(self) -> None:
        """Make the tables, ``_items`` among them, and ``get``."""

    @abc.abstractmethod
    def _keys(self) -> list[str]:
        """List the keys, coldest first."""

    @abc.abstractmethod
    def _take(self, key: str) -> Item | None:
        """Take an item out of the tables and off the bytes."""

    @abc.abstractmethod
    def _place(self, key: str, item: Item, warm: bool) -> None:
        """Put an item into the tables and onto the bytes, ``_replaced`` what was there."""

    @abc.abstractmethod
    def _place_cold(self, key: str, item: Item) -> None:
        """Put an item of a new key, for which there is room, where it goes first."""

    @abc.abstractmethod
    def _shrink(self, keep: str | None) -> None:
        """Evict until the bounds are kept, ``keep`` last of all."""


def _end_of(item: Item) -> float | None:
    """Give when an item goes; None: not by itself."""
    return item.deadline if item.kept_until is None else item.kept_until


def _prepared(item: Item, charge: int) -> Item:
    """Fill in the store's own fields of an item that is about to be held."""
    item.charge_bytes = charge
    if item.tags:
        item.until = -math.inf
    elif item.deadline is not None:
        item.until = item.deadline
    return item
