"""Binlog files at the pace at which they were written.

A recording is played as it happened: each transaction is given when its commit's time, moved by
``source.replay_shift_s``, has come. MySQL's GTID events have that time in microseconds (since
8.0.1); MariaDB's have whole seconds, in their headers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from lanecache.ingest import binlog as b
from lanecache.ingest.file_stream import FileStream, Skip, StartPlace, transaction_start
from lanecache.ingest.framing import Block

if TYPE_CHECKING:
    from lanecache.operation import Position

# A recording may have long pauses, in which it is as well as ever.
_SIGN_OF_LIFE_S = 0.5


class PacedStream(FileStream):
    """A stream of files that waits before each transaction until it is due.

    Args:
        shift_s: what is added to a commit's time.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        places: Sequence[StartPlace],
        skip: Skip,
        reached: Callable[[], Position | None],
        *,
        event_bytes_max: int,
        shift_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin with the first of ``places``; see ``FileStream``."""
        super().__init__(places, skip, reached, event_bytes_max=event_bytes_max)
        self._shift_s = shift_s
        self._clock = clock
        self._due: deque[tuple[float, Block]] = deque()

    async def read(self) -> Block | None:
        """Give the next block, of one transaction at the most, when it is due."""
        while not self._due:
            block = await super().read()
            if block is None:
                return None
            self._due.extend(self._cut(block))
        due_at, block = self._due[0]
        while (wait_s := due_at - self._clock()) > 0:
            await anyio.sleep(min(wait_s, _SIGN_OF_LIFE_S))
            self.received_at = anyio.current_time()
        self._due.popleft()
        return block

    def _cut(self, block: Block) -> list[tuple[float, Block]]:
        """Cut a block before each event that opens a transaction; give when each part is due."""
        if block.oversized_bytes:
            return [(0.0, block)]
        parts: list[tuple[float, list[tuple[int, int]]]] = [(0.0, [])]
        for start, end in block.spans:
            opened = transaction_start(block.data[start:end], checksummed=self._checksummed)
            if opened is not None:
                timestamp = b.unpack_header(block.data, start)[0]
                parts.append(((opened.committed_at or timestamp) + self._shift_s, []))
            parts[-1][1].append((start, end))
        return [(due_at, Block(block.data, spans)) for due_at, spans in parts if spans]
