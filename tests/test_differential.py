"""Row values as lanecache reads them against mysql-replication, over the same binlog.

They are equal, or the type is on the list of known differences, with the reason. A difference on
the list that is none any more fails as well.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from mysql_replication import events_of, plain
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent
from typecases import TypeCase, cases_of

from lanecache.ingest import binlog as b
from lanecache.ingest.rows import RowKind, TableCode, compile_rows, read_rows
from lanecache.ingest.table import packed_int, parse_table_map
from lanecache.row import ColumnForm, ColumnUse, Unreadable
from lanecache.servers import DatabaseServer, MySql
from lanecache.testing.plugin import NewDatabase

# A few character sets stand for all: lanecache's are compared with the servers themselves.
CHARSETS = ("utf8mb4", "latin1", "sjis", "gbk", "cp866", "utf16", "ucs2", "swe7", "binary")

# Patterns of a product's name and a type's declaration.
KNOWN = {
    r"COMPRESSED": "MariaDB's compressed columns are not known to it",
    r" TIME\([1-6]\)": "a negative time with a fraction is wrong (-00:00:00.01 reads as -0.99 s)",
    r" DATE": "zero and partial dates read as NULL",
    r" TIMESTAMP": "the zero timestamp reads as 1970, and in local time",
    r" BINARY\(": "the zeros that pad a value are not given back",
    r" FLOAT": "a 32-bit number is given with the digits of a 64-bit one",
    r" BIT": "bits are given as text of zeros and ones",
    r" YEAR": "the year zero reads as 1900",
    r" SET\(": "the empty set reads as NULL",
    r" ENUM\(.* SET (latin1|swe7|sjis|gbk|cp866|ucs2|utf16)$": "labels are decoded as UTF-8",
    r"CHARACTER SET (swe7|ucs2|utf16)$": "Python has no codec of that name, or another one",
    r" (INET4|INET6|UUID)$": "only the schema tells them from BINARY",
    r"MySQL JSON": "keys and strings are bytes",
    r"MySQL VECTOR": "the type is not known to it: the table map raises",
}  # fmt: skip


def known_difference(product: str, case: TypeCase) -> str | None:
    """Give the reason why the two differ for a type."""
    what = f"{product} {case.declaration}"
    return next((reason for pattern, reason in KNOWN.items() if re.search(pattern, what)), None)


def chosen(product: str, cases: list[TypeCase]) -> list[TypeCase]:
    """Leave out most character sets, and all but two types of each difference.

    Nor can any reader of the binlog alone know of ZEROFILL.
    """
    found = []
    reasons: Counter[str] = Counter()
    for case in cases:
        charset = re.search(r"CHARACTER SET (\w+)", case.declaration)
        if "DECIMAL" in case.declaration and "ZEROFILL" in case.declaration:
            continue
        if charset is not None and charset[1] not in CHARSETS:
            continue
        reason = known_difference(product, case)
        if reason is not None:
            reasons[reason] += 1
            if reasons[reason] > 2:
                continue
        found.append(case)
    return found


def own_rows(path: Path, schema: str, *, mariadb: bool) -> dict[str, list[Any]]:
    """Give the second column of all inserted rows, by table, as lanecache reads it."""
    found: dict[str, list[Any]] = {}
    tables = {}
    for event in events_of(path):
        kind, body = event[4], event[b.HEADER_BYTES : -b.CHECKSUM_BYTES]
        if kind == b.TABLE_MAP:
            tables[body[:6]] = parse_table_map(body[8:], mariadb=mariadb)
        elif kind in (b.WRITE_ROWS_V1, b.WRITE_ROWS):
            table = tables[body[:6]]
            if table.schema != schema:
                continue
            start = 8 + (0 if kind == b.WRITE_ROWS_V1 else int.from_bytes(body[8:10], "little"))
            columns, start = packed_int(body, start)
            assert (columns, body[start] & 3) == (2, 3)
            use = (ColumnUse(1, ColumnForm.JSON),)
            decoder = compile_rows(TableCode(table), RowKind.WRITE, (), use, 3, 3)
            images, _ = read_rows(decoder, body, start + 1, len(body))
            found.setdefault(table.table, []).extend(
                value if isinstance(value, Unreadable) else json.loads(str(value))
                for (value,) in images
            )
    return found


def other_rows(
    database: DatabaseServer, schema: str, position: int, tables: list[str]
) -> dict[str, list[Any]]:
    """Give the second column of all inserted rows, by table, as mysql-replication reads it."""
    stream = BinLogStreamReader(
        connection_settings={
            "host": database.host,
            "port": database.port,
            "user": "root",
            "passwd": database.password,
        },
        server_id=7_000_001,
        only_schemas=[schema],
        only_tables=tables,
        only_events=[WriteRowsEvent],
        resume_stream=True,
        log_file="binlog.000001",
        log_pos=position,
    )
    found: dict[str, list[Any]] = {}
    with contextlib.closing(stream):
        for event in stream:
            column = event.columns[1]
            values = [plain(row["values"]["c"], column) for row in event.rows]
            found.setdefault(event.table, []).extend(values)
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
async def test_values_are_those_of_mysql_replication_or_the_difference_is_known(
    new_database: NewDatabase,
) -> None:
    # A server of its own: what other tests rotate would be in the way.
    database = await new_database()
    schema = "differential"
    await database.execute(f"CREATE DATABASE {schema}")
    version = tuple(map(int, re.findall(r"\d+", await database.scalar("SELECT VERSION()"))[:2]))
    product = database.product.name
    cases = chosen(product, cases_of(product, version))
    status = "SHOW BINARY LOG STATUS" if isinstance(database, MySql) else "SHOW MASTER STATUS"
    known = [case for case in cases if known_difference(product, case) is not None]
    # Those that raise end their stream: they come last, each with a stream of its own.
    cases = [*(case for case in cases if case not in known), *known]
    positions = []
    async with database.session(schema) as session:
        await session.execute("SET sql_mode = '', time_zone = '+00:00'")
        for number, case in enumerate(cases):
            file, position, *_ = (await session.query(status))[0]
            assert file == "binlog.000001"
            positions.append(position)
            await session.execute(f"CREATE TABLE t{number} (id INT, c {case.declaration} NULL)")
            rows = ", ".join(f"({key}, {value})" for key, value in enumerate(case.values))
            await session.execute(f"INSERT INTO t{number} VALUES {rows}, (99, NULL)")
    path = database.data / "binlog.000001"
    own = own_rows(path, schema, mariadb=not isinstance(database, MySql))

    async def other(first: int, count: int) -> dict[str, list[Any]]:
        tables = [f"t{number}" for number in range(first, first + count)]
        return await anyio.to_thread.run_sync(
            other_rows, database, schema, positions[first], tables
        )

    alike = len(cases) - len(known)
    theirs = await other(0, alike)
    for number, case in enumerate(cases[:alike]):
        table = f"t{number}"
        assert len(own[table]) == len(case.values) + 1
        assert own[table] == theirs[table], case.declaration
    differing = set()
    for number, case in enumerate(known, alike):
        table = f"t{number}"
        assert len(own[table]) == len(case.values) + 1
        try:
            found = (await other(number, 1))[table]
        except Exception:  # whatever it is, it could not read what lanecache could
            differing.add(known_difference(product, case))
            continue
        if own[table] != found:
            differing.add(known_difference(product, case))
    assert differing == {known_difference(product, case) for case in known}
