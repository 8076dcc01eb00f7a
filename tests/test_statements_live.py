"""Statements on real servers: what they reach, in which character set, under which names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import pymysql
import pytest

import lanecache
from lanecache.config import SourceConfig
from lanecache.ingest.checks import check_source
from lanecache.servers import DatabaseServer, MySql
from lanecache.service import Service
from lanecache.testing.plugin import NewDatabase


def lanes(database: DatabaseServer, schema: str, tables: Sequence[str]) -> dict[str, Any]:
    """Give a configuration of one lane a table, followed as a user who sees everything."""
    return {
        "source": {"url": database.url("root"), "name": schema},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [
            {"table": f"{schema}.{table}", "key": f"{number}:{{id}}"}
            for number, table in enumerate(tables)
        ],
    }


async def caught_up(service: Service, database: DatabaseServer) -> None:
    """Wait for all that is in the binlog, whoever wrote it."""
    new = isinstance(database, MySql)
    file, offset, *_ = (
        await database.query("SHOW BINARY LOG STATUS" if new else "SHOW MASTER STATUS")
    )[0]
    await service.wait_for(f"{file}:{offset}", timeout_s=30.0)


def held(service: Service) -> set[int]:
    """Give the numbers of the lanes that the cache has the key of the row 1 of."""
    target: Any = service.sinks["main"].target
    return {number for number in range(9) if target.get(f"{number}:1") is not None}


async def test_a_statement_clears_what_it_reaches_and_nothing_else(
    database: DatabaseServer, schema: str
) -> None:
    tables = ("product", "user", "item")
    async with database.session(schema) as session:
        for sql in (
            "CREATE TABLE product (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE user (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE cart (id INT PRIMARY KEY)",
            "CREATE TABLE item (id INT PRIMARY KEY, n INT, cart INT, FOREIGN KEY (cart) REFERENCES"
            " cart (id) ON DELETE SET NULL)",
            "CREATE TABLE plain (id INT PRIMARY KEY, n INT)",
            "CREATE TABLE log (id INT PRIMARY KEY AUTO_INCREMENT, n INT)",
            "CREATE VIEW products AS SELECT * FROM product",
            "CREATE TRIGGER counted AFTER INSERT ON log FOR EACH ROW UPDATE user SET n = n + 1",
            "CREATE FUNCTION f() RETURNS INT DETERMINISTIC MODIFIES SQL DATA"
            " BEGIN UPDATE product SET n = n + 1; RETURN 1; END",
            "INSERT INTO cart VALUES (1)",
        ):
            await session.execute(sql)
        async with lanecache.start(lanes(database, schema, tables)) as service:
            for round, (statements, cleared) in enumerate(
                (
                    (["INSERT INTO plain SELECT * FROM product"], set()),
                    (["UPDATE products SET n = 5"], {0}),
                    (["INSERT INTO log (n) VALUES (1)"], {1}),
                    (["SELECT f()"], {0}),
                    (["DELETE FROM cart"], {2}),
                    (["CREATE VIEW users AS SELECT * FROM user", "UPDATE users SET n = 3"], {1}),
                )
            ):
                await session.execute("SET SESSION binlog_format = 'ROW'")
                await session.execute("INSERT IGNORE INTO cart VALUES (1)")
                for table in tables:
                    await session.execute(f"REPLACE INTO {table} (id, n) VALUES (1, -{round})")
                await caught_up(service, database)
                assert held(service) == {0, 1, 2}
                await session.execute("SET SESSION binlog_format = 'STATEMENT'")
                for statement in statements:
                    await session.execute(statement)
                await caught_up(service, database)
                assert held(service) == {0, 1, 2} - cleared, statements


async def test_a_user_who_does_not_see_triggers_loses_every_lane_and_check_says_so(
    database: DatabaseServer, schema: str
) -> None:
    async with database.session(schema) as session:
        await session.execute("CREATE TABLE t (id INT PRIMARY KEY)")
        await session.execute("CREATE TABLE plain (id INT PRIMARY KEY)")
        config = lanes(database, schema, ["t"])
        config["source"]["url"] = database.url()
        async with lanecache.start(config) as service:
            await session.execute("INSERT INTO t VALUES (1)")
            await caught_up(service, database)
            assert held(service) == {0}
            await session.execute("SET SESSION binlog_format = 'STATEMENT'")
            await session.execute("INSERT INTO plain VALUES (1)")
            await caught_up(service, database)
            assert held(service) == set()
    findings = [str(f.what) for f in await check_source(SourceConfig(url=database.url()))]
    assert any("GRANT SHOW VIEW, TRIGGER ON *.*" in finding for finding in findings)
    findings = [str(f.what) for f in await check_source(SourceConfig(url=database.url("root")))]
    assert any("clears the lanes of the tables that it reaches" in text for text in findings)


@pytest.mark.parametrize(
    ("charset", "codec", "table"),
    [("gbk", "gbk", "誠"), ("cp932", "cp932", "ソ"), ("latin1", "cp1252", "größe")],
)
async def test_a_statement_is_read_in_the_clients_character_set(
    database: DatabaseServer, schema: str, charset: str, codec: str, table: str
) -> None:
    def send(*statements: str) -> None:
        with pymysql.connect(
            host=database.host,
            port=database.port,
            user="root",
            password=database.password,
            database=schema,
            autocommit=True,
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(f"SET NAMES {charset}")
            if not isinstance(database, MySql):
                # Which MariaDB 11.5 and later write before the character set.
                cursor.execute("SHOW VARIABLES LIKE 'character_set_collations'")
                if cursor.fetchall():
                    cursor.execute("SET character_set_collations = 'latin1=latin1_bin'")
            for statement in statements:
                cursor.execute(statement.encode(codec))

    async with database.session(schema) as session:
        await session.execute(f"CREATE TABLE `{table}` (id INT PRIMARY KEY)")
        await session.execute("CREATE TABLE other (id INT PRIMARY KEY)")
        async with lanecache.start(lanes(database, schema, [table, "other"])) as service:
            for statements in (
                [f"TRUNCATE `{table}`"],
                [f"DELETE FROM {schema}.`{table}`"],
                ["SET sql_mode = 'ANSI_QUOTES'", f'DELETE FROM "{table}"'],
                [f"CREATE OR REPLACE VIEW v AS SELECT * FROM `{table}`", "DELETE FROM v"],
            ):
                await session.execute(f"REPLACE INTO `{table}` VALUES (1)")
                await session.execute("REPLACE INTO other VALUES (1)")
                await caught_up(service, database)
                assert held(service) == {0, 1}
                await anyio.to_thread.run_sync(
                    send, "SET SESSION binlog_format = 'STATEMENT'", *statements
                )
                await caught_up(service, database)
                assert held(service) == {1}, statements


async def test_names_are_folded_as_the_server_does(new_database: NewDatabase) -> None:
    database = await new_database(options={"lower_case_table_names": 1})
    await database.execute("CREATE DATABASE Shop")
    config = lanes(database, "shop", ["product", "größe"])
    async with database.session("Shop") as session, lanecache.start(config) as service:
        for statements, cleared in (
            (["ALTER TABLE SHOP.Product CHANGE a b INT, CHANGE b a INT"], {0}),
            (["RENAME TABLE Shop.Product TO Shop.Old, Shop.Other TO PRODUCT"], {0}),
            (["TRUNCATE Shop.GRÖßE"], {1}),
            (["SET SESSION binlog_format = 'STATEMENT'", "DELETE FROM PRODUCT"], {0}),
            (["DROP DATABASE SHOP", "CREATE DATABASE shop"], {0, 1}),
        ):
            for sql in (
                "SET SESSION binlog_format = 'ROW'",
                "DROP TABLE IF EXISTS Shop.Product, Shop.GRÖßE, Shop.Other, Shop.Old",
                "CREATE TABLE Shop.Product (id INT PRIMARY KEY, a INT, b INT)",
                "CREATE TABLE Shop.Other LIKE Shop.Product",
                "CREATE TABLE Shop.GRÖßE (id INT PRIMARY KEY)",
                "INSERT INTO SHOP.PRODUCT VALUES (1, 2, 3)",
                "INSERT INTO SHOP.größe VALUES (1)",
            ):
                await session.execute(sql)
            await caught_up(service, database)
            assert held(service) == {0, 1}
            for statement in statements:
                await session.execute(statement)
            await caught_up(service, database)
            assert held(service) == {0, 1} - cleared, statements
