"""The Redis sink behind Sentinels: fail-overs, and what is said when there is no primary."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from exactness import KEYS, CounterReader, CounterWriter, Runner, counter_config, create_counters
from redis.exceptions import RedisError

from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import SinkError, SinkUnavailable
from lanecache.operation import Checkpoint, Set
from lanecache.servers import DatabaseServer, Redis, Valkey
from lanecache.servers.programs import find_programs
from lanecache.servers.redis_groups import RedisSentinel
from lanecache.sinks.make import check_sink
from lanecache.sinks.redis import RedisSink
from lanecache.testing.sink_contract import SOURCE, Durable, transaction

pytestmark = pytest.mark.servers

KIND: type[Redis] = Valkey if find_programs(Valkey.product) else Redis


@pytest.fixture
async def watched() -> AsyncIterator[RedisSentinel]:
    async with RedisSentinel(KIND, password="pw", sentinel_password="spw") as group:
        yield group


def sink_for(url: str, **limits: Any) -> RedisSink:
    return RedisSink(SinkConfig(url=url, **limits), name="main")


async def test_a_fail_over_is_followed_and_lost_writes_are_replayed(
    watched: RedisSentinel,
) -> None:
    durable = Durable()
    sink = sink_for(watched.url())
    assert await sink.open(SOURCE, "writer", durable) is None
    await sink.apply([transaction(1, Set("a", b"1"))])
    await durable.wait(1)
    primary = await watched.primary()
    replica = next(node for node in watched.servers if node is not primary)
    await watched.execute(primary, "WAIT", 1, 0)
    findings, position = await check_sink("main", SinkConfig(url=watched.url()), SOURCE)
    assert position == transaction(1).position
    assert "the Sentinels name" in findings[0].what

    # The replica never hears of this one.
    await watched.execute(primary, "ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
    await watched.execute(primary, "CLIENT", "KILL", "TYPE", "replica")
    await sink.apply([transaction(2, Set("a", b"2"))])
    await durable.wait(2)
    await primary.kill()
    with pytest.raises(SinkUnavailable):
        await sink.watch()
    await watched.wait_primary(replica)
    found = await sink.open(SOURCE, "writer", durable)
    assert found is not None
    assert found.position == transaction(1).position
    assert sink.address == f"127.0.0.1:{replica.port}/0"
    config = SinkConfig(url=watched.url())
    delivery = Delivery("main", sink, config, source=SOURCE, writer="writer", prefixes=())
    delivery._checkpoint = Checkpoint.of(transaction(2), "writer")
    with pytest.raises(SinkRewound):
        delivery._reconcile(found)
    await sink.apply([transaction(2, Set("a", b"2"))])
    await durable.wait(3)
    await sink.close()
    assert await watched.execute(replica, "GET", "a") == b"2"


async def test_what_is_wrong_with_sentinels_is_said(watched: RedisSentinel) -> None:
    url = watched.url()
    with pytest.raises(SinkError, match=r"Sentinels .* refused the login") as refused:
        await sink_for(url.replace("=spw", "=topsecret")).open(SOURCE, "w", Durable())
    assert not refused.value.retryable
    assert "topsecret" not in str(refused.value)
    with pytest.raises(SinkUnavailable, match="knows a living primary named 'other'"):
        await sink_for(url.replace("/main/", "/other/")).open(SOURCE, "w", Durable())
    with pytest.raises(SinkError, match="refused the login") as login:
        await sink_for(url.replace(":pw@", ":nope@")).open(SOURCE, "w", Durable())
    assert not login.value.retryable
    sentinel = watched.sentinels[0]
    plain = f"redis://:spw@{sentinel.host}:{sentinel.port}"
    with pytest.raises(SinkError, match=r"is a Sentinel: write its URL as redis\+sentinel://"):
        await sink_for(plain).open(SOURCE, "w", Durable())
    with pytest.raises(SinkUnavailable, match="none of the Sentinels"):
        await sink_for("redis+sentinel://127.0.0.1:1/main").open(SOURCE, "w", Durable())


async def test_a_replica_is_refused_when_it_is_opened(watched: RedisSentinel) -> None:
    primary = await watched.primary()
    replica = next(node for node in watched.servers if node is not primary)
    url = f"redis://:pw@{replica.host}:{replica.port}"
    with pytest.raises(SinkUnavailable, match="read-only replica: point the URL at the primary"):
        await sink_for(url).open(SOURCE, "w", Durable())


class ServerReader(CounterReader):
    """Reads one server; where it becomes another, values may go back: writes were lost with it."""

    def look(self, values: Any) -> None:
        self.reads += 1
        if None in values:
            if any(value is not None for value in values):
                self.violations.append(f"a part: {values}")
            return
        numbers = {json.loads(value)["n"] for value in values}
        if len(numbers) != 1:
            self.violations.append(f"a mix: {sorted(numbers)}")
        if min(numbers) < self.last:
            self.violations.append(f"back from {self.last} to {min(numbers)}")
        self.last = max(self.last, *numbers)

    def turn(self) -> None:
        """Forget what was seen on another server."""
        self.last = -1


async def test_ten_equal_keys_end_exact_through_kills_and_fail_overs(
    mariadb: DatabaseServer, watched: RedisSentinel, tmp_path: Path
) -> None:
    schema = "sentinel_torture"
    await mariadb.execute(f"CREATE DATABASE IF NOT EXISTS {schema}")
    await create_counters(mariadb, schema)
    config = tmp_path / "torture.toml"
    sink = f'url = "{watched.url()}"\nreconnect_delay_max_s = 0.2'
    config.write_text(counter_config(mariadb, schema, sink))
    runner = Runner(config)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        clients = {
            node: await stack.enter_async_context(node.client(password="pw"))
            for node in watched.servers
        }
        reading_from = await watched.primary()

        async def read() -> Any:
            while True:
                client = clients[reading_from]
                try:
                    return await client.mget(KEYS)
                except (RedisError, OSError):
                    await asyncio.sleep(0.01)

        writer, reader = CounterWriter(mariadb, schema), ServerReader(read)
        runner.start()
        stack.callback(runner.kill)
        await runner.wait_streaming()
        writing = group.create_task(writer.run())
        reading = group.create_task(reader.run())
        for number in range(6):
            await reader.wait_beyond(reader.last)
            if number in (1, 4):
                await watched.wait_watched()
                await watched.fail_over()
                reading_from = await watched.primary()
                reader.turn()
                await reader.wait_beyond(reader.last)
            if number != 4:  # that one is for the process to live through
                runner.kill()
                runner.start()
        await runner.wait_streaming()
        writer.stop()
        await writing
        committed = await mariadb.scalar(f"SELECT MAX(n) FROM {schema}.counter")
        await reader.wait_beyond(committed - 1)
        reader.stop()
        await reading
        assert await runner.end() == 0, runner.log
        rows = await mariadb.query(f"SELECT id, n FROM {schema}.counter ORDER BY id")
        assert [json.loads(value) for value in await read()] == [
            {"id": key, "n": number} for key, number in rows
        ]
    # At each fail-over the old primary goes back once as it follows the new one, and a read of it
    # may still be under way when the reader turns. Nothing else goes back, and a mix is never seen.
    back = [each for each in reader.violations if each.startswith("back")]
    assert len(back) <= 4
    assert back == reader.violations
    assert reader.reads > 300
