"""Faults put into what brings data to agree, each of which the checkers have to find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lanecache.cluster.links.repair import Repair
from lanecache.cluster.links.ring import Ring
from lanecache.cluster.links.transfer import Transfers
from lanecache.cluster.replica import replica as replicas
from lanecache.cluster.replica import sources, state_join
from lanecache.cluster.replica.clock import HybridClock
from lanecache.cluster.replica.floors import Floors
from lanecache.cluster.replica.registers import Registers
from lanecache.cluster.replica.replica import Replica
from lanecache.cluster.replica.source_ages import SourceAge, SourceAges
from lanecache.cluster.replica.tombstones import KeyTombstones, PrefixTombstones, TagTombstones
from lanecache.cluster.store.bounded import Store
from lanecache.cluster.store.lru import LruStore
from lanecache.cluster.store.s3fifo import S3FifoStore

if TYPE_CHECKING:
    from lanecache.cluster.replica.entry import Heartbeat
    from lanecache.cluster.replica.state import Staged
    from lanecache.cluster.store.item import Item, Order, Stamp


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing in place of what is to be done."""


def drop_entry() -> AbstractContextManager[Any]:
    """Now and then an entry of another node counts as applied and is not."""
    apply = Replica._apply

    def applied(
        self: Replica, order: Order, seq: int, operations: Sequence[Any], *rest: Any
    ) -> None:
        lost = order[1] != self.origin and seq % 5 == 3
        apply(self, order, seq, () if lost else operations, *rest)

    return patch.object(Replica, "_apply", applied)


@contextlib.contextmanager
def skip_tombstone() -> Iterator[None]:
    """What is deleted leaves no trace."""
    with (
        patch.object(KeyTombstones, "bury", nothing),
        patch.object(PrefixTombstones, "add", nothing),
    ):
        yield


def trust_ttl() -> AbstractContextManager[Any]:
    """What would live longer is kept, however old it is."""
    put = Store.put

    def held(self: Store, key: str, item: Item, *, warm: bool) -> None:
        before = self.find(key)
        lives_longer = (
            before is not None
            and item.deadline is not None
            and (before.deadline is None or before.deadline > item.deadline)
        )
        if not lives_longer:
            put(self, key, item, warm=warm)

    return patch.object(Store, "put", held)


def key_by_key() -> AbstractContextManager[Any]:
    """Half of an entry is applied at once, the rest with the next one."""
    apply = Registers.apply

    def applied(
        self: Registers, operations: Sequence[Any], order: Order, *rest: Any, warm: bool
    ) -> None:
        waiting = getattr(self, "waiting", None)
        if waiting is not None:
            apply(self, *waiting, warm=False)
        half = len(operations) if warm else (len(operations) + 1) // 2
        setattr(self, "waiting", (operations[half:], order, *rest))  # noqa: B010
        apply(self, operations[:half], order, *rest, warm=warm)

    return patch.object(Registers, "apply", applied)


def replace_state() -> AbstractContextManager[Any]:
    """A peer's state takes the place of what is held and of what is remembered."""
    join = state_join.join

    def replaced(self: Replica, staged: Staged, now: float) -> None:
        for key, _ in self.store.all_items():
            self.store.remove(key)
        self.registers.floors.__init__()  # type: ignore[misc]
        self.tombstones.keys.records.clear()
        join(self, staged, now)

    return patch.object(replicas, "join", replaced)


@contextlib.contextmanager
def bring_back_evicted() -> Iterator[None]:
    """Of what is forgotten nothing is remembered, not even how new it was."""
    with patch.object(Floors, "rise", nothing), patch.object(Floors, "rise_all", nothing):
        yield


def last_arrival() -> AbstractContextManager[Any]:
    """What comes last wins."""
    return patch.object(Registers, "_beats_held", lambda *_: True)


def replay() -> AbstractContextManager[Any]:
    """A source's transaction that is written once more is applied once more."""
    return patch.object(sources, "still_shown", lambda *_: ())


def mix_ingests() -> AbstractContextManager[Any]:
    """An ingest that another one has overtaken is listened to all the same."""

    def applied(
        self: Registers, operations: Sequence[Any], order: Order, stamp: Stamp, now: float
    ) -> int:
        self.apply(operations, order, stamp, 0, now, warm=False)
        return 0

    return patch.object(Registers, "apply_void", applied)


def ignore_clocks() -> AbstractContextManager[Any]:
    """A node's clock does not stay ahead of what it has seen."""
    return patch.object(HybridClock, "observe", lambda *_: True)


def keep_invalidated() -> AbstractContextManager[Any]:
    """What carries an invalidated tag is handed out still."""
    return patch.object(TagTombstones, "is_current", lambda *_: True)


@contextlib.contextmanager
def hold_everything() -> Iterator[None]:
    """A store evicts nothing."""
    with (
        patch.object(LruStore, "_shrink", nothing),
        patch.object(S3FifoStore, "_shrink", nothing),
    ):
        yield


def long_ring() -> AbstractContextManager[Any]:
    """The ring lets go of nothing."""
    begin = Ring.__init__

    def begun(self: Ring, bytes_max: int) -> None:
        begin(self, bytes_max * 100)

    return patch.object(Ring, "__init__", begun)


def keep_tombstones() -> AbstractContextManager[Any]:
    """Nothing that was deleted is ever forgotten."""
    return patch.object(Replica, "sweep", nothing)


def repair_nothing() -> AbstractContextManager[Any]:
    """Nobody asks for what it lacks."""
    return patch.object(Repair, "_fill", lambda *_: True)


def take_no_state() -> AbstractContextManager[Any]:
    """Who lacks what no ring holds any more goes without."""
    return patch.object(Transfers, "need", nothing)


def young_ages() -> AbstractContextManager[Any]:
    """Whoever hears of a source takes it for fresh, whatever is said."""

    def heard(self: SourceAges, name: str, beat: Heartbeat, waited_s: float, now: float) -> None:
        self.join(name, SourceAge(now, now, vouched=True))

    return patch.object(SourceAges, "heard", heard)


DATA_PLANTS = {
    "bring-back-evicted": bring_back_evicted,
    "drop-entry": drop_entry,
    "hold-everything": hold_everything,
    "ignore-clocks": ignore_clocks,
    "keep-invalidated": keep_invalidated,
    "keep-tombstones": keep_tombstones,
    "key-by-key": key_by_key,
    "last-arrival": last_arrival,
    "long-ring": long_ring,
    "mix-ingests": mix_ingests,
    "repair-nothing": repair_nothing,
    "replace-state": replace_state,
    "replay": replay,
    "skip-tombstone": skip_tombstone,
    "take-no-state": take_no_state,
    "trust-ttl": trust_ttl,
    "young-ages": young_ages,
}
