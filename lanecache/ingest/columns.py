"""What the row decoders know of each column type: how to step over it, and how to give its forms.

A ``ColumnCode`` holds fragments of Python source. In them, ``raw`` is what was read of the row;
``base`` makes the column's plain value of it, ``forms`` the wanted forms of that value, ``{}``
standing for the variable. The fragments run in a namespace that ``CODE_NAMES`` and the column's own
``names`` make up.
"""

from __future__ import annotations

import struct
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

import msgspec

from lanecache.errors import SchemaUnknown
from lanecache.ingest import table as t
from lanecache.ingest.charsets import BINARY, text_decoder
from lanecache.ingest.json_binary import json_document_text
from lanecache.ingest.json_diff import apply_json_diff
from lanecache.ingest.values import (
    HOURS,
    MINUTES,
    TWO_DIGITS,
    binary_decimal_text,
    date_text,
    dates,
    datetime2_text,
    decimal_size_bytes,
    encode_json,
    float_text,
    fraction_size_bytes,
    inet4_text,
    inet6_text,
    json_text,
    old_datetime_text,
    old_time_text,
    time2_text,
    timestamp2_text,
    timestamp_text,
    unpack_column,
    uuid_text,
)
from lanecache.row import ColumnForm, ColumnKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from lanecache.ingest.table import ColumnType

JSON, TEXT, RAW = ColumnForm.JSON, ColumnForm.TEXT, ColumnForm.RAW


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


CODE_NAMES: dict[str, Any] = {
    "HOURS": HOURS,
    "MINUTES": MINUTES,
    "TWO_DIGITS": TWO_DIGITS,
    "apply_json_diff": apply_json_diff,
    "base64": _base64,
    "binary_decimal_text": binary_decimal_text,
    "date_text": date_text,
    "datetime2_text": datetime2_text,
    "dates": dates,
    "float_text": float_text,
    "encode_json": encode_json,
    "from_bytes": int.from_bytes,
    "inet4_text": inet4_text,
    "inet6_text": inet6_text,
    "json_document_text": json_document_text,
    "json_text": json_text,
    "old_datetime_text": old_datetime_text,
    "old_time_text": old_time_text,
    "time2_text": time2_text,
    "timestamp2_text": timestamp2_text,
    "timestamp_text": timestamp_text,
    "unpack_column": unpack_column,
    "uuid_text": uuid_text,
}


class ColumnCode(msgspec.Struct, frozen=True):
    """How one column is read.

    ``size_bytes`` is that of a fixed-size column, which ``layout`` reads (``struct`` codes, little
    endian); otherwise the value stands behind a length of ``prefix_bytes``. ``unreadable`` is a
    reason why no value of this column can be given; stepping over it is still possible.
    """

    kind: ColumnKind
    size_bytes: int = 0
    layout: str = ""
    prefix_bytes: int = 0
    base: str = "raw"
    forms: dict[ColumnForm, str] = {}
    names: dict[str, Any] = {}
    unreadable: str = ""


_NUMBER = {JSON: "{}", TEXT: "{}", RAW: "b'%d' % {}"}
_NUMBER_TEXT = {JSON: "{}", TEXT: "{}", RAW: "{}.encode()"}
_QUOTED = {JSON: "'\"' + {} + '\"'", TEXT: "{}", RAW: "{}.encode()"}
_STRING = {JSON: "encode_json({}).decode()", TEXT: "{}", RAW: "{}.encode()"}
_BYTES = {JSON: "'\"' + base64({}) + '\"'", TEXT: "{}.hex()", RAW: "{}"}

_INTEGERS = {t.TINY: "b", t.SHORT: "h", t.LONG: "i", t.LONGLONG: "q"}
_BLOBS = frozenset({t.TINY_BLOB, t.MEDIUM_BLOB, t.LONG_BLOB, t.BLOB, t.BLOB_COMPRESSED})
_COMPRESSED = frozenset({t.BLOB_COMPRESSED, t.VARCHAR_COMPRESSED})


def column_code(column: ColumnType, index: int) -> ColumnCode:
    """Give the code for one column; ``index`` keeps its own names apart from the others'.

    Raises:
        SchemaUnknown: the type is not known, so that not even its length can be told.
    """
    maker = _MAKERS.get(column.type)
    if maker is None:
        raise SchemaUnknown(f"column type {column.type} is not known")
    return maker(column, index)


def _integer(column: ColumnType, index: int) -> ColumnCode:
    code = _INTEGERS[column.type]
    return ColumnCode(
        ColumnKind.INTEGER,
        size_bytes=struct.calcsize(f"<{code}"),
        layout=code.upper() if column.unsigned else code,
        forms=_NUMBER,
    )


def _integer24(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.INTEGER,
        size_bytes=3,
        layout="3s",
        base=f"from_bytes(raw, 'little', signed={not column.unsigned})",
        forms=_NUMBER,
    )


def _year(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.INTEGER,
        size_bytes=1,
        layout="B",
        base="(raw + 1900 if raw else 0)",
        forms=_NUMBER,
    )


def _bit(column: ColumnType, index: int) -> ColumnCode:
    size = (column.bits + 7) // 8
    return ColumnCode(
        ColumnKind.INTEGER,
        size_bytes=size,
        layout=f"{size}s",
        base="from_bytes(raw, 'big')",
        forms=_NUMBER,
    )


# ``values.double_text``, without the call.
_DOUBLE_TEXT = "(text[:-2] if (text := repr(raw))[-2:] == '.0' else text)"


def _floating(column: ColumnType, index: int) -> ColumnCode:
    double = column.type == t.DOUBLE
    return ColumnCode(
        ColumnKind.FLOAT,
        size_bytes=8 if double else 4,
        layout="d" if double else "f",
        base=_DOUBLE_TEXT if double else "float_text(raw)",
        forms=_NUMBER_TEXT,
    )


def _decimal(column: ColumnType, index: int) -> ColumnCode:
    precision, scale = column.precision, column.scale
    size = decimal_size_bytes(precision, scale)
    slow = f"binary_decimal_text(raw, {precision}, {scale})"
    base = slow
    if precision - scale <= 9 and 0 < scale <= 9 and precision > scale:
        # Two groups at most, and no sign: the usual price needs no loop.
        low = decimal_size_bytes(scale, scale) * 8
        sign = 1 << (size * 8 - 1)
        rest = f"number & {(1 << low) - 1}"
        # Most are amounts of money.
        rest = f"{{TWO_DIGITS[{rest}]}}" if scale == 2 else f"{{{rest}:0{scale}d}}"
        base = (
            f"(f'{{(number ^ {sign}) >> {low}}}.{rest}'"
            f" if (number := from_bytes(raw, 'big')) & {sign} else {slow})"
        )
    reason = ""
    if column.sql_type == t.ZEROFILL:
        base = f"{slow}.zfill({precision + bool(scale)})"
    elif column.sql_type == t.UNPROVEN_ZEROFILL:
        reason = "the binlog does not tell whether the column was ZEROFILL then, as it is today"
    return ColumnCode(
        ColumnKind.DECIMAL,
        size_bytes=size,
        layout=f"{size}s",
        base=base,
        forms=_QUOTED,
        unreadable=reason,
    )


def _big_endian(size: int, call: str) -> ColumnCode:
    return ColumnCode(
        ColumnKind.TIME,
        size_bytes=size,
        layout=f"{size}s",
        base=call.format("from_bytes(raw, 'big')"),
        forms=_QUOTED,
    )


# ``values.datetime_text``, without the call.
_DATETIME_TEXT = (
    'f\'{dates[(number := from_bytes(raw, "big") - 0x8000000000) >> 17]}{HOURS[number >> 12 & 31]}'
    "{MINUTES[number >> 6 & 63]}{TWO_DIGITS[number & 63]}'"
)


def _datetime2(column: ColumnType, index: int) -> ColumnCode:
    digits = column.scale
    code = _big_endian(5 + fraction_size_bytes(digits), f"datetime2_text({{}}, {digits})")
    return code if digits else msgspec.structs.replace(code, base=_DATETIME_TEXT)


def _timestamp2(column: ColumnType, index: int) -> ColumnCode:
    digits = column.scale
    call = f"timestamp2_text({{}}, {digits})" if digits else "timestamp_text({})"
    return _big_endian(4 + fraction_size_bytes(digits), call)


def _time2(column: ColumnType, index: int) -> ColumnCode:
    digits = column.scale
    return _big_endian(3 + fraction_size_bytes(digits), f"time2_text({{}}, {digits})")


def _date(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.TIME,
        size_bytes=3,
        layout="3s",
        base="date_text(from_bytes(raw, 'little'))",
        forms=_QUOTED,
    )


def _old_timestamp(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.TIME, size_bytes=4, layout="I", base="timestamp_text(raw)", forms=_QUOTED
    )


def _old_time(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.TIME,
        size_bytes=3,
        layout="3s",
        base="old_time_text(from_bytes(raw, 'little', signed=True))",
        forms=_QUOTED,
    )


def _old_datetime(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.TIME, size_bytes=8, layout="Q", base="old_datetime_text(raw)", forms=_QUOTED
    )


_HIDDEN_TYPES = {"inet4": "inet4_text", "inet6": "inet6_text", "uuid": "uuid_text"}


def _fixed_binary(column: ColumnType, prefix_bytes: int) -> ColumnCode:
    # Trailing zeros of BINARY(n) are not in the row (Field_string::pack), but in its value.
    padded = f"raw.ljust({column.length}, b'\\0')" if column.length else "raw"
    hidden = _HIDDEN_TYPES.get(column.sql_type or "")
    if hidden is not None:
        return ColumnCode(
            ColumnKind.TEXT, prefix_bytes=prefix_bytes, base=f"{hidden}({padded})", forms=_QUOTED
        )
    reason = ""
    if column.sql_type == "":
        reason = (
            f"the binlog does not tell BINARY({column.length}) from"
            f" {'INET4' if column.length == 4 else 'INET6 and UUID'}, and the schema is not proven"
            " to be that of then"
        )
    return ColumnCode(
        ColumnKind.BINARY,
        prefix_bytes=prefix_bytes,
        base=padded,
        forms=_BYTES,
        unreadable=reason,
    )


def _characters(column: ColumnType, index: int, prefix_bytes: int) -> ColumnCode:
    raw = "unpack_column(raw)" if column.type in _COMPRESSED else "raw"
    if column.charset == BINARY:
        if column.type == t.STRING:
            return _fixed_binary(column, prefix_bytes)
        return ColumnCode(ColumnKind.BINARY, prefix_bytes=prefix_bytes, base=raw, forms=_BYTES)
    charset = column.charset or ""
    if charset in ("utf8mb4", "utf8mb3"):
        return ColumnCode(
            ColumnKind.TEXT, prefix_bytes=prefix_bytes, base=f"{raw}.decode()", forms=_STRING
        )
    decode = text_decoder(charset)
    return ColumnCode(
        ColumnKind.TEXT,
        prefix_bytes=prefix_bytes,
        base=f"decode_{index}({raw})",
        forms=_STRING,
        names={f"decode_{index}": decode},
        unreadable="" if decode else f"no exact decoder for the character set {charset!r}",
    )


def _varchar(column: ColumnType, index: int) -> ColumnCode:
    return _characters(column, index, 1 if column.length < 256 else 2)


def _blob(column: ColumnType, index: int) -> ColumnCode:
    return _characters(column, index, column.length)


def _json(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(
        ColumnKind.JSON,
        prefix_bytes=column.length,
        base="json_document_text(raw)",
        forms=_NUMBER_TEXT,
    )


def _bytes(column: ColumnType, index: int) -> ColumnCode:
    return ColumnCode(ColumnKind.BINARY, prefix_bytes=column.length, forms=_BYTES)


def _labels(column: ColumnType) -> tuple[str, ...] | str:
    """Give the labels of an ENUM or SET as text, or a sentence on why they can't be had."""
    if column.labels is None:
        return "the binlog does not name the labels"
    decode = text_decoder(column.charset or "utf8mb4")
    if decode is None:
        return f"no exact decoder for the character set {column.charset!r}"
    try:
        return tuple(decode(label) for label in column.labels)
    except UnicodeDecodeError:
        return f"a label is not valid in the character set {column.charset!r}"


def _enum(column: ColumnType, index: int) -> ColumnCode:
    labels = _labels(column)
    reason = labels if isinstance(labels, str) else ""
    texts = ("",) if isinstance(labels, str) else ("", *labels)
    return ColumnCode(
        ColumnKind.TEXT,
        size_bytes=column.length,
        layout="B" if column.length == 1 else "H",
        base=f"labels_{index}[raw]",
        forms=_STRING,
        names={f"labels_{index}": texts},
        unreadable=reason,
    )


def _set(column: ColumnType, index: int) -> ColumnCode:
    labels = _labels(column)
    reason = labels if isinstance(labels, str) else ""
    texts = () if isinstance(labels, str) else labels

    def members(bits: int) -> tuple[str, ...]:
        if bits >> len(texts):
            raise ValueError("a SET has a member without a label")
        return tuple(label for nth, label in enumerate(texts) if bits >> nth & 1)

    return ColumnCode(
        ColumnKind.SET,
        size_bytes=column.length,
        layout=f"{column.length}s",
        base=f"members_{index}(from_bytes(raw, 'little'))",
        forms={
            JSON: "'[' + ','.join(map(json_text, {})) + ']'",
            TEXT: "','.join({})",
            RAW: "','.join({}).encode()",
        },
        names={f"members_{index}": members},
        unreadable=reason,
    )


_MAKERS: dict[int, Callable[[ColumnType, int], ColumnCode]] = {
    **dict.fromkeys(_INTEGERS, _integer),
    **dict.fromkeys(_BLOBS, _blob),
    t.INT24: _integer24,
    t.YEAR: _year,
    t.BIT: _bit,
    t.FLOAT: _floating,
    t.DOUBLE: _floating,
    t.NEWDECIMAL: _decimal,
    t.DATETIME2: _datetime2,
    t.TIMESTAMP2: _timestamp2,
    t.TIME2: _time2,
    t.DATE: _date,
    t.NEWDATE: _date,
    t.TIMESTAMP: _old_timestamp,
    t.TIME: _old_time,
    t.DATETIME: _old_datetime,
    t.VARCHAR: _varchar,
    t.VARCHAR_COMPRESSED: _varchar,
    t.VAR_STRING: _varchar,
    t.STRING: _varchar,
    t.JSON: _json,
    t.GEOMETRY: _bytes,
    t.VECTOR: _bytes,
    t.ENUM: _enum,
    t.SET: _set,
}
