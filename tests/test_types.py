"""Law 6: what is cached equals what ``SELECT`` gives, for each type, on each database."""

from __future__ import annotations

import pytest
from typecases import TypeCase
from typelab import COLUMNS_PER_TABLE, Laboratory, laboratory

from lanecache.servers import DatabaseServer, MariaDb, MySql
from lanecache.testing.plugin import NewDatabase, NewServer


async def _compare_edge_values(lab: Laboratory, table: str, cases: list[TypeCase]) -> None:
    """Insert every edge value, then update every row."""
    await lab.create(table, cases)
    rows = max(len(case.values) for case in cases)
    for row in range(rows):
        values = [case.values[row % len(case.values)] for case in cases]
        await lab.session.execute(f"INSERT INTO {table} VALUES ({row}, {', '.join(values)})")
    nulls = ", ".join("NULL" for _ in cases)
    await lab.session.execute(f"INSERT INTO {table} VALUES ({rows}, {nulls})")
    await lab.compare(table, cases)
    # Each row takes every other column's NULL, so that no fast path sees all of it.
    changes = [f"c{index} = NULL" for index in range(0, len(cases), 2)]
    await lab.session.execute(f"UPDATE {table} SET {', '.join(changes)} WHERE id % 2 = 1")
    await lab.compare(table, cases)


async def test_every_type_is_cached_as_select_gives_it(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        cases = await lab.cases()
        for number, first in enumerate(range(0, len(cases), COLUMNS_PER_TABLE)):
            chosen = cases[first : first + COLUMNS_PER_TABLE]
            await _compare_edge_values(lab, f"t{number}", chosen)


async def test_types_that_only_the_schema_tells_are_exact_or_missing_until_it_is_proven(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        cases = [
            case
            for case in await lab.cases()
            if case.declaration in ("BINARY(16)", "BINARY(4)", "INET4", "INET6", "UUID")
            or "ZEROFILL" in case.declaration
        ]
        assert len(cases) >= 5
        # No row comes before these, and the tables change under them: no schema holds for all.
        for number, case in enumerate(cases):
            table = f"t{number}"
            columns = f"id INT PRIMARY KEY, c0 {case.declaration} NULL"
            await lab.session.execute(f"CREATE TABLE {table} ({columns})")
            for key, value in enumerate(case.values):
                await lab.session.execute(f"INSERT INTO {table} VALUES ({key}, {value})")
            await lab.compare(table, [case], may_lack=True)
            await lab.session.execute(f"INSERT INTO {table} VALUES (100, {case.values[0]})")
            await lab.compare(table, [case], may_lack=range(100))
            assert lab.cached(table, 100) is not None
        if isinstance(database, MySql):
            return
        await lab.session.execute("CREATE TABLE x (id INT PRIMARY KEY, c0 BINARY(16))")
        uuid = "01234567-89ab-4def-8123-456789abcdef"
        for key, declared in enumerate(("UUID", "INET6", "BINARY(16)", "UUID") * 3):
            await lab.session.execute(f"ALTER TABLE x DROP COLUMN c0, ADD COLUMN c0 {declared}")
            [case] = [case for case in cases if case.declaration == declared]
            value = f"'{uuid}'" if declared == "UUID" else case.values[2]
            await lab.session.execute(f"INSERT INTO x VALUES ({key}, {value})")
            await lab.compare("x", [case], may_lack=True)


VERSIONED = (
    "CREATE TABLE v (id INT PRIMARY KEY, n INT) WITH SYSTEM VERSIONING",
    "CREATE TABLE v (id INT NOT NULL, n INT) WITH SYSTEM VERSIONING",
    "CREATE TABLE v (id INT PRIMARY KEY, n INT, s TIMESTAMP(6) GENERATED ALWAYS AS ROW START,"
    " t TIMESTAMP(6) GENERATED ALWAYS AS ROW END INVISIBLE, PERIOD FOR SYSTEM_TIME (s, t))"
    " WITH SYSTEM VERSIONING",
    "CREATE TABLE v (id INT NOT NULL, n INT, s TIMESTAMP(6) GENERATED ALWAYS AS ROW START,"
    " t TIMESTAMP(6) GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (s, t))"
    " WITH SYSTEM VERSIONING",
)


@pytest.mark.parametrize("metadata", ["FULL", "MINIMAL"])
@pytest.mark.parametrize("image", ["FULL", "MINIMAL", "NOBLOB"])
async def test_rows_of_the_past_do_not_replace_those_of_now(
    new_database: NewDatabase, metadata: str, image: str
) -> None:
    database = await new_database(options={"binlog_row_metadata": metadata})
    if isinstance(database, MySql):
        pytest.skip("MySQL has no system-versioned tables")
    await database.execute("CREATE DATABASE past")
    async with laboratory(database, "past") as lab:
        session = lab.session
        await session.execute(f"SET SESSION binlog_row_image = '{image}'")
        for create in VERSIONED:
            await session.execute(f"{create}")
            await session.execute("INSERT INTO v (id, n) VALUES (-1, 0)")
            await lab.caught_up()
            await session.execute("INSERT INTO v (id, n) VALUES (1, 1), (2, 2), (3, 3), (4, 4)")
            await session.execute("UPDATE v SET n = 20 WHERE id = 2")
            await session.execute("DELETE FROM v WHERE id = 3")
            await session.execute("REPLACE INTO v (id, n) VALUES (4, 40)")
            await session.execute("UPDATE v SET id = 5 WHERE id = 1")
            await session.execute("DELETE HISTORY FROM v")
            await lab.caught_up()
            found = {key: lab.cached("v", key) for key in range(1, 6)}
            assert found[1] is None, create
            assert found[3] is None, create
            for key, n in ((2, 20), (4, 40), (5, 1)):
                row = found[key]
                if image == "FULL" and (key != 4 or "PRIMARY" in create):
                    assert row is not None, create
                assert row is None or row["n"] == n, create
            await session.execute("DROP TABLE v")


async def test_old_temporal_types_are_exact_or_missing(new_server: NewServer) -> None:
    for metadata in ("FULL", "MINIMAL"):
        database = await new_server(
            MariaDb, options={"mysql56_temporal_format": False, "binlog_row_metadata": metadata}
        )
        await database.execute("CREATE DATABASE old")
        async with laboratory(database, "old") as lab:
            cases = [
                case
                for case in await lab.cases()
                if case.declaration.startswith(("TIME", "DATE", "YEAR"))
            ]
            plain = [case for case in cases if "(" not in case.declaration]
            assert len(plain) == 5
            await _compare_edge_values(lab, "plain", plain)
            for number, case in enumerate(cases):
                table = f"t{number}"
                await lab.create(table, [case])
                for key, value in enumerate(case.values):
                    await lab.session.execute(f"INSERT INTO {table} VALUES ({key}, {value})")
                await lab.compare(table, [case], may_lack="(" in case.declaration)
