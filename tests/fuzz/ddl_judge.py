"""The judge: every cached key against what ``SELECT`` gives now (law 6).

A key may be missing, which is counted. One that is there must be right.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pymysql
from ddl_lab import SCHEMAS, Lab

from lanecache.lanes.key import KeyTemplate

INTEGERS = frozenset(
    {"tinyint", "smallint", "mediumint", "int", "bigint", "year", "bit"}
)  # fmt: skip
BINARY = frozenset(
    {"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"}
    | {"geometry", "point", "linestring", "polygon"}
)
COLUMNS = """
SELECT LOWER(TABLE_SCHEMA), TABLE_NAME, COLUMN_NAME, LOWER(DATA_TYPE)
FROM information_schema.COLUMNS JOIN information_schema.TABLES USING (TABLE_SCHEMA, TABLE_NAME)
WHERE TABLE_SCHEMA IN ('fz_a', 'fz_b') AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')
ORDER BY 1, 2, ORDINAL_POSITION
"""

Row = dict[str, Any]  # a column's text by its name; hexadecimal where it is binary
Kinds = dict[str, str]
Wanted = dict[str, Callable[[Any], bool]]


class Judgement(msgspec.Struct):
    """What was found: keys that were right, that were not there, and what is wrong."""

    right: int
    missing: int
    wrong: list[str]


class Judge:
    """Compares, and plays the application that keeps values of its own under some keys."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def compare(self) -> Judgement:
        """Compare every key with the database; nothing must be written meanwhile."""
        wanted = self._wanted()
        found = self._lab.cached()
        wrong: list[str] = []
        right = 0
        for key, value in sorted(found.items()):
            check = wanted.get(key)
            if check is None:
                wrong.append(f"orphan {key} = {value!r:.300}")
                continue
            try:
                is_right = check(value)
            except (ValueError, TypeError, KeyError, msgspec.DecodeError) as error:
                wrong.append(f"unreadable {key} = {value!r:.300}: {error}")
                continue
            if is_right:
                right += 1
            else:
                wrong.append(f"wrong {key} = {value!r:.300}; {self.row_of(key)}")
        own = {key for key in wanted if not key.startswith(("no:", "g:"))}
        return Judgement(right, len(own - found.keys()), wrong)

    def fill(self) -> None:
        """Keep values under the keys that lanecache only deletes, as an application does."""
        for key, text in self._fills().items():
            self._lab.redis.set(key, text)

    def row_of(self, key: str) -> str:
        """Say what the database has for a key, for a report."""
        for schema, table, kinds, rows in self._tables():
            for row in rows:
                if key in set(_keys(schema, table, row).values()):
                    return f"the database has {schema}.{table} {kinds} {row!r:.500}"
        return "the database has no such row"

    def _tables(self) -> Iterator[tuple[str, str, Kinds, list[Row]]]:
        tables: dict[tuple[str, str], Kinds] = {}
        for schema, table, column, kind in self._lab.query(COLUMNS):
            tables.setdefault((schema, table), {})[column] = _text(kind)
        connection = self._lab.connect(conv={})
        try:
            connection.query("SET time_zone = '+00:00'")
            for (schema, table), kinds in tables.items():
                yield schema, table, kinds, _read(connection, schema, table, kinds)
        finally:
            connection.close()

    def _wanted(self) -> Wanted:
        """Give what every key has to hold that may be there."""
        wanted: Wanted = {}
        for schema, table, kinds, rows in self._tables():
            for row in rows:
                keys = _keys(schema, table, row)
                if "j" in keys:
                    wanted[keys["j"]] = _json_check(kinds, row)
                if "k" in keys:
                    wanted[keys["k"]] = _json_check(kinds, row)
                if "m" in keys:
                    wanted[keys["m"]] = _msgpack_check(kinds, row)
                if "h" in keys:
                    wanted[keys["h"]] = _hash_check(kinds, row)
                if "w" in keys and (row["n"] is None or float(row["n"]) > 5):
                    wanted[keys["w"]] = _json_check(kinds, row)
                if "c" in keys and None not in (row["s"], row["n"]) and float(row["n"]) != 3:
                    wanted[keys["c"]] = _raw_check(kinds["s"], row["s"])
                if "e" in keys and row["n"] is not None:
                    wanted[keys["e"]] = _raw_check(kinds["n"], row["n"])
        for key, text in self._fills().items():
            wanted[key] = text.encode().__eq__
        return wanted

    def _fills(self) -> dict[str, str]:
        """Give what the application computes from the rows as they are now."""
        rows_of: dict[str, list[Row]] = {}
        for schema, table, _, rows in self._tables():
            for row in rows:
                keys = _keys(schema, table, row)
                for name in ("no", "g"):
                    if name in keys:
                        rows_of.setdefault(keys[name], []).append(row)
        return {
            key: json.dumps(sorted(rows, key=lambda row: str(row["id"])))
            for key, rows in rows_of.items()
        }


_TEMPLATES = {
    "j": KeyTemplate("j:{@schema}:{@table}:{id}"),
    "h": KeyTemplate("h:{@table}:{id}"),
    "m": KeyTemplate("m:{@schema}:{@table}:{id}"),
    "k": KeyTemplate("k:{@table}:{code}"),
    "w": KeyTemplate("w:{@table}:{id}"),
    "c": KeyTemplate("c:{@table}:{id}"),
    "no": KeyTemplate("no:{@schema}:{@table}:{id}"),
    "e": KeyTemplate("e:{@table}:{id}"),
    "g": KeyTemplate("g:{@table}:{grp}"),
}
_NEEDS = {"m": {"n", "s"}, "w": {"n"}, "c": {"n", "s"}, "e": {"n", "grp"}, "g": {"n", "grp"}}


def _keys(schema: str, table: str, row: Row) -> dict[str, str]:
    """Give the keys that a row may have, by the lanes' names."""
    keys: dict[str, str] = {}
    for name, template in _TEMPLATES.items():
        if name not in ("j", "m", "no") and schema != SCHEMAS[0]:
            continue
        if name == "k" and not table.startswith("u"):
            continue
        if {*template.columns, *_NEEDS.get(name, ())} <= row.keys():
            keys[name] = template.render(schema, table, [row[name] for name in template.columns])
    return keys


def _read(connection: pymysql.Connection[Any], schema: str, table: str, kinds: Kinds) -> list[Row]:
    selected = []
    for name, kind in kinds.items():
        quoted = f"`{name.replace('`', '``')}`"
        if kind in BINARY:
            quoted = f"HEX({quoted})"
        elif kind == "bit":
            quoted = f"{quoted} + 0"
        elif kind == "float":
            quoted = f"{quoted} + 0e0"
        selected.append(quoted)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(selected)} FROM `{schema}`.`{table}`")
        return [
            dict(zip(kinds, (_text(value) for value in found), strict=True))
            for found in cursor.fetchall()
        ]


def _text(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _float32(value: Any) -> Any:
    return value if value is None else struct.unpack("<f", struct.pack("<f", float(value)))[0]


def _plain(kind: str, text: str | None) -> Any:
    """Give a value as the design's rules for JSON want it."""
    if text is None:
        return None
    if kind in INTEGERS:
        return int(text)
    if kind == "float":
        return _float32(text)
    if kind == "double":
        return float(text)
    if kind == "set":
        return text.split(",") if text else []
    if kind == "json":
        return json.loads(text)
    if kind in BINARY:
        return base64.b64encode(bytes.fromhex(text)).decode()
    return text


def _json_check(kinds: Kinds, row: Row) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        found = json.loads(value)
        return list(found) == list(kinds) and all(
            _same(kind, found[name], _plain(kind, row[name])) for name, kind in kinds.items()
        )

    return check


def _same(kind: str, found: Any, wanted: Any) -> bool:
    if kind == "float":
        found = _float32(found)
    # True and 1 are not the same.
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _msgpack_check(kinds: Kinds, row: Row) -> Callable[[Any], bool]:
    names = {"id": "id", "n": "number", "s": "s"}

    def check(value: Any) -> bool:
        found = msgspec.msgpack.decode(value)
        wanted = {}
        for name, kind in kinds.items():
            if name in names:
                plain = _plain(kind, row[name])
                if kind in BINARY and row[name] is not None:
                    plain = bytes.fromhex(row[name])
                if kind == "float":
                    found[names[name]] = _float32(found[names[name]])
                wanted[names[name]] = plain
        return bool(found == wanted)

    return check


def _hash_check(kinds: Kinds, row: Row) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        found = {name.decode(): field for name, field in value.items()}
        wanted = {name for name in kinds if row[name] is not None}
        return found.keys() == wanted and all(
            _raw_check(kinds[name], row[name])(found[name]) for name in wanted
        )

    return check


def _raw_check(kind: str, text: str) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if kind in BINARY:
            return bool(value == bytes.fromhex(text))
        if kind in INTEGERS:
            # SELECT prints the YEAR 0 and what is ZEROFILL with more zeros.
            return int(value) == int(text)
        if kind == "float":
            return bool(_float32(value) == _float32(text))
        if kind == "double":
            return float(value) == float(text)
        if kind == "json":
            return bool(json.loads(value) == json.loads(text))
        return bool(value.decode() == text)

    return check
