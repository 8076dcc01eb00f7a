"""Table maps completed by ``information_schema``: what the binlog leaves out, behind a guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.ingest import table as t
from lanecache.ingest.charsets import BINARY
from lanecache.ingest.schema import hidden_number, hidden_timestamp

if TYPE_CHECKING:
    from lanecache.ingest.schema import ColumnFacts
    from lanecache.ingest.table import ColumnType, TableMap

_SCHEMA_TYPES: dict[str, frozenset[int]] = {
    name: frozenset(kinds)
    for name, kinds in {
        "tinyint": (t.TINY,), "smallint": (t.SHORT,), "int": (t.LONG,), "mediumint": (t.INT24,),
        "bigint": (t.LONGLONG,), "float": (t.FLOAT,), "double": (t.DOUBLE,), "year": (t.YEAR,),
        "decimal": (t.NEWDECIMAL,), "bit": (t.BIT,), "date": (t.DATE, t.NEWDATE),
        "time": (t.TIME, t.TIME2), "datetime": (t.DATETIME, t.DATETIME2),
        "timestamp": (t.TIMESTAMP, t.TIMESTAMP2), "char": (t.STRING,), "binary": (t.STRING,),
        "varchar": (t.VARCHAR, t.VAR_STRING, t.VARCHAR_COMPRESSED),
        "varbinary": (t.VARCHAR, t.VAR_STRING, t.VARCHAR_COMPRESSED),
        "enum": (t.ENUM,), "set": (t.SET,), "json": (t.JSON, t.BLOB), "inet4": (t.STRING,),
        "inet6": (t.STRING,), "uuid": (t.STRING,), "vector": (t.VECTOR, t.VARCHAR),
    }.items()
}  # fmt: skip
_BLOB_TYPES = frozenset({t.BLOB, t.BLOB_COMPRESSED})
_GEOMETRY_NAMES = frozenset(
    {"geometry", "point", "linestring", "polygon", "multipoint", "multilinestring"}
    | {"multipolygon", "geometrycollection", "geomcollection"}
)
# MySQL before 8.0.30 and MariaDB call it utf8.
_CHARSET_ALIASES = {"utf8": "utf8mb3"}
_BLOB_PREFIX_BYTES = {"tiny": 1, "": 2, "medium": 3, "long": 4}


def with_schema(
    table_map: TableMap,
    schema: Sequence[ColumnFacts],
    *,
    mariadb: bool = True,
    row_hashes_max: int = 0,
) -> TableMap | str:
    """Complete a table map that has minimal metadata with what ``information_schema`` says.

    It also settles what no table map tells (see ``ColumnType.sql_type`` and
    ``TableMap.may_be_versioned``, ``TableMap.perhaps_hidden``). Gives a sentence in place of a
    table map when the two do not describe the same columns: the schema is today's, the event may be
    older, and a wrong pairing would be a lie (law 1). What the event itself says always wins over
    the schema.
    """
    where = f"{table_map.schema}.{table_map.table}"
    found = _with_hidden(table_map, schema, mariadb=mariadb, row_hashes_max=row_hashes_max)
    if len(found) != len(table_map.columns):
        return f"{where} has {len(schema)} columns today and {len(table_map.columns)} in the binlog"
    columns = []
    for column, today in zip(table_map.columns, found, strict=True):
        if not _same_type(column, today):
            return (
                f"{where}.{today.name} is {today.column_type or today.data_type} today and"
                f" something else in the binlog (type {column.type})"
            )
        filled: dict[str, object] = {}
        if column.name is None:
            filled["name"] = today.name
        if column.unsigned is None and column.type in t.NUMERIC:
            filled["unsigned"] = today.unsigned
        if column.labels is None and column.type in (t.ENUM, t.SET):
            # Labels from the schema are UTF-8, whatever the column's own character set.
            filled["labels"] = tuple(label.encode("utf-8") for label in today.labels)
            filled["charset"] = "utf8mb4"
        elif column.charset is None and column.type in t.CHARACTER:
            filled["charset"] = _CHARSET_ALIASES.get(
                today.charset or BINARY, today.charset or BINARY
            )
        if column.sql_type == "":
            zerofill = column.type == t.NEWDECIMAL and "zerofill" in today.column_type.lower()
            filled["sql_type"] = t.ZEROFILL if zerofill else today.data_type
        if column.hidden != today.hidden:
            filled["hidden"] = today.hidden
        if today.generated == "virtual":
            filled["virtual"] = True
        columns.append(msgspec.structs.replace(column, **filled))
    row_end = [index for index, today in enumerate(found) if today.ends_history]
    key = sorted(
        (today.primary_key_index, index)
        for index, today in enumerate(found)
        if today.primary_key_index is not None
    )
    return msgspec.structs.replace(
        table_map,
        columns=tuple(columns),
        primary_key=table_map.primary_key or tuple(index for _, index in key),
        row_end=row_end[0] if row_end else None,
        may_be_versioned=False,
        perhaps_hidden=(),
    )


def _with_hidden(
    table_map: TableMap, schema: Sequence[ColumnFacts], *, mariadb: bool, row_hashes_max: int
) -> list[ColumnFacts]:
    """Add to the columns that the schema shows those that it does not show, where they fit."""
    found, columns = list(schema), table_map.columns
    if not mariadb:
        if (
            len(found) == len(columns) - 1
            and t.may_be_generated_key(columns[0])
            and all(today.primary_key_index is None for today in found)
        ):
            found.insert(0, hidden_number(t.GENERATED_KEY, 0))
        return found
    rest = columns[len(found) :]
    if len(rest) >= 2 and all(map(t.may_end_history, rest[:2])):
        # WITH SYSTEM VERSIONING adds these two by itself.
        found += [hidden_timestamp(name) for name in t.IMPLICIT_HISTORY]
        rest = rest[2:]
    # Where the binlog does not name them, there are no more of them than keys that need one.
    named = all(map(t.is_row_hash, rest))
    if named or (len(rest) <= row_hashes_max and all(map(t.may_be_row_hash, rest))):
        found += [hidden_number(f"DB_ROW_HASH_{nth}") for nth, _ in enumerate(rest, start=1)]
    return found


def with_unproven_schema(table_map: TableMap, completed: TableMap) -> TableMap:
    """Take from a schema that may be another one than that of the event what has to be feared.

    A DECIMAL that is ZEROFILL in it cannot be given. One that is not was none, or becomes none by
    a later DDL, which clears the table's keys; and so does one by which a column is hidden or
    VIRTUAL, or not any more.
    """
    return msgspec.structs.replace(
        table_map,
        columns=tuple(
            msgspec.structs.replace(
                column,
                hidden=known.hidden,
                virtual=known.virtual,
                sql_type=t.UNPROVEN_ZEROFILL if known.sql_type == t.ZEROFILL else column.sql_type,
            )
            for column, known in zip(table_map.columns, completed.columns, strict=True)
        ),
    )


def _same_type(column: ColumnType, today: ColumnFacts) -> bool:
    name = today.data_type
    if name in _GEOMETRY_NAMES:
        return column.type == t.GEOMETRY
    if name.endswith(("blob", "text")):
        prefix = _BLOB_PREFIX_BYTES.get(name[:-4])
        return column.type in _BLOB_TYPES and column.length == prefix
    if column.type not in _SCHEMA_TYPES.get(name, frozenset()):
        return False
    match column.type:
        case kind if kind == t.NEWDECIMAL:
            return (column.precision, column.scale) == (
                today.numeric_precision,
                today.numeric_scale,
            )
        case kind if kind in (t.TIME2, t.DATETIME2, t.TIMESTAMP2):
            return column.scale == (today.datetime_precision or 0)
        case kind if kind in t.OLD_TEMPORAL:
            # With fraction digits they are of another width, and of another layout.
            return not today.datetime_precision
        case kind if kind == t.VARCHAR_COMPRESSED and today.octet_length is not None:
            return column.length == today.octet_length + 1
        case kind if kind == t.BIT:
            return column.bits == today.numeric_precision
        case kind if kind in (t.VARCHAR, t.VAR_STRING, t.STRING) and today.octet_length is not None:
            return name in ("inet4", "inet6", "uuid") or column.length == today.octet_length
        case kind if kind in (t.ENUM, t.SET):
            count = len(today.labels)
            if kind == t.ENUM:
                return column.length == (1 if count < 256 else 2)
            return column.length == _set_bytes(count)
    return True


def _set_bytes(count: int) -> int:
    width = (count + 7) // 8
    return 8 if width > 4 else width
