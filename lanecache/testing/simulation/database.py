"""A model of a source database: numbered transactions, and what each key was at any of them.

It is outside the world of faults: a database server of its own, which everybody can reach. What an
ingest reads of it is right; what the cluster makes of that is what the checkers look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lanecache.operation import Delete, OperationSet, Position, Set, Transaction, Version

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

SOURCE = "shop"
LOG_FILE = "model.000001"
LARGE_VALUE_BYTES = 1_200  # ten of them are more than an entry may have
PREFIX = "db:"
TEN = tuple(f"{PREFIX}ten:{index}" for index in range(10))  # equal after every transaction
ROWS = tuple(f"{PREFIX}row:{index}" for index in range(16))
HASHES = tuple(f"{PREFIX}hash:{index}" for index in range(4))
EVERY = TEN + ROWS + HASHES


@dataclass(frozen=True, slots=True)
class Change:
    """One transaction: the keys that it stores and those that it removes or clears.

    A ``large`` one does not fit into one entry.
    """

    number: int
    stores: frozenset[str]
    removes: frozenset[str] = frozenset()
    clears: tuple[str, ...] = ()
    large: bool = False

    def transaction(self) -> Transaction:
        """Give it as ingest hands it to a sink."""
        operations = OperationSet()
        for prefix in self.clears:
            operations.clear(prefix)
        for key in sorted(self.removes):
            operations.add(Delete(key))
        for key in sorted(self.stores):
            operations.add(Set(key, value_of(key, self.number, large=self.large)))
        return Transaction(
            source=SOURCE,
            position=Position(None, LOG_FILE, self.number),
            version=Version(self.number, 1),
            committed_at=0.0,
            operations=operations,
            lanes={PREFIX: "of the model"},
        )


def value_of(key: str, number: int, *, large: bool) -> bytes | dict[str, bytes]:
    """Give what ``key`` is after transaction ``number`` has stored it."""
    spelled = f"{number} {key} {'x' * LARGE_VALUE_BYTES if large else ''}".encode()
    if key in HASHES:
        return {"id": key.encode(), "row": spelled}
    return spelled


def number_of(value: bytes | dict[str, bytes]) -> int:
    """Say which transaction has stored a value."""
    spelled = value["row"] if isinstance(value, dict) else value
    return int(spelled.partition(b" ")[0])


class Database:
    """The transactions so far, and by the clock ``now`` when each was committed."""

    def __init__(self) -> None:
        self.log: list[Change] = []
        self.times: list[float] = []  # when each was committed
        self.now: Callable[[], float] = lambda: 0.0
        self._present: dict[str, int] = {}  # the keys that are there, and by which transaction
        self._until: dict[tuple[str, int], int] = {}

    @property
    def last(self) -> int:
        """The number of the last transaction; the first is 1."""
        return len(self.log)

    def commit(
        self,
        stores: Iterable[str] = (),
        removes: Iterable[str] = (),
        clears: tuple[str, ...] = (),
        *,
        large: bool = False,
    ) -> None:
        """Commit one transaction; what it clears goes before it stores anything."""
        change = Change(self.last + 1, frozenset(stores), frozenset(removes), clears, large)
        cleared = {key for key in self._present if key.startswith(clears)} if clears else set()
        for key in change.stores | change.removes | cleared:
            before = self._present.pop(key, None)
            if before is not None:
                self._until[key, before] = change.number
        for key in change.stores:
            self._present[key] = change.number
        self.log.append(change)
        self.times.append(self.now())

    def commit_any(self, chance: random.Random) -> None:
        """Commit what a shop might: all ten equal keys, some rows, a row that moves or goes."""
        kind = chance.randrange(10)
        large = chance.random() < 0.1
        if kind < 4:
            self.commit(TEN, large=large)
        elif kind < 8:
            self.commit(chance.sample(ROWS + HASHES, chance.choice((1, 1, 2, 5))), large=large)
        elif kind < 9:
            old, new = chance.sample(ROWS, 2)
            self.commit((new,), (old,))
        elif chance.random() < 0.2:
            self.commit(chance.sample(ROWS, 2), clears=(f"{PREFIX}row:",))
        else:
            self.commit((), chance.sample(ROWS + HASHES, chance.choice((1, 3))))

    def commit_all(self) -> None:
        """Commit a transaction that stores every key, so that each has a last value."""
        self.commit(EVERY)

    def is_valid(self, key: str, number: int, at: int) -> bool:
        """Say whether what ``number`` has stored is what ``key`` is after transaction ``at``."""
        return number <= at < self._until.get((key, number), math.inf)

    def rows(self) -> dict[str, int]:
        """Give the keys that are there now, each with the transaction that has stored it."""
        return dict(self._present)
