"""Lanes on real databases: what is cached equals what ``SELECT`` gives, for every kind of lane."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import lanecache
from lanecache.config import load_config
from lanecache.servers import DatabaseServer, MySql, Redis
from lanecache.service import Service
from lanecache.tail import tail

TABLE = """(
    id INT PRIMARY KEY, sku VARCHAR(20) COLLATE utf8mb4_bin, stock INT, price DECIMAL(12,4),
    weight DOUBLE, made DATE, sent DATETIME(2), photo VARBINARY(10), tags SET('x', 'y'),
    user_id BIGINT UNSIGNED, extra {json}
) CHARACTER SET utf8mb4"""
ROWS = [
    "(1, 'a', 5, 1.5000, 0.1, '2024-02-29', '2024-02-29 12:00:00.25', x'ff00', 'x,y', 7, '[1.5]')",
    "(2, 'B', 0, -2.2500, 1e300, '0000-00-00', NULL, x'', '', 18446744073709551615, '{\"k\": 1}')",
    "(3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    "(4, 'a_b', 9, 99999999.9999, -0.5, '1999-12-31', '1999-12-31 23:59:59', 'a', 'y', 7, 'null')",
    "(5, 'it''s', -1, 0, 0, '2024-03-01', '2024-03-01 00:00:00', x'00', 'x', 8, '\"t\"')",
]
CONDITIONS = [
    "stock > 0",
    "NOT stock",
    "price >= 1.5 AND price < 1e7",
    "price IN (0, -2.25) OR stock IS NULL",
    "weight = 0.1 OR weight <= -0.5",
    "sku = 'a' OR sku = 'it''s'",
    "sku > 'B'",
    "sku LIKE 'a%'",
    "sku NOT LIKE '%\\_%' AND NOT (stock BETWEEN 1 AND 5)",
    "sku NOT IN ('a', NULL)",
    "NOT (sku = 'a' AND stock = NULL)",
    "made >= '2024-01-01'",
    "photo = x'ff00' OR photo = 'a'",
    "user_id > 9223372036854775807",
    "tags = 'x,y'",
    "extra IS NULL OR stock = TRUE",
]

MODULE = """
import lanecache

@lanecache.lane("{schema}.t", prefix="py:")
def stock(change):
    if change.row["sku"] == "boom":
        raise ValueError("boom")
    if change.after is None:
        yield lanecache.Delete(f"py:{{change.row['id']}}")
    else:
        kinds = ",".join(type(value).__name__ for value in change.after.values())
        yield lanecache.Set(f"py:{{change.row['id']}}", f"{{change.kind.value}} {{kinds}}".encode())
"""


def settings(
    database: DatabaseServer, schema: str, sink: str, lanes: list[dict[str, Any]], **rest: Any
) -> dict[str, Any]:
    return {
        "source": {"url": database.url(), "name": schema, "heartbeat_s": 0.5},
        "sinks": {"main": {"url": sink}},
        "lanes": [{"table": f"{schema}.t", **lane} for lane in lanes],
        **rest,
    }


async def make_table(database: DatabaseServer, schema: str) -> None:
    json_type = "JSON" if isinstance(database, MySql) else "LONGTEXT"
    await database.execute(f"CREATE TABLE {schema}.t {TABLE.format(json=json_type)}")


async def caught_up(database: DatabaseServer, service: Service) -> None:
    async with database.session() as session:
        token = await lanecache.commit_token(session.connection)
    await service.wait_for(token, timeout_s=20)


async def insert_all(database: DatabaseServer, schema: str) -> None:
    # Zero dates are among the rows.
    async with database.session() as session:
        await session.execute("SET sql_mode = ''")
        await session.execute(f"INSERT INTO {schema}.t VALUES {', '.join(ROWS)}")


def held(service: Service, prefix: str = "") -> dict[str, Any]:
    target: Any = service.sinks["main"].target
    return {key: value for key, value in target.snapshot().items() if key.startswith(prefix)}


async def test_conditions_take_the_rows_that_the_database_selects(
    database: DatabaseServer, schema: str
) -> None:
    lanes = [
        {"key": f"w{number}:{{id}}", "value": "column:id", "where": condition}
        for number, condition in enumerate(CONDITIONS)
    ]
    await make_table(database, schema)
    async with lanecache.start(settings(database, schema, "memory:", lanes)) as service:
        await insert_all(database, schema)
        for change in (
            f"UPDATE {schema}.t SET stock = stock + 1",
            f"UPDATE {schema}.t SET stock = 5 - stock, sku = CONCAT(sku, 'a'), price = -price",
            f"UPDATE {schema}.t SET id = id + 10, made = '2024-01-01' WHERE id > 2",
            f"DELETE FROM {schema}.t WHERE id = 1",
        ):
            await database.execute(change)
            await caught_up(database, service)
            for number, condition in enumerate(CONDITIONS):
                selected = await database.query(f"SELECT id FROM {schema}.t WHERE {condition}")
                found = {int(value) for value in held(service, f"w{number}:").values()}
                assert found == {row[0] for row in selected}, (condition, change)


async def test_msgpack_and_hash_equal_json_and_the_database(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    lanes: list[dict[str, Any]] = [
        {"key": "j:{id}"},
        {"key": "m:{id}", "value": "msgpack"},
        {"key": "h:{id}", "value": "hash", "columns": [{"ident": "id"}, "sku", "price", "photo"]},
    ]
    await make_table(database, schema)
    config = settings(database, schema, redis_server.url(), lanes)
    async with lanecache.start(config) as service, redis_server.client() as client:
        await insert_all(database, schema)
        await caught_up(database, service)
        for number in range(1, 6):
            plain = json.loads(await client.get(f"j:{number}"))
            packed = msgspec.msgpack.decode(await client.get(f"m:{number}"))
            if packed["photo"] is not None:
                # The one kind of value that JSON has not.
                assert isinstance(packed["photo"], bytes)
                plain["photo"] = packed["photo"]
            assert packed == plain
            assert list(packed) == list(plain)
            (row,) = await database.query(
                f"SELECT id, sku, price, photo FROM {schema}.t WHERE id = {number}"
            )
            names = ("ident", "sku", "price", "photo")
            texts = [v if isinstance(v, bytes) or v is None else str(v).encode() for v in row]
            expected = {n: t for n, t in zip(names, texts, strict=True) if t is not None}
            found = await client.hgetall(f"h:{number}")
            assert {name.decode(): value for name, value in found.items()} == expected
        await database.execute(f"UPDATE {schema}.t SET sku = NULL WHERE id = 1")
        await caught_up(database, service)
        assert set(await client.hgetall("h:1")) == {b"ident", b"price", b"photo"}
        await database.execute(f"DELETE FROM {schema}.t")
        await caught_up(database, service)
        assert [key async for key in client.scan_iter(match="[jmh]:*")] == []


async def test_several_keys_and_the_keys_of_others_follow_the_row(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    lanes: list[dict[str, Any]] = [
        {
            "key": "p:{id}",
            "keys": ["sku:{sku}"],
            "value": "column:price",
            "invalidate": ["of:{user_id}:list"],
            "ttl_s": 1000.0,
            "ttl_jitter": 0.1,
        }
    ]
    await make_table(database, schema)
    config = settings(database, schema, redis_server.url(), lanes)
    async with lanecache.start(config) as service, redis_server.client() as client:

        async def keys() -> set[str]:
            await caught_up(database, service)
            found = [key async for key in client.scan_iter()]
            return {key.decode() for key in found if not key.startswith(b"lanecache:")}

        # What an application cached by itself, from the row's user.
        await client.mset({"of:7:list": b"old", "of:8:list": b"old", "of:9:list": b"old"})
        await database.execute(f"INSERT INTO {schema}.t (id, sku, price, user_id)"
                               " VALUES (1, 'a', 1.5, 7)")  # fmt: skip
        assert await keys() == {"p:1", "sku:a", "of:8:list", "of:9:list"}
        assert 900_000 <= await client.pttl("p:1") <= 1_100_000
        await client.set("of:7:list", b"again")
        await database.execute(f"UPDATE {schema}.t SET sku = 'b', user_id = 8")
        assert await keys() == {"p:1", "sku:b", "of:9:list"}
        await client.set("of:8:list", b"again")
        await database.execute(f"TRUNCATE {schema}.t")
        assert await keys() == set()


async def scans(redis_server: Redis) -> int:
    async with redis_server.client() as client:
        return int((await client.info("commandstats")).get("cmdstat_scan", {}).get("calls", 0))


async def test_a_column_that_is_gone_costs_its_rows_keys_and_no_walk_over_the_cache(
    database: DatabaseServer, schema: str, redis_server: Redis
) -> None:
    lanes: list[dict[str, Any]] = [
        {"key": "p:{id}", "columns": ["id", "price"]},
        {"key": "w:{id}", "value": "column:id", "where": "price > 1"},
        {"key": "by:{price}:{id}", "value": "column:id"},
    ]
    await make_table(database, schema)
    config = settings(database, schema, redis_server.url(), lanes)
    async with lanecache.start(config) as service, redis_server.client() as client:
        await database.execute(f"INSERT INTO {schema}.t (id, price) VALUES (1, 2), (2, 3)")
        await caught_up(database, service)
        assert await client.exists("p:1", "p:2", "w:1", "w:2") == 4
        await database.execute(
            f"ALTER TABLE {schema}.t CHANGE price cost DECIMAL(12,4)",
            f"UPDATE {schema}.t SET stock = 1",
        )
        await caught_up(database, service)
        assert await client.keys("[pwb]*:*") == []
        before = await scans(redis_server)
        # An application that keeps something there itself.
        await client.mset({"p:1": "old", "w:1": "old", "p:9": "another row's"})
        for step in (2, -2) * 50:
            await database.execute(f"UPDATE {schema}.t SET stock = stock + 1, id = id + {step}")
        await caught_up(database, service)
        assert await client.keys("[pwb]*:*") == [b"p:9"]
        assert await scans(redis_server) == before
        await database.execute(
            f"ALTER TABLE {schema}.t RENAME COLUMN cost TO price",
            f"UPDATE {schema}.t SET stock = -1",
        )
        await caught_up(database, service)
        assert await client.exists("p:1", "p:2", "w:1", "w:2", "by:2.0000:1", "by:3.0000:2") == 6


@pytest.fixture
def module(schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Write a module with a lane over the schema's table."""
    name = f"lanes_of_{schema}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(schema=schema))
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


async def test_a_lane_in_python_runs_and_its_failures_are_counted(
    database: DatabaseServer, schema: str, module: str
) -> None:
    await make_table(database, schema)
    config = settings(database, schema, "memory:", [], ingest={"modules": [module]})
    async with lanecache.start(config) as service:
        await insert_all(database, schema)
        await caught_up(database, service)
        found = held(service)
        document = "list" if isinstance(database, MySql) else "str"
        assert found["py:1"].decode() == (
            f"insert int,str,int,Decimal,float,date,datetime,bytes,frozenset,int,{document}"
        )
        assert set(found) == {f"py:{number}" for number in range(1, 6)}
        await database.execute(f"DELETE FROM {schema}.t WHERE id = 2")
        await caught_up(database, service)
        assert "py:2" not in held(service)
        assert service.statistics().lanes[0].invalidations == {}
        await database.execute(f"UPDATE {schema}.t SET sku = 'boom' WHERE id = 1")
        await caught_up(database, service)
        assert held(service) == {}
        (lane,) = service.statistics().lanes
        assert lane.key == f"{module}.stock"
        ((reason, count),) = lane.invalidations.items()
        assert reason.startswith("it raised ValueError: boom")
        assert count == 1


async def test_tail_names_the_lanes_that_made_each_operation(
    database: DatabaseServer, schema: str, module: str
) -> None:
    await make_table(database, schema)
    before = await database.query("SHOW MASTER STATUS" if not isinstance(database, MySql)
                                  else "SHOW BINARY LOG STATUS")  # fmt: skip
    await insert_all(database, schema)
    config = settings(
        database,
        schema,
        "memory:",
        [{"key": "p:{id}", "value": "none"}],
        ingest={"modules": [module]},
    )
    config["source"]["start"] = f"{before[0][0]}:{before[0][1]}"
    lines: list[dict[str, Any]] = []
    with anyio.fail_after(60):
        await tail(load_config(config, {}), lambda line: lines.append(json.loads(line)), limit=10)
    assert {(line["key"].partition(":")[0], *line["lanes"]) for line in lines} == {
        ("p", f"lane 1 ({schema}.t -> p:{{id}})"),
        ("py", f"lane 2 ({schema}.t -> {module}.stock)"),
    }
