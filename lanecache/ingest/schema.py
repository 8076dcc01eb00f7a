"""A table's columns as ``information_schema`` tells them, for servers whose table maps do not.

Pure functions over result rows; the queries stand beside what reads their rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lanecache.ingest.facts import text_of
from lanecache.row import Column, ColumnKind, TableShape

if TYPE_CHECKING:
    from lanecache.operation import Position

COLUMNS_QUERY = """
SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, COLLATION_NAME, IS_NULLABLE,
       COLUMN_KEY, EXTRA, CHARACTER_MAXIMUM_LENGTH, CHARACTER_OCTET_LENGTH, DATETIME_PRECISION,
       NUMERIC_PRECISION, NUMERIC_SCALE, GENERATION_EXPRESSION
FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s
ORDER BY ORDINAL_POSITION
"""

# MariaDB before 10.2 says PERSISTENT.
STORED_COLUMNS_QUERY = """
SELECT DISTINCT TABLE_SCHEMA AS s, TABLE_NAME AS t FROM information_schema.COLUMNS
WHERE (EXTRA LIKE '%STORED%' OR EXTRA LIKE '%PERSISTENT%') AND TABLE_SCHEMA NOT IN
('mysql', 'sys', 'information_schema', 'performance_schema')
"""

PRIMARY_KEY_QUERY = """
SELECT COLUMN_NAME
FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND INDEX_NAME = 'PRIMARY'
ORDER BY SEQ_IN_INDEX
"""

_LABEL = re.compile(r"'((?:[^'\\]|''|\\.)*)'", re.DOTALL)
_ESCAPED = re.compile(r"''|\\(.)", re.DOTALL)
# What append_unescaped in the servers' sql/unireg.cc and sql/sql_show.cc writes with a backslash.
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "\\": "\\"}

_KINDS = {
    **dict.fromkeys(
        ("tinyint", "smallint", "mediumint", "int", "bigint", "year", "bit"), ColumnKind.INTEGER
    ),
    **dict.fromkeys(("float", "double"), ColumnKind.FLOAT),
    **dict.fromkeys(("date", "time", "datetime", "timestamp"), ColumnKind.TIME),
    **dict.fromkeys(("enum", "inet4", "inet6", "uuid"), ColumnKind.TEXT),
    "decimal": ColumnKind.DECIMAL,
    "set": ColumnKind.SET,
    "json": ColumnKind.JSON,
}


ROW_HASHES_QUERY = """
SELECT COUNT(DISTINCT INDEX_NAME) AS n
FROM information_schema.STATISTICS
WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND NON_UNIQUE = 0 AND INDEX_TYPE = 'HASH'
"""
"""MariaDB: how many keys may have a hidden column with a hash (the engine MEMORY has none)."""


class ColumnFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What ``information_schema`` says about one column.

    ``data_type`` is lower case (``bigint``), ``column_type`` the whole type as declared. Lengths
    are ``None`` where the type has none. ``labels`` are those of an enum or a set, in order.
    """

    name: str
    data_type: str
    column_type: str
    unsigned: bool
    charset: str | None
    collation: str | None
    labels: tuple[str, ...]
    nullable: bool
    generated: Literal["", "virtual", "stored"]
    invisible: bool
    compressed: bool  # MariaDB's column compression
    character_length: int | None
    octet_length: int | None
    datetime_precision: int | None
    numeric_precision: int | None
    numeric_scale: int | None
    primary_key_index: int | None
    """The place in the primary key, from 0 on; ``None`` for other columns."""
    ends_history: bool = False  # the ROW END of a system-versioned table of MariaDB
    hidden: bool = False  # not shown by information_schema, but known to be there


class SchemaReading(msgspec.Struct, frozen=True):
    """A table's columns as they were read, and what proves for which events they hold.

    They hold for everything after ``position``, where the binlog ended just after the reading, up
    to the table's next DDL; and for events later than ``changed_at`` (seconds since 1970, ``None``
    where the server does not tell it for certain), when the table was last changed before it.
    ``row_hashes_max`` is the number of hidden columns that the table's keys may add (MariaDB).
    """

    columns: tuple[ColumnFacts, ...]
    position: Position
    changed_at: int | None = None
    row_hashes_max: int = 0


def parse_columns(
    rows: Sequence[Mapping[str, Any]], primary_key: Sequence[str]
) -> list[ColumnFacts]:
    """Read the rows of ``COLUMNS_QUERY`` and the names of ``PRIMARY_KEY_QUERY``."""
    places = {name: index for index, name in enumerate(primary_key)}
    return [_parse_column(row, places) for row in rows]


def table_shape(schema: str, table: str, columns: Sequence[ColumnFacts]) -> TableShape:
    """Give the shape of a table as the lanes would see it if its rows came now."""
    key = [
        (column.primary_key_index, index)
        for index, column in enumerate(columns)
        if column.primary_key_index is not None
    ]
    return TableShape(
        schema,
        table,
        tuple(Column(column.name, _column_kind(column)) for column in columns),
        tuple(index for _, index in sorted(key)),
    )


def _column_kind(column: ColumnFacts) -> ColumnKind:
    kind = _KINDS.get(column.data_type)
    if kind is not None:
        return kind
    # What is left has a charset and is text, or has none: blobs, geometries, vectors.
    return ColumnKind.TEXT if column.charset is not None else ColumnKind.BINARY


def parse_labels(column_type: str) -> tuple[str, ...]:
    """Read the labels of ``enum('a','it''s','x,y')``; of any other type there are none."""
    kind, bracket, inside = column_type.partition("(")
    if not bracket or kind.strip().lower() not in ("enum", "set"):
        return ()
    return tuple(_ESCAPED.sub(_unescape, label) for label in _LABEL.findall(inside))


def _unescape(match: re.Match[str]) -> str:
    character = match[1]
    return "'" if character is None else _ESCAPES.get(character, match[0])


def _parse_column(row: Mapping[str, Any], places: Mapping[str, int]) -> ColumnFacts:
    data_type = text_of(row["DATA_TYPE"]).lower()
    column_type = text_of(row["COLUMN_TYPE"])
    extra = text_of(row["EXTRA"]).upper()
    labels = parse_labels(column_type)
    attributes = "" if labels else column_type.lower()
    generated: Literal["", "virtual", "stored"] = ""
    if "GENERATED" in extra and "DEFAULT_GENERATED" not in extra:
        generated = "virtual" if "VIRTUAL" in extra else "stored"
    name = text_of(row["COLUMN_NAME"])
    return ColumnFacts(
        name=name,
        data_type=data_type,
        column_type=column_type,
        unsigned="unsigned" in attributes or "zerofill" in attributes,
        charset=row["CHARACTER_SET_NAME"],
        collation=row["COLLATION_NAME"],
        labels=labels,
        nullable=row["IS_NULLABLE"] == "YES",
        generated=generated,
        invisible="INVISIBLE" in extra,
        compressed="COMPRESSED" in column_type.rpartition(")")[2] or "COMPRESSED*/" in column_type,
        character_length=_number(row["CHARACTER_MAXIMUM_LENGTH"]),
        octet_length=_number(row["CHARACTER_OCTET_LENGTH"]),
        datetime_precision=_number(row["DATETIME_PRECISION"]),
        numeric_precision=_number(row["NUMERIC_PRECISION"]),
        numeric_scale=_number(row["NUMERIC_SCALE"]),
        primary_key_index=places.get(name),
        ends_history=text_of(row.get("GENERATION_EXPRESSION") or "").upper() == "ROW END",
    )


def hidden_timestamp(name: str) -> ColumnFacts:
    """Give the facts of ``row_start`` or ``row_end``, which the schema of MariaDB does not show."""
    return _hidden(name, "timestamp", "timestamp(6)", digits=6)


def hidden_number(name: str, primary_key_index: int | None = None) -> ColumnFacts:
    """Give the facts of a BIGINT UNSIGNED that the schema does not show."""
    return _hidden(name, "bigint", "bigint unsigned", primary_key_index=primary_key_index)


def _hidden(
    name: str,
    data_type: str,
    column_type: str,
    *,
    digits: int | None = None,
    primary_key_index: int | None = None,
) -> ColumnFacts:
    return ColumnFacts(
        name=name,
        data_type=data_type,
        column_type=column_type,
        unsigned="unsigned" in column_type,
        charset=None,
        collation=None,
        labels=(),
        nullable=False,
        generated="stored",
        invisible=True,
        compressed=False,
        character_length=None,
        octet_length=None,
        datetime_precision=digits,
        numeric_precision=None,
        numeric_scale=None,
        primary_key_index=primary_key_index,
        ends_history=name == "row_end",
        hidden=True,
    )


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
