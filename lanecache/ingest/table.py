"""TABLE_MAP events: a table's name, column types and optional metadata, as one immutable value.

Layout: MySQL ``libs/mysql/binlog/event/rows_event.h`` (class ``Table_map_event``), MariaDB
``sql/log_event_server.cc`` (``Table_map_log_event::init_metadata_fields``). Where the server logs
minimal metadata, ``lanecache.ingest.completion`` adds what ``information_schema`` says.
"""

from __future__ import annotations

import re

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.charsets import BINARY, charset_of_collation

# Column types (MySQL include/field_types.h, MariaDB include/mysql_com.h).
TINY, SHORT, LONG, FLOAT, DOUBLE, NULL, TIMESTAMP, LONGLONG, INT24 = 1, 2, 3, 4, 5, 6, 7, 8, 9
DATE, TIME, DATETIME, YEAR, NEWDATE, VARCHAR, BIT, TIMESTAMP2 = 10, 11, 12, 13, 14, 15, 16, 17
DATETIME2, TIME2 = 18, 19
BLOB_COMPRESSED, VARCHAR_COMPRESSED = 140, 141
VECTOR, JSON, NEWDECIMAL, ENUM, SET = 242, 245, 246, 247, 248
TINY_BLOB, MEDIUM_BLOB, LONG_BLOB, BLOB, VAR_STRING, STRING, GEOMETRY = range(249, 256)

NUMERIC = frozenset({TINY, SHORT, INT24, LONG, LONGLONG, NEWDECIMAL, FLOAT, DOUBLE, YEAR})
CHARACTER = frozenset(
    {STRING, VAR_STRING, VARCHAR, BLOB, TINY_BLOB, MEDIUM_BLOB, LONG_BLOB}
    | {BLOB_COMPRESSED, VARCHAR_COMPRESSED}
)
ZEROFILL, UNPROVEN_ZEROFILL = "zerofill", "zerofill?"
"""What ``sql_type`` is for a DECIMAL that is, or may be, filled up with zeros."""

# MariaDB's temporal types of before MySQL 5.6, which may hide fraction digits.
OLD_TEMPORAL = frozenset({TIMESTAMP, TIME, DATETIME})
_HIDDEN_TYPE_BYTES = frozenset({4, 16})
IMPLICIT_HISTORY = ("row_start", "row_end")
GENERATED_KEY = "my_row_id"
_ROW_HASH = re.compile(r"DB_ROW_HASH_[0-9]+")
_HISTORY_DIGITS = 6
_METADATA_BYTES = {
    FLOAT: 1, DOUBLE: 1, BLOB: 1, TINY_BLOB: 1, MEDIUM_BLOB: 1, LONG_BLOB: 1, JSON: 1,
    GEOMETRY: 1, VECTOR: 1, BLOB_COMPRESSED: 1, TIMESTAMP2: 1, DATETIME2: 1, TIME2: 1,
    VARCHAR: 2, VARCHAR_COMPRESSED: 2, VAR_STRING: 2, STRING: 2, ENUM: 2, SET: 2, BIT: 2,
    NEWDECIMAL: 2,
}  # fmt: skip

_SIGNEDNESS, _DEFAULT_CHARSET, _COLUMN_CHARSET, _COLUMN_NAME = 1, 2, 3, 4
_SET_STR_VALUE, _ENUM_STR_VALUE, _SIMPLE_PRIMARY_KEY, _PRIMARY_KEY_WITH_PREFIX = 5, 6, 8, 9
_ENUM_AND_SET_DEFAULT_CHARSET, _ENUM_AND_SET_COLUMN_CHARSET = 10, 11


class ColumnType(msgspec.Struct, frozen=True):
    """One column as the table map has it.

    ``type`` is the real type (``ENUM`` and ``SET`` are told apart from ``STRING``); ``length`` the
    greatest number of bytes of a string, the packed bytes of an ENUM or SET, or the bytes of a
    length prefix for blobs; ``precision`` and ``scale`` those of DECIMAL, ``scale`` also the
    fraction digits of a time; ``bits`` those of BIT. ``name``, ``charset``, ``unsigned`` and
    ``labels`` are ``None`` where the binlog does not say.

    ``sql_type`` is the name of the type where ``type`` does not settle it, and empty where it has
    to come from the schema: MariaDB's INET4, INET6 and UUID look like BINARY(4) and BINARY(16), its
    old temporal types do not tell their fraction digits, and a DECIMAL UNSIGNED may be ZEROFILL.

    ``hidden``: the server has it for itself, and no ``SELECT *`` gives it. ``virtual``: it is
    computed as it is read, as far as the schema was asked.
    """

    type: int
    nullable: bool
    length: int = 0
    precision: int = 0
    scale: int = 0
    bits: int = 0
    unsigned: bool | None = None
    charset: str | None = None
    name: str | None = None
    labels: tuple[bytes, ...] | None = None
    sql_type: str | None = None
    hidden: bool = False
    virtual: bool = False


class TableMap(msgspec.Struct, frozen=True):
    """A TABLE_MAP event without its table id.

    ``row_end`` is the column that holds the end of a row's life in a system-versioned table of
    MariaDB, whose rows of the past are in the binlog as well; ``may_be_versioned`` says that only
    the schema tells whether there is one. ``perhaps_hidden`` are columns whose ``hidden`` is what
    it most likely is, until the schema tells.
    """

    schema: str
    table: str
    columns: tuple[ColumnType, ...]
    primary_key: tuple[int, ...] = ()
    row_end: int | None = None
    may_be_versioned: bool = False
    perhaps_hidden: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether names, signedness, character sets, labels and widths are all there."""
        return not self.may_be_versioned and all(
            column.name is not None
            and (column.type not in NUMERIC or column.unsigned is not None)
            and (column.type not in CHARACTER or column.charset is not None)
            and (column.type not in (ENUM, SET) or column.labels is not None)
            and (column.type not in OLD_TEMPORAL or column.sql_type != "")
            for column in self.columns
        )

    @property
    def undecided(self) -> bool:
        """Whether a column's type is known by its width only, or not whether it is shown."""
        return bool(self.perhaps_hidden) or any(column.sql_type == "" for column in self.columns)


def same_shape(one: TableMap, other: TableMap) -> bool:
    """Tell whether two maps of a table have the same columns, as far as both of them say."""
    return len(one.columns) == len(other.columns) and all(
        (a.type, a.nullable, a.length, a.precision, a.scale, a.bits)
        == (b.type, b.nullable, b.length, b.precision, b.scale, b.bits)
        and all(
            mine is None or theirs is None or mine == theirs
            for mine, theirs in (
                (a.name, b.name),
                (a.unsigned, b.unsigned),
                (a.charset, b.charset),
                (a.labels, b.labels),
            )
        )
        for a, b in zip(one.columns, other.columns, strict=True)
    )


def parse_table_map(body: bytes, *, mariadb: bool) -> TableMap:
    """Parse the body of a TABLE_MAP event behind its table id and flags.

    ``mariadb`` settles what the two servers do differently: MariaDB counts GEOMETRY and MySQL
    VECTOR among the columns that have a character set, and MariaDB has types and tables that its
    binlog does not name.

    Raises:
        BinlogError: the bytes are not a table map.
    """
    try:
        return _parse(body, mariadb=mariadb)
    except (IndexError, ValueError) as error:
        raise BinlogError(f"a table map cannot be read: {error}") from error


def _parse(body: bytes, *, mariadb: bool) -> TableMap:
    schema, pos = _short_text(body, 0)
    table, pos = _short_text(body, pos)
    count, pos = packed_int(body, pos)
    types = _take(body, pos, count)
    pos += count
    size, pos = packed_int(body, pos)
    metadata = _take(body, pos, size)
    pos += size
    null_bytes = (count + 7) // 8
    nullable = int.from_bytes(_take(body, pos, null_bytes), "little")
    pos += null_bytes

    columns: list[ColumnType] = []
    at = 0
    for index, kind in enumerate(types):
        width = _METADATA_BYTES.get(kind, 0)
        columns.append(
            _column(kind, _take(metadata, at, width), nullable=bool(nullable >> index & 1))
        )
        at += width
    if at != size:
        raise ValueError(f"column metadata of {size} bytes, {at} expected")
    fields: dict[int, bytes] = {}
    while pos < len(body):
        tag = body[pos]
        length, pos = packed_int(body, pos + 1)
        fields[tag] = _take(body, pos, length)
        pos += length
    table_map = TableMap(
        schema=schema,
        table=table,
        columns=_with_metadata(columns, fields, mariadb=mariadb),
        primary_key=_primary_key(fields, count),
    )
    return _with_doubts(table_map, mariadb=mariadb)


def _with_doubts(table_map: TableMap, *, mariadb: bool) -> TableMap:
    """Mark what the binlog leaves open (MariaDB: ``Field_fbt``, ``Vers_parse_info``)."""
    columns = tuple(
        msgspec.structs.replace(column, sql_type="")
        if (column.type == NEWDECIMAL and column.unsigned is not False)
        or (mariadb and column.type in OLD_TEMPORAL)
        or (
            mariadb
            and column.type == STRING
            and column.charset in (BINARY, None)
            and column.length in _HIDDEN_TYPE_BYTES
        )
        else column
        for column in table_map.columns
    )
    if not mariadb:
        return msgspec.structs.replace(
            table_map, columns=columns, perhaps_hidden=_generated_key(columns)
        )
    columns = _with_hidden_hashes(columns)
    shown = sum(not column.hidden for column in columns)
    ends = [index for index, column in enumerate(columns) if may_end_history(column)]
    # A column of one's own may be called like a hash: the schema tells, where it can be asked.
    hashes = tuple(index for index, column in enumerate(columns) if column.hidden)
    if len(ends) < 2:
        return msgspec.structs.replace(table_map, columns=columns, perhaps_hidden=hashes)
    history = (shown - 2, shown - 1)
    if (
        tuple(columns[index].name for index in history) == IMPLICIT_HISTORY
        and tuple(ends[-2:]) == history
    ):
        # Nobody else names them so. Should a table that is not versioned do so, those of its rows
        # that look like history are not cached. WITH SYSTEM VERSIONING adds them by itself, unless
        # they were declared.
        return msgspec.structs.replace(
            table_map,
            columns=tuple(
                msgspec.structs.replace(column, hidden=column.hidden or index in history)
                for index, column in enumerate(columns)
            ),
            row_end=ends[-1],
            perhaps_hidden=(*history, *hashes),
        )
    # The end of a row's life is a part of the primary key, if there is one.
    key = table_map.primary_key
    return msgspec.structs.replace(
        table_map,
        columns=columns,
        perhaps_hidden=hashes,
        may_be_versioned=not key or any(index in key for index in ends),
    )


def _with_hidden_hashes(columns: tuple[ColumnType, ...]) -> tuple[ColumnType, ...]:
    """Mark the hashes by which MariaDB tells rows of a long UNIQUE apart, behind all else.

    Its ``add_hash_field`` (``sql/sql_table.cc``) makes a virtual column of each, which it hides.
    """
    shown = len(columns)
    while shown and is_row_hash(columns[shown - 1]):
        shown -= 1
    return columns[:shown] + tuple(
        msgspec.structs.replace(column, hidden=True) for column in columns[shown:]
    )


def is_row_hash(column: ColumnType) -> bool:
    """Whether a column has the name and type of such a hash."""
    return may_be_row_hash(column) and _ROW_HASH.fullmatch(column.name or "") is not None


def may_be_row_hash(column: ColumnType) -> bool:
    """Whether a column has the type of such a hash, and another name at most for want of one."""
    return column.type == LONGLONG and column.nullable and column.unsigned is not False


def _generated_key(columns: tuple[ColumnType, ...]) -> tuple[int, ...]:
    """Find the primary key that MySQL adds by itself, and shows or not as its settings say."""
    if columns and columns[0].name == GENERATED_KEY and may_be_generated_key(columns[0]):
        return (0,)
    return ()


def may_be_generated_key(column: ColumnType) -> bool:
    """Whether a column has the type of that key (``sql_generate_invisible_primary_key``)."""
    return column.type == LONGLONG and not column.nullable and column.unsigned is not False


def may_end_history(column: ColumnType) -> bool:
    return (
        column.type in (TIMESTAMP, TIMESTAMP2)
        and not column.nullable
        and (column.scale == _HISTORY_DIGITS or column.type == TIMESTAMP)
    )


def _column(kind: int, metadata: bytes, *, nullable: bool) -> ColumnType:
    if kind in (VARCHAR, VARCHAR_COMPRESSED, VAR_STRING):
        return ColumnType(kind, nullable, length=metadata[0] | metadata[1] << 8)
    if kind in (STRING, ENUM, SET):
        # Field_string::do_save_field_metadata: two bits of a long CHAR's length are folded,
        # inverted, into the type byte.
        real, length = metadata[0], metadata[1]
        if real & 0x30 != 0x30:
            length |= ((real & 0x30) ^ 0x30) << 4
            real |= 0x30
        return ColumnType(real, nullable, length=length)
    if kind == NEWDECIMAL:
        return ColumnType(kind, nullable, precision=metadata[0], scale=metadata[1])
    if kind == BIT:
        return ColumnType(kind, nullable, bits=metadata[0] + 8 * metadata[1])
    if kind in (TIME2, DATETIME2, TIMESTAMP2):
        return ColumnType(kind, nullable, scale=metadata[0])
    return ColumnType(kind, nullable, length=metadata[0] if metadata else 0)


def _with_metadata(
    columns: list[ColumnType], fields: dict[int, bytes], *, mariadb: bool
) -> tuple[ColumnType, ...]:
    changes: list[dict[str, object]] = [{} for _ in columns]
    of_type = [column.type for column in columns]

    if _SIGNEDNESS in fields:
        bits = fields[_SIGNEDNESS]
        numeric = [i for i, kind in enumerate(of_type) if kind in NUMERIC]
        if len(bits) < (len(numeric) + 7) // 8:
            raise ValueError("the signedness bitmap is too short")
        for nth, index in enumerate(numeric):
            changes[index]["unsigned"] = bool(bits[nth >> 3] << (nth & 7) & 0x80)

    character = [
        i
        for i, kind in enumerate(of_type)
        if kind in CHARACTER or kind == (GEOMETRY if mariadb else VECTOR)
    ]
    for indexes, default, each in (
        (character, _DEFAULT_CHARSET, _COLUMN_CHARSET),
        (
            [i for i, kind in enumerate(of_type) if kind in (ENUM, SET)],
            _ENUM_AND_SET_DEFAULT_CHARSET,
            _ENUM_AND_SET_COLUMN_CHARSET,
        ),
    ):
        for nth, collation in _collations(fields, default, each, len(indexes)):
            changes[indexes[nth]]["charset"] = charset_of_collation(collation)

    if _COLUMN_NAME in fields:
        names = _texts(fields[_COLUMN_NAME])
        if len(names) != len(columns):
            raise ValueError(f"{len(names)} names for {len(columns)} columns")
        for index, name in enumerate(names):
            changes[index]["name"] = name.decode("utf-8")

    for kind, tag in ((ENUM, _ENUM_STR_VALUE), (SET, _SET_STR_VALUE)):
        if tag in fields:
            lists = _label_lists(fields[tag])
            indexes = [i for i, found in enumerate(of_type) if found == kind]
            if len(lists) != len(indexes):
                raise ValueError(f"{len(lists)} lists of labels for {len(indexes)} columns")
            for index, labels in zip(indexes, lists, strict=True):
                changes[index]["labels"] = labels
    return tuple(
        msgspec.structs.replace(column, **change) if change else column
        for column, change in zip(columns, changes, strict=True)
    )


def _collations(
    fields: dict[int, bytes], default: int, each: int, count: int
) -> list[tuple[int, int]]:
    """Give (index among the columns concerned, collation) pairs; none if the binlog is silent."""
    if each in fields:
        numbers = _packed_ints(fields[each])
        if len(numbers) != count:
            raise ValueError(f"{len(numbers)} collations for {count} columns")
        return list(enumerate(numbers))
    if default in fields:
        numbers = _packed_ints(fields[default])
        found = dict.fromkeys(range(count), numbers[0])
        pairs = numbers[1:]
        for index, collation in zip(pairs[::2], pairs[1::2], strict=True):
            if index >= count:
                raise ValueError(f"a collation for column {index} of {count}")
            found[index] = collation
        return list(found.items())
    return []


def _primary_key(fields: dict[int, bytes], count: int) -> tuple[int, ...]:
    if _SIMPLE_PRIMARY_KEY in fields:
        key = _packed_ints(fields[_SIMPLE_PRIMARY_KEY])
    elif _PRIMARY_KEY_WITH_PREFIX in fields:
        key = _packed_ints(fields[_PRIMARY_KEY_WITH_PREFIX])[::2]
    else:
        return ()
    if any(index >= count for index in key):
        raise ValueError("the primary key names a column that is not there")
    return tuple(key)


def packed_int(data: bytes, pos: int) -> tuple[int, int]:
    """Read a length-encoded integer at ``pos``; give it and the position behind it."""
    if pos >= len(data):
        raise ValueError("a length-encoded integer is cut off")
    first = data[pos]
    if first < 0xFB:
        return first, pos + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first)
    if width is None:
        raise ValueError(f"byte {first:#x} begins no length-encoded integer")
    return int.from_bytes(_take(data, pos + 1, width), "little"), pos + 1 + width


def _packed_ints(data: bytes) -> list[int]:
    found = []
    pos = 0
    while pos < len(data):
        value, pos = packed_int(data, pos)
        found.append(value)
    return found


def _texts(data: bytes) -> list[bytes]:
    found = []
    pos = 0
    while pos < len(data):
        length, pos = packed_int(data, pos)
        found.append(_take(data, pos, length))
        pos += length
    return found


def _label_lists(data: bytes) -> list[tuple[bytes, ...]]:
    lists = []
    pos = 0
    while pos < len(data):
        count, pos = packed_int(data, pos)
        labels = []
        for _ in range(count):
            length, pos = packed_int(data, pos)
            labels.append(_take(data, pos, length))
            pos += length
        lists.append(tuple(labels))
    return lists


def _short_text(data: bytes, pos: int) -> tuple[str, int]:
    length = data[pos]
    text = _take(data, pos + 1, length).decode("utf-8")
    if data[pos + 1 + length] != 0:
        raise ValueError("a name does not end with a zero byte")
    return text, pos + length + 2


def _take(data: bytes, pos: int, length: int) -> bytes:
    part = data[pos : pos + length]
    if len(part) != length:
        raise ValueError(f"{length} bytes wanted at {pos}, {len(part)} there")
    return part
