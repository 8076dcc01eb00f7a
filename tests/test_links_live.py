"""Links between tables, hidden columns and unlogged statements, on real servers."""

from __future__ import annotations

import anyio
import pytest
from test_events import Shop, cached, caught_up

from lanecache.checks import check_all
from lanecache.config import load_config
from lanecache.errors import SourceError
from lanecache.finding import Severity
from lanecache.servers import MariaDb
from lanecache.servers.databases import Session
from lanecache.service import Service
from lanecache.testing.plugin import NewDatabase


async def orphans(service: Service, session: Session, *tables: str) -> list[str]:
    """Name the keys of rows that are not there any more, or are others by now."""
    await caught_up(service, session)
    found = []
    for table in tables:
        columns = [row[0] for row in await session.query(f"SHOW COLUMNS FROM {table}")]
        rows = {row[0]: row for row in await session.query(f"SELECT * FROM {table}")}
        for key in range(1, 10):
            value = cached(service, f"row:{table}:{key}")
            row = dict(zip(columns, rows[key], strict=True)) if key in rows else None
            if value not in (None, row):
                found.append(f"row:{table}:{key}")
    return found


async def test_a_foreign_key_that_comes_while_running_is_known_at_once(
    new_database: NewDatabase,
) -> None:
    # MySQL 9.6 and later log what keys change, unless told otherwise.
    database = await new_database(options={"loose_innodb_native_foreign_keys": "ON"})
    await database.execute("CREATE DATABASE shop")
    shop = Shop(database, "shop")
    shop.config["lanes"] = [{"table": "shop.child*", "key": "row:{@table}:{id}"}]
    async with shop.running() as (service, session):
        await session.execute("CREATE TABLE p (id INT PRIMARY KEY)")
        await session.execute("CREATE TABLE child (id INT PRIMARY KEY, pid INT)")
        await session.execute("INSERT INTO p VALUES (1), (2), (3)")
        await session.execute("INSERT INTO child VALUES (1, 1), (2, 2), (3, 3)")
        await caught_up(service, session)
        assert cached(service, "row:child:1") is not None
        # The catalogue may be asked after the second of them.
        for statement in (
            "ALTER TABLE child ADD CONSTRAINT fk FOREIGN KEY (pid) REFERENCES p (id)"
            " ON DELETE CASCADE",
            "DELETE FROM p WHERE id = 1",
            "ALTER TABLE child DROP FOREIGN KEY fk",
            "CREATE TABLE IF NOT EXISTS child2 (id INT PRIMARY KEY, pid INT,"
            " FOREIGN KEY (pid) REFERENCES p (id) ON DELETE SET NULL ON UPDATE CASCADE)",
            "INSERT INTO child2 VALUES (2, 2), (3, 3)",
            "UPDATE p SET id = 8 WHERE id = 2",
            "DELETE FROM p WHERE id = 3",
        ):
            await session.execute(statement)
        assert await orphans(service, session, "child", "child2") == []


async def test_a_versioned_parent_s_deletion_and_a_rolled_back_xa_transaction_leave_nothing(
    new_database: NewDatabase,
) -> None:
    database = await new_database()
    if not isinstance(database, MariaDb):
        pytest.skip("MySQL has no system-versioned tables")
    await database.execute("CREATE DATABASE shop")
    shop = Shop(database, "shop")
    async with shop.running() as (service, session):
        for statement in (
            "CREATE TABLE p (id INT PRIMARY KEY) WITH SYSTEM VERSIONING",
            "CREATE TABLE child (id INT PRIMARY KEY, pid INT,"
            " FOREIGN KEY (pid) REFERENCES p (id) ON DELETE CASCADE)",
            "CREATE TABLE plain (id INT PRIMARY KEY, n INT) ENGINE = MyISAM",
            "INSERT INTO p VALUES (1), (2)",
            "INSERT INTO child VALUES (1, 1), (2, 2)",
            "INSERT INTO plain VALUES (1, 1), (2, 2)",
        ):
            await session.execute(statement)
        await caught_up(service, session)
        assert cached(service, "row:child:1") is not None
        # WITH SYSTEM VERSIONING adds row_start and row_end, which SELECT * does not give.
        assert cached(service, "row:p:1") == {"id": 1}
        await session.execute("DELETE FROM p WHERE id = 1")
        assert await orphans(service, session, "p", "child") == []
        # In statement format, what the engine without transactions does waits in the group too.
        for number, form in enumerate(("ROW", "STATEMENT")):
            await session.execute("REPLACE INTO plain VALUES (1, 1), (2, 2)")
            await caught_up(service, session)
            assert cached(service, "row:plain:1") == {"id": 1, "n": 1}
            for statement in (
                f"SET SESSION binlog_format = '{form}'",
                "XA START 'x'",
                "UPDATE child SET pid = NULL",
                f"UPDATE plain SET n = 9{number} WHERE id = 1",
                "DELETE FROM plain WHERE id = 2",
                "XA END 'x'",
                "XA PREPARE 'x'",
            ):
                await session.execute(statement)
            # No row of InnoDB is changed yet, and those of MyISAM are for good.
            async with database.session("shop") as other:
                assert await orphans(service, other, "p", "child", "plain") == []
            await session.execute("XA ROLLBACK 'x'")
            await session.execute("SET SESSION binlog_format = 'ROW'")
            assert await orphans(service, session, "p", "child", "plain") == []


async def test_a_merge_table_is_refused_and_one_that_comes_later_is_watched(
    new_database: NewDatabase,
) -> None:
    database = await new_database()
    await database.execute("CREATE DATABASE shop")
    shop = Shop(database, "shop")
    shop.config["lanes"] = [{"table": "shop.log_1", "key": "row:log_1:{id}"}]
    merged = "ENGINE = MERGE UNION = (log_1, log_2) INSERT_METHOD = LAST"
    async with shop.running() as (service, session):
        for statement in (
            "CREATE TABLE log_1 (id INT, n INT, KEY (id)) ENGINE = MyISAM",
            "CREATE TABLE log_2 LIKE log_1",
            f"CREATE TABLE log_all (id INT, n INT, KEY (id)) {merged}",
            "INSERT INTO log_1 VALUES (1, 1), (2, 2)",
        ):
            await session.execute(statement)
        await caught_up(service, session)
        assert cached(service, "row:log_1:1") is not None
        await session.execute("UPDATE log_all SET n = 7 WHERE id = 1")
        await session.execute("DELETE FROM log_all WHERE id = 2")
        assert await orphans(service, session, "log_1") == []
    what = "shop.log_1 is a member of the MERGE table shop.log_all"
    findings = await check_all(load_config(shop.config, {}))
    assert any(found.severity is Severity.FAULT and what in found.what for found in findings)
    with pytest.raises(SourceError, match=what):
        async with shop.running():
            pass
    shop.config["lanes"] = [{"table": "shop.log_all", "key": "row:log_all:{id}"}]
    with pytest.raises(SourceError, match="log_all is a MERGE table"):
        async with shop.running():
            pass


@pytest.mark.parametrize("metadata", ["FULL", "MINIMAL"])
async def test_hidden_columns_and_unlogged_statements_are_seen(
    new_database: NewDatabase, metadata: str
) -> None:
    database = await new_database(options={"binlog_row_metadata": metadata})
    mariadb = isinstance(database, MariaDb)
    await database.execute(
        "CREATE DATABASE shop",
        "CREATE TABLE shop.h (id INT PRIMARY KEY, url TEXT"
        f"{', UNIQUE (url), UNIQUE (id, url)' if mariadb else ''})",
        "CREATE TABLE shop.q (id INT PRIMARY KEY, a INT)",
    )
    shop = Shop(database, "shop")
    async with shop.running() as (service, session):
        await session.execute("INSERT INTO h VALUES (1, 'a'), (2, 'b')")
        await session.execute("UPDATE h SET url = 'c' WHERE id = 2")
        await session.execute("INSERT INTO q VALUES (1, 1), (2, 2)")
        await caught_up(service, session)
        if metadata == "FULL":
            assert cached(service, "row:h:2") == {"id": 2, "url": "c"}
            assert cached(service, "row:q:1") == {"id": 1, "a": 1}
        await session.execute("SET SESSION sql_log_bin = 0")
        await session.execute("ALTER TABLE q ADD COLUMN c INT DEFAULT 3")
        await session.execute("SET SESSION sql_log_bin = 1")
        with anyio.fail_after(30):
            while cached(service, "row:q:1") != {"id": 1, "a": 9, "c": 3}:
                await session.execute("UPDATE q SET a = 8 WHERE id = 1")
                await session.execute("UPDATE q SET a = 9 WHERE id = 1")
                assert await orphans(service, session, "h", "q") == []
            while cached(service, "row:h:1") != {"id": 1, "url": "d"}:
                await session.execute("UPDATE h SET url = 'e' WHERE id = 1")
                await session.execute("UPDATE h SET url = 'd' WHERE id = 1")
                assert await orphans(service, session, "h", "q") == []
