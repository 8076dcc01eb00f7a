"""What plays the database: a private MariaDB under live writes, or a recording of one's binlog."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from lanecache.demo.recording import RECORDED, Recording
from lanecache.demo.shop import Shop, Write, open_shop, read_shop
from lanecache.servers import ServerFailed

if TYPE_CHECKING:
    from lanecache.servers import MariaDb, Session

WRITES_PER_S = 25.0
# A recording is played from so long after it was opened: before, the nodes would still be starting.
LEAD_S = 2.5


class Database(Protocol):
    """The shop's database: what follows it, the transactions in it, and what it comes to hold."""

    title: str

    def source(self) -> Mapping[str, Any]:
        """Give the section ``[source]`` of who follows it."""

    async def write(self) -> Write | None:
        """Do the next transaction, to its end, in its time; ``None``: there is none any more."""

    async def rows(self, commits: int) -> dict[str, dict[str, Any]]:
        """Give each key with its row, as the database has it after so many commits.

        Of a live one it is asked for the last one only.
        """

    async def keys(self) -> Iterable[str]:
        """Give every key that there is, or may be soon."""


class LiveDatabase:
    """A private MariaDB, and the only one who writes to it."""

    def __init__(self, server: MariaDb, session: Session) -> None:
        self.title = f"MariaDB {server.version}"
        self._server = server
        self._session = session
        self._shop = Shop(session, random.Random(1))
        self._next_at = 0.0

    def source(self) -> Mapping[str, Any]:
        return {"name": "demo", "url": self._server.url(), "start": "earliest"}

    async def write(self) -> Write:
        await anyio.sleep(max(self._next_at - time.monotonic(), 0.0))
        # Whole transactions only: a connection that is cancelled amid one cannot be used again.
        try:
            with anyio.CancelScope(shield=True):
                write = await self._shop.write()
        except Exception as error:
            if self._server.running:
                raise
            raise ServerFailed("the private MariaDB is gone: somebody has ended it") from error
        self._next_at = max(self._next_at + 1 / WRITES_PER_S, time.monotonic())
        return write

    async def rows(self, commits: int) -> dict[str, dict[str, Any]]:
        return await read_shop(self._session)

    async def keys(self) -> Iterable[str]:
        return await read_shop(self._session)


@asynccontextmanager
async def live_database(server: MariaDb) -> AsyncIterator[LiveDatabase]:
    """Make the shop in a running server, and a session that writes to it."""
    await open_shop(server)
    async with server.session() as session:
        yield LiveDatabase(server, session)


class RecordedDatabase:
    """A binlog that was recorded, with what was known of each of its transactions.

    It ends a little before the recording does: what follows a file stops at its end.
    """

    def __init__(self, recording: Recording = RECORDED) -> None:
        self.server = recording.server
        self.title = f"{recording.server}, recorded"
        self._recording = recording
        self._next = 0
        self._shift_s = time.time() + LEAD_S - recording.writes[0].committed_at
        self._to_monotonic_s = time.monotonic() - time.time()

    def source(self) -> Mapping[str, Any]:
        return {"name": "demo", "url": self._recording.url, "replay_shift_s": self._shift_s}

    async def write(self) -> Write | None:
        write = self._recording.write(self._next)
        if write is None:
            return None
        due_at = write.committed_at + self._shift_s + self._to_monotonic_s
        await anyio.sleep(max(due_at - time.monotonic(), 0.0))
        self._next += 1
        return write.at(due_at)

    async def rows(self, commits: int) -> dict[str, dict[str, Any]]:
        return self._recording.rows(commits)

    async def keys(self) -> Iterable[str]:
        return {key for write in self._recording.writes for key in write.keys} | {
            *self._recording.rows(0)
        }
