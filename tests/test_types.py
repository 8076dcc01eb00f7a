"""Law 6: what is cached equals what ``SELECT`` gives, for each type, on each database."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

import lanecache
from lanecache.servers import DatabaseServer, MySql

# type, values as SQL, how to select it as text, how to make the JSON value of that text.
Case = tuple[str, list[str], str, Callable[[str], Any]]


def _same(text: str) -> Any:
    return text


def _float32(text: str) -> float:
    value: float = struct.unpack("<f", struct.pack("<f", float(text)))[0]
    return value


def _base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


def _members(text: str) -> list[str]:
    return text.split(",") if text else []


_TEXT = "{}"
_CHARS = "CAST({} AS CHAR)"
_HEX = "HEX({})"
_NUMBER = "{} + 0"
_EXACT_FLOAT = "CAST({} AS DOUBLE)"

_STRINGS = [
    "''",
    "'plain'",
    "'caf\u00e9 \u20ac'",
    "'quote \" slash \\\\\\\\ tab \\t'",
    "'  spaces  '",
]
_WIDE = [*_STRINGS, "'\U0001f600 \u4e2d\u6587'", "CONCAT('a', CHAR(0), 'b')"]
_BYTES = ["x''", "x'00'", "x'ff00fe'", "x'61000000'", "REPEAT(x'ab', 16)"]
_DATES = ["'0000-00-00'", "'1000-01-01'", "'2024-02-29'", "'9999-12-31'", "'2024-00-00'"]

CASES: list[Case] = [
    ("TINYINT", ["-128", "127", "0"], _TEXT, int),
    ("TINYINT UNSIGNED", ["0", "255"], _TEXT, int),
    ("SMALLINT", ["-32768", "32767"], _TEXT, int),
    ("SMALLINT UNSIGNED", ["65535"], _TEXT, int),
    ("MEDIUMINT", ["-8388608", "8388607", "-1"], _TEXT, int),
    ("MEDIUMINT UNSIGNED", ["16777215"], _TEXT, int),
    ("INT", ["-2147483648", "2147483647"], _TEXT, int),
    ("INT UNSIGNED", ["4294967295"], _TEXT, int),
    ("BIGINT", ["-9223372036854775808", "9223372036854775807"], _TEXT, int),
    ("BIGINT UNSIGNED", ["18446744073709551615", "9007199254740993"], _TEXT, int),
    ("BOOLEAN", ["TRUE", "FALSE"], _TEXT, int),
    ("FLOAT", ["0", "1.1", "-3.4028235e38", "1e-45", "16777217", "0.1"], _EXACT_FLOAT, _float32),
    ("DOUBLE", ["0", "1.1", "-1.7976931348623157e308", "5e-324", "123456789.123456789"],
     _TEXT, float),
    ("DECIMAL(10,2)", ["0", "-0.01", "99999999.99", "-99999999.99", "1.5"], _CHARS, _same),
    ("DECIMAL(65,30)", ["0", "-1.000000000000000000000000000001", f"{'9' * 35}.{'9' * 30}"],
     _CHARS, _same),
    ("DECIMAL(30,0)", ["-123456789012345678901234567890", "7"], _CHARS, _same),
    ("DECIMAL(9,9)", ["0.123456789", "-0.000000001"], _CHARS, _same),
    ("BIT(1)", ["b'0'", "b'1'"], _NUMBER, int),
    ("BIT(10)", ["b'1000000001'", "b'0'"], _NUMBER, int),
    ("BIT(64)", ["b'1'", "18446744073709551615"], _NUMBER, int),
    ("YEAR", ["1901", "2155", "0", "2024"], _NUMBER, int),
    ("DATE", _DATES, _CHARS, _same),
    ("TIME", ["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'"], _CHARS, _same),
    *((f"TIME({digits})",
       ["'-838:59:58.999999'", "'-00:00:00.01'", "'12:34:56.789123'", "'-00:00:01.5'"],
       _CHARS, _same) for digits in range(1, 7)),
    ("DATETIME", ["'0000-00-00 00:00:00'", "'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'"],
     _CHARS, _same),
    *((f"DATETIME({digits})", ["'2024-02-29 12:34:56.789123'", "'1999-01-01 00:00:00'"],
       _CHARS, _same) for digits in range(1, 7)),
    ("TIMESTAMP", ["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "0"], _CHARS, _same),
    *((f"TIMESTAMP({digits})", ["'2024-02-29 12:34:56.789123'", "0"], _CHARS, _same)
      for digits in range(1, 7)),
    ("CHAR(40) CHARACTER SET utf8mb4", _WIDE, _TEXT, _same),
    ("CHAR(255) CHARACTER SET utf8mb4", _WIDE, _TEXT, _same),
    ("VARCHAR(40) CHARACTER SET utf8mb4", _WIDE, _TEXT, _same),
    ("VARCHAR(400) CHARACTER SET utf8mb4", [*_WIDE, "REPEAT('x', 400)"], _TEXT, _same),
    ("VARCHAR(40) CHARACTER SET latin1", [*_STRINGS, "CHAR(0x81 USING latin1)"], _TEXT, _same),
    ("CHAR(40) CHARACTER SET latin1", _STRINGS, _TEXT, _same),
    ("TINYTEXT", _STRINGS, _TEXT, _same),
    ("TEXT CHARACTER SET utf8mb4", [*_WIDE, "REPEAT('y', 60000)"], _TEXT, _same),
    ("TEXT CHARACTER SET latin1", _STRINGS, _TEXT, _same),
    ("MEDIUMTEXT CHARACTER SET utf8mb4", [*_WIDE, "REPEAT('z', 70000)"], _TEXT, _same),
    ("LONGTEXT CHARACTER SET utf8mb4", _WIDE, _TEXT, _same),
    ("BINARY(16)", _BYTES, _HEX, _base64),
    ("BINARY(255)", ["x''", "x'01'"], _HEX, _base64),
    ("VARBINARY(16)", _BYTES, _HEX, _base64),
    ("VARBINARY(300)", [*_BYTES, "REPEAT(x'00', 300)"], _HEX, _base64),
    ("TINYBLOB", _BYTES, _HEX, _base64),
    ("BLOB", [*_BYTES, "REPEAT(x'fe', 60000)"], _HEX, _base64),
    ("MEDIUMBLOB", [*_BYTES, "REPEAT(x'fd', 70000)"], _HEX, _base64),
    ("LONGBLOB", _BYTES, _HEX, _base64),
    ("ENUM('a', 'b,c', 'd''e', '\u00fc')", ["'a'", "'b,c'", "'d''e'", "'\u00fc'", "0"],
     _TEXT, _same),
    (f"ENUM({', '.join(repr(f'l{n}') for n in range(300))})", ["'l0'", "'l255'", "'l299'"],
     _TEXT, _same),
    ("ENUM('a', '\u00fc') CHARACTER SET latin1", ["'a'", "'\u00fc'"], _TEXT, _same),
    ("SET('x', 'y', '\u00fc')", ["''", "'x'", "'x,y,\u00fc'"], _TEXT, _members),
    (f"SET({', '.join(repr(f'm{n}') for n in range(64))})",
     ["'m0,m63'", "18446744073709551615", "''"], _TEXT, _members),
    ("GEOMETRY", ["ST_GeomFromText('POINT(1 2)')", "ST_GeomFromText('LINESTRING(0 0, 1 1)')"],
     _HEX, _base64),
]  # fmt: skip

DOCUMENTS = [
    "null", "true", "1", "-1", "65536", "4294967296", "18446744073709551615", "1.5", "1e300",
    '""', '"text \\"quoted\\" \u20ac"', "[]", "{}", '{"b": 1, "a": [1, 2.5, "x", null, true]}',
    json.dumps({"nested": [[[[{"deep": [1]}]]]]}), json.dumps({"k" * 300: "v" * 70000}),
    json.dumps(list(range(-40000, 40000, 7))),
    json.dumps([{"id": n, "f": n / 3} for n in range(3000)]),
]  # fmt: skip


def _config(database: DatabaseServer, schema: str) -> dict[str, Any]:
    return {
        "source": {"url": database.url(), "name": schema},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [{"table": f"{schema}.*", "key": "row:{@table}:{id}"}],
    }


def _expected(text: Any, make: Callable[[str], Any]) -> Any:
    if text is None:
        return None
    return make(text.decode() if isinstance(text, bytes) else str(text))


async def _compare(database: DatabaseServer, schema: str, cases: list[Case]) -> None:
    """Insert every value, then update every row; each cached row equals what SELECT gives."""
    columns = [f"c{index} {kind} NULL" for index, (kind, *_) in enumerate(cases)]
    rows = max(len(values) for _, values, *_ in cases)
    async with (
        lanecache.start(_config(database, schema)) as service,
        database.session(
            schema,
            init_command="SET sql_mode = '', time_zone = '+00:00', SQL_SAFE_UPDATES = 0",
            conv={},
        ) as session,
    ):
        await session.execute(
            f"CREATE TABLE t (id INT PRIMARY KEY, {', '.join(columns)}) ROW_FORMAT=DYNAMIC"
        )
        for row in range(rows):
            values = [values[row % len(values)] for _, values, *_ in cases]
            await session.execute(f"INSERT INTO t VALUES ({row}, {', '.join(values)})")
        nulls = ", ".join("NULL" for _ in cases)
        await session.execute(f"INSERT INTO t VALUES ({rows}, {nulls})")
        for phase in ("insert", "update"):
            if phase == "update":
                # Each row takes every other column's NULL, so that no fast path sees all of it.
                changes = [f"c{i} = NULL" for i in range(0, len(cases), 2)]
                await session.execute(f"UPDATE t SET {', '.join(changes)} WHERE id % 2 = 1")
            await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=30.0)
            selected = ", ".join(
                how.format(f"c{index}") for index, (_, _, how, _) in enumerate(cases)
            )
            sink: Any = service.sinks["main"].target
            for key, *texts in await session.query(f"SELECT id, {selected} FROM t"):
                key = int(key)
                cached = json.loads(sink.get(f"row:t:{key}"))
                assert list(cached) == ["id", *(f"c{i}" for i in range(len(cases)))]
                for index, (kind, _, _, make) in enumerate(cases):
                    wanted = _expected(texts[index], make)
                    got = cached[f"c{index}"]
                    if make is _float32 and got is not None:
                        got = _float32(repr(got))
                    assert got == wanted, f"{kind} in row {key} after {phase}"


async def test_every_type_is_cached_as_select_gives_it(
    database: DatabaseServer, schema: str
) -> None:
    await _compare(database, schema, CASES)


async def test_json_documents_are_cached_as_select_gives_them(
    database: DatabaseServer, schema: str
) -> None:
    if not isinstance(database, MySql):
        pytest.skip("MariaDB's JSON is LONGTEXT, which is among the types")
    async with (
        lanecache.start(_config(database, schema)) as service,
        database.session(schema) as session,
    ):
        await session.execute("CREATE TABLE j (id INT PRIMARY KEY, d JSON)")
        for number, document in enumerate(DOCUMENTS):
            await session.execute("INSERT INTO j VALUES (%s, %s)", (number, document))
        opaque = (
            "JSON_OBJECT('dec', CAST('-12.50' AS DECIMAL(6,2)),"
            " 'dt', TIMESTAMP('2024-02-29 12:34:56.5'), 'd', DATE('2024-02-29'),"
            " 't', CAST('-12:34:56.25' AS TIME(6)), 'b', x'00ff', 'bit', b'101')"
        )
        await session.execute(f"INSERT INTO j VALUES ({len(DOCUMENTS)}, {opaque})")
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=30.0)
        sink: Any = service.sinks["main"].target
        for number, document in await session.query("SELECT id, d FROM j"):
            cached = json.loads(sink.get(f"row:j:{number}"), parse_float=Decimal)
            assert cached["d"] == json.loads(document, parse_float=Decimal), number
