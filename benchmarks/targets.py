"""What the stores hold before a run, and whether it is right after one."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from measure import RunFailed
from tables import TABLES, Cell

from lanecache.operation import Checkpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis as RedisClient
    from workload import Workload

    from lanecache.operation import Position
    from lanecache.servers import DatabaseServer, Memcached, Redis

SOURCE = "benchmark"
POSITION_KEY = f"lanecache:position:{SOURCE}"
KEY_PREFIX = "row:"
SAMPLE = 500  # rows whose stored values are compared with the table's
_KEYS_PER_COMMAND = 5000
_INTEGERS = frozenset({"id", "quantity", "number_1"})  # of the columns that are compared

RunOnce = Callable[[str, str], Awaitable[None]]
"""Run lanecache once: the kind of value and where to start."""


class Target(Protocol):
    """A store that lanecache fills."""

    url: str

    async def prepare(self, work: Workload, value: str, *, idle: bool) -> None:
        """Make the store what it has to be before a run over ``work``."""

    async def check(self, work: Workload, name: str, value: str) -> None:
        """Make sure that the run left just what it should have.

        Raises:
            RunFailed: a key is missing, stale or too many, or the position is wrong.
        """


async def stored_position(client: RedisClient) -> Position | None:
    """Give the position that lanecache has stored in a Redis, if it has."""
    stored = await client.get(POSITION_KEY)
    return Checkpoint.decode(stored).position if isinstance(stored, bytes) else None


class RedisTarget:
    """A private Redis."""

    def __init__(self, server: Redis, database: DatabaseServer) -> None:
        self.url = server.url()
        self._server = server
        self._database = database
        # What Redis holds where a run that only forgets keys begins: before and after the changes.
        self._stored: dict[bool, dict[Any, Any]] = {}
        self._own_keys = 1  # the position

    async def learn_position(self, run_once: RunOnce, *, idle: bool) -> None:
        """Have lanecache store the binlog's present end; without it, it begins by a clear."""
        await self._server.empty()
        await run_once("none", "latest")
        async with self._server.client() as client:
            keys = await client.keys("*")
            stored: dict[Any, Any] = {key: await client.dump(key) for key in keys}
        self._stored[idle] = stored
        self._own_keys = len(keys)

    async def prepare(self, work: Workload, value: str, *, idle: bool) -> None:
        """Empty Redis; for keys only, fill it with every key that the run has to take away."""
        await self._server.empty()
        if value != "none":
            return
        async with self._server.client() as client:
            for first in range(1, work.ids + 1, _KEYS_PER_COMMAND):
                last = min(first + _KEYS_PER_COMMAND, work.ids + 1)
                await client.mset({f"{KEY_PREFIX}{n}": b"stale" for n in range(first, last)})
            for key, dump in self._stored[idle].items():
                await client.restore(key, 0, dump)

    async def check(self, work: Workload, name: str, value: str) -> None:
        async with self._server.client() as client:
            keys = await client.dbsize()
            position = await stored_position(client)
            wanted = self._own_keys + (0 if value == "none" else len(work.live))
            if keys != wanted:
                raise RunFailed(f"{name}: Redis holds {keys:,} keys in place of {wanted:,}")
            if position is None or (position.file, position.offset) != (work.file, work.end):
                raise RunFailed(f"{name}: the position is {position}")
            if value == "none":
                return
            ids = _sample(work)
            if value == "hash":
                pipeline = client.pipeline(transaction=False)
                for number in ids:
                    pipeline.hgetall(f"{KEY_PREFIX}{number}")
                rows = [_of_hash(fields) for fields in await pipeline.execute()]
            else:
                texts = await client.mget([f"{KEY_PREFIX}{number}" for number in ids])
                rows = [_of_json(text) for text in texts]
        await compare(self._database, work, name, ids, rows)


class MemcachedTarget:
    """A private memcached."""

    def __init__(self, server: Memcached, database: DatabaseServer) -> None:
        self.url = server.url()
        self._server = server
        self._database = database

    async def prepare(self, work: Workload, value: str, *, idle: bool) -> None:
        await self._server.empty()

    async def check(self, work: Workload, name: str, value: str) -> None:
        ids = _sample(work)
        gone = [number for number in range(1, work.ids + 1) if number not in work.live][:SAMPLE]
        async with self._connection() as (reader, writer):
            texts = await _get(reader, writer, [f"{KEY_PREFIX}{number}" for number in ids])
            left = await _get(reader, writer, [f"{KEY_PREFIX}{number}" for number in gone])
            if POSITION_KEY not in await _get(reader, writer, [POSITION_KEY]):
                raise RunFailed(f"{name}: memcached holds no position")
        if left:
            raise RunFailed(f"{name}: memcached holds {min(left)}, which was deleted")
        rows = [_of_json(texts.get(f"{KEY_PREFIX}{number}")) for number in ids]
        await compare(self._database, work, name, ids, rows)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def _get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keys: Sequence[str]
) -> dict[str, bytes]:
    """Get items by memcached's text protocol."""
    if not keys:
        return {}
    writer.write(f"get {' '.join(keys)}\r\n".encode())
    found: dict[str, bytes] = {}
    while (line := await reader.readline()) != b"END\r\n":
        word, key, _, size = line.split()
        if word != b"VALUE":
            raise RunFailed(f"memcached says {line!r}")
        found[key.decode()] = (await reader.readexactly(int(size) + 2))[:-2]
    return found


def _sample(work: Workload) -> list[int]:
    return random.Random(0).sample(sorted(work.live), min(SAMPLE, len(work.live)))


def _of_json(text: bytes | str | None) -> Mapping[str, Cell]:
    return json.loads(text) if text is not None else {}


def _of_hash(fields: Mapping[bytes, bytes]) -> Mapping[str, Cell]:
    return {
        name.decode(): int(value) if name.decode() in _INTEGERS else value.decode()
        for name, value in fields.items()
    }


async def compare(
    database: DatabaseServer,
    work: Workload,
    name: str,
    ids: Sequence[int],
    stored: Sequence[Mapping[str, Cell]],
) -> None:
    """Compare stored rows with the table's.

    Raises:
        RunFailed: one is not what the table holds.
    """
    if not ids:
        return
    table = TABLES[work.table]
    terms = [
        column if column in _INTEGERS else f"CAST({column} AS CHAR)" for column in table.compared
    ]
    found = await database.query(
        f"SELECT {', '.join(terms)} FROM {table.full_name()}"
        f" WHERE id IN ({','.join(map(str, ids))})"
    )
    rows = {int(row[0]): dict(zip(table.compared, row, strict=True)) for row in found}
    for number, row in zip(ids, stored, strict=True):
        if {column: row.get(column) for column in table.compared} != rows[number]:
            raise RunFailed(f"{name}: {KEY_PREFIX}{number} is not what the table holds")
