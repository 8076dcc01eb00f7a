"""Whatever is killed, cut, silent or full: the cache ends equal, or the run says why not."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import (
    ChaosWriter,
    EndingRunner,
    assert_equal,
    cached,
    caught_up,
    chaos_config,
    config_text,
    create_tables,
    ready,
    until,
    wanted,
    writing,
)

import lanecache
from lanecache.errors import PositionLost, PositionPurged, SinkError
from lanecache.servers import DatabaseServer, Redis
from lanecache.service import Service
from lanecache.statistics import LinkState
from lanecache.testing.plugin import NewDatabase, NewServer
from lanecache.testing.proxy import Direction, FaultProxy


def through(proxy: FaultProxy, database: DatabaseServer) -> str:
    """Give the source's URL by way of a proxy."""
    return f"mysql://lanecache:{database.password}@{proxy.host}:{proxy.port}"


# The database.


async def test_the_database_killed_under_writes_three_times_loses_nothing(
    new_database: NewDatabase, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lanecache")
    database = await new_database(durable=True)
    await database.execute("CREATE DATABASE chaos")
    await create_tables(database, "chaos")
    config = chaos_config(database.url(), "chaos", redis_server.url())
    async with lanecache.start(config) as service:
        async with writing(ChaosWriter(database, "chaos")) as writer:
            for kill in range(3):
                await writer.wait_beyond(writer.number + 60)
                await database.kill()
                await until(lambda: service.statistics().source.state is LinkState.WAITING)
                assert not service.statistics().ready
                await database.start()
                await until(lambda: ready(service))
                assert service.statistics().source.reconnects == kill + 1
            await writer.wait_beyond(writer.number + 60)
        assert writer.interrupted >= 3
        assert len(await assert_equal(service, database, "chaos", redis_server)) > 150
    assert caplog.text.count("source: back, streaming from") == 3


async def test_an_orderly_restart_of_the_database_loses_nothing(
    new_database: NewDatabase, redis_server: Redis
) -> None:
    database = await new_database()
    await database.execute("CREATE DATABASE chaos")
    await create_tables(database, "chaos")
    config = chaos_config(database.url(), "chaos", redis_server.url())
    async with lanecache.start(config) as service:
        async with writing(ChaosWriter(database, "chaos")) as writer:
            await writer.wait_beyond(50)
            await database.restart()
            await writer.wait_beyond(writer.number + 50)
        await assert_equal(service, database, "chaos", redis_server)


async def test_a_silent_database_is_noticed_and_found_again(
    new_database: NewDatabase, redis_server: Redis
) -> None:
    database = await new_database()
    await database.execute("CREATE DATABASE chaos")
    await create_tables(database, "chaos")
    config = chaos_config(database.url(), "chaos", redis_server.url(), source={"heartbeat_s": 0.3})
    async with lanecache.start(config) as service:
        async with writing(ChaosWriter(database, "chaos")) as writer:
            await writer.wait_beyond(20)
        await until(lambda: ready(service))
        # Idle is not silent: heartbeats keep it ready for longer than the deadline of 1 s.
        since = service.statistics().source.bytes
        async with asyncio.timeout(20):
            while service.statistics().source.bytes < since + 6 * 30:
                assert ready(service), service.statistics().not_ready_because
                await asyncio.sleep(0.01)
        database.pause()
        try:
            await until(lambda: not ready(service), 10)
            await until(lambda: "silent" in service.statistics().not_ready_because, 10)
        finally:
            database.resume()
        await until(lambda: ready(service), 20)
        async with writing(ChaosWriter(database, "chaos", seed=21)) as writer:
            writer.number = 1000
            await writer.wait_beyond(1020)
        await assert_equal(service, database, "chaos", redis_server)


async def test_a_connection_that_swallows_everything_is_replaced_by_a_new_one(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await create_tables(database, schema)
    async with (
        FaultProxy(database.host, database.port) as swallowing,
        FaultProxy(swallowing.host, swallowing.port) as proxy,
    ):
        config = chaos_config(
            through(proxy, database), schema, redis_server.url(), source={"heartbeat_s": 0.3}
        )
        async with lanecache.start(config) as service:
            async with writing(ChaosWriter(database, schema)) as writer:
                await writer.wait_beyond(20)
                swallowing.pause()
                proxy.target_host, proxy.target_port = database.host, database.port
                await until(lambda: not ready(service), 10)
                # The control connection is dead as well, and nobody would say so for a long time.
                await until(lambda: ready(service), 10)
                await writer.wait_beyond(writer.number + 20)
            await assert_equal(service, database, schema, redis_server)


async def break_stream(service: Service, fault: Callable[[], None]) -> None:
    """Make a fault until the stream has broken of it.

    A server keeps a connection that its client gave up until it next writes to it, and that may
    be what the fault hits.
    """
    await until(lambda: service.statistics().source.state is LinkState.CONNECTED)
    before = service.statistics().source.reconnects
    async with asyncio.timeout(30):
        while service.statistics().source.reconnects == before:
            fault()
            with contextlib.suppress(TimeoutError):
                await until(lambda: service.statistics().source.reconnects > before, 0.3)


async def test_cuts_in_the_middle_of_events_lose_nothing(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    dice = random.Random(4)
    await create_tables(database, schema)
    async with FaultProxy(database.host, database.port) as proxy:
        config = chaos_config(
            through(proxy, database),
            schema,
            redis_server.url(),
            source={"reconnect_delay_max_s": 0.02},
        )

        def cut() -> None:
            # Few bytes: the next try is cut in its login or in the dump's first events.
            proxy.cut_after(dice.choice((dice.randrange(1, 300), dice.randrange(1, 9000))))

        async with lanecache.start(config) as service:
            async with writing(ChaosWriter(database, schema)) as writer:
                for _ in range(24):
                    await break_stream(service, cut)
                    total = proxy.cuts_total
                    cut()
                    async with asyncio.timeout(30):
                        await proxy.wait_cuts(total + 1)
                await writer.wait_beyond(writer.number + 20)
            await assert_equal(service, database, schema, redis_server)


async def test_garbage_in_the_dump_loses_nothing(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    dice = random.Random(5)
    await create_tables(database, schema)
    async with FaultProxy(database.host, database.port) as proxy:
        config = chaos_config(through(proxy, database), schema, redis_server.url())

        def garbage() -> None:
            size = dice.randrange(1, 400)
            proxy.inject(dice.choice((dice.randbytes(size), bytes(size))))

        async with lanecache.start(config) as service:
            async with writing(ChaosWriter(database, schema)):
                for _ in range(12):
                    await break_stream(service, garbage)
                    proxy.inject(b"")
            await assert_equal(service, database, schema, redis_server)


# Redis.


async def test_a_durable_redis_killed_under_writes_loses_nothing(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis, durable=True)
    await create_tables(database, schema)
    async with lanecache.start(chaos_config(database.url(), schema, redis.url())) as service:
        async with writing(ChaosWriter(database, schema)) as writer:
            for _ in range(4):
                await writer.wait_beyond(writer.number + 40)
                await redis.kill()
                await until(lambda: not ready(service))
                assert "sink main" in service.statistics().not_ready_because
                await writer.wait_beyond(writer.number + 40)
                await redis.start()
                await until(lambda: ready(service))
        await assert_equal(service, database, schema, redis)


async def test_an_empty_redis_stops_the_run_with_one_clear_sentence(
    database: DatabaseServer, schema: str, new_server: NewServer, tmp_path: Path
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    config = tmp_path / "lost.toml"
    config.write_text(config_text(chaos_config(database.url(), schema, redis.url())))
    runner = EndingRunner(config)
    runner.start()
    try:
        await runner.wait_streaming()
        async with writing(ChaosWriter(database, schema)) as writer:
            await writer.wait_beyond(20)
            await redis.kill()
            await redis.start()
            code = await runner.wait()
    finally:
        runner.kill()
    assert code == 3, runner.log
    last = runner.log.splitlines()[-1]
    assert last.startswith("lanecache: sink main no longer holds the position of source 'chaos'")
    assert 'set on_lost = "clear"' in last
    assert "Traceback" not in runner.log
    assert await cached(redis) == {}


async def test_an_empty_redis_ends_a_service_in_this_process_as_well(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    service = await lanecache.start(chaos_config(database.url(), schema, redis.url()))
    async with database.session(schema) as session:
        await ChaosWriter(database, schema).write(session)
    await caught_up(service, database, schema)
    await redis.kill()
    await redis.start()
    async with asyncio.timeout(30):
        with pytest.raises(PositionLost, match="no longer holds the position"):
            await service.wait()
    assert not ready(service)


async def test_a_redis_that_refuses_the_login_is_one_error_and_not_a_group_of_them(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis, options={"requirepass": "secret"})
    url = f"redis://:wrong@{redis.host}:{redis.port}"
    with pytest.raises(SinkError, match="refused the login"):
        await lanecache.start(chaos_config(database.url(), schema, url))


async def test_an_empty_redis_is_filled_by_what_comes_when_told_to_clear(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    config = chaos_config(database.url(), schema, redis.url(), sink={"on_lost": "clear"})
    async with lanecache.start(config) as service:
        async with writing(ChaosWriter(database, schema)) as writer:
            await writer.wait_beyond(50)
            await redis.kill()
            await until(lambda: not ready(service))
            await writer.wait_beyond(writer.number + 50)
            await redis.start()
            await until(lambda: ready(service))
            began = writer.number
            await writer.wait_beyond(writer.number + 100)
        await caught_up(service, database, schema)
        rows = await wanted(database, f"{schema}.item", f"{schema}.entry")
        found = await cached(redis)
        assert {key: rows.get(key) for key in found} == found
        afterwards = {f"row:entry:{number}" for number in range(began + 1, writer.number + 1)}
        assert afterwards & rows.keys() <= found.keys()
        assert "row:entry:1" in rows
        assert "row:entry:1" not in found


async def test_what_an_emptied_redis_holds_beside_no_position_is_cleared(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    config = chaos_config(database.url(), schema, redis.url(), sink={"on_lost": "clear"})
    async with lanecache.start(config) as service:
        async with database.session(schema) as session:
            await session.execute("INSERT INTO item VALUES (1, 1, 'first')")
            await caught_up(service, database, schema)
            # A backup came back, without the position: what it holds may be of any age.
            await redis.execute("SET", "row:item:1", '{"id":1,"n":0,"name":"older"}')
            await redis.execute("SET", "stranger:1", "1")
            await redis.execute("DEL", "lanecache:position:chaos")
            await redis.execute("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await session.execute("INSERT INTO item VALUES (2, 2, 'second')")
            await caught_up(service, database, schema)
        found = await redis.execute("KEYS", "*")
        own = [b"lanecache:position:chaos", b"lanecache:position:chaos:chain"]
        assert sorted(found) == [*own, b"row:item:2", b"stranger:1"]


async def test_a_redis_restored_from_an_older_snapshot_is_brought_up_again(
    database: DatabaseServer, schema: str, new_server: NewServer, tmp_path: Path
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    async with lanecache.start(chaos_config(database.url(), schema, redis.url())) as service:
        async with writing(ChaosWriter(database, schema)) as writer:
            for _ in range(2):
                await writer.wait_beyond(writer.number + 50)
                await redis.execute("SAVE")
                shutil.copy(redis.data / "dump.rdb", tmp_path / "dump.rdb")
                older = await cached(redis)
                await writer.wait_beyond(writer.number + 100)
                await redis.kill()
                shutil.copy(tmp_path / "dump.rdb", redis.data / "dump.rdb")
                await redis.start()
                await until(lambda: ready(service))
        rows = await assert_equal(service, database, schema, redis)
        assert older != rows


@pytest.mark.parametrize("direction", list(Direction))
async def test_cuts_in_the_middle_of_batches_lose_nothing(
    database: DatabaseServer, schema: str, redis_server: Redis, direction: Direction
) -> None:
    dice = random.Random(6)
    most = 12_000 if direction is Direction.UP else 60
    await create_tables(database, schema)
    async with FaultProxy(redis_server.host, redis_server.port) as proxy:
        config = chaos_config(
            database.url(),
            schema,
            f"redis://{proxy.host}:{proxy.port}",
            sink={"reconnect_delay_max_s": 0.02},
        )
        async with lanecache.start(config) as service:
            async with writing(ChaosWriter(database, schema)) as writer:
                for cut in range(20):
                    if cut % 3:
                        await until(lambda: ready(service))
                    proxy.cut_after(dice.randrange(1, most), direction)
                    async with asyncio.timeout(30):
                        await proxy.wait_cuts(cut + 1)
                await writer.wait_beyond(writer.number + 20)
            await assert_equal(service, database, schema, redis_server)


async def test_a_full_queue_stops_the_socket_from_being_read(
    database: DatabaseServer, schema: str, new_server: NewServer
) -> None:
    redis = await new_server(Redis)
    await create_tables(database, schema)
    limits = {"queue_bytes_max": 200_000, "window_bytes_max": 50_000}
    config = chaos_config(database.url(), schema, redis.url(), sink=limits)
    async with lanecache.start(config) as service, database.session(schema) as session:

        async def write(first: int, count: int) -> None:
            for key in range(first, first + count):
                await session.execute(
                    "INSERT INTO entry VALUES (%s, REPEAT(%s, 10000))", (key, "ab"[key % 2])
                )

        redis.pause()
        try:
            await write(1, 200)
            await until(lambda: service.statistics().sinks["main"].queue_bytes >= 200_000)
            full = service.statistics()
            # Far more than the sockets' buffers hold.
            await write(201, 1000)
            await session.execute("UPDATE entry SET body = CONCAT(body, 'c')")
            await session.execute("UPDATE entry SET body = CONCAT(body, 'd') WHERE id % 2")
            after = service.statistics()
            assert after.source.bytes == full.source.bytes < 2_500_000
            assert full.source.bytes < 200 * 11_000
            assert after.sinks["main"].queue_bytes == full.sinks["main"].queue_bytes < 215_000
            assert after.sinks["main"].waiting_s > 0
        finally:
            redis.resume()
        rows = await assert_equal(service, database, schema, redis)
        assert len(rows) == 1200
        assert service.statistics().sinks["main"].queue_bytes == 0
        assert service.statistics().source.reconnects == 0


# The binlog.


async def test_a_purged_position_stops_the_run_or_clears_as_told(
    new_database: NewDatabase, redis_server: Redis, tmp_path: Path
) -> None:
    database = await new_database()
    await database.execute("CREATE DATABASE chaos")
    await create_tables(database, "chaos")
    config = chaos_config(database.url(), "chaos", redis_server.url())
    writer = ChaosWriter(database, "chaos")
    async with lanecache.start(config) as service, database.session("chaos") as session:
        for _ in range(30):
            await writer.write(session)
        await assert_equal(service, database, "chaos", redis_server)
    purged = ""
    async with database.session("chaos") as session:
        for _ in range(30):
            await writer.write(session)
        async with asyncio.timeout(30):
            # A dump thread notices only when it next writes that its client has gone.
            while len(files := await session.query("SHOW BINARY LOGS")) > 1 or not purged:
                await session.execute("FLUSH BINARY LOGS")
                purged = (await session.query("SHOW BINARY LOGS"))[-1][0]
                await session.execute(f"PURGE BINARY LOGS TO '{purged}'")
                await asyncio.sleep(0.05)
        assert files[0][0] == purged
        unseen = writer.number
        for _ in range(30):
            await writer.write(session)

    path = tmp_path / "purged.toml"
    path.write_text(config_text(config))
    before = await cached(redis_server)
    runner = EndingRunner(path)
    runner.start()
    try:
        code = await runner.wait()
    finally:
        runner.kill()
    assert code == 3, runner.log
    last = runner.log.splitlines()[-1]
    assert last.startswith("lanecache: the database at")
    assert "has purged" in last
    assert "on_purged" in last
    assert "Traceback" not in runner.log
    assert await cached(redis_server) == before
    with pytest.raises(PositionPurged):
        await lanecache.start(config)

    config = chaos_config(
        database.url(), "chaos", redis_server.url(), source={"on_purged": "clear"}
    )
    async with lanecache.start(config) as service:
        await caught_up(service, database, "chaos")
        rows = await wanted(database, "chaos.item", "chaos.entry")
        found = await cached(redis_server)
        assert {key: rows.get(key) for key in found} == found
        assert {key for key in found if key.startswith("row:entry:")} == rows.keys() & {
            f"row:entry:{number}" for number in range(unseen + 1, unseen + 31)
        }


async def test_ddl_and_rotations_take_effect_in_their_order(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await create_tables(database, schema)
    config = chaos_config(database.url(), schema, redis_server.url())
    async with lanecache.start(config) as service, database.session(schema) as session:

        async def fill(table: str, first: int, count: int = 20) -> None:
            for key in range(first, first + count):
                await session.execute(f"INSERT INTO {table} (id) VALUES ({key})")

        for statement in (
            "CREATE TABLE a (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE b (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE c (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE d (id INT PRIMARY KEY, n INT)",
        ):
            await session.execute(statement)
        for table in "abcd":
            await fill(table, 1)
        await session.execute("TRUNCATE a")
        await fill("a", 10)
        await session.execute("FLUSH BINARY LOGS")
        await session.execute("UPDATE a SET n = 1 WHERE id < 15")
        await session.execute("DROP TABLE b")
        await session.execute("RENAME TABLE c TO b, d TO e")
        await fill("b", 100)
        await fill("e", 100)
        await session.execute("ALTER TABLE e ADD COLUMN extra VARCHAR(20) DEFAULT 'x' AFTER id")
        await session.execute("FLUSH BINARY LOGS")
        await session.execute("UPDATE e SET extra = 'y' WHERE id >= 100")
        await session.execute("ALTER TABLE e MODIFY n VARCHAR(30)")
        await session.execute("UPDATE e SET n = 'text' WHERE id < 110")
        await session.execute("ALTER TABLE e DROP COLUMN extra, RENAME TO c")
        await session.execute("UPDATE c SET n = 'more' WHERE id >= 105")
        await session.execute("BEGIN")
        await session.execute("INSERT INTO c (id) VALUES (500)")
        await session.execute("UPDATE c SET id = 501 WHERE id = 500")
        await session.execute("COMMIT")
        await session.execute("DROP TABLE IF EXISTS item, entry, nothing")
        await caught_up(service, database, schema)
        rows = await wanted(database, f"{schema}.a", f"{schema}.b", f"{schema}.c")
        found = await cached(redis_server)
        # What DDL cleared comes back with its next change; what is there is right.
        assert {key: rows.get(key) for key in found} == found
        assert {key for key in rows if key.startswith("row:a:")} <= found.keys()
        assert {f"row:b:{key}" for key in range(100, 120)} <= found.keys()
        changed = {f"row:c:{key}" for key in range(105, 120)} | {"row:c:501"}
        assert changed <= found.keys()
        await session.execute(f"CREATE DATABASE {schema}_other")
        try:
            await session.execute(f"RENAME TABLE a TO {schema}_other.a")
            await caught_up(service, database, schema)
            assert not [key for key in await cached(redis_server) if key.startswith("row:a:")]
        finally:
            await session.execute(f"DROP DATABASE {schema}_other")
        await session.execute(f"DROP DATABASE {schema}")
        await caught_up(service, database, "mysql")
        assert await cached(redis_server) == {}
