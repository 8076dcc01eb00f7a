"""Every way in which a change can stand in the binlog: it is read, or its keys are cleared."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pymysql
import pytest
from processes import until

import lanecache
from lanecache.checks import check_all
from lanecache.config import load_config
from lanecache.finding import Severity
from lanecache.ingest.address import parse_source_url
from lanecache.ingest.server import Server
from lanecache.servers import DatabaseServer, MariaDb, MySql, Redis
from lanecache.servers.databases import Session
from lanecache.service import Service
from lanecache.tail import tail


class Shop:
    """A schema with a running service that maps all its tables into memory or Redis."""

    def __init__(self, database: DatabaseServer, schema: str, sink: str = "memory:") -> None:
        self.database = database
        self.schema = schema
        self.config = {
            "source": {"url": database.url(), "name": schema},
            "sinks": {"main": {"url": sink}},
            "lanes": [{"table": f"{schema}.*", "key": "row:{@table}:{id}"}],
        }

    @asynccontextmanager
    async def running(self, **init: str) -> AsyncIterator[tuple[Service, Session]]:
        settings = ", ".join(f"{name} = {value}" for name, value in init.items())
        async with (
            lanecache.start(self.config) as service,
            self.database.session(
                self.schema, **({"init_command": f"SET {settings}"} if settings else {})
            ) as session,
        ):
            yield service, session


async def caught_up(service: Service, session: Session) -> None:
    try:
        token = await lanecache.commit_token(session.connection)
    except lanecache.SourceError:
        file, offset, *_ = (await session.query("SHOW BINARY LOG STATUS"))[0]
        token = f"{file}:{offset}"
    await service.wait_for(token, timeout_s=30.0)


def cached(service: Service, key: str) -> Any:
    target: Any = service.sinks["main"].target
    value = target.get(key)
    return None if value is None else json.loads(value)


async def assert_equal(service: Service, session: Session, table: str, columns: list[str]) -> None:
    """Every row is cached as it is; the columns are plain numbers, text or JSON documents."""
    await caught_up(service, session)
    for row in await session.query(f"SELECT {', '.join(columns)} FROM {table}"):
        found = cached(service, f"row:{table}:{row[0]}")
        assert found is not None, row
        for column, value in zip(columns, row, strict=True):
            wanted = value
            if isinstance(found[column], dict | list) and isinstance(value, str):
                wanted = json.loads(value)
            assert found[column] == wanted, (row, found)


def is_mysql(database: DatabaseServer) -> bool:
    return isinstance(database, MySql)


async def prepare(shop: Shop, xid: str, statement: str) -> None:
    """Prepare an XA transaction and leave it to whoever asks for it."""
    async with shop.database.session(shop.schema) as session:
        await session.execute(f"XA START {xid}")
        await session.execute(statement)
        await session.execute(f"XA END {xid}")
        await session.execute(f"XA PREPARE {xid}")


async def test_xa_transactions_wait_for_their_outcome(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        await prepare(shop, f"'{schema}','one',7", "INSERT INTO t VALUES (1, 1)")
        await prepare(shop, f"'{schema}','two'", "INSERT INTO t VALUES (2, 2)")
        await session.execute("INSERT INTO t VALUES (3, 3)")
        await caught_up(service, session)
        assert cached(service, "row:t:3") == {"id": 3, "n": 3}
        assert cached(service, "row:t:1") is None
        position = service.sinks["main"].position
        assert position is not None
        assert position.resume is not None
        await session.execute(f"XA COMMIT '{schema}','one',7")
        await session.execute(f"XA ROLLBACK '{schema}','two'")
        await caught_up(service, session)
        assert cached(service, "row:t:1") == {"id": 1, "n": 1}
        assert cached(service, "row:t:2") is None
        position = service.sinks["main"].position
        assert position is not None
        assert position.resume is None
        await session.execute("XA START 'x'")
        await session.execute("UPDATE t SET n = 9")
        await session.execute("XA END 'x'")
        await session.execute("XA COMMIT 'x' ONE PHASE")
        await assert_equal(service, session, "t", ["id", "n"])


async def test_a_prepared_transaction_outlives_a_restart_of_lanecache(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    shop = Shop(database, schema, redis_server.url())
    async with shop.running() as (service, session), redis_server.client() as client:
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        await prepare(shop, f"'{schema}'", "INSERT INTO t VALUES (1, 1)")
        await session.execute("INSERT INTO t VALUES (2, 1), (3, 1)")
        await session.execute("UPDATE t SET n = 2 WHERE id = 2")
        await caught_up(service, session)
    async with shop.running() as (service, session), redis_server.client() as client:
        await session.execute("UPDATE t SET n = 3 WHERE id = 3")
        await caught_up(service, session)
        assert json.loads(await client.get("row:t:2"))["n"] == 2
        assert await client.get("row:t:1") is None
        await session.execute(f"XA COMMIT '{schema}'")
        await caught_up(service, session)
        assert [
            json.loads(value)["n"] for value in await client.mget("row:t:1", "row:t:2", "row:t:3")
        ] == [1, 2, 3]


async def test_the_outcome_of_an_xa_transaction_from_before_the_start_clears_everything(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, n INT)")
    await prepare(shop, f"'{schema}'", "INSERT INTO t VALUES (1, 1)")
    async with shop.running() as (service, session):
        await session.execute("INSERT INTO t VALUES (2, 2)")
        await caught_up(service, session)
        assert cached(service, "row:t:2") is not None
        await session.execute(f"XA COMMIT '{schema}'")
        await caught_up(service, session)
        assert cached(service, "row:t:2") is None
        assert sum(service.statistics().lanes[0].invalidations.values()) == 1


async def _change_a_lot(session: Session) -> None:
    text = "x" * 500
    await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, v VARCHAR(600))")
    await session.execute("BEGIN")
    for number in range(300):
        await session.execute("INSERT INTO t VALUES (%s, 1, %s)", (number, f"{text}{number}"))
    await session.execute("COMMIT")
    await session.execute("UPDATE t SET n = n + 1, v = CONCAT('y', v) WHERE id % 3 = 0")
    await session.execute("UPDATE t SET id = id + 1000 WHERE id % 7 = 0")
    await session.execute("DELETE FROM t WHERE id % 5 = 1")


async def test_compressed_transactions_of_mysql_are_read(mysql: MySql) -> None:
    await mysql.execute("CREATE DATABASE compressed")
    shop = Shop(mysql, "compressed")
    async with shop.running(binlog_transaction_compression="ON") as (service, session):
        await _change_a_lot(session)
        await assert_equal(service, session, "t", ["id", "n", "v"])
        assert cached(service, "row:t:7") is None
        assert await session.query(
            "SELECT 1 FROM performance_schema.binary_log_transaction_compression_stats"
            " WHERE COMPRESSION_TYPE = 'ZSTD' AND TRANSACTION_COUNTER > 0"
        )


async def test_compressed_events_of_mariadb_are_read(new_server: Any) -> None:
    server = await new_server(
        MariaDb, options={"log_bin_compress": True, "log_bin_compress_min_len": 10}
    )
    await server.execute("CREATE DATABASE compressed")
    shop = Shop(server, "compressed")
    async with shop.running() as (service, session):
        await _change_a_lot(session)
        await assert_equal(service, session, "t", ["id", "n", "v"])
        await session.execute("TRUNCATE TABLE t")
        await caught_up(service, session)
        assert cached(service, "row:t:2") is None


async def test_partial_json_is_applied_to_the_document_before_it(mysql: MySql) -> None:
    await mysql.execute("CREATE DATABASE partial_json")
    shop = Shop(mysql, "partial_json")
    document = {"a": {"b": [1, 2, {"c": "d"}], "long": "x" * 200}, "n": 1.50, "€": "€", "": 1}
    changes = [
        "JSON_SET(d, '$.a.b[2].c', 'changed')",
        "JSON_REPLACE(d, '$.n', 12345678901234567890)",
        "JSON_REMOVE(d, '$.a.b[0]')",
        "JSON_SET(d, '$.new', JSON_OBJECT('x', CAST('1.20' AS DECIMAL(5,2)), 'a', NULL))",
        "JSON_SET(d, '$.\"€\"', JSON_ARRAY(TRUE, FALSE))",
        "JSON_ARRAY_INSERT(d, '$.a.b[0]', 'first')",
        "JSON_REMOVE(d, '$.a.long', '$.new.a')",
        "JSON_SET(d, '$.a', 1, '$.z', 2)",
        "JSON_SET(d, '$', JSON_ARRAY(1))",
        "NULL",
        "'{}'",
    ]
    async with shop.running(binlog_row_value_options="PARTIAL_JSON") as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, d JSON, e JSON)")
        for row in range(3):
            await session.execute(
                "INSERT INTO t VALUES (%s, 0, %s, '[1]')", (row, json.dumps(document))
            )
        for change in changes:
            await session.execute(f"UPDATE t SET d = {change}, n = n + 1 WHERE id < 2")
            await assert_equal(service, session, "t", ["id", "n", "d", "e"])
        assert service.statistics().lanes[0].invalidations == {}


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
async def test_row_images_in_part_never_leave_an_old_value(
    database: DatabaseServer, schema: str, image: str
) -> None:
    shop = Shop(database, schema)
    async with shop.running(binlog_row_image=f"'{image}'") as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, v TEXT)")
        await session.execute("INSERT INTO t VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')")
        await assert_equal(service, session, "t", ["id", "n", "v"])
        await session.execute("UPDATE t SET n = 10 WHERE id = 1")
        await session.execute("UPDATE t SET id = 4 WHERE id = 2")
        await session.execute("DELETE FROM t WHERE id = 3")
        await caught_up(service, session)
        rows = {row[0]: row for row in await session.query("SELECT id, n, v FROM t")}
        for key in range(1, 5):
            found = cached(service, f"row:t:{key}")
            assert found is None or (found["id"], found["n"], found["v"]) == rows[key]
        assert cached(service, "row:t:2") is None
        assert cached(service, "row:t:3") is None


async def test_a_rolled_back_transaction_keeps_what_its_other_engine_did(
    new_database: Any, database_choice: Any
) -> None:
    # MySQL allows engines to be mixed in a transaction only without GTIDs.
    without_gtids = {"gtid_mode": "OFF", "enforce_gtid_consistency": "OFF"}
    database = await new_database(options=without_gtids if database_choice[0] is MySql else {})
    await database.execute("CREATE DATABASE mixed")
    shop = Shop(database, "mixed")
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT) ENGINE=InnoDB")
        await session.execute("CREATE TABLE m (id INT PRIMARY KEY, n INT) ENGINE=MyISAM")
        await session.execute("INSERT INTO t VALUES (1, 1)")
        await session.execute("INSERT INTO m VALUES (1, 1)")
        await session.execute("BEGIN")
        await session.execute("UPDATE t SET n = 2")
        await session.execute("UPDATE m SET n = 2")
        await session.execute("SAVEPOINT s")
        await session.execute("INSERT INTO t VALUES (2, 2)")
        await session.execute("INSERT INTO m VALUES (2, 2)")
        await session.execute("ROLLBACK TO s")
        await session.execute("ROLLBACK")
        await caught_up(service, session)
        for table in ("t", "m"):
            rows = dict(await session.query(f"SELECT id, n FROM {table}"))
            for key in (1, 2):
                found = cached(service, f"row:{table}:{key}")
                assert found is None or found["n"] == rows[key], (table, key)


async def test_writes_in_statement_format_clear_what_they_may_have_changed(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        await session.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
        await assert_equal(service, session, "t", ["id", "n"])
        await session.execute("SET SESSION binlog_format = 'STATEMENT'")
        await session.execute("UPDATE t SET n = n + 1")
        await caught_up(service, session)
        assert cached(service, "row:t:1") is None
        assert service.statistics().lanes[0].invalidations
        await session.execute("SET SESSION binlog_format = 'ROW'")
        await session.execute("UPDATE t SET n = n + 1")
        await assert_equal(service, session, "t", ["id", "n"])


@pytest.mark.parametrize("binlog_format", ["STATEMENT", "ROW"])
async def test_loaded_data_is_cached_or_leaves_nothing_stale(
    database: DatabaseServer, schema: str, binlog_format: str, tmp_path: Path
) -> None:
    """In statement format the file itself is in the binlog, in events of its own."""
    shop = Shop(database, schema)
    file = tmp_path / "rows.csv"
    file.write_text("1,10\n3,30\n")

    def load() -> None:
        # asyncmy 0.2 cannot send a file.
        with pymysql.connect(
            host=database.host,
            port=database.port,
            user="root",
            password=database.password,
            database=schema,
            local_infile=True,
            autocommit=True,
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SET SESSION binlog_format = '{binlog_format}'")
            cursor.execute(
                f"LOAD DATA LOCAL INFILE '{file}' REPLACE INTO TABLE t FIELDS TERMINATED BY ','"
            )

    async with shop.running() as (service, session):
        if is_mysql(database):
            await session.execute("SET GLOBAL local_infile = ON")
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
        await session.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
        await assert_equal(service, session, "t", ["id", "n"])
        binlog, _, offset = (await _end_of_binlog(database)).rpartition(":")
        await anyio.to_thread.run_sync(load)
        await service.wait_for(await _end_of_binlog(database), timeout_s=30.0)
        if binlog_format == "ROW":
            await assert_equal(service, session, "t", ["id", "n"])
            return
        events = await session.query(f"SHOW BINLOG EVENTS IN '{binlog}' FROM {offset}")
        assert "Execute_load_query" in [event[2] for event in events]
        assert [cached(service, f"row:t:{key}") for key in (1, 2, 3)] == [None] * 3
        assert service.statistics().lanes[0].invalidations


async def test_partitions_generated_and_invisible_columns_are_read(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    async with shop.running() as (service, session):
        await session.execute(
            "CREATE TABLE p (id INT PRIMARY KEY, n INT) PARTITION BY HASH (id) PARTITIONS 4"
        )
        await session.execute("INSERT INTO p VALUES (1, 1), (2, 2), (3, 3), (7, 7)")
        await session.execute("UPDATE p SET id = id + 1, n = n + 1 ORDER BY id DESC")
        await session.execute("DELETE FROM p WHERE id = 8")
        await assert_equal(service, session, "p", ["id", "n"])
        assert cached(service, "row:p:8") is None
        assert cached(service, "row:p:1") is None
        await session.execute(
            "CREATE TABLE g (id INT PRIMARY KEY, a INT, v INT GENERATED ALWAYS AS (a + 1) VIRTUAL,"
            " s INT GENERATED ALWAYS AS (a * 2) STORED, h INT INVISIBLE DEFAULT 5, z INT)"
        )
        await session.execute("INSERT INTO g (id, a, z) VALUES (1, 10, 3)")
        await session.execute("UPDATE g SET a = 20, h = 6")
        # Some servers leave VIRTUAL columns out of an update: the row is read again then.
        await caught_up(service, session)
        await until(lambda: cached(service, "row:g:1"))
        await assert_equal(service, session, "g", ["id", "a", "v", "s", "h", "z"])
        await session.execute("CREATE TABLE k (id INT, n INT)")
        await session.execute("INSERT INTO k VALUES (1, 1), (2, 2)")
        await session.execute("UPDATE k SET n = 5 WHERE id = 2")
        await session.execute("DELETE FROM k WHERE id = 1")
        await assert_equal(service, session, "k", ["id", "n"])
        assert cached(service, "row:k:1") is None


async def test_every_change_of_a_table_is_followed(database: DatabaseServer, schema: str) -> None:
    shop = Shop(database, schema)
    changes = [
        "ALTER TABLE t ADD COLUMN first VARCHAR(10) DEFAULT 'x' FIRST",
        "ALTER TABLE t ADD COLUMN mid INT AFTER id",
        "ALTER TABLE t MODIFY n BIGINT UNSIGNED AFTER v",
        "ALTER TABLE t MODIFY v VARCHAR(50) CHARACTER SET latin1",
        "ALTER TABLE t RENAME COLUMN n TO n2, RENAME COLUMN mid TO n",
        "ALTER TABLE t DROP COLUMN first",
        "ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4",
        "CREATE TABLE swap LIKE t",
        "INSERT INTO swap SELECT * FROM t",
        "RENAME TABLE t TO old, swap TO t",
        "UPDATE t SET v = 'after the swap'",
        "DROP TABLE old",
        "TRUNCATE TABLE t",
    ]
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT, v VARCHAR(50))")
        number = 0
        for change in ["SELECT 1", *changes]:
            await session.execute(change)
            for _ in range(2):
                number += 1
                await session.execute(
                    "INSERT INTO t (id, n, v) VALUES (%s, %s, 'caf\u00e9')", (number, number)
                )
            await session.execute(f"UPDATE t SET v = 'changed' WHERE id = {number}")
            await caught_up(service, session)
            columns = [row[0] for row in await session.query(f"SHOW COLUMNS FROM {schema}.t")]
            for row in await session.query(f"SELECT {', '.join(columns)} FROM t"):
                values = dict(zip(columns, row, strict=True))
                found = cached(service, f"row:t:{values['id']}")
                assert found is None or found == values, change
                assert found is not None or values["id"] < number - 1, change
        assert cached(service, "row:old:1") is None


async def test_what_foreign_keys_change_in_child_tables_is_never_left_stale(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE parent (id INT PRIMARY KEY, code INT UNIQUE, n INT)")
        await session.execute(
            "CREATE TABLE child (id INT PRIMARY KEY, parent_id INT, code INT,"
            " FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE,"
            " FOREIGN KEY (code) REFERENCES parent (code) ON UPDATE CASCADE ON DELETE SET NULL)"
        )
        await session.execute(
            "CREATE TABLE grandchild (id INT PRIMARY KEY, child_id INT,"
            " FOREIGN KEY (child_id) REFERENCES child (id) ON DELETE CASCADE)"
        )
        await session.execute("INSERT INTO parent VALUES (1, 10, 0), (2, 20, 0), (3, 30, 0)")
        await session.execute("INSERT INTO child VALUES (1, 1, 10), (2, 2, 20), (3, NULL, 30)")
        await session.execute("INSERT INTO grandchild VALUES (1, 1), (2, 2)")
        await session.execute("UPDATE parent SET n = 1")
        await caught_up(service, session)
        assert cached(service, "row:child:1") is not None
        for change in (
            "UPDATE parent SET code = 21 WHERE id = 2",
            "DELETE FROM parent WHERE id = 3",
            "DELETE FROM parent WHERE id = 1",
        ):
            await session.execute(change)
            await caught_up(service, session)
            for table, columns in (
                ("parent", "id, code, n"),
                ("child", "id, parent_id, code"),
                ("grandchild", "id, child_id"),
            ):
                rows = {
                    row[0]: row for row in await session.query(f"SELECT {columns} FROM {table}")
                }
                for key in (1, 2, 3):
                    found = cached(service, f"row:{table}:{key}")
                    assert found is None or tuple(found.values()) == rows[key], (change, table)


async def test_a_parent_without_a_lane_is_watched_for_its_children(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    shop.config["lanes"] = [{"table": f"{schema}.child", "key": "child:{id}"}]
    await database.execute(
        f"CREATE TABLE {schema}.parent (id INT PRIMARY KEY, n INT)",
        f"CREATE TABLE {schema}.child (id INT PRIMARY KEY, parent_id INT,"
        f" FOREIGN KEY (parent_id) REFERENCES {schema}.parent (id)"
        " ON DELETE CASCADE ON UPDATE CASCADE)",
        f"INSERT INTO {schema}.parent VALUES (1, 1), (2, 2)",
    )
    async with shop.running() as (service, session):
        await session.execute("INSERT INTO child VALUES (1, 1), (2, 2)")
        await session.execute("UPDATE parent SET n = 5")
        await caught_up(service, session)
        assert cached(service, "child:1") == {"id": 1, "parent_id": 1}
        await session.execute("UPDATE parent SET id = 3 WHERE id = 1")
        await caught_up(service, session)
        assert cached(service, "child:1") in (None, {"id": 1, "parent_id": 3})
        await session.execute("DELETE FROM parent WHERE id = 2")
        await caught_up(service, session)
        assert cached(service, "child:2") is None


async def test_without_metadata_no_row_is_read_under_another_shape(new_database: Any) -> None:
    """Columns of one type swap names: only their order in time tells which value is whose."""
    database = await new_database(options={"binlog_row_metadata": "MINIMAL"})
    await database.execute(
        "CREATE DATABASE minimal",
        "CREATE TABLE minimal.t (id INT PRIMARY KEY, a INT, b INT, u BIGINT UNSIGNED,"
        " e ENUM('x', 'y,z'))",
        "INSERT INTO minimal.t VALUES (1, 10, 20, 18446744073709551615, 'y,z')",
        "ALTER TABLE minimal.t RENAME COLUMN a TO c, RENAME COLUMN b TO a",
        "ALTER TABLE minimal.t RENAME COLUMN c TO b",
        "INSERT INTO minimal.t (id, a, b) VALUES (2, 1, 2)",
    )
    shop = Shop(database, "minimal")
    shop.config["source"]["start"] = "earliest"

    async def assert_never_wrong() -> int:
        await caught_up(service, session)
        right = 0
        for row in await session.query("SELECT id, a, b FROM t"):
            found = cached(service, f"row:t:{row[0]}")
            if found is not None:
                assert (found["id"], found["a"], found["b"]) == row
                right += 1
        return right

    async with shop.running() as (service, session):
        await assert_never_wrong()
        await session.execute("INSERT INTO t VALUES (3, 5, 6, 9223372036854775808, 'x')")
        await caught_up(service, session)
        found = cached(service, "row:t:3")
        assert (found["u"], found["e"]) == (9223372036854775808, "x")
        for _ in range(3):
            await session.execute("ALTER TABLE t RENAME COLUMN a TO b, RENAME COLUMN b TO a")
            await session.execute("UPDATE t SET a = a + 100 WHERE id = 3")
            await assert_never_wrong()
        await session.execute("UPDATE t SET a = a + 1")
        assert await assert_never_wrong() == 3


async def test_check_warns_of_foreign_keys_that_change_mapped_tables(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(
        f"CREATE TABLE {schema}.parent (id INT PRIMARY KEY)",
        f"CREATE TABLE {schema}.child (id INT PRIMARY KEY, parent_id INT,"
        f" FOREIGN KEY (parent_id) REFERENCES {schema}.parent (id) ON DELETE CASCADE)",
    )
    config = load_config(Shop(database, schema).config, {})
    warned = [
        finding.what
        for finding in await check_all(config)
        if finding.severity is Severity.WARNING and "foreign keys" in finding.what
    ]
    assert len(warned) == (0 if is_mysql(database) else 1)
    assert all(f"{schema}.child" in what and f"{schema}.parent" in what for what in warned)


async def test_check_tells_what_virtual_columns_cost_where_updates_do_not_hold_them(
    database: DatabaseServer, schema: str
) -> None:
    await database.execute(
        f"CREATE TABLE {schema}.g (id INT PRIMARY KEY, a INT, s INT AS (a + 1) STORED,"
        " v INT AS (a + 2) VIRTUAL, w INT AS (a + 3) VIRTUAL)"
    )
    server = Server(parse_source_url(database.url()))
    facts = await server.facts()
    await server.close()
    lanes = {
        "all:{id}": 'has the VIRTUAL columns "v", "w".*each update deletes the row\'s key until',
        "key:{v}": 'has the VIRTUAL columns "v".*each update clears the lane\'s prefix',
        "some:{id}": "",
    }
    columns = {"key:{v}": ["a"], "some:{id}": ["a", "s"]}
    config = Shop(database, schema).config | {
        "lanes": [
            {"table": f"{schema}.g", "key": key}
            | ({"columns": columns[key]} if key in columns else {})
            for key in lanes
        ]
    }
    warned = [
        finding.what
        for finding in await check_all(load_config(config, {}))
        if finding.severity is Severity.WARNING and "VIRTUAL" in finding.what
    ]
    wanted = [] if facts.virtual_columns_logged else [said for said in lanes.values() if said]
    assert len(warned) == len(wanted)
    for what, said in zip(warned, wanted, strict=True):
        assert re.search(said, what), what


async def test_exchanged_partitions_and_swapped_tables_leave_nothing_stale(
    database: DatabaseServer, schema: str
) -> None:
    """As gh-ost and pt-online-schema-change end: the tables swap names in one RENAME."""
    shop = Shop(database, schema)
    async with shop.running() as (service, session):
        await session.execute(
            "CREATE TABLE p (id INT PRIMARY KEY, n INT) PARTITION BY RANGE (id)"
            " (PARTITION low VALUES LESS THAN (100), PARTITION high VALUES LESS THAN MAXVALUE)"
        )
        await session.execute("CREATE TABLE x (id INT PRIMARY KEY, n INT)")
        await session.execute("INSERT INTO p VALUES (1, 1), (2, 2), (200, 3)")
        await session.execute("INSERT INTO x VALUES (1, 10), (3, 30)")
        await assert_equal(service, session, "p", ["id", "n"])
        await session.execute("ALTER TABLE p EXCHANGE PARTITION low WITH TABLE x")
        await caught_up(service, session)
        for table in ("p", "x"):
            rows = dict(await session.query(f"SELECT id, n FROM {table}"))
            for key in (1, 2, 3, 200):
                found = cached(service, f"row:{table}:{key}")
                assert found is None or found["n"] == rows[key], (table, key)
        await session.execute("CREATE TABLE _p_gho (n BIGINT, id INT PRIMARY KEY, extra INT)")
        await session.execute("INSERT INTO _p_gho (id, n) SELECT id, n FROM p")
        await session.execute("RENAME TABLE p TO _p_del, _p_gho TO p")
        await session.execute("UPDATE p SET n = n + 1 WHERE id = 1")
        await caught_up(service, session)
        assert cached(service, "row:p:1") == {"n": 11, "id": 1, "extra": None}
        assert cached(service, "row:p:200") is None


async def test_a_lane_that_loses_its_column_invalidates_and_goes_on_when_it_is_back(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    shop.config["lanes"] = [{"table": f"{schema}.t", "key": "t:{sku}", "value": "column:v"}]
    await database.execute(f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, sku INT, v INT)")
    async with shop.running() as (service, session):
        await session.execute("INSERT INTO t VALUES (1, 7, 70), (2, 8, 80)")
        await caught_up(service, session)
        assert cached(service, "t:7") == 70
        await session.execute("ALTER TABLE t DROP COLUMN sku")
        await session.execute("UPDATE t SET v = 71 WHERE id = 1")
        await caught_up(service, session)
        assert cached(service, "t:7") is None
        assert any("sku" in reason for reason in service.statistics().lanes[0].invalidations)
        await session.execute("ALTER TABLE t ADD COLUMN sku INT")
        await session.execute("UPDATE t SET sku = 7 WHERE id = 1")
        await caught_up(service, session)
        assert cached(service, "t:7") == 71


async def test_an_old_binlog_is_read_as_its_tables_were_then(
    database: DatabaseServer, schema: str
) -> None:
    shop = Shop(database, schema)
    position = await _end_of_binlog(database)
    await database.execute(
        f"CREATE TABLE {schema}.t (id INT PRIMARY KEY, a VARCHAR(10), b INT UNSIGNED)",
        f"INSERT INTO {schema}.t VALUES (1, 'one', 4294967295)",
        f"ALTER TABLE {schema}.t MODIFY a VARCHAR(20) AFTER b, MODIFY b BIGINT",
        f"INSERT INTO {schema}.t (id, a, b) VALUES (2, 'two', -2)",
        f"ALTER TABLE {schema}.t DROP COLUMN a",
        f"INSERT INTO {schema}.t VALUES (3, 3)",
    )
    shop.config["source"]["start"] = position
    seen: dict[str, Any] = {}
    config = load_config(shop.config, {})

    def note(line: str) -> None:
        operation = json.loads(line)
        if operation["operation"] == "set":
            seen[operation["key"]] = json.loads(operation["value"])

    with anyio.move_on_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(tail, config, note)
            while len(seen) < 3:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert seen == {
        "row:t:1": {"id": 1, "a": "one", "b": 4294967295},
        "row:t:2": {"id": 2, "b": -2, "a": "two"},
        "row:t:3": {"id": 3, "b": 3},
    }


async def _end_of_binlog(database: DatabaseServer) -> str:
    statement = "SHOW BINARY LOG STATUS" if is_mysql(database) else "SHOW MASTER STATUS"
    file, offset, *_ = (await database.query(statement))[0]
    return f"{file}:{offset}"
