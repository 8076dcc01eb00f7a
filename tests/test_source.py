"""Logging in, positions, dumps and checks against real servers; URLs and plain parts without."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from lanecache.backoff import Backoff
from lanecache.config import SourceConfig
from lanecache.errors import (
    ConfigError,
    PasswordWithheld,
    PositionPurged,
    SourceClash,
    SourceError,
    SourceUnavailable,
)
from lanecache.finding import Finding, Severity
from lanecache.gtid import MARIADB, MYSQL, MysqlGtidSet, parse_gtid_set
from lanecache.ingest.address import SourceAddress, TlsMode, parse_source_url
from lanecache.ingest.checks import check_source
from lanecache.ingest.login import log_in
from lanecache.ingest.protocol import Block
from lanecache.ingest.schema import parse_labels, table_shape
from lanecache.ingest.server import ReplicaIdentity, Server, commit_token
from lanecache.ingest.source import BinlogStream, open_dump
from lanecache.operation import Position
from lanecache.servers import MariaDb, MySql
from lanecache.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from lanecache.servers import DatabaseServer
    from lanecache.testing.plugin import NewDatabase, NewServer

ROTATE, FORMAT_DESCRIPTION, PREVIOUS_GTIDS, XID = 4, 15, 35, 16
HEARTBEATS = {27, 41}
IDENTITY = ReplicaIdentity(4242, "5e11fa47-71ca-11e1-9e33-c80aa9429562", "lanecache:test")


def bodies(block: Block) -> list[tuple[int, bytes]]:
    """Give type and body of each event, without header and checksum."""
    return [(block.data[a + 4], block.data[a + 19 : b - 4]) for a, b in block.spans]


def kinds(block: Block) -> list[int]:
    return [kind for kind, _ in bodies(block)]


async def read_all(stream: BinlogStream) -> list[tuple[int, bytes]]:
    found = []
    while (block := await stream.read()) is not None:
        found += bodies(block)
    return found


async def dump_all(server: Server, position: Position, **arguments: Any) -> list[tuple[int, bytes]]:
    facts = await server.facts()
    identity = await server.identify("test")
    async with open_dump(
        server.address, facts, position, identity, wait=False, **arguments
    ) as stream:
        return await read_all(stream)


async def read_on(stream: BinlogStream, found: list[int] | None = None) -> None:
    """Read until the stream fails; collect the events' types."""
    with anyio.fail_after(20):
        while (block := await stream.read()) is not None:
            if found is not None:
                found += kinds(block)


async def read_until(stream: BinlogStream, kind: int) -> None:
    """Read until an event of a type comes; the test's own time limit ends it."""
    while True:
        block = await stream.read()
        assert block is not None
        if kind in kinds(block):
            return


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Server]:
    server = Server(parse_source_url(url))
    try:
        yield server
    finally:
        await server.close()


# URLs.


def test_a_url_is_read_with_its_parts_decoded() -> None:
    address = parse_source_url(
        "mysql://re%40pl:s%2Fe%20c%25@db.example:3307/?ssl=verify-ca&ssl_ca=/ca"
    )
    assert address == SourceAddress(
        host="db.example",
        port=3307,
        user="re@pl",
        password="s/e c%",
        tls=TlsMode.VERIFY_CA,
        ssl_ca="/ca",
    )
    assert address.where == "db.example:3307"


def test_a_url_never_shows_its_password() -> None:
    address = parse_source_url("mariadb://repl:hunter2@db")
    assert "hunter2" not in f"{address!r} {address} {address.where}"
    assert address.port == 3306


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("mysql://u:p@localhost/?unix_socket=/run/my%20sql.sock", "/run/my sql.sock"),
        ("mysql+unix://u:p@/run/mysqld/mysqld.sock", "/run/mysqld/mysqld.sock"),
    ],
)
def test_a_url_may_name_a_unix_socket(url: str, path: str) -> None:
    address = parse_source_url(url)
    assert address.unix_socket == path
    assert address.where == path


def test_an_ipv6_host_keeps_its_brackets_in_messages() -> None:
    assert parse_source_url("mysql://u@[::1]:3307").where == "[::1]:3307"


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ("", TlsMode.DISABLED),
        ("?ssl=required", TlsMode.REQUIRED),
        ("?ssl=true", TlsMode.REQUIRED),
        ("?ssl=verify", TlsMode.VERIFY_IDENTITY),
        ("?ssl_ca=/ca.pem", TlsMode.VERIFY_IDENTITY),
        ("?ssl_ca=/ca.pem&ssl=required", TlsMode.REQUIRED),
        ("?ssl_cert=/c.pem", TlsMode.VERIFY_IDENTITY),
        ("?ssl_cert=/c.pem&ssl_key=/k.pem", TlsMode.VERIFY_IDENTITY),
        ("?ssl_cert=/c.pem&ssl=required", TlsMode.REQUIRED),
        ("?ssl=disabled", TlsMode.DISABLED),
    ],
)
def test_how_much_tls_is_wanted_follows_from_the_options(options: str, mode: TlsMode) -> None:
    assert parse_source_url(f"mysql://u@h/{options}").tls is mode


@pytest.mark.parametrize(
    "url",
    [
        "",
        "db:3306",
        "postgres://u:hunter2@h",
        "mysql://:hunter2@h",
        "mysql://u:hunter2@",
        "mysql://u:hunter2@h:port",
        "mysql://u:hunter2@h:99999",
        "mysql://u:hunter2@h/shop",
        "mysql://u:hunter2@h/?tls=1",
        "mysql://u:hunter2@h/?ssl=maybe",
        "mysql://u:hunter2@h/?ssl",
        "mysql://u:hunter2@h/?ssl_key=/k.pem",
        "mysql://u:hunter2@h/?allow_cleartext=perhaps",
        "mysql://u:hunter2#x@h",
        "mysql://u:hunter2/x@h",
        "mysql+unix://u:hunter2@",
        "mysql+unix://u:hunter2@h/run/x.sock",
    ],
)
def test_a_url_of_another_form_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^source\.url cannot be used: ") as caught:
        parse_source_url(url)
    assert caught.value.path == "source.url"
    assert "hunter2" not in str(caught.value)


def test_a_certificate_that_is_not_there_is_a_config_error() -> None:
    address = parse_source_url("mysql://u@h/?ssl_ca=/nowhere/ca.pem")
    with pytest.raises(ConfigError, match=r"ssl_ca=/nowhere/ca\.pem .*No such file"):
        address.ssl_context()


# Plain parts.


def test_backoff_doubles_up_to_its_bound_and_begins_again() -> None:
    backoff = Backoff(first_s=0.1, max_s=2.0, rng=random.Random(1))
    delays = [backoff.delay_s() for _ in range(2000)]
    for index, delay in enumerate(delays):
        bound = min(2.0, 0.1 * 2 ** min(index, 10))
        assert bound / 2 <= delay <= bound
    assert len(set(delays)) > 1900
    assert backoff.failures == 2000
    backoff.reset()
    assert backoff.delay_s() <= 0.1


@pytest.mark.parametrize(
    ("column_type", "labels"),
    [
        ("enum('a','b')", ("a", "b")),
        ("set('x,y','it''s','')", ("x,y", "it's", "")),
        (r"enum('a\nb','c\\d','(',')')", ("a\nb", "c\\d", "(", ")")),
        ("ENUM('ä')", ("ä",)),
        ("varchar(20)", ()),
        ("decimal(10,2) unsigned", ()),
    ],
)
def test_labels_are_read_with_their_quotes_and_commas(
    column_type: str, labels: tuple[str, ...]
) -> None:
    assert parse_labels(column_type) == labels


# Real servers.


@pytest.mark.servers
async def test_facts_tell_what_the_server_is(database: DatabaseServer) -> None:
    async with connected(database.url()) as server:
        facts = await server.facts()
    assert facts.flavor == (MARIADB if isinstance(database, MariaDb) else MYSQL)
    assert facts.version_text.startswith(".".join(str(part) for part in facts.version))
    assert facts.version >= (8, 0)
    assert facts.log_bin
    assert facts.gtids
    assert facts.server_id == 1
    assert (facts.binlog_format, facts.binlog_row_image) == ("ROW", "FULL")
    assert facts.binlog_row_metadata == "FULL"
    assert bool(facts.server_uuid) == (facts.flavor == MYSQL)


@pytest.mark.servers
async def test_a_dump_goes_on_from_wherever_a_position_says(
    database: DatabaseServer, schema: str
) -> None:
    async with connected(database.url()) as server:
        await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
        start = await server.position()
        await database.execute(
            f"INSERT INTO {schema}.t VALUES (1)", f"INSERT INTO {schema}.t VALUES (2)"
        )
        end = await server.position()
        assert start.gtids is not None
        assert end.gtids is not None
        assert end.gtids.contains(start.gtids)
        assert not start.gtids.contains(end.gtids)
        # By GTIDs, by file and offset, and by what the user may write.
        place = f"{start.file}:{start.offset}"
        for position in (
            start,
            Position(start.gtids),
            Position(None, start.file, start.offset),
            await server.resolve_start(place),
            await server.resolve_start(str(start.gtids)),
        ):
            found = [kind for kind, _ in await dump_all(server, position)]
            assert found.count(XID) == 2, position
            assert found[:2] == [ROTATE, FORMAT_DESCRIPTION]
        assert XID not in [kind for kind, _ in await dump_all(server, end)]
        assert XID not in [
            kind for kind, _ in await dump_all(server, await server.resolve_start("latest"))
        ]
        earliest = await server.resolve_start("earliest")
        found = [kind for kind, _ in await dump_all(server, earliest)]
        assert found.count(XID) >= 2


@pytest.mark.servers
async def test_a_dump_that_waits_brings_new_events_and_heartbeats(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    async with connected(database.url()) as server:
        facts, position = await server.facts(), await server.position()
        async with open_dump(server.address, facts, position, IDENTITY, heartbeat_s=0.1) as stream:
            await database.execute(f"INSERT INTO {schema}.t VALUES (1)")
            with anyio.fail_after(20):
                await read_until(stream, XID)
                while not HEARTBEATS.intersection(kinds(await stream.read() or Block(b"", []))):
                    pass
            assert stream.received_bytes > 0


@pytest.mark.servers
async def test_a_killed_dump_is_tried_again(database: DatabaseServer) -> None:
    async with connected(database.url()) as server:
        facts, position = await server.facts(), await server.position()
        async with open_dump(server.address, facts, position, IDENTITY) as stream:
            assert await stream.read() is not None
            dumps = [
                row[0]
                for row in await database.query("SHOW FULL PROCESSLIST")
                if "Binlog Dump" in str(row[4])
            ]
            await database.execute(*(f"KILL {number}" for number in dumps))
            with pytest.raises(SourceUnavailable):
                await read_on(stream)


@pytest.mark.servers
async def test_events_larger_than_a_packet_come_whole_and_oversized_ones_cut(
    new_database: NewDatabase,
) -> None:
    database = await new_database(options={"max_allowed_packet": 64 * 1024 * 1024})
    async with connected(database.url()) as server:
        await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (b LONGBLOB)")
        start = await server.position()
        sizes = [16 * 1024 * 1024 - 100, 40 * 1024 * 1024, 100_000]
        for size in sizes:
            await database.execute(f"INSERT INTO s.t VALUES (REPEAT('x', {size}))")
        facts = await server.facts()
        large, oversized = [], []
        async with open_dump(
            server.address, facts, start, IDENTITY, wait=False, event_bytes_max=30 * 1024 * 1024
        ) as stream:
            while (block := await stream.read()) is not None:
                if block.oversized_bytes:
                    oversized.append(block.oversized_bytes)
                    assert len(block.data) == 65536
                large += [b - a for a, b in block.spans if b - a > 70_000]
        assert [size // 1000 for size in large] == [sizes[0] // 1000, sizes[2] // 1000]
        assert [size // 1000 for size in oversized] == [sizes[1] // 1000]


@pytest.mark.servers
async def test_a_purged_position_says_so(new_database: NewDatabase) -> None:
    database = await new_database()
    async with connected(database.url()) as server:
        start = await server.position()
        await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT)")
        await database.execute("FLUSH BINARY LOGS")
        end = await server.position()
        assert end.file != start.file
        if isinstance(database, MariaDb):
            await wait_for_checkpoint(database, end.file)
        await database.execute(f"PURGE BINARY LOGS TO '{end.file}'")
        for position in (start, Position(None, start.file, start.offset)):
            with pytest.raises(PositionPurged, match="purged"):
                await dump_all(server, position)
        with pytest.raises(SourceError, match=f"has no binlog {start.file}"):
            await server.resolve_start(f"{start.file}:4")
        earliest = await server.resolve_start("earliest")
        assert earliest.gtids == end.gtids
        await dump_all(server, earliest)


async def wait_for_checkpoint(database: DatabaseServer, file: str) -> None:
    """Wait until MariaDB needs no binlog before ``file`` for its own recovery."""
    with anyio.fail_after(20):
        while True:
            rows = await database.query(f"SHOW BINLOG EVENTS IN '{file}'")
            if any(row[2] == "Binlog_checkpoint" and file in row[5] for row in rows):
                return
            await anyio.sleep(0.02)


@pytest.mark.servers
async def test_a_position_beyond_the_binlog_is_refused(mariadb: MariaDb) -> None:
    async with connected(mariadb.url()) as server:
        position = await server.resolve_start("0-1-999999999")
        with pytest.raises(PositionPurged, match="not in the binlog"):
            await dump_all(server, position)


@pytest.mark.servers
async def test_starts_that_mean_nothing_are_refused(database: DatabaseServer) -> None:
    async with connected(database.url()) as server:
        end = await server.position()
        for start in ("yesterday", "0-1", ":5", "a,b:4"):
            with pytest.raises(ConfigError, match=r"source\.start") as caught:
                await server.resolve_start(start)
            assert caught.value.path == "source.start"
        with pytest.raises(SourceError, match="no offset"):
            await server.resolve_start(f"{end.file}:{2**40}")


@pytest.mark.servers
async def test_tagged_gtids_go_to_the_server_and_come_back(mysql: MySql) -> None:
    async with connected(mysql.url()) as server:
        start = await server.position()
        async with mysql.session() as session:
            await session.execute("SET GTID_NEXT = 'AUTOMATIC:lane_tag'")
            await session.execute("CREATE DATABASE IF NOT EXISTS tagged")
            await session.execute("SET GTID_NEXT = 'AUTOMATIC'")
            await session.execute("DROP DATABASE tagged")
            await session.execute("FLUSH BINARY LOGS")
        end = await server.position()
        assert isinstance(end.gtids, MysqlGtidSet)
        printed = str(await mysql.scalar("SELECT @@GLOBAL.gtid_executed"))
        assert "lane_tag" in str(end.gtids)
        assert str(end.gtids) == printed.replace("\n", "")
        # The server finds the place of a set with tags, and none of it is sent again.
        assert len(await dump_all(server, Position(start.gtids))) > 4
        events = await dump_all(server, Position(end.gtids))
        previous = [body for kind, body in events if kind == PREVIOUS_GTIDS]
        assert [MysqlGtidSet.decode(body) for body in previous] == [end.gtids]


@pytest.mark.servers
async def test_a_configured_server_id_must_be_nobody_elses(database: DatabaseServer) -> None:
    # Over the socket as root: listing replicas takes more on MariaDB than a replica has.
    async with connected(f"mysql+unix://root@{database.socket}") as server:
        facts, position = await server.facts(), await server.position()
        with pytest.raises(SourceClash, match="the database itself"):
            await server.identify("test", facts.server_id)
        identity = await server.identify("test")
        assert identity.server_id >= 2**31
        async with open_dump(server.address, facts, position, identity) as stream:
            await stream.read()
            assert (await server.identify("test")).server_id == identity.server_id
            again = await server.identify("test", identity.server_id)
            assert again.report_host == "lanecache:test"
            with pytest.raises(SourceClash, match="lanecache:test"):
                await server.identify("other", identity.server_id)
            other = Server(server.address)
            assert (await other.identify("other")).server_id != identity.server_id
            await other.close()


@pytest.mark.servers
async def test_a_second_replica_of_the_same_id_takes_over(mariadb: MariaDb) -> None:
    async with connected(mariadb.url()) as server:
        facts, position = await server.facts(), await server.position()
        async with open_dump(server.address, facts, position, IDENTITY) as first:
            await first.read()
            async with open_dump(server.address, facts, position, IDENTITY) as second:
                await second.read()
                with pytest.raises(SourceClash, match=r"its own source\.server_id"):
                    await read_on(first)


@pytest.mark.servers
async def test_columns_are_as_declared(database: DatabaseServer, schema: str) -> None:
    await database.execute(
        f"CREATE TABLE {schema}.t ("
        " b INT UNSIGNED NOT NULL, a BIGINT NOT NULL,"
        " e ENUM('x,y', 'it''s', 'b\\\\s', 'n\\nl', '') CHARACTER SET latin1,"
        " s SET('unsigned', 'b') COLLATE utf8mb4_bin,"
        " v VARCHAR(20) CHARACTER SET latin1 INVISIBLE, d DECIMAL(12,3), t DATETIME(4),"
        " g INT AS (b + 1) VIRTUAL, h INT AS (b + 2) STORED,"
        " PRIMARY KEY (a, b))"
    )
    async with connected(database.url()) as server:
        columns = await server.table_columns(schema, "t")
        assert columns is not None
        assert await server.table_columns(schema, "missing") is None
        assert (schema, "t") in await server.tables()
    by_name = {column.name: column for column in columns}
    assert list(by_name) == ["b", "a", "e", "s", "v", "d", "t", "g", "h"]
    assert [column.primary_key_index for column in columns[:3]] == [1, 0, None]
    assert by_name["b"].unsigned
    assert not by_name["a"].unsigned
    assert by_name["e"].labels == ("x,y", "it's", "b\\s", "n\nl", "")
    assert by_name["e"].charset == "latin1"
    assert by_name["s"].labels == ("unsigned", "b")
    assert not by_name["s"].unsigned
    assert by_name["s"].collation == "utf8mb4_bin"
    assert (by_name["v"].character_length, by_name["v"].octet_length) == (20, 20)
    assert by_name["v"].invisible
    assert (by_name["d"].numeric_precision, by_name["d"].numeric_scale) == (12, 3)
    assert by_name["t"].datetime_precision == 4
    assert [by_name[name].generated for name in "agh"] == ["", "virtual", "stored"]
    shape = table_shape(schema, "t", columns)
    assert [column.kind.name for column in shape.columns] == (
        ["INTEGER", "INTEGER", "TEXT", "SET", "TEXT", "DECIMAL", "TIME", "INTEGER", "INTEGER"]
    )
    assert shape.primary_key == (1, 0)
    assert not by_name["b"].nullable
    assert by_name["d"].nullable


@pytest.mark.servers
async def test_a_commit_token_covers_the_connections_last_commit(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY)")
    async with connected(database.url()) as server, database.session() as session:
        before = await server.position()
        await session.execute(f"INSERT INTO {schema}.t VALUES (1)")
        token = parse_gtid_set(
            await commit_token(session.connection), (await server.facts()).flavor
        )
        assert before.gtids is not None
        assert not before.gtids.contains(token)
        after = await server.position()
        assert after.gtids is not None
        assert after.gtids.contains(token)
    async with database.session() as session:
        assert await commit_token(session.connection)


@pytest.mark.servers
async def test_a_dropped_control_connection_is_opened_again(database: DatabaseServer) -> None:
    async with connected(database.url()) as server:
        rows = await server.query("SELECT CONNECTION_ID() AS id")
        await database.execute(f"KILL {rows[0]['id']}")
        again = await server.query("SELECT CONNECTION_ID() AS id")
        assert again != rows


# Accounts, TLS and refusals.


async def who(address: SourceAddress) -> tuple[str, str]:
    """Log in; give the user that the server sees, and the cipher."""
    connection = await log_in(address, timeout_s=10)
    try:
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT USER()")
            (user,) = await cursor.fetchone()
            await cursor.execute("SHOW STATUS LIKE 'Ssl_cipher'")
            (_, cipher) = await cursor.fetchone()
    finally:
        connection.close()
    return user.partition("@")[0], cipher


@pytest.mark.servers
@pytest.mark.parametrize("way", ["tls", "pinned key", "allowed"])
async def test_mysql_accounts_log_in_uncached_and_cached(mysql: MySql, way: str) -> None:
    tls = way == "tls"
    await mysql.execute(
        "DROP USER IF EXISTS sha2",
        "CREATE USER sha2 IDENTIFIED WITH caching_sha2_password BY 'pä$$/w@rd'",
        "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO sha2",
    )
    parameters = {
        "tls": {"ssl": "required"},
        "pinned key": {"server_public_key": str(mysql.data / "public_key.pem")},
        "allowed": {"allow_cleartext": 1},
    }
    url = mysql.url("sha2", "pä$$/w@rd", **parameters[way])
    plain = url.partition("?")[0]
    with pytest.raises(PasswordWithheld):
        await who(parse_source_url(plain))
    for each in (url, url, plain):
        user, cipher = await who(parse_source_url(each))
        assert user == "sha2"
        assert bool(cipher) == (tls and each != plain)
    async with connected(url) as server:
        assert await dump_all(server, await server.position())
    await mysql.execute("DROP USER sha2")


@pytest.mark.servers
@pytest.mark.parametrize("plugin", ["mysql_native_password", "ed25519"])
async def test_mariadb_accounts_log_in(new_server: NewServer, plugin: str) -> None:
    options = {"plugin_load_add": "auth_ed25519"} if plugin == "ed25519" else {}
    mariadb = await new_server(MariaDb, options=options)
    await mariadb.execute(
        f"CREATE USER reader@'%' IDENTIFIED VIA {plugin} USING PASSWORD('pa$$/w@rd')",
        "GRANT REPLICATION SLAVE ON *.* TO reader@'%'",
    )
    url = mariadb.url("reader", "pa$$/w@rd")
    assert (await who(parse_source_url(url)))[0] == "reader"
    async with connected(url) as server:
        position = await server.position()
        # Without BINLOG MONITOR the file is not shown, but the GTIDs are.
        assert not position.file
        assert position.gtids is not None
        assert await dump_all(server, position)
        assert await server.replicas() is None


class Certificates:
    """An authority and a server certificate for ``localhost``, as PEM files in a folder."""

    def __init__(self, folder: Any) -> None:
        import datetime
        import ipaddress

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.x509.oid import NameOID

        def name(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        today = datetime.datetime.now(datetime.UTC)
        keys = [rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2)]
        for index, (file, subject) in enumerate((("ca", "test CA"), ("server", "server"))):
            builder = (
                x509.CertificateBuilder()
                .subject_name(name(subject))
                .issuer_name(name("test CA"))
                .public_key(keys[index].public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(today - datetime.timedelta(days=1))
                .not_valid_after(today + datetime.timedelta(days=2))
                .add_extension(x509.BasicConstraints(ca=index == 0, path_length=None), True)
            )
            if index:
                names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
            certificate = builder.sign(keys[0], hashes.SHA256())
            (folder / f"{file}.pem").write_bytes(
                certificate.public_bytes(serialization.Encoding.PEM)
            )
            (folder / f"{file}.key").write_bytes(
                keys[index].private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.TraditionalOpenSSL,
                    serialization.NoEncryption(),
                )
            )
        self.ca = folder / "ca.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server.key"


@pytest.mark.servers
async def test_a_dump_goes_through_tls_that_is_verified(
    new_database: NewDatabase, tmp_path: Any
) -> None:
    files = Certificates(tmp_path)
    database = await new_database(
        options={
            "ssl_ca": str(files.ca),
            "ssl_cert": str(files.certificate),
            "ssl_key": str(files.key),
        }
    )
    await database.execute("CREATE DATABASE s", "CREATE TABLE s.t (b LONGTEXT)")
    async with connected(database.url(ssl="verify", ssl_ca=str(files.ca))) as server:
        assert (await who(server.address))[1]
        start = await server.position()
        for _ in range(5):
            await database.execute("INSERT INTO s.t VALUES (REPEAT('x', 1000000))")
        found = [kind for kind, _ in await dump_all(server, start)]
        assert found.count(XID) == 5
    # A certificate of an authority that is not known, and of another host.
    with pytest.raises(SourceError, match="is not trusted") as caught:
        await who(parse_source_url(database.url(ssl="verify")))
    assert not caught.value.retryable
    address = parse_source_url(database.url(ssl="verify", ssl_ca=str(files.ca)))
    other = SourceAddress(
        host="localhost",
        port=address.port,
        user=address.user,
        password=address.password,
        tls=TlsMode.VERIFY_IDENTITY,
        ssl_ca=address.ssl_ca,
    )
    with pytest.raises(SourceError, match="verify_ca"):
        await who(other)


@pytest.mark.servers
async def test_a_server_without_tls_is_told_apart(new_server: NewServer) -> None:
    mariadb = await new_server(MariaDb, options={"skip_ssl": None})
    with pytest.raises(SourceError, match="offers no TLS"):
        await who(parse_source_url(mariadb.url(ssl="required")))


@pytest.mark.servers
async def test_a_wrong_password_is_final(database: DatabaseServer) -> None:
    with pytest.raises(SourceError, match=r"check user and password in source\.url") as caught:
        await who(parse_source_url(database.url(password="hunter2")))
    assert not caught.value.retryable
    assert "hunter2" not in str(caught.value)


@pytest.mark.servers
async def test_a_missing_privilege_comes_with_its_grant(database: DatabaseServer) -> None:
    await database.execute(
        "DROP USER IF EXISTS poor", f"CREATE USER poor IDENTIFIED BY '{database.password}'"
    )
    try:
        async with connected(database.url("poor")) as server:
            position = await server.position()
            assert not position.file
            with pytest.raises(SourceError, match="GRANT REPLICATION SLAVE") as caught:
                await dump_all(server, position)
        assert not caught.value.retryable
    finally:
        await database.execute("DROP USER poor")


async def test_nobody_at_the_port_is_tried_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = taken.getsockname()[1]
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            await who(parse_source_url(f"mysql://u@127.0.0.1:{port}"))


async def test_a_socket_that_is_not_there_is_tried_again(tmp_path: Any) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        await who(parse_source_url(f"mysql+unix://u@{tmp_path}/no.sock"))


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x05\0\0\0hello", b"\0\0\0\0", b"\xff" * 40]
)
async def test_another_server_at_the_port_is_said_to_be_one(greeting: bytes) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def greet(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(greeting)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, greet)
        with pytest.raises(SourceUnavailable) as caught:
            await log_in(parse_source_url(f"mysql://u@127.0.0.1:{port}"), timeout_s=5)
        group.cancel_scope.cancel()
    assert f"127.0.0.1:{port}" in str(caught.value)


async def test_a_server_that_says_nothing_is_not_waited_for_longer_than_allowed() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def silent(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, silent)
        with pytest.raises(SourceUnavailable, match="does not answer"):
            await log_in(parse_source_url(f"mysql://u@127.0.0.1:{port}"), timeout_s=0.2)
        group.cancel_scope.cancel()


@pytest.mark.servers
async def test_a_connection_cut_within_an_event_is_lost_and_gives_what_was_whole(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (b LONGTEXT)")
    async with connected(database.url()) as server:
        facts, position = await server.facts(), await server.position()
    for _ in range(3):
        await database.execute(f"INSERT INTO {schema}.t VALUES (REPEAT('x', 100000))")
    async with FaultProxy(database.host, database.port) as proxy:
        address = parse_source_url(database.url())
        through = SourceAddress(
            host=proxy.host, port=proxy.port, user=address.user, password=address.password
        )
        found: list[int] = []
        async with open_dump(
            through, facts, position, IDENTITY, heartbeat_s=0.1, deadline_s=15
        ) as stream:
            proxy.cut_after(150_000)
            with pytest.raises(SourceUnavailable):
                await read_on(stream, found)
        assert found.count(XID) == 1
        async with open_dump(
            through, facts, position, IDENTITY, heartbeat_s=0.1, deadline_s=15
        ) as stream:
            await stream.read()
            proxy.inject(b"\0\0\0garbage that no server sends")
            with pytest.raises(SourceUnavailable, match="no binlog dump"):
                await read_on(stream)


# Checks.


def problems(findings: list[Finding]) -> list[tuple[Severity, str]]:
    return [
        (finding.severity, finding.what)
        for finding in findings
        if finding.severity is not Severity.OK
    ]


@pytest.mark.servers
async def test_a_server_that_is_set_up_well_has_no_problems(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(f"CREATE TABLE {schema}.t (id INT)")
    findings = await check_source(SourceConfig(url=database.url()), [(schema, "t")])
    assert problems(findings) == []
    assert len(findings) > 8


@pytest.mark.servers
async def test_every_setting_that_is_wrong_is_found_with_its_remedy(
    new_database: NewDatabase,
) -> None:
    database = await new_database(
        options={
            "binlog_format": "STATEMENT",
            "binlog_row_image": "MINIMAL",
            "binlog_row_metadata": "MINIMAL",
            "binlog_expire_logs_seconds": 3600,
            "binlog_ignore_db": "hidden",
        }
    )
    config = SourceConfig(url=database.url(), server_id=1)
    findings = await check_source(config, [("shop", "nothing")])
    text = "\n".join(
        f"{finding.severity.value}: {finding.what} -> {finding.remedy}"
        for finding in findings
        if finding.severity is not Severity.OK
    )
    for expected in (
        "fault: binlog_format is STATEMENT",
        "SET GLOBAL binlog_format = 'ROW'",
        "warning: binlog_row_image is MINIMAL",
        "warning: binlog_row_metadata is MINIMAL",
        "SET GLOBAL binlog_row_metadata = 'FULL'",
        "warning: binlogs are kept for 1 hours",
        "warning: the server leaves schemas out of its binlog (binlog_ignore_db = hidden)",
        "fault: source.server_id = 1 is already used",
        "fault: the table shop.nothing is not there",
        "GRANT SELECT ON shop.nothing",
    ):
        assert expected in text


@pytest.mark.servers
async def test_a_server_without_a_binlog_is_found_and_refused(new_server: NewServer) -> None:
    mariadb = await new_server(MariaDb, options={"skip_log_bin": None})
    findings = await check_source(SourceConfig(url=mariadb.url()))
    assert (Severity.FAULT, "log_bin is off: there is no binlog to read") in problems(findings)
    async with connected(mariadb.url()) as server:
        for start in ("latest", "earliest", "0-1-1"):
            with pytest.raises(SourceError, match="start it with log_bin"):
                await server.resolve_start(start)


@pytest.mark.servers
async def test_missing_privileges_are_found(database: DatabaseServer) -> None:
    await database.execute(
        "DROP USER IF EXISTS blind", f"CREATE USER blind IDENTIFIED BY '{database.password}'"
    )
    try:
        findings = await check_source(SourceConfig(url=database.url("blind")))
    finally:
        await database.execute("DROP USER blind")
    found = problems(findings)
    assert [severity for severity, _ in found] == [Severity.WARNING, Severity.FAULT]
    assert "BINLOG MONITOR" in found[0][1] or "REPLICATION CLIENT" in found[0][1]
    assert "REPLICATION SLAVE" in found[1][1]


async def test_a_source_that_is_away_is_the_only_finding(tmp_path: Any) -> None:
    findings = await check_source(SourceConfig(url=f"mysql+unix://u@{tmp_path}/no.sock"))
    assert len(findings) == 1
    assert findings[0].severity is Severity.FAULT
    assert "cannot be reached" in findings[0].what


@pytest.mark.servers
async def test_mysql_without_gtids_goes_by_file_and_offset(new_server: NewServer) -> None:
    mysql = await new_server(MySql, options={"gtid_mode": "OFF"})
    async with connected(mysql.url()) as server:
        start = await server.position()
        assert start.gtids is None
        await mysql.execute("CREATE DATABASE s", "CREATE TABLE s.t (id INT)")
        await mysql.execute("INSERT INTO s.t VALUES (1)")
        assert [kind for kind, _ in await dump_all(server, start)].count(XID) == 1
        earliest = await server.resolve_start("earliest")
        assert (earliest.gtids, earliest.offset) == (None, 4)
        assert [kind for kind, _ in await dump_all(server, earliest)].count(XID) >= 1
        with pytest.raises(ConfigError, match="gtid_mode = OFF"):
            await server.resolve_start("3e11fa47-71ca-11e1-9e33-c80aa9429562:1")
        async with mysql.session() as session:
            with pytest.raises(SourceError, match="gtid_mode = ON"):
                await commit_token(session.connection)
    findings = await check_source(SourceConfig(url=mysql.url()))
    assert [severity for severity, _ in problems(findings)] == [Severity.WARNING]
