"""What a Redis Cluster is replayed after a crash: held back, folded, until the horizon. A core."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lanecache.operation import TRANSACTION_OVERHEAD_BYTES, OperationSet
from lanecache.sinks.redis_slots import slot_of

if TYPE_CHECKING:
    from lanecache.operation import Position, Transaction
    from lanecache.sinks.redis_records import Standing


class Replay:
    """What is held back on the way to the horizon, without what each slot has applied already."""

    def __init__(self, standing: Standing) -> None:
        assert standing.horizon is not None
        self.horizon: Position = standing.horizon.position
        self.ahead = standing.ahead
        self.folded = OperationSet()
        self.clears: dict[str, Position | None] = {}
        self.size_bytes = 0  # of the transactions held
        self.said = False
        self._count = 0

    def take_count(self) -> int:
        """Give how many transactions have been held since the last time."""
        count, self._count = self._count, 0
        return count

    def take_keys(self) -> list[str]:
        """Give the keys that are held and hold them no longer; the clears stay."""
        keys = list(self.folded.by_key)
        if keys:
            self.folded = OperationSet()
            self.size_bytes = 0
        return keys

    def hold(self, transaction: Transaction) -> None:
        """Fold a transaction; of a spilled one, only its clears."""
        operations = transaction.operations
        self._count += 1
        self.size_bytes += operations.size_bytes + TRANSACTION_OVERHEAD_BYTES
        for prefix in operations.clears():
            self.folded.clear(prefix)
            self.clears[prefix] = transaction.position
        if operations.spilled:
            return
        for write in operations.writes():
            if not self.applied(write.key, transaction.position):
                self.folded.add(write)

    def untouched(self, transaction: Transaction) -> Iterator[str]:
        """Give the transaction's keys whose slot has not applied it."""
        for key in transaction.operations.keys():  # noqa: SIM118  a method of its own, no mapping
            if not self.applied(key, transaction.position):
                yield key

    def applied(self, key: str, position: Position) -> bool:
        """Tell whether the key's slot has what the transaction at a position wrote."""
        reached = self.ahead.get(slot_of(key))
        return reached is not None and reached.covers(position)
