"""Whatever is wrong ends in one clear sentence with its remedy and the right exit code.

Real processes (``python -m lanecache``) against real servers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import Lanecache, run_to_end, write_config

from lanecache.ingest.address import parse_source_url
from lanecache.ingest.server import ReplicaIdentity, Server
from lanecache.ingest.source import open_dump
from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.testing.plugin import NewDatabase, NewServer
from lanecache.testing.proxy import FaultProxy

MEMORY = "memory:"
SECRET = "hunter2-not-shown"
CLOSED_PORT = "redis://127.0.0.1:1/0"


def lane(schema: str, table: str = "t", **fields: Any) -> dict[str, Any]:
    return {"table": f"{schema}.{table}", "key": f"{table}:{{id}}", **fields}


@asynccontextmanager
async def account(database: DatabaseServer, name: str, *grants: str) -> AsyncIterator[str]:
    """Make an account with these privileges only, and give its source URL."""
    await database.execute(
        f"CREATE USER '{name}'@'%' IDENTIFIED BY '{SECRET}'",
        *(f"GRANT {grant} TO '{name}'@'%'" for grant in grants),
    )
    try:
        yield database.url(name, SECRET)
    finally:
        await database.execute(f"DROP USER '{name}'@'%'")


async def value(redis: Redis, key: str) -> Any:
    text = await redis.execute("GET", key)
    return None if text is None else json.loads(text)


async def eventually(
    read: Callable[[], Awaitable[Any]], wanted: Any, process: Lanecache | None = None
) -> None:
    """Wait until what is read is what is wanted; fail with the last that was read."""
    last: Any = None
    try:
        async with asyncio.timeout(30):
            while (last := await read()) != wanted:
                if process is not None:
                    assert process.running, process.err
                await asyncio.sleep(0.01)
    except TimeoutError:
        log = process.err if process is not None else ""
        raise AssertionError(f"{last!r} in place of {wanted!r}; {log}") from None


async def both(folder: Path, config: Path, *secrets: str) -> tuple[str, str]:
    """Run and check one configuration; give the run's sentence and the check's only fault."""
    ran, checked = await asyncio.gather(
        run_to_end(folder, "run", config), run_to_end(folder, "check", config)
    )
    faults = checked.faults(*secrets)
    assert len(faults) == 1, checked.out
    return ran.sentence(3, *secrets), faults[0]


# Logging in, and privileges.


async def test_a_wrong_password_is_said_with_what_to_check(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    url = database.url(password=SECRET)
    config = write_config(tmp_path, url, MEMORY, [lane(schema)])
    said, fault = await both(tmp_path, config, SECRET)
    for text in (said, fault):
        assert f"{database.host}:{database.port} refused: Access denied" in text
        assert "check user and password in source.url" in text


async def test_a_missing_right_to_replicate_comes_with_its_grant(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    privilege = "BINLOG MONITOR" if isinstance(database, MariaDb) else "REPLICATION CLIENT"
    grants = (f"SELECT, {privilege} ON *.*",)
    async with account(database, f"{schema}_reader", *grants) as url:
        config = write_config(tmp_path, url, MEMORY, [lane(schema)])
        said, fault = await both(tmp_path, config, SECRET)
    for text in (said, fault):
        assert "GRANT REPLICATION SLAVE" in text


# Settings of the database.


@pytest.mark.parametrize("binlog_format", ["STATEMENT", "MIXED"])
async def test_a_binlog_without_rows_is_refused(
    new_database: NewDatabase, tmp_path: Path, binlog_format: str
) -> None:
    database = await new_database(options={"binlog_format": binlog_format})
    await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), MEMORY, [lane("s")])
    said, fault = await both(tmp_path, config, database.password)
    for text in (said, fault):
        assert f"binlog_format is {binlog_format}" in text.replace("format =", "format is")
        assert "SET GLOBAL binlog_format = 'ROW'" in text


async def test_a_database_without_a_binlog_is_refused(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    database = await new_database(options={"skip_log_bin": None})
    await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), MEMORY, [lane("s")])
    said, fault = await both(tmp_path, config, database.password)
    assert "writes no binlog: start it with log_bin" in said
    assert fault == "log_bin is off: there is no binlog to read; start the server with log_bin"


async def test_minimal_metadata_is_completed_from_information_schema(
    new_database: NewDatabase, redis_server: Redis, tmp_path: Path
) -> None:
    database = await new_database(options={"binlog_row_metadata": "MINIMAL"})
    await database.execute(
        "CREATE DATABASE s",
        "CREATE TABLE s.t (id INT UNSIGNED PRIMARY KEY, big BIGINT UNSIGNED, tiny TINYINT UNSIGNED,"
        " e ENUM('small', 'l\u00e4rge'), s SET('x', 'y'), l VARCHAR(20) CHARACTER SET latin1,"
        " u VARCHAR(20) CHARACTER SET utf8mb4, b VARBINARY(20))",
    )
    # A user without SELECT on it cannot see a table's columns.
    privileges = (
        "REPLICATION SLAVE, BINLOG MONITOR ON *.*"
        if isinstance(database, MariaDb)
        else "REPLICATION SLAVE, REPLICATION CLIENT ON *.*"
    )
    insert = (
        "INSERT INTO s.t VALUES (4294967295, 18446744073709551615, 255, 'l\u00e4rge', 'x,y',"
        " 'caf\u00e9', '\u20ac', x'00ff')"
    )
    wanted = {
        "id": 4294967295,
        "big": 18446744073709551615,
        "tiny": 255,
        "e": "l\u00e4rge",
        "s": ["x", "y"],
        "l": "caf\u00e9",
        "u": "\u20ac",
        "b": "AP8=",
    }
    key = "t:4294967295"
    async with account(database, "blind", privileges) as blind:
        seeing = write_config(tmp_path, database.url(), redis_server.url(), [lane("s")])
        blinded = write_config(
            tmp_path,
            blind,
            redis_server.url(),
            [{"table": "s.t", "key": "blind:{id}"}],
            name="blind",
            file="blind.toml",
        )
        with (
            Lanecache(tmp_path, "run", seeing) as sees,
            Lanecache(tmp_path, "run", blinded) as sees_not,
        ):
            await sees.wait_logged("streaming from")
            await sees_not.wait_logged("streaming from")
            await redis_server.execute("SET", "blind:7", "not to be trusted")
            await database.execute(insert)
            await eventually(lambda: value(redis_server, key), wanted, sees)
            await sees_not.wait_logged("blind:", "invalidated in place of a value")
            await eventually(lambda: redis_server.execute("GET", "blind:7"), None, sees_not)
            assert await redis_server.execute("GET", f"blind:{4294967295}") is None
            for process in (sees, sees_not):
                ended = await process.end()
                assert ended.code == 0, ended.err
        said = " ".join(line["message"] for line in ended.logged)
        assert "GRANT SELECT" in said
        checked = await run_to_end(tmp_path, "check", blinded)
        (fault,) = checked.faults(SECRET)
        assert "GRANT SELECT" in fault
        checked = await run_to_end(tmp_path, "check", seeing)
        assert checked.code == 0, checked.out
        assert "warning: binlog_row_metadata is MINIMAL" in checked.out


# Positions.


async def purge(database: DatabaseServer) -> None:
    """Purge all binlogs before the present one, with a table and a row in them."""
    await database.execute("FLUSH BINARY LOGS")
    async with asyncio.timeout(20):
        while True:
            files = [row[0] for row in await database.query("SHOW BINARY LOGS")]
            if len(files) == 1:
                return
            # MariaDB keeps a binlog until it no longer needs it for its own recovery.
            await database.execute(f"PURGE BINARY LOGS TO '{files[-1]}'")
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("policy", ["stop", "clear"])
async def test_a_purged_position_is_handled_as_the_configuration_says(
    new_database: NewDatabase, redis_server: Redis, tmp_path: Path, policy: str
) -> None:
    database = await new_database()
    await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY, n INT)")
    config = write_config(
        tmp_path, database.url(), redis_server.url(), [lane("s")], on_purged=policy
    )
    with Lanecache(tmp_path, "run", config) as first:
        await first.wait_logged("streaming from")
        await database.execute("INSERT INTO s.t VALUES (1, 1)")
        await eventually(lambda: value(redis_server, "t:1"), {"id": 1, "n": 1}, first)
        assert (await first.end()).code == 0
    await database.execute("UPDATE s.t SET n = 2 WHERE id = 1")
    checked = await run_to_end(tmp_path, "check", config)
    assert checked.code == 0, checked.out
    assert "the binlog goes on from the position that is stored there" in checked.out
    await purge(database)
    checked = await run_to_end(tmp_path, "check", config)
    if policy == "stop":
        (fault,) = checked.faults(database.password)
        assert 'set source.on_purged = "clear"' in fault
        said = (await run_to_end(tmp_path, "run", config)).sentence(3, database.password)
        assert "purged" in said or "not in the binlog" in said
        assert 'set source.on_purged = "clear"' in said
        assert await value(redis_server, "t:1") == {"id": 1, "n": 1}
        return
    assert checked.code == 0, checked.out
    assert "the next start empties the lanes" in checked.out
    with Lanecache(tmp_path, "run", config) as second:
        await eventually(lambda: value(redis_server, "t:1"), None, second)
        await second.wait_logged("clearing every lane's keys")
        await database.execute("UPDATE s.t SET n = 3 WHERE id = 1")
        await eventually(lambda: value(redis_server, "t:1"), {"id": 1, "n": 3}, second)
        assert (await second.end()).code == 0


async def test_a_start_of_another_kind_of_server_is_refused(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
    start = f"{uuid}:1-5" if isinstance(database, MariaDb) else "0-1-5"
    config = write_config(tmp_path, database.url(), MEMORY, [lane(schema)], start=start)
    said = (await run_to_end(tmp_path, "run", config)).sentence(2, database.password)
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(database.password)
    for text in (said, fault):
        assert f"source.start = '{start}' is neither latest, earliest, FILE:OFFSET nor a" in text


async def test_a_start_that_is_not_there_any_more_is_refused(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    start = "binlog.999999:4"
    config = write_config(tmp_path, database.url(), MEMORY, [lane(schema)], start=start)
    said = (await run_to_end(tmp_path, "run", config)).sentence(3, database.password)
    assert "has no binlog binlog.999999: it has binlog.000001 to" in said
    # A target that holds a position does not ask for it.
    checked = await run_to_end(tmp_path, "check", config)
    assert checked.code == 0
    assert "has no binlog binlog.999999" in checked.out


async def test_a_position_in_redis_that_cannot_be_read_is_said(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane(schema)])
    for garbage in (b"garbage", b"\xff\x00", b"{}"):
        await redis_server.execute("SET", "lanecache:position:shop", garbage)
        said, fault = await both(tmp_path, config, database.password)
        for text in (said, fault):
            assert "lanecache:position:shop" in text
            assert "to start anew" in text
        assert await redis_server.execute("GET", "lanecache:position:shop") == garbage
    await redis_server.execute("DEL", "lanecache:position:shop")
    await redis_server.execute("HSET", "lanecache:position:shop", "a", "b")
    said, fault = await both(tmp_path, config, database.password)
    for text in (said, fault):
        assert "lanecache:position:shop" in text


# Who else is there.


async def test_a_server_id_of_the_database_itself_is_refused(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), MEMORY, [lane(schema)], server_id=1)
    said, fault = await both(tmp_path, config, database.password)
    for text in (said, fault):
        assert "source.server_id = 1 is already used" in text
        assert "the database itself: choose another one, or leave it out" in text


@asynccontextmanager
async def replica(database: DatabaseServer, server_id: int) -> AsyncIterator[None]:
    """Keep another replica connected, as a server of that id would."""
    server = Server(parse_source_url(database.url()))
    identity = ReplicaIdentity(server_id, "00000000-0000-0000-0000-000000000077", "replica-of-ours")
    try:
        facts, position = await server.facts(), await server.position()
        async with open_dump(server.address, facts, position, identity, deadline_s=120.0) as stream:
            await stream.read()
            yield
    finally:
        await server.close()


async def test_a_server_id_of_another_replica_is_refused_where_it_can_be_seen(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    # MariaDB shows its replicas to those only who may administer them.
    url = database.url("root")
    config = write_config(tmp_path, url, MEMORY, [lane(schema)], server_id=77001)
    async with replica(database, 77001):
        said, fault = await both(tmp_path, config, database.password)
    for text in (said, fault):
        assert "source.server_id = 77001 is already used" in text
        assert "replica-of-ours: choose another one, or leave it out" in text


async def test_of_two_with_one_server_id_one_stops_with_its_remedy(
    database: DatabaseServer, schema: str, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    first, second = (
        write_config(
            tmp_path,
            database.url(),
            MEMORY,
            [lane(schema)],
            name=f"{schema}-{name}",
            file=f"{name}.toml",
            server_id=77002,
        )
        for name in ("first", "second")
    )
    with Lanecache(tmp_path, "run", first) as older:
        await older.wait_logged("streaming from")
        with Lanecache(tmp_path, "run", second) as newer:
            if isinstance(database, MySql):
                # It may list the replicas, so it never disturbs the one that is there.
                loser, winner = newer, older
            else:
                # Nobody may list them: the server drops the older one and says why.
                loser, winner = older, newer
            said = (await loser.ended()).sentence(3, database.password)
            assert "server_id" in said
            assert "or leave it out" in said
            await winner.wait_logged("streaming from")
            assert (await winner.end()).code == 0


async def test_a_second_process_of_one_source_stops_the_first(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane(schema)])
    with Lanecache(tmp_path, "run", config) as older:
        await older.wait_logged("streaming from")
        await database.execute(f"INSERT INTO {schema}.t VALUES (1)")
        await eventually(lambda: value(redis_server, "t:1"), {"id": 1}, older)
        with Lanecache(tmp_path, "run", config) as newer:
            await newer.wait_logged("streaming from")
            await database.execute(f"INSERT INTO {schema}.t VALUES (2)")
            said = (await older.ended()).sentence(3, database.password)
            assert "another lanecache process has taken over the source 'shop'" in said
            assert "stop one of the two, or give them different source names" in said
            await eventually(lambda: value(redis_server, "t:2"), {"id": 2}, newer)
            assert (await newer.end()).code == 0


# The configuration.

GOOD = """
[source]
url = "mysql://repl:hunter2-not-shown@127.0.0.1:3306"
[sinks.main]
url = "memory:"
[[lanes]]
table = "shop.product"
key = "product:{id}"
"""


@pytest.mark.parametrize("command", ["run", "check", "tail"])
@pytest.mark.parametrize(
    ("wrong", "right", "wanted"),
    [
        ("url = \"mysql", "ulr = \"mysql", ["source.ulr", "did you mean url?"]),
        ("[[lanes]]", "[[lane]]", ["lane ", "did you mean lanes?"]),
        ("key = ", "ttl = 5\nkey = ", ["lanes[0].ttl", "did you mean ttl_s?"]),
        ("key = ", "key = \n#", ["lanecache.toml", "line 8"]),
        ("key = ", "ttl_s = \"5\"\nkey = ", ["lanes[0].ttl_s must be a number, not text"]),
        ("[sinks.main]", "server_id = 1.5\n[sinks.main]", ["source.server_id", "whole number"]),
        ("\"memory:\"", "\"mongodb://h\"", ["sinks.main.url", "redis://"]),
        ("\"mysql:", "\"postgres:", ["source.url", "mysql://"]),
        ("product:{id}", "product:", ["lane 1", "column"]),
        ("shop.product", "product", ["lane 1", "schema.table"]),
        ("[sinks.main]", "on_purged = \"go\"\n[sinks.main]", ["source.on_purged", "\"stop\" or"]),
    ],
)  # fmt: skip
async def test_a_wrong_configuration_ends_with_2_and_names_the_place(
    tmp_path: Path, command: str, wrong: str, right: str, wanted: list[str]
) -> None:
    assert GOOD.count(wrong) == 1
    config = tmp_path / "lanecache.toml"
    config.write_text(GOOD.replace(wrong, right))
    said = (await run_to_end(tmp_path, command, config)).sentence(2, SECRET)
    for text in wanted:
        assert text in said


async def test_a_configuration_that_is_no_file_or_no_text_ends_with_2(tmp_path: Path) -> None:
    missing = (await run_to_end(tmp_path, "run", tmp_path / "none.toml")).sentence(2)
    assert "none.toml cannot be read: No such file or directory" in missing
    folder = (await run_to_end(tmp_path, "run", tmp_path)).sentence(2)
    assert "cannot be read: Is a directory" in folder
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe[source]")
    assert "binary.toml" in (await run_to_end(tmp_path, "run", binary)).sentence(2)


async def test_a_configuration_that_may_not_be_read_ends_with_2(tmp_path: Path) -> None:
    # Root may read every file; but nobody can follow a link to itself.
    config = tmp_path / "lanecache.toml"
    config.symlink_to(config)
    said = (await run_to_end(tmp_path, "run", config)).sentence(2)
    assert "lanecache.toml cannot be read: Too many levels of symbolic links" in said


# Lanes over what is not there.


async def test_a_lane_over_a_table_that_is_not_there_works_when_the_table_appears(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.products (id INT PRIMARY KEY)")
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane(schema, "product")])
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(database.password)
    assert f"no table {schema}.product is there" in fault
    assert f"did you mean {schema}.products?" in fault
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged(
            "streaming from", "warning", f"no table {schema}.product is there", "did you mean"
        )
        await database.execute(
            f"CREATE TABLE {schema}.product (id INT PRIMARY KEY)",
            f"INSERT INTO {schema}.product VALUES (1)",
        )
        await eventually(lambda: value(redis_server, "product:1"), {"id": 1}, process)
        ended = await process.end()
    assert ended.code == 0
    warnings = [line for line in ended.logged if line["level"] == "warning"]
    assert len(warnings) == 1, ended.err


async def test_a_lane_over_a_column_that_is_not_there_works_when_the_column_appears(
    database: DatabaseServer, schema: str, redis_server: Redis, tmp_path: Path
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, nam INT)")
    lanes = [lane(schema, columns=["id", "name"])]
    config = write_config(tmp_path, database.url(), redis_server.url(), lanes)
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(database.password)
    assert f'{schema}.t has no column "name"; did you mean "nam"?' in fault
    assert "correct the lane's columns, or add the column to the table" in fault
    await redis_server.execute("SET", "t:7", "untouched")
    refused = (await run_to_end(tmp_path, "run", config)).sentence(2, database.password)
    assert f'{schema}.t has no column "name"; did you mean "nam"?' in refused
    assert await redis_server.execute("GET", "t:7") is not None
    await database.execute(f"ALTER TABLE {schema}.t RENAME COLUMN nam TO name")
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("streaming from")
        # It goes while running; below the prefix of a lane that cannot work nothing is believed.
        await database.execute(f"ALTER TABLE {schema}.t RENAME COLUMN name TO nam")
        await redis_server.execute("SET", "t:1", "stale")
        await database.execute(f"INSERT INTO {schema}.t VALUES (1, 1)")
        await eventually(lambda: redis_server.execute("GET", "t:1"), None, process)
        await database.execute(
            f"ALTER TABLE {schema}.t RENAME COLUMN nam TO name",
            f"UPDATE {schema}.t SET name = 2 WHERE id = 1",
        )
        await eventually(lambda: value(redis_server, "t:1"), {"id": 1, "name": 2}, process)
        assert (await process.end()).code == 0


# Targets.


async def test_a_target_that_is_down_at_the_start_is_waited_for(
    mariadb: MariaDb, new_server: NewServer, tmp_path: Path
) -> None:
    redis = await new_server(Redis)
    await redis.kill()
    await mariadb.execute(
        "CREATE DATABASE IF NOT EXISTS waited", "CREATE TABLE waited.t (id INT PRIMARY KEY)"
    )
    config = write_config(tmp_path, mariadb.url(), redis.url(), [lane("waited")])
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(mariadb.password)
    assert f"{redis.host}:{redis.port}" in fault
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("cannot be reached", "trying again")
        ended = await process.end()
        assert ended.code == 0, ended.err
        assert ended.said == []
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("cannot be reached", "trying again")
        await redis.start()
        await process.wait_logged("back after", "streaming from")
        await mariadb.execute("INSERT INTO waited.t VALUES (1)")
        await eventually(lambda: value(redis, "t:1"), {"id": 1}, process)
        ended = await process.end()
    assert ended.code == 0
    assert ended.err.count("trying again") == 1
    await mariadb.execute("DROP DATABASE waited")


async def test_a_source_that_is_down_at_the_start_is_waited_for(
    new_database: NewDatabase, redis_server: Redis, tmp_path: Path
) -> None:
    database = await new_database(durable=True)
    await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT PRIMARY KEY)")
    await database.shut_down()
    config = write_config(tmp_path, database.url(), redis_server.url(), [lane("s")])
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(database.password)
    assert "cannot be reached" in fault
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("cannot be reached", "trying again")
        ended = await process.end()
        assert ended.code == 0, ended.err
        assert ended.said == []
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("cannot be reached", "trying again")
        await database.start()
        await process.wait_logged("streaming from")
        await database.execute("INSERT INTO s.t VALUES (1)")
        await eventually(lambda: value(redis_server, "t:1"), {"id": 1}, process)
        assert (await process.end()).code == 0


async def test_a_wrong_password_for_redis_is_said(
    mariadb: MariaDb, new_server: NewServer, tmp_path: Path
) -> None:
    redis = await new_server(Redis, options={"requirepass": "right"})
    url = redis.url().replace("redis://", f"redis://:{SECRET}@")
    config = write_config(tmp_path, mariadb.url(), url, [lane("no", "no*", key="no:{@table}:{id}")])
    ran, checked = await asyncio.gather(
        run_to_end(tmp_path, "run", config), run_to_end(tmp_path, "check", config)
    )
    for text in (ran.sentence(3, SECRET), checked.faults(SECRET)[-1]):
        assert "password" in text
        assert "sinks.main.url" in text


async def test_a_redis_that_is_a_replica_is_said_and_waited_for(
    mariadb: MariaDb, redis_server: Redis, new_server: NewServer, tmp_path: Path
) -> None:
    replica = await new_server(Redis)
    await replica.execute("REPLICAOF", redis_server.host, redis_server.port)
    await mariadb.execute(
        "CREATE DATABASE IF NOT EXISTS replicated", "CREATE TABLE replicated.t (id INT PRIMARY KEY)"
    )
    config = write_config(tmp_path, mariadb.url(), replica.url(), [lane("replicated")])
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(mariadb.password)
    assert "read-only replica; point sinks.main.url at the primary" in fault
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("read-only replica", "trying again")
        await replica.execute("REPLICAOF", "NO", "ONE")
        # It begins at the binlog's end, and where that is, it reads only now.
        await process.wait_logged("streaming from")
        await mariadb.execute("INSERT INTO replicated.t VALUES (1)")
        await eventually(lambda: value(replica, "t:1"), {"id": 1}, process)
        assert (await process.end()).code == 0
    await mariadb.execute("DROP DATABASE replicated")


async def test_a_target_that_speaks_something_else_is_said(
    mariadb: MariaDb, tmp_path: Path
) -> None:
    url = f"redis://{mariadb.host}:{mariadb.port}/0"
    lanes = [lane("no", "no*", key="no:{@table}:{id}")]
    config = write_config(tmp_path, mariadb.url(), url, lanes)
    faults = (await run_to_end(tmp_path, "check", config)).faults(mariadb.password)
    assert "does not answer as Redis does" in faults[-1]
    assert "check" in faults[-1]
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("does not answer as Redis does", "trying again")
        ended = await process.end()
        assert ended.code == 0, ended.err


# Garbage on the connection to the database.


async def test_a_source_port_that_speaks_something_else_is_said(
    redis_server: Redis, tmp_path: Path
) -> None:
    url = f"mysql://u:{SECRET}@{redis_server.host}:{redis_server.port}"
    config = write_config(tmp_path, url, MEMORY, [lane("s")], connect_timeout_s=1.0)
    with Lanecache(tmp_path, "run", config) as process:
        await process.wait_logged("check", "source.url", "trying again")
        ended = await process.end()
    assert ended.code == 0, ended.err
    assert SECRET not in ended.err
    (fault,) = (await run_to_end(tmp_path, "check", config)).faults(SECRET)
    assert "source.url" in fault


@pytest.mark.parametrize(
    "garbage",
    [b"\x00" * 64, b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(range(256)) * 300],
    ids=["zeros", "ones", "http", "much"],
)
async def test_garbage_in_the_binlog_is_recovered_from(
    database: DatabaseServer,
    schema: str,
    redis_server: Redis,
    tmp_path: Path,
    garbage: bytes,
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    async with FaultProxy(database.host, database.port) as proxy:
        url = database.url().replace(f":{database.port}", f":{proxy.port}")
        config = write_config(tmp_path, url, redis_server.url(), [lane(schema)])
        with Lanecache(tmp_path, "run", config) as process:
            await process.wait_logged("streaming from")
            for number in range(100):
                proxy.inject(garbage)
                await database.execute(f"INSERT INTO {schema}.t VALUES ({number})")
                await eventually(
                    lambda number=number: value(redis_server, f"t:{number}"),
                    {"id": number},
                    process,
                )
                # It may have come to the other connection, which asks the database something.
                if number >= 2 and "trying again" in process.err:
                    break
            await process.wait_logged("trying again", "back, streaming from")
            ended = await process.end()
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
