"""The store that lets go early of what is used once: S3-FIFO.

Yang, Zhang, Qiu, Yue, Vigfusson: FIFO queues are all you need for cache eviction, SOSP 2023. New
keys go into a small queue; what is hit twice there comes into the main one, what is not goes, and
only a fingerprint stays. A key that comes back while its fingerprint is there goes to the main
queue at once, and so does one that comes while there is room still and the small queue has its
share. The main queue gives what was hit another round for each hit, up to three.

So a scan over keys that are used once passes through a tenth of the room. A hit changes no order:
it counts up to three in the item, and a hot item's hit writes nothing at all.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from lanecache.cluster.store.bounded import HORIZON_MAX, Store

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Item

USES_MAX = 3  # two bits
_USES_TO_MAIN = 2  # in the small queue; at its insertion an item has none
_SMALL_PARTS = 10  # of which the small queue has one
_GHOSTS_PER_ITEM = 2
# An eviction gives at most so many items another round; the next goes whatever it has. A main queue
# of 100,000 items with three hits each would hold the process up for 30 ms otherwise.
_ROUNDS_MAX = 512


class Ghosts:
    """Fingerprints of the keys that went last from the small queue, in order."""

    __slots__ = ("_fingerprints", "_order")

    def __init__(self) -> None:
        """Begin with none."""
        self._fingerprints: set[int] = set()
        # With those that ``take`` found. When the turn of such a one comes, a key that went a
        # second time meanwhile is forgotten early: to tell them apart takes as much memory again.
        self._order: deque[int] = deque()

    def add(self, key: str) -> None:
        """Remember a key."""
        fingerprint = hash(key)  # 64 bits, and CPython keeps it in the key
        self._fingerprints.add(fingerprint)
        self._order.append(fingerprint)

    def take(self, key: str) -> bool:
        """Say whether a key is remembered, and forget it."""
        fingerprint = hash(key)
        if fingerprint not in self._fingerprints:
            return False
        self._fingerprints.remove(fingerprint)
        return True

    def trim(self, ghosts_max: int) -> None:
        """Forget the oldest beyond a number."""
        while len(self._order) > ghosts_max:
            self._fingerprints.discard(self._order.popleft())


class S3FifoStore(Store):
    """Two queues and a memory of what went (see the module). Both bounds hold for them together.

    The small queue is to have a tenth of the items when their number is what has to fall, a tenth
    of the bytes when it is those. Up to twice as many ghosts are kept as items.
    """

    overhead_bytes = 768  # two ghosts take 170 of them

    def _begin(self) -> None:
        self._items = {}  # of both queues
        # Ordered dicts, oldest first: taking the first of a plain one passes over the holes of all
        # that went before it, and taking one out of the middle of a deque takes a search.
        self._small: OrderedDict[str, None] = OrderedDict()
        self._main: OrderedDict[str, None] = OrderedDict()
        self._small_bytes = 0
        self._ghosts = Ghosts()
        hits = misses = 0
        horizon = HORIZON_MAX
        find, clock = self._items.get, self._clock

        def get(key: str, default: Any = None) -> Any:
            nonlocal hits
            item = find(key)
            if item is not None and item.until > horizon:
                if item.uses < 3:  # USES_MAX, which would have to be looked up
                    item.uses += 1
                hits += 1
                return item.value
            return get_closely(key, item, default)

        def get_closely(key: str, item: Item | None, default: Any) -> Any:
            nonlocal hits, misses
            if item is None or (item.until <= clock() and self._look_closer(key, item) is None):
                misses += 1
                return default
            if item.uses < USES_MAX:
                item.uses += 1
            hits += 1
            return item.value

        def set_horizon(at: float) -> None:
            nonlocal horizon
            horizon = at

        self.get = get
        self._set_horizon = set_horizon
        self._reads = lambda: (hits, misses)

    def _keys(self) -> list[str]:
        return [*self._small, *self._main]

    def _take(self, key: str) -> Item | None:
        item = self._items.pop(key, None)
        if item is None:
            return None
        charge = item.charge_bytes
        self.bytes -= charge
        if key in self._small:
            del self._small[key]
            self._small_bytes -= charge
        else:
            del self._main[key]
        self._ghosts.trim(_GHOSTS_PER_ITEM * len(self._items))
        return item

    def _place(self, key: str, item: Item, warm: bool) -> None:
        old = self._items.get(key)
        if old is None:
            self._place_new(key, item)
            return
        self._items[key] = item
        self.bytes += item.charge_bytes
        if key in self._small:
            self._small_bytes += item.charge_bytes - old.charge_bytes
        self._replaced(key, old)
        item.uses = min(USES_MAX, old.uses + 1) if warm else old.uses

    def _place_new(self, key: str, item: Item) -> None:
        # Room is made before it comes in, so that it is not itself what has to go.
        known = self._ghosts.take(key)
        charge = item.charge_bytes
        while self._items and (
            len(self._items) >= self._keys_max or self.bytes + charge > self._bytes_max
        ):
            self._evict_one(by_count=len(self._items) >= self._keys_max)
        self._items[key] = item
        self.bytes += charge
        item.uses = 0
        if known or self._is_filling():
            self._main[key] = None
        else:
            self._small[key] = None
            self._small_bytes += charge

    def _is_filling(self) -> bool:
        """Say whether the small queue has its tenth while nothing ever had to go.

        As in the authors' libCacheSim: a loop larger than the store keeps hitting what came first.
        """
        return not self._evictions and (
            len(self._small) * _SMALL_PARTS >= self._keys_max
            or self._small_bytes * _SMALL_PARTS >= self._bytes_max
        )

    def _place_cold(self, key: str, item: Item) -> None:
        item.uses = 0
        self._items[key] = item
        self._small[key] = None
        self._small.move_to_end(key, last=False)
        self._small_bytes += item.charge_bytes
        self.bytes += item.charge_bytes

    def _shrink(self, keep: str | None) -> None:
        # Only an item that grew in its place comes to this.
        while self.bytes > self._bytes_max or len(self._items) > self._keys_max:
            if keep is not None:
                self._refresh(keep)
            self._evict_one(by_count=len(self._items) > self._keys_max)

    def _refresh(self, key: str) -> None:
        """Put an item where it goes last: it was set just now, and others are to make room."""
        if key in self._small:
            del self._small[key]
            self._small_bytes -= self._items[key].charge_bytes
            self._main[key] = None
        else:
            self._main.move_to_end(key)

    def _evict_one(self, *, by_count: bool) -> None:
        items, small, main = self._items, self._small, self._main
        for rounds in range(_ROUNDS_MAX, -1, -1):
            if not main or (
                len(small) * _SMALL_PARTS >= len(items)
                if by_count
                else self._small_bytes * _SMALL_PARTS >= self.bytes
            ):
                key, _ = small.popitem(last=False)
                item = items[key]
                self._small_bytes -= item.charge_bytes
                if item.uses < _USES_TO_MAIN or not rounds:
                    self._ghosts.add(key)
                    break
                item.uses = 0
            else:
                key, _ = main.popitem(last=False)
                item = items[key]
                if not item.uses or not rounds:
                    break
                item.uses -= 1
            main[key] = None
        del items[key]
        self._evict(key, item)
        self._ghosts.trim(_GHOSTS_PER_ITEM * len(items))
