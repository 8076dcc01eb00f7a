"""Several sinks in one run: each with its own queue, position and faults."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from chaos import until

import lanecache
from lanecache.errors import ConfigError
from lanecache.servers import MariaDb, Redis
from lanecache.service import Service
from lanecache.statistics import LinkState


@pytest.fixture
async def second(new_server: Any) -> AsyncIterator[Redis]:
    return await new_server(Redis, durable=True)


def config(database: MariaDb, schema: str, **sinks: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": {"name": schema, "url": database.url(), "heartbeat_s": 0.5},
        "sinks": {
            name: {"reconnect_delay_max_s": 0.1, "connect_timeout_s": 1.0, **sink}
            for name, sink in sinks.items()
        },
        "lanes": [{"table": f"{schema}.t", "key": "t:{id}"}],
    }


async def make_table(database: MariaDb, schema: str) -> None:
    await database.execute(
        f"CREATE DATABASE {schema}", f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, v TEXT)"
    )


async def write(database: MariaDb, schema: str, first: int, count: int) -> str:
    """Write rows of 2 KB, one a transaction; give a token that covers them."""
    async with database.session(schema) as session:
        for number in range(first, first + count):
            await session.execute("INSERT INTO t VALUES (%s, REPEAT('x', 2000))", (number,))
        return await lanecache.commit_token(session.connection)


async def count(redis: Redis) -> int:
    async with redis.client() as client:
        return len([key async for key in client.scan_iter("t:*")])


async def test_each_sink_gets_its_lanes_and_its_own_position(
    mariadb: MariaDb, redis_server: Redis, second: Redis
) -> None:
    await make_table(mariadb, "sinks_own")
    settings = config(
        mariadb, "sinks_own", one={"url": redis_server.url()}, two={"url": second.url()},
        memory={"url": "memory:"},
    )  # fmt: skip
    settings["lanes"].append(
        {"table": "sinks_own.t", "key": "only:{id}", "value": "column:id", "sinks": ["two"]}
    )
    async with lanecache.start(settings) as service:
        await service.wait_for(await write(mariadb, "sinks_own", 1, 5), timeout_s=10)
        async with redis_server.client() as one, second.client() as two:
            assert await one.get("only:3") is None
            assert await two.get("only:3") == b"3"
            assert await one.get("t:3") == await two.get("t:3")
        positions = {str(sink.position) for sink in service.sinks.values()}
        assert len(positions) == 1


async def test_a_sink_that_dies_does_not_stop_the_others(
    mariadb: MariaDb, redis_server: Redis, second: Redis
) -> None:
    await make_table(mariadb, "sinks_dead")
    settings = config(
        mariadb, "sinks_dead", one={"url": redis_server.url()},
        two={"url": second.url(), "queue_bytes_max": 20_000},
    )  # fmt: skip
    async with lanecache.start(settings) as service:
        await service.wait_for(await write(mariadb, "sinks_dead", 1, 5), timeout_s=10)
        await second.kill()
        await until(lambda: _state(service, "two") is LinkState.WAITING)
        token = await write(mariadb, "sinks_dead", 100, 100)
        await service.wait_for(token, sink="one", timeout_s=20)
        assert service.statistics().sinks["two"].queue_bytes <= 40_000
        assert not service.statistics().ready
        await second.start()
        await service.wait_for(token, sink="two", timeout_s=20)
        assert await count(second) == await count(redis_server) == 105


async def test_a_sink_that_is_down_at_the_start_joins_later(
    mariadb: MariaDb, redis_server: Redis, second: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lanecache.pipeline._LATE_AFTER_S", 0.2)
    await make_table(mariadb, "sinks_late")
    settings = config(
        mariadb, "sinks_late", one={"url": redis_server.url()}, two={"url": second.url()}
    )
    async with lanecache.start(settings) as service:
        await service.wait_for(await write(mariadb, "sinks_late", 1, 5), timeout_s=10)
    await second.kill()
    async with lanecache.start(settings) as service:
        token = await write(mariadb, "sinks_late", 10, 20)
        await service.wait_for(token, sink="one", timeout_s=10)
        await second.start()
        await service.wait_for(token, sink="two", timeout_s=20)
        assert await count(second) == await count(redis_server) == 25


async def test_an_independent_sink_has_a_connection_of_its_own(
    mariadb: MariaDb, redis_server: Redis, second: Redis
) -> None:
    await make_table(mariadb, "sinks_apart")
    settings = config(
        mariadb, "sinks_apart", one={"url": redis_server.url()},
        two={"url": second.url(), "queue_bytes_max": 20_000, "independent": True},
    )  # fmt: skip
    async with lanecache.start(settings) as service:
        assert set(service.statistics().independent) == {"two"}
        await service.wait_for(await write(mariadb, "sinks_apart", 1, 5), timeout_s=10)
        second.pause()
        token = await write(mariadb, "sinks_apart", 100, 200)
        await service.wait_for(token, sink="one", timeout_s=20)
        with pytest.raises(TimeoutError):
            await service.wait_for(token, sink="two", timeout_s=0.2)
        second.resume()
        await service.wait_for(token, sink="two", timeout_s=20)
        async with redis_server.client() as one, second.client() as two:
            assert json.loads(await one.get("t:150")) == json.loads(await two.get("t:150"))


async def test_a_sink_without_a_lane_is_refused(mariadb: MariaDb, redis_server: Redis) -> None:
    settings = config(
        mariadb, "nothing", one={"url": redis_server.url()},
        two={"url": "memory:", "independent": True},
    )  # fmt: skip
    settings["lanes"][0]["sinks"] = ["one"]
    with pytest.raises(ConfigError, match=r"no lane writes to sinks\.two"):
        await lanecache.start(settings)


def _state(service: Service, sink: str) -> LinkState:
    return service.statistics().sinks[sink].state
