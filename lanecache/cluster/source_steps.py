"""Source transactions as steps of the cluster: one step each, or cut in two phases. A core.

A step becomes one entry, which every node shows whole. A transaction that is too large for an entry
is applied in two phases: steps that forget all its keys, then steps that set the values, of which
the last one moves the position. No node ever shows an old value beside a new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lanecache.cluster.replica.entry import Clear, Put, Remove
from lanecache.cluster.store.values import check_key, encode_value
from lanecache.config import ENTRY_OVERHEAD_BYTES
from lanecache.errors import CacheValueError
from lanecache.operation import Set

if TYPE_CHECKING:
    from lanecache.cluster.replica.entry import Operation
    from lanecache.cluster.settings import Settings
    from lanecache.operation import Delete, Position, Transaction

logger = logging.getLogger("lanecache.cluster")

# The most that an operation takes in an entry beside its key and its encoded value.
_OPERATION_BYTES = 48
_TTL_MS_MIN = 1


class Step(NamedTuple):
    """What becomes visible together."""

    operations: Sequence[Operation]
    size_bytes: int  # at the most, encoded
    last: Transaction | None  # the one at whose position the source stands then; None: as before
    position: Position | None = None  # of the transaction that it is a part or the end of: to show


class SourceSteps:
    """Makes steps of transactions.

    Args:
        sink: the sink's name, for messages.
        limits: of the cluster.
        value_bytes_max: of the sink; the lesser limit holds.
        batch_bytes_max: how large the steps of the two phases are.
    """

    def __init__(
        self, sink: str, limits: Settings, *, value_bytes_max: int, batch_bytes_max: int
    ) -> None:
        self.invalidated = 0
        """How many values were turned into deletes of their keys, since they are too large."""
        self.mark_bytes = 0
        """What an entry holds beside its operations: to be kept up to date with the position."""
        self._sink = sink
        self._limits = limits
        self._value_bytes_max = min(value_bytes_max, limits.value_bytes_max)
        self._entry_bytes_max = limits.entry_bytes_max - ENTRY_OVERHEAD_BYTES
        self._batch_bytes_max = min(batch_bytes_max, self._entry_bytes_max)

    def of(self, run: Sequence[Transaction]) -> Iterator[Step]:
        """Make steps of a run."""
        for transaction in run:
            if transaction.operations.spilled:
                made = self._made(transaction.operations.writes())
                yield from self._two_phases(transaction, made)
            else:
                yield from self._whole(transaction)

    def _whole(self, transaction: Transaction) -> Iterator[Step]:
        operations = transaction.operations
        clears = operations.clears()
        step: list[Operation] = [Clear(prefix) for prefix in clears]
        size = sum(_OPERATION_BYTES + _length(prefix) for prefix in clears)
        made = list(self._made(operations.writes()))
        for operation, cost in made:
            step.append(operation)
            size += cost
        if size + 2 * self.mark_bytes <= self._entry_bytes_max:
            yield Step(step, size, transaction, transaction.position)
        else:
            yield from self._two_phases(transaction, made)

    def _two_phases(
        self, transaction: Transaction, made: Iterable[tuple[Operation, int]]
    ) -> Iterator[Step]:
        operations, position = transaction.operations, transaction.position
        clears = (_costed(Clear(prefix), prefix) for prefix in operations.clears())
        removes = (
            _costed(Remove(key), key)
            for key in operations.keys()  # noqa: SIM118  a method of its own, no mapping
            if self._is_key(key)
        )
        yield from self._cut(clears, position)
        yield from self._cut(removes, position)
        values = self._cut((each for each in made if isinstance(each[0], Put)), position)
        step = next(values, Step((), 0, None, position))
        for following in values:
            yield step
            step = following
        yield step._replace(last=transaction)

    def _cut(self, made: Iterable[tuple[Operation, int]], position: Position) -> Iterator[Step]:
        part: list[Operation] = []
        size = 0
        bytes_max = min(self._batch_bytes_max, self._entry_bytes_max - 2 * self.mark_bytes)
        for operation, cost in made:
            if part and size + cost > bytes_max:
                yield Step(part, size, None, position)
                part, size = [], 0
            part.append(operation)
            size += cost
        if part:
            yield Step(part, size, None, position)

    def _made(self, writes: Iterable[Set | Delete]) -> Iterator[tuple[Operation, int]]:
        """Make the operations of an entry from writes, with what each takes there."""
        limits, value_bytes_max = self._limits, self._value_bytes_max
        for write in writes:
            key = write.key
            length = _length(key)
            if not 0 < length <= limits.key_bytes_max:
                self._report(write, "its key")
                continue  # nobody can hold it
            if not isinstance(write, Set) or write.value == {}:
                yield Remove(key), _OPERATION_BYTES + length
                continue
            value = write.value
            if isinstance(value, bytes):
                size = len(value)
                size += 2 if size < 256 else 3 if size < 65_536 else 5  # MessagePack's head
            else:
                value = dict(value)
                try:
                    size = len(encode_value(value, limits, key))
                except CacheValueError:
                    size = value_bytes_max + 1
            if size > value_bytes_max:
                self._report(write, "its value")
                yield Remove(key), _OPERATION_BYTES + length
                continue
            ttl_s = write.ttl_s
            ttl_ms = None if ttl_s is None else max(_TTL_MS_MIN, round(ttl_s * 1000))
            yield Put(key, value, size, ttl_ms), _OPERATION_BYTES + length + size

    def _is_key(self, key: str) -> bool:
        try:
            check_key(key, self._limits)
        except CacheValueError:
            return False
        return True

    def _report(self, write: Set | Delete, what: str) -> None:
        """Count and log a value that cannot be held."""
        if not isinstance(write, Set):
            return
        self.invalidated += 1
        logger.warning(
            "sink %s: %s cannot be held, since %s is too long (at most %d bytes of a value, %d of"
            " a key); it is forgotten",
            self._sink,
            write.key[:200],
            what,
            self._value_bytes_max,
            self._limits.key_bytes_max,
        )


def _costed(operation: Operation, text: str) -> tuple[Operation, int]:
    return operation, _OPERATION_BYTES + _length(text)


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
