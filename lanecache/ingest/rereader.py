"""The connection on which rows are read again, beside the stream (see ``reread``)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import anyio

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.row_query import ENGINE_QUERY, ENGINES, RowQuery
from lanecache.operation import OperationSet, Position, Set

if TYPE_CHECKING:
    from lanecache.ingest.reread import PartialRow, Rereads
    from lanecache.ingest.server import Server, ServerFacts

logger = logging.getLogger("lanecache.ingest")

_BATCH_ROWS = 50
_GATHER_S = 0.01  # so that a busy table is not asked for each single row
_PAUSE_S = 0.05  # before rows are read once more
_PAUSE_UNAVAILABLE_S = 1.0


class Rereader:
    """Reads rows again, in batches; ``settle`` is called whenever something was found."""

    def __init__(
        self,
        server: Server,
        facts: ServerFacts,
        rereads: Rereads,
        *,
        audiences: int,
        settle: Callable[[], None],
    ) -> None:
        self._server = server
        self._identity = (facts.server_id, facts.server_uuid)
        self._rereads = rereads
        self._audiences = audiences
        self._settle = settle
        self._more = anyio.Event()

    def wake(self) -> None:
        """Say that there may be rows to read."""
        self._more.set()

    async def run(self) -> None:
        """Read until cancelled. A failure leaves the rows' keys deleted, and nothing else."""
        try:
            while True:
                await self._more.wait()
                self._more = anyio.Event()
                await anyio.sleep(_GATHER_S)
                while rows := self._rereads.batch(_BATCH_ROWS):
                    await self._read_batch(rows)
                    await anyio.sleep(_GATHER_S)
        finally:
            await self._server.close()

    async def _read_batch(self, rows: Sequence[PartialRow]) -> None:
        try:
            again = await self._read(rows)
        except (SourceError, ValueError, LookupError) as error:
            table = rows[0].table
            where = f"{table.schema}.{table.table}"
            logger.debug("source: rows of %s are not read again: %s", where, error)
            for row in rows:
                self._rereads.drop(row)
            if isinstance(error, SourceUnavailable):
                await anyio.sleep(_PAUSE_UNAVAILABLE_S)
            return
        self._settle()
        if again:
            await anyio.sleep(_PAUSE_S)
            for row in again:
                self._rereads.try_again(row)

    async def _read(self, rows: Sequence[PartialRow]) -> list[PartialRow]:
        """Read rows of one table; give those that have to be read once more."""
        table = rows[0].table
        code, bound = table.code, table.bound
        if code is None or bound is None:
            raise ValueError("the table cannot be read")
        server = self._server
        columns = await server.table_columns(table.schema, table.table)
        if columns is None:
            raise ValueError("the table is not there, or may not be seen")
        engine = await server.query(ENGINE_QUERY, table.schema, table.table)
        if not engine or str(engine[0]["engine"] or "").upper() not in ENGINES:
            raise ValueError("its engine may show a change before it is in the binlog")
        query = RowQuery(code, columns)
        results = await server.query(query.statement([row.primary_key for row in rows]))
        # Only now: all that was seen lies before this place.
        status = await server.binlog_status()
        facts = await server.facts()
        if status is None or (facts.server_id, facts.server_uuid) != self._identity:
            raise ValueError("where the binlog of the server that is followed ends is not known")
        position = Position(None, status.file, status.offset)
        by_key = {query.primary_key(found): found for found in map(query.read, results)}
        again = []
        for row in rows:
            found = by_key.get(row.primary_key)
            if found is None or not query.agrees(found, row.image):
                again.append(row)
                continue
            into = [OperationSet() for _ in range(self._audiences)]
            bound.restore(query.image(found, bound.after), into)
            writes = [
                [write for write in effect.writes() if isinstance(write, Set)] for effect in into
            ]
            self._rereads.found(row, writes, position)
        return again
