"""Private servers: they start, survive what tests do to them, and leave nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from lanecache.servers import MariaDb, Memcached, Redis, ServerFailed, ServerMissing
from lanecache.servers.process import FOLDER_LENGTH_MAX
from lanecache.servers.programs import MARIADB, Product, find_program, find_programs
from lanecache.testing.plugin import NewDatabase, NewServer


async def test_a_database_is_set_up_to_be_followed(database):
    rows = await database.query(
        "SELECT @@log_bin, @@binlog_format, @@binlog_row_metadata, @@binlog_row_image, @@port"
    )
    assert rows == [(1, "ROW", "FULL", "FULL", database.port)]


async def test_the_binlog_of_a_new_database_is_empty(new_database: NewDatabase):
    database = await new_database()
    events = await database.query("SHOW BINLOG EVENTS")
    assert {row[2] for row in events} <= {
        "Format_desc",
        "Gtid_list",
        "Binlog_checkpoint",
        "Previous_gtids",
        "Start_encryption",
    }


async def test_a_killed_durable_database_keeps_what_was_committed(new_database: NewDatabase):
    database = await new_database(durable=True)
    await database.execute("CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY)")
    await database.execute("INSERT INTO shop.t VALUES (1), (2)")
    port, pid = database.port, database.pid
    await database.kill()
    assert not database.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await database.start()
    assert database.port == port
    assert await database.query("SELECT id FROM shop.t ORDER BY id") == [(1,), (2,)]
    await database.restart()
    assert await database.scalar("SELECT COUNT(*) FROM shop.t") == 2


async def test_options_override_the_defaults(new_database: NewDatabase):
    database = await new_database(options={"binlog_row_metadata": "MINIMAL", "server_id": 77})
    assert await database.query("SELECT @@binlog_row_metadata, @@server_id") == [("MINIMAL", 77)]


async def test_two_databases_of_one_template_are_not_the_same_server(new_database: NewDatabase):
    first, second = await new_database(), await new_database()
    await first.execute("CREATE DATABASE only_here")
    assert await second.query("SHOW DATABASES LIKE 'only_here'") == []
    if first.name.startswith("mysql"):
        assert await first.scalar("SELECT @@server_uuid") != await second.scalar(
            "SELECT @@server_uuid"
        )


async def test_accounts_log_in_over_tcp_with_their_privileges(database):
    import pymysql

    for user, may_create in (("root", True), ("lanecache", False)):
        connection = pymysql.connect(
            host=database.host, port=database.port, user=user, password=database.password
        )
        try:
            with connection.cursor() as cursor:
                if may_create:
                    cursor.execute("CREATE DATABASE created_by_root")
                    cursor.execute("DROP DATABASE created_by_root")
                else:
                    with pytest.raises(pymysql.err.OperationalError, match="denied"):
                        cursor.execute("CREATE DATABASE created_by_lanecache")
        finally:
            connection.close()


async def test_redis_keeps_its_data_over_a_kill_only_when_durable(new_server: NewServer):
    for durable, kept in ((True, b"1"), (False, None)):
        redis = await new_server(Redis, durable=durable)
        await redis.execute("SET", "key", "1")
        await redis.kill()
        await redis.start()
        assert await redis.execute("GET", "key") == kept


async def test_memcached_starts_and_empties_itself(memcached_server: Memcached):
    async with await anyio.connect_tcp(memcached_server.host, memcached_server.port) as stream:
        await stream.send(b"set key 0 0 1\r\n1\r\n")
        assert await stream.receive() == b"STORED\r\n"
        await memcached_server.empty()
        await stream.send(b"get key\r\n")
        assert await stream.receive() == b"END\r\n"


async def test_a_paused_server_does_not_answer_until_it_is_resumed(new_server: NewServer):
    redis = await new_server(Redis)
    redis.pause()
    with anyio.move_on_after(0.3) as scope:
        await redis.execute("PING")
    assert scope.cancelled_caught
    redis.resume()
    assert await redis.execute("PING") in (True, b"PONG")


async def test_a_stopped_server_leaves_no_folder_and_no_process(new_server: NewServer):
    redis = await new_server(Redis)
    folder, pid = redis.folder, redis.pid
    assert len(str(redis.socket)) < FOLDER_LENGTH_MAX + 10
    await redis.stop()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await redis.stop()  # a second time is nothing


async def test_a_server_that_cannot_start_says_what_it_printed(new_server: NewServer):
    with pytest.raises(ServerFailed, match=r"(?s)ended at its start.*no-such-option"):
        await new_server(Redis, options={"no_such_option": 1})


async def test_a_port_in_use_is_an_error_when_it_was_asked_for(new_server: NewServer):
    first = await new_server(Redis)
    with pytest.raises(ServerFailed, match=r"(?i)address already in use"):
        await new_server(Redis, port=first.port)


async def test_a_database_with_tls_proves_who_it_is(new_database: NewDatabase):
    import pymysql

    database = await new_database(tls=True)
    assert database.certificates is not None
    with (
        pymysql.connect(
            host=database.host,
            port=database.port,
            user="root",
            password=database.password,
            ssl_ca=str(database.certificates.ca),
            ssl_verify_cert=True,
            ssl_verify_identity=True,
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
        assert cursor.fetchone()[1]


async def test_a_redis_with_tls_proves_who_it_is(new_server: NewServer):
    from redis.asyncio import Redis as Client

    redis = await new_server(Redis, tls=True)
    assert redis.certificates is not None
    async with Client.from_url(
        redis.url(), ssl_ca_certs=str(redis.certificates.ca), ssl_check_hostname=True
    ) as client:
        assert await client.set("key", "1")
    assert await redis.execute("GET", "key") == b"1"


PARENT = """
import sys, anyio
from lanecache.servers import MariaDb
async def main():
    server = MariaDb()
    await server.start()
    print(server.folder, server.pid, flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_nothing_is_left_when_the_parent_is_killed(mariadb: MariaDb, number: signal.Signals):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        assert parent.stdout is not None
        folder, pid = parent.stdout.readline().split()
        assert Path(folder).is_dir()
        parent.send_signal(number)
    with anyio.fail_after(20):
        while Path(folder).exists() or _is_alive(int(pid)):
            await anyio.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_missing_program_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LANECACHE_SERVERS", str(tmp_path))
    unknown = Product("Nothing", "no-such-server", "x", package="nothing-server")
    with pytest.raises(ServerMissing, match=re.escape("sudo apt-get install nothing-server")):
        find_program(unknown)


def test_a_missing_series_is_said_with_what_there_is(mariadb: MariaDb):
    with pytest.raises(ServerMissing, match=rf"MariaDB 5\.5 is not installed.*{mariadb.version}"):
        find_program(MARIADB, "5.5")


def test_an_unpacked_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = tmp_path / "mariadb-99.0" / "usr" / "sbin" / "mariadbd"
    program.parent.mkdir(parents=True)
    program.touch()
    run = tmp_path / "mariadb-99.0" / "run"
    # The version is what the server says, not what its folder is called.
    run.write_text(f"#!/bin/sh\necho '{program}  Ver 99.1.2-MariaDB for Linux'\n")
    run.chmod(0o755)
    monkeypatch.setenv("LANECACHE_SERVERS", str(tmp_path))
    found = find_programs(MARIADB)[-1]
    assert (found.version, found.series, found.own_libraries) == ("99.1.2", "99.1", True)
    assert found.command == (str(run), "mariadbd")
