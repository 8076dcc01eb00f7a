"""MySQL's binary JSON to JSON text, exactly as ``SELECT`` would have it parsed.

Layout: MySQL ``sql-common/json_binary.h``. Numbers keep all their digits, opaque decimals and
times come out as MySQL prints them, keys stay in the document's order. Work and depth are bounded
by the size of the document, whatever its offsets say.
"""

from __future__ import annotations

import struct
from base64 import b64encode

from lanecache.ingest.values import (
    binary_decimal_text,
    decimal_size_bytes,
    double_text,
    json_text,
)

_SMALL_OBJECT, _LARGE_OBJECT, _SMALL_ARRAY, _LARGE_ARRAY, _LITERAL = 0, 1, 2, 3, 4
_INT16, _UINT16, _INT32, _UINT32, _INT64, _UINT64, _DOUBLE, _STRING, _OPAQUE = *range(5, 13), 15
_LITERALS = ("null", "true", "false")
_INLINE = {_INT16: "<h", _UINT16: "<H", _INT32: "<i", _UINT32: "<I"}
_NUMBERS = {_INT16: "<h", _UINT16: "<H", _INT32: "<i", _UINT32: "<I", _INT64: "<q", _UINT64: "<Q"}
_DEPTH_MAX = 100  # JSON_DOCUMENT_MAX_DEPTH

_TYPE_TIMESTAMP, _TYPE_DATE, _TYPE_TIME, _TYPE_DATETIME, _TYPE_DECIMAL = 7, 10, 11, 12, 246


def json_document_text(data: bytes) -> str:
    """Give the JSON text of one binary JSON document.

    Raises:
        ValueError: the bytes are not a valid document.
    """
    if not data:
        # What MySQL stores for a NULL forced into a NOT NULL column (Field_json::val_json).
        return "null"
    return _Document(len(data)).value(data[0], data, 1, len(data), 0)


class _Document:
    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        # Every value takes at least one byte of a valid document, and texts share none.
        self._left = size

    def _take(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise ValueError("a JSON document refers to the same bytes again and again")

    def value(self, kind: int, data: bytes, start: int, end: int, depth: int) -> str:
        """Give the text of the value of type ``kind`` that begins at ``start``."""
        self._take(1)
        if depth > _DEPTH_MAX:
            raise ValueError(f"a JSON document is deeper than {_DEPTH_MAX}")
        if kind <= _LARGE_ARRAY:
            return self._container(kind, data, start, end, depth)
        if kind == _LITERAL:
            return _literal(data[start : start + 1])
        if kind in _NUMBERS:
            return str(_unpack(_NUMBERS[kind], data, start, end))
        if kind == _DOUBLE:
            return double_text(float(_unpack("<d", data, start, end)))
        if kind == _STRING:
            return json_text(self._variable(data, start, end).decode("utf-8"))
        if kind == _OPAQUE:
            if start >= end:
                raise ValueError("a JSON document is cut off")
            return _opaque(data[start], self._variable(data, start + 1, end))
        raise ValueError(f"JSON value type {kind} is not known")

    def _container(self, kind: int, data: bytes, start: int, end: int, depth: int) -> str:
        large = kind in (_LARGE_OBJECT, _LARGE_ARRAY)
        width = 4 if large else 2
        offset_format = "<I" if large else "<H"
        count = int(_unpack(offset_format, data, start, end))
        size = int(_unpack(offset_format, data, start + width, end))
        if start + size > end:
            raise ValueError("a JSON container is larger than its place")
        end = start + size
        is_object = kind in (_SMALL_OBJECT, _LARGE_OBJECT)
        keys_at = start + 2 * width
        values_at = keys_at + (count * (width + 2) if is_object else 0)
        if values_at + count * (width + 1) > end:
            raise ValueError("a JSON container has more values than bytes")
        parts = []
        for nth in range(count):
            entry = values_at + nth * (width + 1)
            text = self._entry(data, entry, start, end, large=large, depth=depth)
            if is_object:
                at = keys_at + nth * (width + 2)
                offset = int(_unpack(offset_format, data, at, end))
                length = int(_unpack("<H", data, at + width, end))
                if start + offset + length > end:
                    raise ValueError("a JSON key lies outside its object")
                self._take(length)
                key = data[start + offset : start + offset + length].decode("utf-8")
                text = f"{json_text(key)}:{text}"
            parts.append(text)
        return f"{{{','.join(parts)}}}" if is_object else f"[{','.join(parts)}]"

    def _entry(
        self, data: bytes, entry: int, start: int, end: int, *, large: bool, depth: int
    ) -> str:
        kind = data[entry]
        at = entry + 1
        if kind == _LITERAL:
            return _literal(data[at : at + 1])
        if kind in (_INT16, _UINT16) or (large and kind in (_INT32, _UINT32)):
            return str(_unpack(_INLINE[kind], data, at, end))
        offset = int(_unpack("<I" if large else "<H", data, at, end))
        return self.value(kind, data, start + offset, end, depth + 1)

    def _variable(self, data: bytes, start: int, end: int) -> bytes:
        """Read bytes behind their length in seven-bit groups, lowest first, at most five."""
        length = 0
        for nth in range(5):
            if start + nth >= end:
                break
            byte = data[start + nth]
            length |= (byte & 0x7F) << 7 * nth
            if not byte & 0x80:
                first = start + nth + 1
                if first + length > end:
                    break
                self._take(length)
                return data[first : first + length]
        raise ValueError("a JSON string is longer than its document")


def _literal(data: bytes) -> str:
    if not data or data[0] >= len(_LITERALS):
        raise ValueError("a JSON literal is neither null, true nor false")
    return _LITERALS[data[0]]


def _unpack(layout: str, data: bytes, start: int, end: int) -> int | float:
    if start < 0 or start + struct.calcsize(layout) > end:
        raise ValueError("a JSON document is cut off")
    value: int | float = struct.unpack_from(layout, data, start)[0]
    return value


def _opaque(kind: int, data: bytes) -> str:
    if kind == _TYPE_DECIMAL:
        if len(data) < 2:
            raise ValueError("a JSON decimal is cut off")
        precision, scale = data[0], data[1]
        if scale > precision or len(data) - 2 != decimal_size_bytes(precision, scale):
            raise ValueError("a JSON decimal is not as long as its digits take")
        return binary_decimal_text(data[2:], precision, scale)
    if kind in (_TYPE_DATE, _TYPE_TIME, _TYPE_DATETIME, _TYPE_TIMESTAMP):
        if len(data) != 8:
            raise ValueError("a JSON time is not eight bytes long")
        return f'"{_packed_time_text(kind, int.from_bytes(data, "little", signed=True))}"'
    # As Json_opaque prints: the type's number and the bytes.
    return f'"base64:type{kind}:{b64encode(data).decode("ascii")}"'


def _packed_time_text(kind: int, packed: int) -> str:
    sign = ""
    if packed < 0:
        sign = "-"
        packed = -packed
    whole, micros = packed >> 24, packed & 0xFFFFFF
    if kind == _TYPE_TIME:
        return (
            f"{sign}{whole >> 12 & 0x3FF:02d}:{whole >> 6 & 63:02d}:{whole & 63:02d}.{micros:06d}"
        )
    day, clock = whole >> 17, whole & 0x1FFFF
    year_month = day >> 5
    text = f"{year_month // 13:04d}-{year_month % 13:02d}-{day & 31:02d}"
    if kind == _TYPE_DATE:
        return text
    return f"{text} {clock >> 12:02d}:{clock >> 6 & 63:02d}:{clock & 63:02d}.{micros:06d}"
