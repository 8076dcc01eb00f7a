"""What lanecache trusts of a server, on real ones: its silence, its numbers, and its history."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from processes import run_to_end, write_config

import lanecache
from lanecache.errors import ConfigError, HistoryReplaced, LanecacheError, SourceClash, SourceError
from lanecache.http.page import render_page
from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.service import Service
from lanecache.testing.binlog import BinlogBuilder
from lanecache.testing.plugin import DatabaseChoice, NewDatabase, NewServer
from lanecache.testing.proxy import FaultProxy

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
        unknown = "0-77-1000000" if isinstance(database, MariaDb) else f"{uuid4()}:1-9"
        assert unknown in await tried(ConfigError, start=unknown)
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


# Another history.


async def follow_source(replica: DatabaseServer, source: DatabaseServer) -> None:
    """Make one server an asynchronous replica of another one."""
    mariadb = isinstance(source, MariaDb)
    await replica.execute(
        *(
            (
                "SET GLOBAL gtid_slave_pos = ''",
                f"CHANGE MASTER TO MASTER_HOST = '{source.host}', MASTER_PORT = {source.port},"
                f" MASTER_USER = 'root', MASTER_PASSWORD = '{source.password}',"
                " MASTER_USE_GTID = slave_pos",
            )
            if mariadb
            else (
                f"CHANGE REPLICATION SOURCE TO SOURCE_HOST = '{source.host}',"
                f" SOURCE_PORT = {source.port}, SOURCE_USER = 'root',"
                f" SOURCE_PASSWORD = '{source.password}', SOURCE_AUTO_POSITION = 1,"
                " GET_SOURCE_PUBLIC_KEY = 1",
            )
        ),
        "START SLAVE" if mariadb else "START REPLICA",
    )


async def reset(database: DatabaseServer) -> None:
    mariadb = isinstance(database, MariaDb)
    await database.execute("RESET MASTER" if mariadb else "RESET BINARY LOGS AND GTIDS")


async def numbers(database: DatabaseServer) -> dict[str, Any]:
    found = await database.query("SELECT id, n FROM shop.t")
    return {f"t:{key}": {"id": key, "n": n} for key, n in found}


LANE = {"table": "shop.t", "key": "t:{id}"}
TABLE = ("CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY, n INT)")


async def test_a_fail_over_clears_what_the_new_primary_never_had_and_nothing_else(
    database_choice: DatabaseChoice, new_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    kind, series = database_choice
    one = await new_server(kind, series, options={"log_slave_updates": 1})
    two = await new_server(kind, series, options={"log_slave_updates": 1, "server_id": 2})
    mariadb = isinstance(one, MariaDb)
    # The stored passwords differ, so both have the account's.
    for server in (one, two):
        async with server.session() as session:
            await session.execute("SET SESSION sql_log_bin = 0")
            await session.execute("CREATE USER shop IDENTIFIED BY 'secret'")
            await session.execute("GRANT ALL ON *.* TO shop")
        await reset(server)
    await follow_source(two, one)
    await one.execute(*TABLE)
    async with FaultProxy(one.host, one.port) as proxy:
        # Neither server has met this account, nor do they share a key.
        url = f"mysql://shop:secret@{proxy.host}:{proxy.port}?allow_cleartext=1"

        async def fail_over(to: DatabaseServer) -> None:
            proxy.target_port = to.port
            proxy.cut()

        config = settings(url, LANE, on_purged="clear")
        async with lanecache.start(config) as service:
            await one.execute("INSERT INTO shop.t VALUES (1, 1), (2, 1)")
            await until(lambda: len(held(service)) == 2)
            # The new primary has received what the cache has, and not applied it yet.
            await two.execute(f"STOP {'SLAVE' if mariadb else 'REPLICA'} SQL_THREAD")
            await one.execute("UPDATE shop.t SET n = 2 WHERE id = 2")
            await until(lambda: held(service)["t:2"]["n"] == 2)
            await fail_over(two)
            await until(lambda: "waiting up to 30 s" in caplog.text)
            assert not service.statistics().ready
            await two.execute(f"START {'SLAVE' if mariadb else 'REPLICA'} SQL_THREAD")
            await until(lambda: service.statistics().ready)
            await two.execute("INSERT INTO shop.t VALUES (3, 1)")
            await until(lambda: "t:3" in held(service))
            assert held(service) == await numbers(two)
            assert "clearing every lane's keys" not in caplog.text

            # The former primary comes back, without what the other one has done meanwhile.
            await fail_over(one)
            await until(lambda: service.statistics().ready and not held(service))
            assert "never had" in caplog.text
            assert "clearing every lane's keys" in caplog.text
            await one.execute("UPDATE shop.t SET n = 4 WHERE id = 1")
            await until(lambda: held(service) == {"t:1": {"id": 1, "n": 4}})

        # What is lost ends the run where nothing else is configured. A server that follows nobody
        # is not waited for.
        word = "SLAVE" if mariadb else "REPLICA"
        await two.execute(f"STOP {word}", f"RESET {word} ALL")
        service = await lanecache.start(settings(url, LANE))
        await one.execute("UPDATE shop.t SET n = 5 WHERE id = 1")
        await until(lambda: "t:1" in held(service))
        await fail_over(two)
        with anyio.fail_after(WAIT_S), pytest.raises(HistoryReplaced, match="or set source"):
            await service.wait()


@pytest.mark.parametrize("later", [5])
async def test_a_position_is_not_trusted_after_a_reset(
    new_database: NewDatabase, redis_server: Redis, later: int
) -> None:
    database = await new_database()
    await reset(database)
    config = settings(database.url(), LANE, sink=redis_server.url())
    async with redis_server.client() as redis:
        await redis.flushall()
        async with lanecache.start(config) as service:
            await database.execute(
                *TABLE, *(f"REPLACE INTO shop.t VALUES (1, {n})" for n in range(3))
            )
            async with database.session() as session:
                await service.wait_for(await lanecache.commit_token(session.connection))
        assert json.loads(await redis.get("t:1"))["n"] == 2
        # As much as before, and of the same size.
        await reset(database)
        updates = (f"REPLACE INTO shop.t VALUES (1, {n})" for n in range(5, 5 + later))
        await database.execute(*updates)
        assert "never had" in await refused(config, HistoryReplaced)
        assert json.loads(await redis.get("t:1"))["n"] == 2
        config["source"]["on_purged"] = "clear"
        async with lanecache.start(config) as service:
            await until_async(redis, "t:1", None)
            await database.execute("REPLACE INTO shop.t VALUES (2, 1)")
            await until_async(redis, "t:2", b'{"id":2,"n":1}')
            # While it is followed as well.
            await reset(database)
            await database.execute(
                *(f"REPLACE INTO shop.t VALUES (3, {n})" for n in range(later + 3))
            )
            await until_async(redis, "t:2", None)
            await database.execute("REPLACE INTO shop.t VALUES (4, 1)")
            await until_async(redis, "t:4", b'{"id":4,"n":1}')
            assert await redis.get("t:3") in (None, b'{"id":3,"n":%d}' % (later + 2))
        await redis.flushall()


async def test_a_reset_under_a_dump_that_lives_on_is_noticed(
    new_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    mysql = await new_server(MySql)
    await mysql.execute(*TABLE, "INSERT INTO shop.t VALUES (1, 0), (2, 0)")
    config = settings(mysql.url(), LANE, on_purged="clear")
    async with lanecache.start(config) as service:
        await mysql.execute(*(f"UPDATE shop.t SET n = {n}" for n in range(1, 9)))
        await until(lambda: held(service) == both_at(8))
        # What follows stays short of the old end: the dump has nothing to send, and says so.
        await reset(mysql)
        await mysql.execute(*(f"UPDATE shop.t SET n = {n} WHERE id = 1" for n in (20, 21)))
        await until(lambda: 8 not in (row["n"] for row in held(service).values()))
        assert "reset under the dump" in caplog.text
        await until(lambda: service.statistics().ready)
        await mysql.execute("UPDATE shop.t SET n = 30")
        await until(lambda: held(service) == both_at(30))


def both_at(n: int) -> dict[str, Any]:
    return {f"t:{key}": {"id": key, "n": n} for key in (1, 2)}


async def until_async(redis: Any, key: str, value: bytes | None) -> None:
    with anyio.fail_after(WAIT_S):
        while await redis.get(key) != value:
            await anyio.sleep(0.01)


async def test_a_position_of_gtids_is_gone_on_from_where_mysql_serves_them_no_more(
    new_server: NewServer, redis_server: Redis
) -> None:
    mysql = await new_server(MySql)
    await mysql.execute(*TABLE)
    config = settings(mysql.url(), LANE, sink=redis_server.url())
    async with redis_server.client() as redis:
        await redis.flushall()
        async with lanecache.start(config):
            await mysql.execute("INSERT INTO shop.t VALUES (1, 1)")
            await until_async(redis, "t:1", b'{"id":1,"n":1}')
            # It runs on, with transactions that no set of GTIDs says anything of.
            await mysql.execute("SET GLOBAL gtid_mode = ON_PERMISSIVE")
            async with mysql.session() as session:
                await session.execute("SET gtid_next = 'ANONYMOUS'")
                await session.execute("INSERT INTO shop.t VALUES (2, 1)")
            await until_async(redis, "t:2", b'{"id":2,"n":1}')
        for mode in ("ON_PERMISSIVE", "OFF_PERMISSIVE", "OFF"):
            await mysql.execute(
                f"SET GLOBAL gtid_mode = {mode}", "UPDATE shop.t SET n = n + 1 WHERE id = 2"
            )
            async with lanecache.start(config):
                # What came while it was stopped, no key cleared, and what comes.
                n = await mysql.scalar("SELECT n FROM shop.t WHERE id = 2")
                await until_async(redis, "t:2", b'{"id":2,"n":%d}' % n)
                assert await redis.get("t:1") == b'{"id":1,"n":1}'
        # And back: the next file says the GTIDs again.
        await mysql.execute(
            "SET GLOBAL gtid_mode = OFF_PERMISSIVE",
            "SET GLOBAL gtid_mode = ON_PERMISSIVE",
            "SET GLOBAL gtid_mode = ON",
        )
        async with lanecache.start(config) as service:
            await mysql.execute("FLUSH BINARY LOGS", "UPDATE shop.t SET n = 9 WHERE id = 1")
            async with mysql.session() as session:
                await service.wait_for(await lanecache.commit_token(session.connection))
            assert await redis.get("t:1") == b'{"id":1,"n":9}'
            assert await redis.get("t:2") is not None
        await redis.flushall()


async def test_files_that_were_replaced_by_others_of_the_same_names_are_noticed(
    tmp_path: Path, redis_server: Redis
) -> None:
    def write(name: str, began_at: int) -> str:
        events = BinlogBuilder(began_at=began_at)
        events.transaction(("write", [(1, name)]))
        return events.save(tmp_path)

    lane = {"table": "shop.product", "key": "product:{id}"}
    url = write("one", 1_700_000_000)
    config = settings(url, lane, sink=redis_server.url(), start="earliest")
    async with redis_server.client() as redis:
        await redis.flushall()
        async with lanecache.start(config) as service:
            await service.wait()
        assert await redis.get("product:1") == b'{"id":1,"name":"one"}'
        write("two", 1_700_000_009)
        source = config["source"] | {"on_purged": "clear"}
        service = await lanecache.start(config | {"source": source})
        await service.wait()
        assert await redis.get("product:1") == b'{"id":1,"name":"two"}'
        write("six", 1_700_000_099)
        assert "were the files replaced?" in await refused(config, HistoryReplaced)
        await redis.flushall()
