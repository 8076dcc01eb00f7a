"""Everything together: real processes and services, real databases, a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import Lanecache, run_to_end, until, write_config

import lanecache
from lanecache.errors import LanecacheError
from lanecache.ingest.address import parse_source_url
from lanecache.ingest.server import Server
from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.service import Service
from lanecache.testing.plugin import NewDatabase, NewServer
from lanecache.testing.proxy import Direction, FaultProxy

MEMORY = "memory:"


def lane(schema: str, **fields: Any) -> dict[str, Any]:
    return {"table": f"{schema}.t", "key": "t:{id}", **fields}


def settings(
    database: DatabaseServer,
    *lanes: Mapping[str, Any],
    sink: str = MEMORY,
    url: str = "",
    **source: Any,
) -> dict[str, Any]:
    return {
        "source": {
            "name": "shop",
            "url": url or database.url(),
            "heartbeat_s": 0.5,
            "reconnect_delay_max_s": 0.1,
            **source,
        },
        "sinks": {"main": {"url": sink}},
        "lanes": list(lanes),
    }


async def make_table(database: DatabaseServer, schema: str) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, n BIGINT)")


async def rows(redis: Redis, pattern: str = "t:*") -> dict[str, Any]:
    """Give what Redis holds: key to value."""
    async with redis.client() as client:
        keys = sorted([key async for key in client.scan_iter(match=pattern, count=1000)])
        values = await client.mget(keys) if keys else []
    return {key.decode(): json.loads(value) for key, value in zip(keys, values, strict=True)}


async def table(database: DatabaseServer, schema: str) -> dict[str, Any]:
    """Give what Redis should hold."""
    found = await database.query(f"SELECT id, n FROM {schema}.t")
    return {f"t:{key}": {"id": key, "n": number} for key, number in found}


def held(service: Service, sink: str = "main") -> dict[str, bytes | None]:
    """Give what a memory sink holds."""
    target: Any = service.sinks[sink].target
    return dict(target.snapshot())


async def caught_up(service: Service, database: DatabaseServer) -> None:
    async with database.session() as session:
        token = await lanecache.commit_token(session.connection)
    await service.wait_for(token, timeout_s=20.0)


@asynccontextmanager
async def writing(database: DatabaseServer, schema: str) -> AsyncIterator[Callable[[], int]]:
    """Write without a pause for the length of the block; gives how many rows there are."""
    number = 0
    stopping = False

    async def write() -> None:
        nonlocal number
        async with database.session(schema) as session:
            while not stopping:
                number += 1
                await session.execute("INSERT INTO t VALUES (%s, %s)", (number, number))
                await asyncio.sleep(0)

    task = asyncio.create_task(write())
    try:
        yield lambda: number
    finally:
        stopping = True
        await task


# `run --once`.


async def test_once_applies_all_that_was_there_though_somebody_goes_on_writing(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    position = await begin(database)
    await make_table(database, schema)
    config = write_config(
        tmp_path, database.url(), redis_server.url(), [lane(schema)], start=position
    )
    async with writing(database, schema) as written:
        await until(lambda: written() > 300)
        before = written() - 1
        ended = await run_to_end(tmp_path, "run", "--once", config)
        assert ended.code == 0, ended.err
        assert ended.said == []
        during = await rows(redis_server)
    assert len(during) >= before
    assert set(during) == {f"t:{number}" for number in range(1, len(during) + 1)}
    # The next one goes on from there and brings the rest.
    assert (await run_to_end(tmp_path, "run", "--once", config)).code == 0
    assert await rows(redis_server) == await table(database, schema)


async def begin(database: DatabaseServer) -> str:
    """Give the present end of the binlog as a start position."""
    server = Server(parse_source_url(database.url()))
    try:
        return str((await server.position()).gtids)
    finally:
        await server.close()


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
async def test_a_signal_drains_and_the_next_run_goes_on_with_nothing_lost(
    database: DatabaseServer,
    schema: str,
    redis_server: Redis,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    await make_table(database, schema)
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane(schema)])
    async with writing_later(database, schema) as start_writing:
        for _ in range(3):
            with Lanecache(tmp_path, "run", config) as process:
                await process.wait_logged("streaming from")
                written = start_writing()
                size = len(await rows(redis_server))
                async with asyncio.timeout(30):
                    while len(await rows(redis_server)) < size + 50:
                        await asyncio.sleep(0.01)
                ended = await process.end(number)
            assert ended.code == 0, ended.err
            assert ended.said == []
            assert written() > 0
            # What is applied is a whole beginning: the position is that of the data.
            applied = await rows(redis_server)
            assert set(applied) == {f"t:{key}" for key in range(1, len(applied) + 1)}
    assert (await run_to_end(tmp_path, "run", "--once", config)).code == 0
    assert await rows(redis_server) == await table(database, schema)


@asynccontextmanager
async def writing_later(
    database: DatabaseServer, schema: str
) -> AsyncIterator[Callable[[], Callable[[], int]]]:
    """Give a function that begins to write, once, and goes on until the end of the block."""
    async with contextlib.AsyncExitStack() as stack:
        begun = asyncio.Event()
        count: list[Callable[[], int]] = []

        async def write() -> None:
            await begun.wait()
            async with writing(database, schema) as written:
                count.append(written)
                await done.wait()

        done = asyncio.Event()
        task = asyncio.create_task(write())

        async def finish() -> None:
            begun.set()
            done.set()
            await task

        stack.push_async_callback(finish)

        def start() -> Callable[[], int]:
            begun.set()
            return lambda: count[0]() if count else 0

        yield start


async def test_a_second_signal_cuts_the_drain_short_and_nothing_is_lost(
    mariadb: MariaDb, new_server: NewServer, tmp_path: Path
) -> None:
    await mariadb.execute(
        "CREATE DATABASE cut_short", "CREATE TABLE cut_short.t (id INT PRIMARY KEY, n BIGINT)"
    )
    redis = await new_server(Redis, durable=True)
    async with FaultProxy(redis.host, redis.port) as proxy:
        target = f"redis://{proxy.host}:{proxy.port}"
        config = write_config(tmp_path, mariadb.url(), target, [lane("cut_short")])
        with Lanecache(tmp_path, "run", config) as process:
            await process.wait_logged("streaming from")
            await mariadb.execute("INSERT INTO cut_short.t VALUES (1, 1)")
            await wait_rows(redis, {"t:1": {"id": 1, "n": 1}})
            # A target that does not answer what it was sent keeps the drain waiting.
            assert redis.pid is not None
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                sent = proxy.bytes_total[Direction.UP]
                await mariadb.execute("INSERT INTO cut_short.t VALUES (2, 2)")
                await proxy.wait_bytes(sent + len("MULTI SET t:2 EXEC"), Direction.UP)
                process.send(signal.SIGTERM)
                await process.wait_logged("stopping cleanly")
                ended = await process.end(signal.SIGINT)
            finally:
                os.kill(redis.pid, signal.SIGCONT)
        assert "applied again at the next start" in ended.sentence(3, mariadb.password)
        assert (await run_to_end(tmp_path, "run", "--once", config)).code == 0
    assert await rows(redis) == await table(mariadb, "cut_short")
    await mariadb.execute("DROP DATABASE cut_short")


async def wait_rows(redis: Redis, wanted: dict[str, Any]) -> None:
    last: dict[str, Any] = {}
    try:
        async with asyncio.timeout(20):
            while (last := await rows(redis)) != wanted:
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{last} in place of {wanted}") from None


# `tail` and `check`.


async def test_tail_prints_operations_and_applies_them_nowhere(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    position = await begin(database)
    await make_table(database, schema)
    await database.execute(
        f"INSERT INTO {schema}.t VALUES (1, 10)",
        f"UPDATE {schema}.t SET id = 2",
        f"TRUNCATE TABLE {schema}.t",
        f"INSERT INTO {schema}.t VALUES (3, 30)",
    )
    config = write_config(
        tmp_path,
        database.url(),
        redis_server.url(),
        [lane(schema, ttl_s=60.0)],
        start=position,
    )
    ended = await run_to_end(tmp_path, "tail", "--limit", "6", config)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    printed = [json.loads(line) for line in ended.out.splitlines()]
    assert len(printed) == 6
    kinds = [
        (line["operation"], line.get("key", line.get("prefix")), line.get("value"))
        for line in printed
    ]
    # CREATE TABLE clears too: nobody knows what lay under the prefix.
    assert kinds == [
        ("clear", "t:", None),
        ("set", "t:1", '{"id":1,"n":10}'),
        ("delete", "t:1", None),
        ("set", "t:2", '{"id":2,"n":10}'),
        ("clear", "t:", None),
        ("set", "t:3", '{"id":3,"n":30}'),
    ]
    assert {line["ttl_s"] for line in printed if line["operation"] == "set"} == {60.0}
    assert all(line["sinks"] == ["main"] and "gtids" in line for line in printed)
    assert await redis_server.execute("DBSIZE") == 0


async def test_check_of_a_healthy_set_up_ends_with_0_and_changes_nothing(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await make_table(database, schema)
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane(schema)])
    before = await begin(database)
    ended = await run_to_end(tmp_path, "check", config)
    assert ended.code == 0, ended.out
    assert ended.err == ""
    assert ended.out.splitlines()[-1].endswith("ok, 0 warnings, 0 faults")
    for what in ("log_bin is on", "binlog_format is ROW", "may read the binlog", f"{schema}.t"):
        assert what in ended.out
    assert database.password not in ended.out
    assert await begin(database) == before
    assert await redis_server.execute("DBSIZE") == 0


# Logs and the terminal.


class Terminal:
    """A command with a terminal for its standard error."""

    def __init__(self, *arguments: str | Path) -> None:
        self._master, terminal = pty.openpty()
        self._text = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lanecache", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"},
        )
        os.close(terminal)
        os.set_blocking(self._master, False)

    def read(self) -> str:
        """Give all that was shown so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    part = os.read(self._master, 65536)
                except OSError as error:
                    # What Linux says when the other side has been closed.
                    if error.errno != errno.EIO:
                        raise
                    break
                if not part:
                    break
                self._text += part
        return self._text.decode("utf-8", "replace")

    async def wait_shown(self, pattern: str) -> None:
        await until(lambda: re.search(pattern, self.read()), lambda: f"{pattern} in {self._text!r}")

    async def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        # A terminal that nobody reads would hold the process up.
        await until(lambda: (self.read(), self._process.poll() is not None)[1], self.read)
        return self._process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


async def test_a_terminal_gets_lines_for_people_and_a_live_line(
    mariadb: MariaDb, redis_server: Redis, tmp_path: Path
) -> None:
    await mariadb.execute(
        "CREATE DATABASE shown", "CREATE TABLE shown.t (id INT PRIMARY KEY, n BIGINT)"
    )
    config = write_config(tmp_path, mariadb.url(), redis_server.url(), [lane("shown")])
    with contextlib.closing(Terminal("run", config)) as terminal:
        await terminal.wait_shown(r"\d\d:\d\d:\d\d\.\d{3} info +source: streaming from")
        await mariadb.execute("INSERT INTO shown.t VALUES (1, 1), (2, 2)")
        await terminal.wait_shown(r"●.* rows/s .*2 rows.*lag .*main queue 0 %")
        assert await terminal.end() == 0
        shown = terminal.read()
    assert "stopping cleanly" in shown
    assert '{"time"' not in shown
    assert mariadb.password not in shown
    # Off a terminal the log is JSON lines, and there is no live line.
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("streaming from")
        ended = await process.end()
    assert ended.code == 0
    assert {"time", "level", "logger", "message"} <= set(ended.logged[0])
    assert "rows/s" not in ended.err
    assert "\x1b" not in ended.err
    await mariadb.execute("DROP DATABASE shown")


# Where to begin, and where to go on.


async def test_a_run_begins_where_it_is_told_and_goes_on_from_what_is_stored(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await make_table(database, schema)
    server = Server(parse_source_url(database.url()))
    await database.execute(f"INSERT INTO {schema}.t VALUES (1, 1)")
    position = await server.position()
    # The binlog ends in a file without any transaction.
    await database.execute(f"INSERT INTO {schema}.t VALUES (2, 2)", "FLUSH BINARY LOGS")
    await server.close()
    for start, wanted in (
        ("latest", []),
        ("earliest", [1, 2]),
        (str(position.gtids), [2]),
        (f"{position.file}:{position.offset}", [2]),
    ):
        await redis_server.empty()
        config = write_config(
            tmp_path, database.url(), redis_server.url(), [lane(schema)], start=start
        )
        ended = await run_to_end(tmp_path, "run", "--once", config)
        assert ended.code == 0, ended.err
        assert await rows(redis_server) == {f"t:{n}": {"id": n, "n": n} for n in wanted}, start
    # What is stored counts, whatever `start` says.
    await database.execute("FLUSH BINARY LOGS", f"INSERT INTO {schema}.t VALUES (3, 3)")
    await redis_server.execute("DEL", "t:2")
    ended = await run_to_end(tmp_path, "run", "--once", config)
    assert ended.code == 0, ended.err
    assert await rows(redis_server) == {"t:3": {"id": 3, "n": 3}}
    assert "going on from" in ended.err


async def test_tagged_gtids_are_gone_on_from(
    mysql: MySql, redis_server: Redis, tmp_path: Path
) -> None:
    await mysql.execute(
        "CREATE DATABASE tags", "CREATE TABLE tags.t (id INT PRIMARY KEY, n BIGINT)"
    )
    config = write_config(tmp_path, mysql.url(), redis_server.url(), [lane("tags")])
    assert (await run_to_end(tmp_path, "run", "--once", config)).code == 0
    for number in (1, 2):
        async with mysql.session("tags") as session:
            await session.execute(f"SET GTID_NEXT = 'AUTOMATIC:tag_{number}'")
            await session.execute("INSERT INTO t VALUES (%s, 1)", (number,))
            await session.execute("SET GTID_NEXT = 'AUTOMATIC'")
            await session.execute("INSERT INTO t VALUES (%s, 1)", (10 + number,))
        ended = await run_to_end(tmp_path, "run", "--once", config)
        assert ended.code == 0, ended.err
        assert await rows(redis_server) == await table(mysql, "tags")
        stored = await redis_server.execute("GET", "lanecache:position:shop")
        assert f"tag_{number}".encode() in stored
    assert ":tag_1" in ended.err  # the position that the last run went on from
    # None of it is read once more.
    await redis_server.execute("DEL", "t:1", "t:2")
    assert (await run_to_end(tmp_path, "run", "--once", config)).code == 0
    assert set(await rows(redis_server)) == {"t:11", "t:12"}
    await mysql.execute("DROP DATABASE tags")


async def test_mysql_without_gtids_is_followed_by_file_and_offset(
    new_server: NewServer, redis_server: Redis, tmp_path: Path
) -> None:
    mysql = await new_server(MySql, durable=True, options={"gtid_mode": "OFF"})
    await mysql.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, n BIGINT)")
    config = write_config(tmp_path, mysql.url(), redis_server.url(), [lane("s")])
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("streaming from")
        await mysql.execute("INSERT INTO s.t VALUES (1, 1)", "FLUSH BINARY LOGS")
        await mysql.execute("INSERT INTO s.t VALUES (2, 2)")
        await wait_rows(redis_server, await table(mysql, "s"))
        # Over a restart of the database, while the process goes on ...
        await mysql.kill()
        await process.wait_logged("trying again")
        await mysql.start()
        await mysql.execute("INSERT INTO s.t VALUES (3, 3)")
        await wait_rows(redis_server, await table(mysql, "s"))
        ended = await process.end()
        assert ended.code == 0, ended.err
    # ... and over one of the process.
    await mysql.execute("UPDATE s.t SET n = 9 WHERE id = 1", "FLUSH BINARY LOGS")
    await redis_server.execute("DEL", "t:3")
    ended = await run_to_end(tmp_path, "run", "--once", config)
    assert ended.code == 0, ended.err
    wanted = await table(mysql, "s")
    del wanted["t:3"]
    assert await rows(redis_server) == wanted


# Ways to the database.


async def test_a_unix_socket_leads_to_the_database(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    position = await begin(database)
    await make_table(database, schema)
    await database.execute(f"INSERT INTO {schema}.t VALUES (1, 1)")
    for number, url in enumerate(
        (
            f"mysql+unix://root@{database.socket}",
            f"mysql://lanecache:{database.password}@localhost/?unix_socket={database.socket}",
        )
    ):
        await redis_server.empty()
        config = write_config(
            tmp_path, url, redis_server.url(), [lane(schema)], start=position, name=f"u{number}"
        )
        ended = await run_to_end(tmp_path, "run", "--once", config)
        assert ended.code == 0, ended.err
        assert str(database.socket) in ended.err
        assert await rows(redis_server) == {"t:1": {"id": 1, "n": 1}}


async def test_tls_leads_to_the_database_and_redis(
    new_database: NewDatabase, new_server: NewServer, tmp_path: Path
) -> None:
    database = await new_database(tls=True)
    redis = await new_server(Redis, tls=True)
    files, own = database.certificates, redis.certificates
    assert files is not None
    assert own is not None
    await database.execute(
        "ALTER USER 'lanecache'@'%' REQUIRE SSL",
        "CREATE DATABASE s",
        "CREATE TABLE s.t (id INT PRIMARY KEY, n BIGINT)",
    )
    url = database.url(ssl="verify_identity", ssl_ca=str(files.ca))
    target = f"{redis.url()}?ssl_ca_certs={own.ca}"
    config = write_config(tmp_path, url, target, [lane("s")])
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("streaming from")
        await database.execute("INSERT INTO s.t VALUES (1, 1)")
        await wait_rows(redis, {"t:1": {"id": 1, "n": 1}})
        ended = await process.end()
        assert ended.code == 0, ended.err
    # An authority that did not sign the certificate is not believed.
    foreign = database.url(ssl_ca=str(own.ca))
    config = write_config(tmp_path, foreign, target, [lane("s")])
    said = (await run_to_end(tmp_path, "run", config)).sentence(3, database.password)
    assert "is not trusted" in said
    assert "check ssl_ca in source.url" in said


# From Python.


async def test_start_gives_a_service_to_await_or_to_enter(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_table(database, schema)
    config = settings(database, lane(schema), sink=redis_server.url())
    service = await lanecache.start(config)
    try:
        await database.execute(f"INSERT INTO {schema}.t VALUES (1, 1)")
        await caught_up(service, database)
        assert await rows(redis_server) == {"t:1": {"id": 1, "n": 1}}
        assert service.statistics().ready
    finally:
        await service.stop()
    await service.stop()
    with pytest.raises(LanecacheError, match="has stopped"):
        await service.wait_for("binlog.999999:4", timeout_s=5.0)
    async with lanecache.start(config) as service:
        await database.execute(f"INSERT INTO {schema}.t VALUES (2, 2)")
        await caught_up(service, database)
        await service.stop()
    assert await rows(redis_server) == await table(database, schema)


async def test_whoever_waits_for_a_commit_reads_what_was_written(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_table(database, schema)
    config = settings(database, lane(schema), sink=redis_server.url())
    async with (
        lanecache.start(config) as service,
        database.session(schema) as session,
        redis_server.client() as client,
        writing_elsewhere(database, schema),
    ):
        await session.execute("INSERT INTO t VALUES (1, 0)")
        for number in range(50):
            await session.execute("UPDATE t SET n = %s WHERE id = 1", (number,))
            token = await lanecache.commit_token(session.connection)
            await service.wait_for(token, sink="main", timeout_s=10.0)
            assert json.loads(await client.get("t:1")) == {"id": 1, "n": number}
        with pytest.raises(ValueError, match="no sink is called 'other': there are main"):
            await service.wait_for(token, sink="other")
        with pytest.raises(ValueError):  # noqa: PT011  # each kind of GTID set says it its own way
            await service.wait_for("no token at all")
        later = "0-1-999999999" if isinstance(database, MariaDb) else _far(token)
        with pytest.raises(TimeoutError):
            await service.wait_for(later, timeout_s=0.1)


def _far(token: str) -> str:
    return f"{token.split(':')[0]}:1-999999999"


@asynccontextmanager
async def writing_elsewhere(database: DatabaseServer, schema: str) -> AsyncIterator[None]:
    await database.execute(f"CREATE TABLE {schema}.other (id INT PRIMARY KEY AUTO_INCREMENT)")
    stopping = False

    async def write() -> None:
        async with database.session(schema) as session:
            while not stopping:
                await session.execute("INSERT INTO other VALUES ()")
                await asyncio.sleep(0.001)

    task = asyncio.create_task(write())
    try:
        yield
    finally:
        stopping = True
        await task


# Lanes.


async def test_lanes_share_tables_and_tables_share_lanes(
    database: DatabaseServer, schema: str
) -> None:
    lanes = [
        {"table": f"{schema}.item_*", "key": "row:{@table}:{id}", "columns": ["id", "name"]},
        {"table": f"{schema}.item_a", "key": "name:{id}", "value": "column:name"},
        {"table": f"{schema}.item_a", "key": "owner:{owner}:{id}"},
        {"table": f"{schema}.item_a", "key": "count:{owner}", "value": "none"},
    ]
    async with (
        lanecache.start(settings(database, *lanes)) as service,
        database.session(schema) as session,
    ):
        for name in ("item_a", "item_b", "other"):
            await session.execute(
                f"CREATE TABLE {name} (id INT PRIMARY KEY, owner VARCHAR(20), name VARCHAR(20))"
            )
            await session.execute(f"INSERT INTO {name} VALUES (1, 'ann:x', 'first')")
        await caught_up(service, database)
        assert held(service) == {
            "row:item_a:1": b'{"id":1,"name":"first"}',
            "row:item_b:1": b'{"id":1,"name":"first"}',
            "name:1": b"first",
            "owner:ann%3Ax:1": b'{"id":1,"owner":"ann:x","name":"first"}',
        }
        # A NULL is no value of a column; a changed key column moves the key.
        await session.execute("UPDATE item_a SET owner = 'bob', name = NULL")
        await caught_up(service, database)
        assert held(service) == {
            "row:item_a:1": b'{"id":1,"name":null}',
            "row:item_b:1": b'{"id":1,"name":"first"}',
            "owner:bob:1": b'{"id":1,"owner":"bob","name":null}',
        }
        await session.execute("DELETE FROM item_a")
        await caught_up(service, database)
        assert held(service) == {"row:item_b:1": b'{"id":1,"name":"first"}'}


async def test_a_none_lane_deletes_what_others_put_there(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    lanes = [lane(schema, key="count:{n}", value="none")]
    await make_table(database, schema)
    async with (
        lanecache.start(settings(database, *lanes, sink=redis_server.url())) as service,
        database.session(schema) as session,
    ):
        for statement, doomed in (
            ("INSERT INTO t VALUES (1, 7)", {"count:7"}),
            ("UPDATE t SET n = 8", {"count:7", "count:8"}),
            ("DELETE FROM t", {"count:8"}),
        ):
            for number in (7, 8, 9):
                await redis_server.execute("SET", f"count:{number}", 1)
            await session.execute(statement)
            await caught_up(service, database)
            left = set(await rows(redis_server, "count:*"))
            assert left == {"count:7", "count:8", "count:9"} - doomed


async def test_the_old_key_goes_in_the_transaction_that_brings_the_new_one(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_table(database, schema)
    async with (
        lanecache.start(settings(database, lane(schema), sink=redis_server.url())) as service,
        database.session(schema) as session,
        redis_server.client() as client,
    ):
        await session.execute("INSERT INTO t VALUES (0, 1)")
        await caught_up(service, database)
        stopping = False
        seen: list[list[bool]] = []

        async def look() -> None:
            while not stopping:
                values = await client.mget([f"t:{key}" for key in range(201)])
                seen.append([value is not None for value in values])

        looking = asyncio.create_task(look())
        for key in range(200):
            await session.execute("UPDATE t SET id = %s", (key + 1,))
        await caught_up(service, database)
        stopping = True
        await looking
        assert len(seen) > 3
        assert [sum(each) for each in seen] == [1] * len(seen)
        assert await rows(redis_server) == {"t:200": {"id": 200, "n": 1}}


async def test_a_ttl_is_set_with_the_value(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    await make_table(database, schema)
    lanes = [lane(schema, ttl_s=90.0), lane(schema, key="ever:{id}")]
    async with (
        lanecache.start(settings(database, *lanes, sink=redis_server.url())) as service,
        database.session(schema) as session,
    ):
        await session.execute("INSERT INTO t VALUES (1, 1)")
        await caught_up(service, database)
        assert 60_000 < await redis_server.execute("PTTL", "t:1") <= 90_000
        assert await redis_server.execute("PTTL", "ever:1") == -1
        await redis_server.execute("PEXPIRE", "t:1", 5_000)
        await session.execute("UPDATE t SET n = 2")
        await caught_up(service, database)
        assert 60_000 < await redis_server.execute("PTTL", "t:1") <= 90_000


async def test_statements_that_empty_a_table_clear_its_keys_in_order(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    lanes = [lane(schema), lane(schema, table=f"{schema}.renamed", key="renamed:{id}")]
    await make_table(database, schema)
    async with (
        lanecache.start(settings(database, *lanes, sink=redis_server.url())) as service,
        database.session(schema) as session,
    ):

        async def keys() -> set[str]:
            await caught_up(service, database)
            return set(await rows(redis_server, "*:[0-9]*"))

        await session.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
        assert await keys() == {"t:1", "t:2"}
        await session.execute("TRUNCATE TABLE t")
        await session.execute("INSERT INTO t VALUES (3, 3)")
        assert await keys() == {"t:3"}
        await session.execute("RENAME TABLE t TO renamed")
        await session.execute("INSERT INTO renamed VALUES (4, 4)")
        assert await keys() == {"renamed:4"}
        await session.execute("ALTER TABLE renamed RENAME TO t")
        await session.execute("INSERT INTO t VALUES (5, 5)")
        assert await keys() == {"t:5"}
        await session.execute("DROP TABLE t")
        assert await keys() == set()
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n BIGINT)")
        await session.execute("INSERT INTO t VALUES (6, 6)")
        assert await keys() == {"t:6"}
        await session.execute(f"DROP DATABASE {schema}")
        assert await keys() == set()
