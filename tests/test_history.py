"""What lanecache trusts of a server, on real ones: its silence, its numbers, and its history."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import anyio

import lanecache
from lanecache.servers import DatabaseServer
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
    await database.execute(
        f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, n INT, name VARCHAR(9))",
        f"INSERT INTO {schema}.t VALUES (1, 1, 'one')",
    )
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
