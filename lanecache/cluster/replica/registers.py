"""The last-writer-wins registers of one node: of each key the latest write, or a trace of it.

A core, and the only place that decides between two writes. What is in the store, the tombstones and
the floors is brought to agree here, by these rules:

- Of two writes to a key the one with the greater order wins, whichever came first. Of two with the
  same order a deletion wins over a value, and of two values the one that is encoded greater (it
  cannot happen with nodes that number their entries right, and is still decided alike everywhere).
  A TTL decides nothing: what arrives expired, or too large, wins as a value would, and is then
  forgotten.
- What is held of a key is the greatest write seen of it. If nothing is held, then a tombstone, a
  floor, or a tombstone of a prefix is not below the greatest write seen of it.
- So a write wins over what is held if its order is greater; and where nothing is held, if it is
  above all of these three. With tags it has to be above the invalidations of these too.

Items that have expired or were invalidated and still lie in the store count as held: they are the
greatest write seen, until the store lets go of them and a floor takes their place.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.cluster.replica.entry import Clear, Fill, InvalidateTag, Operation, Put, Remove
from lanecache.cluster.replica.floors import Floors
from lanecache.cluster.replica.tombstones import Tombstones
from lanecache.cluster.store.item import Item, Order, Stamp

if TYPE_CHECKING:
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.store.store import Store

DECISIONS_MAX = 4096  # the last ones, for ``explain``

_encode = msgspec.msgpack.Encoder().encode


class Decision(enum.Enum):
    """What was decided between two writes to a key that came from different nodes."""

    REPLACED = "replaced"  # the held one, by a later one that arrived
    KEPT = "kept"  # an older one arrived


class ReplicaCounters(msgspec.Struct):
    """What has happened here since the start; of writes to a key, if nothing else is said."""

    entries_applied: int = 0
    entries_garbage: int = 0  # entries refused: none that a node makes, or not the next one
    clocks_refused: int = 0  # entries whose clock was too far ahead
    conflicts_lost: int = 0  # arrived, and were older than what is held
    resurrections_prevented: int = 0  # arrived, and had been deleted, cleared or invalidated
    floor_refusals: int = 0  # arrived, and might have been older than what was forgotten
    fills_overtaken: int = 0  # fills among these three
    expired_on_arrival: int = 0
    oversized: int = 0  # values and keys beyond this node's limits, which it does not hold
    void: int = 0  # of an ingest whose turn was over (``sources``)
    veiled: int = 0  # values of a source that this node has shown later ones of
    states_merged: int = 0
    state_items_dropped: int = 0  # items of peers' states for which there was no room


class Registers:
    """What one node holds and has forgotten.

    Args:
        settings: limits.
        make_store: makes the store: called with ``forgotten`` and ``is_current``.

    Attributes:
        decisions: the last decisions by key: what, the order that won, and the one that lost.
    """

    def __init__(self, settings: Settings, make_store: Callable[..., Store]) -> None:
        self.floors = Floors()
        self.tombstones = Tombstones(settings.tombstones_max, self.floors)
        self.counters = ReplicaCounters()
        self.decisions: dict[str, tuple[Decision, Order, Order]] = {}
        self.store = make_store(
            forgotten=self._forgotten, is_current=self.tombstones.tags.is_current
        )
        self._value_bytes_max = settings.value_bytes_max
        self._key_bytes_max = settings.key_bytes_max

    def apply(
        self,
        operations: Sequence[Operation],
        order: Order,
        stamp: Stamp,
        age_ms: int,
        now: float,
        *,
        warm: bool,
    ) -> None:
        """Apply the operations of one entry; it does not fail half way.

        Args:
            operations: what was checked already.
            order: ``(clock, origin)`` of the entry.
            stamp: of the entry.
            age_ms: how long ago it was made.
            now: by the monotonic clock, in seconds.
            warm: whether it is of this node's users.
        """
        store = self.store
        find, put = store.find, store.put
        floors, prefixes = self.floors, self.tombstones.prefixes
        buried = self.tombstones.keys.records
        origin = order[1]
        value_bytes_max, key_bytes_max = self._value_bytes_max, self._key_bytes_max
        for operation in operations:
            kind = type(operation)
            if kind is Put:
                # All of this stands here, and not in functions, for speed: it is what every write
                # on every node comes to. ``_accepts`` says the same.
                key: str = operation.key  # type: ignore[union-attr]
                held = find(key)
                if held is not None:
                    if held.order >= order:
                        value = operation.value  # type: ignore[union-attr]
                        if not self._beats_held(key, held, order, value):
                            continue
                    elif held.order[-1] != origin:
                        self._note(key, Decision.REPLACED, order, held.order)
                elif (
                    key in buried or order <= floors.maximum or order <= prefixes.maximum
                ) and not self._beats_forgotten(key, order):
                    continue
                size: int = operation.size  # type: ignore[union-attr]
                ttl_ms: int | None = operation.ttl_ms  # type: ignore[union-attr]
                tags: tuple[str, ...] = operation.tags  # type: ignore[union-attr]
                deadline = None
                if ttl_ms is not None:
                    deadline = now + (ttl_ms - age_ms) / 1000
                    if deadline <= now:
                        self.counters.expired_on_arrival += 1
                        self.forget(key, order)
                        continue
                if size > value_bytes_max or len(key) > key_bytes_max:
                    self.counters.oversized += 1
                    self.forget(key, order)
                    continue
                if tags and not self._are_valid(key, order, tags):
                    continue
                item = Item(
                    operation.value,  # type: ignore[union-attr]
                    order,
                    deadline,
                    size,
                    stamp,
                    tags,
                )
                put(key, item, warm=warm)
            elif kind is Remove:
                self.remove(operation.key, order, stamp, now)  # type: ignore[union-attr]
            elif isinstance(operation, Fill):
                self._fill(operation, operation.order(origin), stamp, age_ms, now)
            elif isinstance(operation, Clear):
                self.clear(operation.prefix, order, stamp, now)
            elif isinstance(operation, InvalidateTag):
                self.invalidate(operation.tag, order, stamp, now)

    def apply_void(
        self, operations: Sequence[Operation], order: Order, stamp: Stamp, now: float
    ) -> int:
        """Apply the operations of one entry with a tombstone in place of each value.

        Returns:
            How many values there were.
        """
        count = 0
        for operation in operations:
            if isinstance(operation, Put):
                count += 1
                self.remove(operation.key, order, stamp, now)
            elif isinstance(operation, Fill):
                count += 1
                self.remove(operation.key, operation.order(order[1]), stamp, now)
            else:
                self.apply((operation,), order, stamp, 0, now, warm=False)
        return count

    def _fill(self, fill: Fill, order: Order, stamp: Stamp, age_ms: int, now: float) -> None:
        key = fill.key
        if not self._accepts(key, order, fill.held_value):
            self.counters.fills_overtaken += 1
            return
        # Whose value it was made from: were that void one day, so would this be.
        if fill.source:
            stamp = Stamp(stamp.seq, fill.source, "", 0, stamp.at)
        deadline = kept_until = None
        if fill.ttl_ms is not None:
            deadline = now + (fill.ttl_ms - age_ms) / 1000
            if fill.stale_ms:
                kept_until = deadline + fill.stale_ms / 1000
        if fill.absent:
            deadline, kept_until = now, deadline
        end = deadline if kept_until is None else kept_until
        if end is not None and end <= now:
            self.counters.expired_on_arrival += 1
            self.forget(key, order)
        elif fill.size > self._value_bytes_max or len(key) > self._key_bytes_max:
            self.counters.oversized += 1
            self.forget(key, order)
        elif not fill.tags or self._are_valid(key, order, fill.tags):
            self.store.put(
                key,
                Item(
                    fill.held_value,
                    order,
                    deadline,
                    fill.size,
                    stamp,
                    fill.tags,
                    kept_until=kept_until,
                    took_s=fill.took_ms / 1000,
                ),
                warm=False,
            )

    def _accepts(self, key: str, order: Order, value: Any) -> bool:
        """Decide whether a write wins; tags and limits apart. A tombstone that it beats goes."""
        held = self.store.find(key)
        if held is not None:
            if held.order >= order:
                return self._beats_held(key, held, order, value)
            if held.order[-1] != order[-1]:
                self._note(key, Decision.REPLACED, order, held.order)
            return True
        if not self._beats_forgotten(key, order):
            return False
        self.tombstones.keys.records.pop(key, None)
        return True

    def _beats_held(self, key: str, held: Item, order: Order, value: Any) -> bool:
        """Decide for a write that is not later than what is held."""
        if held.order == order:
            return _encode(value) > _encode(held.value)
        self.counters.conflicts_lost += 1
        self._note(key, Decision.KEPT, held.order, order)
        return False

    def _beats_forgotten(self, key: str, order: Order) -> bool:
        """Decide for a write to a key that is not held; a tombstone that it beats goes."""
        tombstone = self.tombstones.keys.records.get(key)
        if tombstone is not None and tombstone.order >= order:
            self.counters.resurrections_prevented += 1
            return False
        if self.tombstones.prefixes.of(key) > order:
            self.counters.resurrections_prevented += 1
            return False
        if order <= self.floors.of(key):
            self.counters.floor_refusals += 1
            return False
        if tombstone is not None:
            del self.tombstones.keys.records[key]
        return True

    def _are_valid(self, key: str, order: Order, tags: tuple[str, ...]) -> bool:
        """Decide for a write that has won whether its tags let it be held; else it is forgotten."""
        if not self.tombstones.tags.covers(order, tags):
            return True
        self.counters.resurrections_prevented += 1
        self.forget(key, order)
        return False

    def _note(self, key: str, decision: Decision, winner: Order, loser: Order) -> None:
        decisions = self.decisions
        decisions.pop(key, None)
        decisions[key] = (decision, winner, loser)
        if len(decisions) > DECISIONS_MAX:
            del decisions[next(iter(decisions))]

    def forget(self, key: str, order: Order) -> None:
        """Hold nothing of a key in place of a write that has won."""
        self.store.remove(key)
        self.floors.rise(key, order)

    def remove(self, key: str, order: Order, stamp: Stamp, now: float) -> None:
        """Apply a deletion of a key, held or not."""
        held = self.store.find(key)
        if held is not None:
            if held.order > order:
                self.counters.conflicts_lost += 1
                self._note(key, Decision.KEPT, held.order, order)
                return
            self.store.remove(key)
        elif order <= self.floors.maximum and order <= self.floors.of(key):
            return  # what it would keep out is kept out
        tombstones = self.tombstones
        if tombstones.over_key(key) < order:
            tombstones.keys.bury(key, order, stamp, now)
            tombstones.bound()

    def clear(self, prefix: str, order: Order, stamp: Stamp, now: float) -> None:
        """Apply a deletion of all keys below a prefix."""
        store = self.store
        for key in store.keys_below(prefix):
            held = store.find(key)
            if held is not None and held.order < order:
                store.remove(key)
        self.tombstones.prefixes.add(prefix, order, stamp, now)
        self.tombstones.bound()

    def invalidate(self, tag: str, order: Order, stamp: Stamp, now: float) -> None:
        """Apply a deletion of all values with a tag: they are not handed out from now on."""
        if self.tombstones.tags.add(tag, order, stamp, now):
            self.drop_tags(self.tombstones.tags.due(lambda _: False))
        self.tombstones.bound()

    def drop_tags(self, tags: Sequence[str]) -> None:
        """Drop tombstones of tags, after everything that they keep from being handed out."""
        if not tags:
            return
        records = self.tombstones.tags
        for key, item in self.store.all_items():
            if item.tags and not records.is_current(item):
                self.forget(key, item.order)
        records.drop(tags)

    def bury(self, key: str, item: Item, now: float) -> None:
        """Turn what is held into a tombstone of the same order."""
        self.store.remove(key)
        self.tombstones.keys.bury(key, item.order, item.stamp or Stamp(0), now)
        self.tombstones.bound()

    def order_of(self, key: str) -> Order:
        """Give the greatest order that is known of a key, or may have been forgotten of it."""
        held = self.store.find(key)
        if held is not None:
            return held.order
        return max(self.floors.of(key), self.tombstones.over_key(key))

    def _forgotten(self, key: str, item: Item) -> None:
        """Hear from the store that it let go of an item by itself."""
        self.floors.rise(key, item.order)
