"""Steps of the memcached sink: how a run is cut and folded, and how one phase is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lanecache.operation import (
    OPERATION_OVERHEAD_BYTES,
    Delete,
    OperationSet,
    Set,
    Transaction,
)
from lanecache.sinks.memcached_commands import encode_record, position_key
from lanecache.sinks.memcached_opening import ServerLink, written_cas

if TYPE_CHECKING:
    import asyncio

    from lanecache.sinks.memcached_record import Record

_PIECE_BYTES_MAX = 256 * 1024


def cut(run: Sequence[Transaction], step_bytes_max: int) -> Iterator[Sequence[Transaction]]:
    """Cut a run into steps: plain transactions to fold, or one with clears or spilled."""
    first = size = 0
    for index, transaction in enumerate(run):
        operations = transaction.operations
        apart = operations.spilled or bool(operations.clears())
        cost = operations.size_bytes + OPERATION_OVERHEAD_BYTES
        if index > first and (apart or size + cost > step_bytes_max):
            yield run[first:index]
            first, size = index, 0
        if apart:
            yield (transaction,)
            first = index + 1
        else:
            size += cost
    if first < len(run):
        yield run[first:]


def fold(step: Sequence[Transaction]) -> Iterator[Set | Delete]:
    """Walk the net writes of one transaction, or of several plain ones."""
    if not step:
        return iter(())
    if len(step) == 1:
        return step[0].operations.writes()
    folded = OperationSet()
    for transaction in step:
        for write in transaction.operations.writes():
            folded.by_key[write.key] = write
    return folded.writes()


class Sender:
    """What one phase sends to one server: in pieces, one under way while the next is packed."""

    def __init__(self, link: ServerLink) -> None:
        self.link = link
        self.empty = True
        self.refused: list[bytes] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._reply: asyncio.Future[list[bytes]] | None = None
        self._record = False

    async def send(self, command: bytes) -> None:
        self.empty = False
        self._parts.append(command)
        self._size += len(command)
        if self._size >= _PIECE_BYTES_MAX:
            await self._answered()
            self._flush()

    def write_record(self, record: Record) -> None:
        """Send the record behind everything else."""
        self._parts.append(
            encode_record(position_key(record.source), record.encode(), self.link.cas)
        )
        self.link.record = record
        self._record = True

    def start(self) -> None:
        """Send what waits, unless a piece is under way."""
        if self._reply is None:
            self._flush()

    async def ended(self, sink: str) -> int | None:
        """Wait for all answers; gives the record's new CAS id, ``None`` where it was gone."""
        if self._parts:
            await self._answered()
            self._flush()
        lines = await self._answered()
        if not self._record:
            return self.link.cas or 0
        self.link.cas = written_cas(lines, self.link, sink)
        return self.link.cas

    def _flush(self) -> None:
        if self._parts:
            self._reply = self.link.connection.protocol.call(b"".join(self._parts))
            self._parts, self._size = [], 0

    async def _answered(self) -> list[bytes]:
        if self._reply is None:
            return []
        reply, self._reply = self._reply, None
        lines = await reply
        self.refused += [
            line for line in lines if line.startswith((b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR"))
        ]
        return lines
