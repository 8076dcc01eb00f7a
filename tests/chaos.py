"""Faults on purpose: a writer that leaves traces, and the comparison at the end.

Each transaction of ``ChaosWriter`` inserts a row of its own that stays, beside changes of rows that
many transactions share. One that was skipped leaves a hole, one that was applied twice or out of
order leaves a value that the database does not have.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from asyncmy.errors import MySQLError
from exactness import Runner

import lanecache
from lanecache.servers import DatabaseServer, Redis
from lanecache.servers.databases import Session
from lanecache.service import Service

ITEMS = 40
WAIT_S = 60.0


def chaos_config(source_url: str, schema: str, redis_url: str, **sections: Any) -> dict[str, Any]:
    """Give the configuration of a run over the writer's tables, with little patience.

    ``source``, ``sink`` and ``limits`` are laid over it.
    """
    source = {
        "name": "chaos",
        "url": source_url,
        "heartbeat_s": 0.5,
        "connect_timeout_s": 5.0,
        "reconnect_delay_max_s": 0.1,
    }
    sink = {"url": redis_url, "reconnect_delay_max_s": 0.1}
    return {
        "source": source | sections.get("source", {}),
        "sinks": {"main": sink | sections.get("sink", {})},
        "lanes": [{"table": f"{schema}.*", "key": "row:{@table}:{id}"}],
        "limits": sections.get("limits", {}),
    }


def config_text(config: dict[str, Any]) -> str:
    """Write such a configuration as TOML."""
    lines = []
    for name, section in (
        ("[source]", config["source"]),
        ("[sinks.main]", config["sinks"]["main"]),
        ("[limits]", config["limits"]),
        *(("[[lanes]]", lane) for lane in config["lanes"]),
    ):
        lines += [name, *(f"{field} = {json.dumps(value)}" for field, value in section.items())]
    return "\n".join(lines)


async def create_tables(database: DatabaseServer, schema: str) -> None:
    """Make the tables that the writer changes."""
    await database.execute(
        f"CREATE TABLE {schema}.item (id INT PRIMARY KEY, n BIGINT, name TEXT) ENGINE=InnoDB",
        f"CREATE TABLE {schema}.entry (id INT PRIMARY KEY, body MEDIUMTEXT) ENGINE=InnoDB",
    )


class EndingRunner(Runner):
    """``lanecache run`` as a process that is expected to end by itself."""

    async def wait(self) -> int:
        """Wait for its end, and give the exit code."""
        process = self._process
        assert process is not None
        await until(lambda: process.poll() is not None)
        return process.returncode


class ChaosWriter:
    """Writes transactions that a seed decides; goes on where the database was away."""

    def __init__(self, database: DatabaseServer, schema: str, *, seed: int = 20) -> None:
        self._database = database
        self._schema = schema
        self._dice = random.Random(seed)
        self._stopping = False
        self.number = 0
        self.interrupted = 0

    async def run(self) -> None:
        """Write until ``stop``."""
        while not self._stopping:
            try:
                async with self._database.session(self._schema) as session:
                    while not self._stopping:
                        await self.write(session)
                        await asyncio.sleep(0.001)
            except (MySQLError, OSError):
                self.interrupted += 1
                await asyncio.sleep(0.02)

    async def write(self, session: Session) -> None:
        """Write one transaction: a row that stays, and changes of shared ones."""
        dice, self.number = self._dice, self.number + 1
        body = f"{self.number} " + "x" * dice.choice((0, 10, 300, 9000))
        await session.execute("BEGIN")
        await session.execute("INSERT INTO entry VALUES (%s, %s)", (self.number, body))
        for _ in range(dice.randrange(1, 5)):
            await self._change(session)
        await session.execute("ROLLBACK" if dice.random() < 0.1 else "COMMIT")

    async def _change(self, session: Session) -> None:
        dice, number = self._dice, self.number
        key, other = dice.randrange(ITEMS), dice.randrange(ITEMS)
        kind = dice.choice(("replace", "replace", "update", "update", "move", "delete"))
        if kind == "replace":
            name = f"ü{number}" * dice.randrange(20)
            await session.execute("REPLACE INTO item VALUES (%s, %s, %s)", (key, number, name))
        elif kind == "update":
            await session.execute(
                "UPDATE item SET n = %s WHERE id BETWEEN %s AND %s", (number, key, key + 3)
            )
        elif kind == "move":
            await session.execute("DELETE FROM item WHERE id = %s", (other,))
            await session.execute("UPDATE item SET id = %s WHERE id = %s", (other, key))
        else:
            await session.execute("DELETE FROM item WHERE id = %s", (key,))

    def stop(self) -> None:
        self._stopping = True

    async def wait_beyond(self, number: int) -> None:
        """Wait until it has begun more than ``number`` transactions."""
        await until(lambda: self.number > number)


@asynccontextmanager
async def writing(writer: ChaosWriter) -> AsyncIterator[ChaosWriter]:
    """Let a writer write for the length of the block."""
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        writer.stop()
        await task


async def until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    """Wait until a condition of this process holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def wanted(database: DatabaseServer, *tables: str) -> dict[str, Any]:
    """Give what the cache has to hold: key to value, from the tables (``SCHEMA.TABLE``)."""
    rows: dict[str, Any] = {}
    for table in tables:
        schema, name = table.split(".")
        columns = [
            column
            for (column,) in await database.query(
                "SELECT column_name FROM information_schema.columns"
                " WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
                (schema, name),
            )
        ]
        for row in await database.query(f"SELECT * FROM {table}"):
            values = dict(zip(columns, row, strict=True))
            rows[f"row:{name}:{values['id']}"] = values
    return rows


async def cached(redis: Redis) -> dict[str, Any]:
    """Give what the cache holds, the position left out."""
    async with redis.client() as client:
        keys = [key async for key in client.scan_iter(count=1000)]
        keys = [key for key in keys if not key.startswith(b"lanecache:position:")]
        values = await client.mget(keys) if keys else []
    return {
        key.decode(): json.loads(value)
        for key, value in zip(keys, values, strict=True)
        if value is not None
    }


async def assert_equal(
    service: Service, database: DatabaseServer, schema: str, redis: Redis
) -> dict[str, Any]:
    """Wait for all that is committed, and compare every row with the cache; give the rows."""
    await caught_up(service, database, schema)
    rows = await wanted(database, f"{schema}.item", f"{schema}.entry")
    assert await cached(redis) == rows
    return rows


async def caught_up(service: Service, database: DatabaseServer, schema: str) -> None:
    """Wait until all that is committed is durable in the sink."""
    async with database.session(schema) as session:
        token = await lanecache.commit_token(session.connection)
    await service.wait_for(token, timeout_s=WAIT_S)


def ready(service: Service) -> bool:
    return service.statistics().ready
