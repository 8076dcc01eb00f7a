"""What lanecache trusts of a server, on real ones: its silence, its numbers, and its history."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from processes import run_to_end, write_config

import lanecache
from lanecache.errors import ConfigError, LanecacheError, PositionPurged, SourceClash, SourceError
from lanecache.http.page import render_page
from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.service import Service

WAIT_S = 20.0


def settings(url: str, *lanes: Mapping[str, Any], sink: str = "memory:", **source: Any) -> Any:
    base = {"name": "shop", "url": url, "heartbeat_s": 0.5, "reconnect_delay_max_s": 0.1}
    return {
        "source": base | source,
        "sinks": {"main": {"url": sink}},
        "lanes": list(lanes),
    }


def held(service: Service) -> dict[str, Any]:
    """Give what a memory sink holds."""
    target: Any = service.sinks["main"].target
    return {key: json.loads(value) for key, value in target.snapshot().items()}


async def until(condition: Any) -> None:
    with anyio.fail_after(WAIT_S):
        while not condition():
            await anyio.sleep(0.01)


# Silence.


async def test_heartbeats_of_an_idle_server_end_a_re_read_and_the_lag(
    database: DatabaseServer, schema: str
) -> None:
    """The row's end of the binlog lies in a new file, where no transaction follows."""
    await make_table(database, schema)
    lane = {"table": f"{schema}.t", "key": "t:{id}"}
    async with lanecache.start(settings(database.url(), lane)) as service:
        async with database.session(schema) as session:
            await session.execute("SET SESSION binlog_row_image = MINIMAL")
            # Until the lock is gone, the row cannot be read again.
            await session.execute("LOCK TABLES t WRITE")
            await session.execute("UPDATE t SET n = 2")
            await session.execute("FLUSH BINARY LOGS")
            await session.execute("UNLOCK TABLES")
        await until(lambda: held(service) == {"t:1": {"id": 1, "n": 2, "name": "one"}})
        await until(lambda: source(service).lag_s == 0.0)
        # Some heartbeats later, nothing has grown.
        bytes_before = source(service).bytes
        await until(lambda: source(service).bytes > bytes_before + 200)
        assert source(service).lag_s == 0.0


def source(service: Service) -> Any:
    return service.statistics().source


# A start that fails.


@asynccontextmanager
async def replica(database: DatabaseServer, *grants: str) -> AsyncIterator[str]:
    """Make an account with these privileges alone, and give the source's URL for it."""
    name = f"u{secrets.token_hex(4)}"
    await database.execute(
        f"CREATE USER {name}@'%' IDENTIFIED BY 'secret'",
        *(f"GRANT {grant} ON *.* TO {name}@'%'" for grant in grants),
    )
    try:
        yield database.url(name, "secret")
    finally:
        await database.execute(f"DROP USER {name}@'%'")


async def make_table(database: DatabaseServer, schema: str) -> None:
    await database.execute(
        f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, n INT, name VARCHAR(9))",
        f"INSERT INTO {schema}.t VALUES (1, 1, 'one')",
    )


async def refused(config: Any, kind: type[LanecacheError]) -> str:
    """Start, and give the sentence that the start ends with."""
    with pytest.raises(LanecacheError) as caught:
        async with lanecache.start(config):
            pytest.fail("it has started")
    assert type(caught.value) is kind, caught.value
    return str(caught.value)


async def test_a_start_that_fails_leaves_the_cache_as_it_was(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_table(database, schema)
    lane = {"table": f"{schema}.t", "key": "t:{id}"}
    sink = redis_server.url()
    async with redis_server.client() as redis:
        await redis.flushall()
        await redis.set("t:7", "warm")

        async def tried(
            kind: type[LanecacheError], *lanes: Any, url: str = "", **source: Any
        ) -> str:
            config = settings(url or database.url(), *(lanes or [lane]), sink=sink, **source)
            said = await refused(config, kind)
            assert await redis.keys() == [b"t:7"], said
            return said

        async with replica(database, "SELECT", "REPLICATION CLIENT") as url:
            assert "REPLICATION SLAVE" in await tried(SourceError, url=url)
        own_id = int(await database.scalar("SELECT @@server_id"))
        assert "already used" in await tried(SourceClash, server_id=own_id)
        if isinstance(database, MariaDb):
            assert "0-77-1000000" in await tried(PositionPurged, start="0-77-1000000")
        # What `check` calls a fault.
        for fields, wrong, near in (
            ({"columns": ["id", "nmae"]}, "nmae", "name"),
            ({"key": "t:{idd}"}, "idd", "id"),
            ({"where": "nn > 1"}, "nn", "n"),
        ):
            said = await tried(ConfigError, lane | fields)
            assert f'{schema}.t has no column "{wrong}"' in said
            assert f'"{near}"' in said
            assert "lane 1 " in said

        # The same once a position is stored, and for a lane that was changed since.
        async with lanecache.start(settings(database.url(), lane, sink=sink)) as service:
            await database.execute(f"UPDATE {schema}.t SET n = 2")
            async with database.session() as session:
                await service.wait_for(await lanecache.commit_token(session.connection))
        before = await redis.get("t:1")
        assert json.loads(before) == {"id": 1, "n": 2, "name": "one"}
        assert await redis.get("t:7") is None
        changed = settings(database.url(), lane | {"columns": ["id", "nmae"]}, sink=sink)
        await refused(changed, ConfigError)
        async with replica(database, "SELECT", "REPLICATION CLIENT") as url:
            await refused(settings(url, lane | {"columns": ["id"]}, sink=sink), SourceError)
        assert await redis.get("t:1") == before
        await redis.flushall()


async def test_a_table_that_is_not_there_yet_is_waited_for_with_a_warning(
    database: DatabaseServer, schema: str
) -> None:
    lane = {"table": f"{schema}.t", "key": "t:{id}"}
    async with lanecache.start(settings(database.url(), lane)) as service:
        await until(lambda: service.statistics().ready)
        [text] = service.statistics().warnings
        assert f"no table {schema}.t is there" in text
        assert text in render_page(service.statistics(), now=0.0).replace("&gt;", ">")
        await make_table(database, schema)
        await until(lambda: held(service) == {"t:1": {"id": 1, "n": 1, "name": "one"}})
        await until(lambda: not service.statistics().warnings)


async def test_a_run_that_is_refused_for_a_lane_ends_with_2(
    mysql: MySql, tmp_path: Path, redis_server: Redis
) -> None:
    await mysql.execute("CREATE DATABASE refused")
    try:
        await make_table(mysql, "refused")
        lane = {"table": "refused.t", "key": "t:{id}", "columns": ["id", "nmae"]}
        config = write_config(tmp_path, mysql.url(), redis_server.url(), [lane])
        ended = await run_to_end(tmp_path, "run", config)
        assert '"nmae"' in ended.sentence(2)
    finally:
        await mysql.execute("DROP DATABASE refused")
