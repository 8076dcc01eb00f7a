"""The store that lets go of what was not used for the longest time."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from lanecache.cluster.store.bounded import HORIZON_MAX, Store

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Item


class LruStore(Store):
    """Exactly the least recently used goes. A use is a hit of ``get`` or a warm ``put``."""

    overhead_bytes = 512
    _items: OrderedDict[str, Item]  # coldest first

    def _begin(self) -> None:
        self._items = OrderedDict()
        hits = misses = 0
        horizon = HORIZON_MAX
        items, touch, clock = self._items, self._items.move_to_end, self._clock

        def get(key: str, default: Any = None) -> Any:
            nonlocal hits, misses
            # Touched first and looked up then: among many keys, a fifth less than the other way
            # round. The exception makes a miss cost twice as much, but what follows one costs more.
            try:
                touch(key)
            except KeyError:
                misses += 1
                return default
            item = items[key]
            if item.until > horizon:
                hits += 1
                return item.value
            return get_closely(key, item, default)

        def get_closely(key: str, item: Item, default: Any) -> Any:
            nonlocal hits, misses
            if item.until <= clock() and self._look_closer(key, item) is None:
                misses += 1
                return default
            hits += 1
            return item.value

        def set_horizon(at: float) -> None:
            nonlocal horizon
            horizon = at

        self.get = get
        self._set_horizon = set_horizon
        self._reads = lambda: (hits, misses)

    def _keys(self) -> list[str]:
        return list(self._items)

    def _take(self, key: str) -> Item | None:
        item = self._items.pop(key, None)
        if item is not None:
            self.bytes -= item.charge_bytes
        return item

    def _place(self, key: str, item: Item, warm: bool) -> None:
        items = self._items
        old = items.get(key)
        items[key] = item
        self.bytes += item.charge_bytes
        if old is not None:
            self._replaced(key, old)
            if warm:
                items.move_to_end(key)

    def _place_cold(self, key: str, item: Item) -> None:
        self._items[key] = item
        self._items.move_to_end(key, last=False)
        self.bytes += item.charge_bytes

    def _shrink(self, keep: str | None) -> None:
        # What is to be kept is at the hot end and fits alone, so it is never reached.
        while self.bytes > self._bytes_max or len(self._items) > self._keys_max:
            key, item = self._items.popitem(last=False)
            self._evict(key, item)
