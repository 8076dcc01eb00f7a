"""Replicas without a network, and a model that knows every write and what each replica has seen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from lanecache.cluster.replica.clock import HybridClock
from lanecache.cluster.replica.entry import (
    Clear,
    Fill,
    InvalidateTag,
    Mark,
    Opening,
    Operation,
    Order,
    Put,
    Remove,
    decode_entry,
)
from lanecache.cluster.replica.replica import Outcome, Replica
from lanecache.cluster.settings import Settings
from lanecache.cluster.store.item import Item
from lanecache.cluster.store.store import make_store
from lanecache.operation import Checkpoint, Position, Version

WALL_S = 1_700_000_000.0
SETTINGS = Settings()


class Time:
    """A monotonic clock that all replicas of a test share."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_replica(
    origin: int, time: Time, settings: Settings = SETTINGS, *, ahead_s: float = 0.0, **options: Any
) -> Replica:
    store = partial(
        make_store,
        settings.policy,
        keys_max=settings.keys_max,
        bytes_max=settings.bytes_max,
        clock=time,
    )
    clock = HybridClock(lambda: WALL_S + ahead_s, time.now, settings.clock_drift_max_s)
    wall = partial(lambda: WALL_S + ahead_s + time.now)
    return Replica(settings, store, origin=origin, clock=clock, wall=wall, **options)


def put(key: str, value: Any, ttl_ms: int | None = None, tags: tuple[str, ...] = ()) -> Put:
    return Put(key, value, len(msgspec.msgpack.encode(value)), ttl_ms, tags)


def fill(key: str, value: Any, base: Order, fence: int, **options: Any) -> Fill:
    return Fill(key, value, len(msgspec.msgpack.encode(value)), base, fence, **options)


def checkpoint_at(offset: int, source: str = "db", file: str = "binlog.000001") -> bytes:
    return Checkpoint(source, Position(None, file, offset), Version(0, 0), "writer").encode()


def mark_at(epoch: tuple[int, int], offset: int, source: str = "db") -> Mark:
    return Mark(source, epoch, checkpoint_at(offset, source), "binlog.000001", offset)


def position_of(replica: Replica, source: str = "db") -> int:
    """Give the furthest position that a replica has shown of a source."""
    state = replica.sources.states.get(source)
    if state is None:
        return 0
    shown = state.shown if state.checkpoint is None else (state.checkpoint, *state.shown)
    return max((Checkpoint.decode(each).position.offset for each in shown), default=0)


class Write(NamedTuple):
    """An operation that some entry had, with the order that it has."""

    order: Order
    operation: Operation


class World:
    """Some replicas, all entries that were ever written, and who has seen which of them."""

    def __init__(
        self,
        count: int,
        settings: Settings = SETTINGS,
        *,
        aheads_s: Sequence[float] = (0.0,),
    ) -> None:
        self.time = Time()
        self.settings = settings
        self.replicas = [
            make_replica(index + 1, self.time, settings, ahead_s=aheads_s[index % len(aheads_s)])
            for index in range(count)
        ]
        self.logs: dict[int, list[tuple[bytes, float]]] = {
            replica.origin: [] for replica in self.replicas
        }
        self.writes: dict[int, list[list[Write]]] = {
            replica.origin: [] for replica in self.replicas
        }
        self._shown: dict[tuple[int, str], Order] = {}

    # What happens.

    def write(self, replica: Replica, *operations: Operation, mark: Mark | None = None) -> None:
        self.enter(replica, replica.write(operations, self.time.now, mark=mark))

    def enter(self, replica: Replica, payload: bytes) -> None:
        """Take note of an entry that a replica has made."""
        entry = decode_entry(payload)
        origin = replica.origin
        self.logs[origin].append((payload, self.time.now))
        assert entry.seq == len(self.logs[origin]) == replica.digest[origin]
        self.writes[origin].append(
            [
                Write(each.order(origin) if isinstance(each, Fill) else (entry.clock, origin), each)
                for each in entry.operations
            ]
        )

    def open_source(self, replica: Replica, name: str = "db") -> tuple[tuple[int, int], int]:
        """Take a source over; gives the epoch and where to go on."""
        opened = replica.open_source(name, self.time.now)
        self.enter(replica, opened.payload)
        if opened.checkpoint is None:
            return opened.epoch, 0
        return opened.epoch, Checkpoint.decode(opened.checkpoint).position.offset

    def deliver(self, replica: Replica, origin: int) -> Outcome | None:
        """Bring a replica the next entry of an origin; None where there is none."""
        seq = replica.digest.get(origin, 0)
        if seq >= len(self.logs[origin]):
            return None
        payload, made_at = self.logs[origin][seq]
        age_ms = int((self.time.now - made_at) * 1000)
        outcome = replica.receive(origin, payload, age_ms, self.time.now)
        assert outcome in (Outcome.APPLIED, Outcome.WAITS)
        return outcome

    def transfer(self, giver: Replica, taker: Replica) -> None:
        """Bring a replica the whole state of another."""
        chunks = list(giver.snapshot(self.time.now))
        staged = taker.begin_state()
        for chunk in chunks:
            staged.take(chunk)
        taker.merge(staged, self.time.now)

    def exchange_all(self, chance: random.Random | None = None) -> None:
        """Deliver until everyone has everything, in any order."""
        pairs = [(replica, origin) for replica in self.replicas for origin in self.logs]
        moved = True
        while moved:
            moved = False
            if chance is not None:
                chance.shuffle(pairs)
            for replica, origin in pairs:
                if replica.origin != origin:
                    moved |= self.deliver(replica, origin) is Outcome.APPLIED
        for replica in self.replicas:
            for origin, log in self.logs.items():
                assert replica.digest.get(origin, 0) == len(log)

    def sweep(self, replica: Replica, *, calm: bool = True) -> None:
        def is_stable(origin: int, seq: int) -> bool:
            return all(each.digest.get(origin, 0) >= seq for each in self.replicas)

        replica.sweep(self.time.now, is_stable, calm, next_at=self.time.now)

    # What must hold.

    def seen(self, replica: Replica) -> list[Write]:
        """List every write that a replica has seen, in an entry or inside a state."""
        return [
            write
            for origin, entries in self.writes.items()
            for entry in entries[: replica.digest.get(origin, 0)]
            for write in entry
        ]

    def check(self, replica: Replica) -> None:
        """Check I1 and I2 on one replica: what is held is the greatest write seen of its key.

        As an entry counts as seen whole, this is also that no part of one is shown beside what was
        there before.
        """
        writes = self.seen(replica)
        for key, item in replica.store.all_items():
            values = []
            for order, operation in writes:
                if isinstance(operation, Put | Fill | Remove):
                    if operation.key != key:
                        continue
                    assert order <= item.order, (key, item, order, operation)
                    if order == item.order:
                        values.append(operation)
                elif isinstance(operation, Clear) and key.startswith(operation.prefix):
                    assert order <= item.order, (key, item, order, operation)
            assert len(values) == 1, (key, item)
            assert not isinstance(values[0], Remove)
            assert item.value == values[0].value
            assert item.tags == values[0].tags
            if is_shown(replica, key, item, self.time.now):
                for order, operation in writes:
                    if isinstance(operation, InvalidateTag) and operation.tag in item.tags:
                        assert order <= item.order, (key, item, order, operation)
                before = self._shown.get((replica.origin, key), (0, 0))
                assert item.order >= before, f"{key} went back from {before} to {item.order}"
                self._shown[replica.origin, key] = item.order
            assert key not in replica.tombstones.keys.records
        assert len(replica.tombstones) <= self.settings.tombstones_max
        assert replica.store.entries <= self.settings.keys_max

    def check_agreement(self) -> None:
        """Check I3: any two replicas agree on every key that both hold."""
        for one in self.replicas:
            for other in self.replicas:
                for key, item in one.store.all_items():
                    found = other.store.find(key)
                    if found is not None:
                        assert (found.order, found.value) == (item.order, item.value), key

    def winners(self) -> dict[str, Any]:
        """Give what everybody would hold who forgets nothing."""
        best: dict[str, Write] = {}
        clears: list[Write] = []
        for entries in self.writes.values():
            for write in (write for entry in entries for write in entry):
                operation = write.operation
                if isinstance(operation, Put | Fill | Remove):
                    if operation.key not in best or write.order > best[operation.key].order:
                        best[operation.key] = write
                else:
                    clears.append(write)
        return {
            key: write.operation.value
            for key, write in best.items()
            if not isinstance(write.operation, Remove)
            and not any(_reaches(clear, key, write) for clear in clears)
        }


def _reaches(clear: Write, key: str, write: Write) -> bool:
    if clear.order <= write.order:
        return False
    if isinstance(clear.operation, Clear):
        return key.startswith(clear.operation.prefix)
    return clear.operation.tag in write.operation.tags


def is_shown(replica: Replica, key: str, item: Item, now: float) -> bool:
    """Say whether ``get`` would give an item that lies in the store."""
    if item.deadline is not None and item.deadline <= now:
        return False
    return not item.tags or replica.tombstones.tags.is_current(item)


def values(replica: Replica) -> dict[str, Any]:
    """Give what a replica shows."""
    return {key: item.value for key, item in replica.store.items()}


__all__ = ["Opening", "World", "Write"]
