"""Raw column bytes to the text that the servers print (law 6).

Every function here is pure. Those on the hot path take what the compiled row decoders read (an
integer, mostly) and keep small, bounded memos of dates.

Layouts: MySQL ``mysys/my_time.cc`` (``my_*_packed_from_binary``), ``strings/decimal.cc``
(``bin2decimal``), ``sql/field.cc``.
"""

from __future__ import annotations

import struct
import zlib
from datetime import date

import msgspec

__all__ = [
    "HOURS",
    "MINUTES",
    "TWO_DIGITS",
    "binary_decimal_text",
    "date_text",
    "dates",
    "datetime2_text",
    "datetime_text",
    "decimal_size_bytes",
    "double_text",
    "encode_json",
    "float_text",
    "fraction_size_bytes",
    "inet4_text",
    "inet6_text",
    "json_text",
    "old_datetime_text",
    "old_time_text",
    "time2_text",
    "timestamp2_text",
    "timestamp_text",
    "unpack_column",
    "uuid_text",
]

_MEMO_MAX = 20_000
TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
HOURS = tuple(f" {number:02d}:" for number in range(32))
MINUTES = tuple(f"{number:02d}:" for number in range(64))
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


encode_json = msgspec.json.Encoder().encode
"""JSON in UTF-8; of a string ten times as fast as ``json.encoder`` and alike to the byte."""


def json_text(text: str) -> str:
    """Give a JSON string.

    Raises:
        UnicodeEncodeError: the text has no UTF-8.
    """
    return encode_json(text).decode()


class _Memo(dict[int, str]):
    """A bounded memo of ``make(number)``; starts afresh when it is full."""

    def __init__(self, make: object) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, number: int) -> str:
        if len(self) >= _MEMO_MAX:
            self.clear()
        text: str = self._make(number)  # type: ignore[operator]
        self[number] = text
        return text


def _ymd_text(ymd: int) -> str:
    year_month = ymd >> 5
    return f"{year_month // 13:04d}-{year_month % 13:02d}-{ymd & 31:02d}"


def _day_text(day: int) -> str:
    return date.fromordinal(_EPOCH_ORDINAL + day).isoformat()


dates = _Memo(_ymd_text)
_days = _Memo(_day_text)
_plain_dates = _Memo(lambda v: f"{v >> 9:04d}-{v >> 5 & 15:02d}-{v & 31:02d}")


def date_text(packed: int) -> str:
    """Give ``YYYY-MM-DD`` of a DATE's three bytes read as a little-endian integer."""
    return _plain_dates[packed]


def datetime_text(packed: int) -> str:
    """Give ``YYYY-MM-DD hh:mm:ss`` of a DATETIME2's integer part, its offset still in it."""
    packed -= 0x8000000000
    return (
        f"{dates[packed >> 17]}{HOURS[packed >> 12 & 31]}{MINUTES[packed >> 6 & 63]}"
        f"{TWO_DIGITS[packed & 63]}"
    )


def fraction_size_bytes(digits: int) -> int:
    """Give the number of bytes that ``digits`` (0-6) fraction digits of a time take."""
    return (digits + 1) >> 1


def _fraction_text(fraction: int, digits: int) -> str:
    """Print a stored fraction: hundredths, ten-thousandths or millionths, by its bytes."""
    stored_digits = (digits + 1) & ~1
    if stored_digits != digits:
        fraction //= 10
    return f".{fraction:0{digits}d}"


def datetime2_text(packed: int, digits: int) -> str:
    """Give a DATETIME(1-6) of all its bytes read as a big-endian integer."""
    bits = 8 * fraction_size_bytes(digits)
    return datetime_text(packed >> bits) + _fraction_text(packed & (1 << bits) - 1, digits)


def timestamp_text(seconds: int) -> str:
    """Give a TIMESTAMP of ``seconds`` since 1970 in UTC; zero is the zero date."""
    if not seconds:
        return "0000-00-00 00:00:00"
    day, rest = divmod(seconds, 86400)
    minutes, second = divmod(rest, 60)
    return f"{_days[day]}{HOURS[minutes // 60]}{MINUTES[minutes % 60]}{TWO_DIGITS[second]}"


def timestamp2_text(packed: int, digits: int) -> str:
    """Give a TIMESTAMP(1-6) of all its bytes read as a big-endian integer, in UTC."""
    bits = 8 * fraction_size_bytes(digits)
    return timestamp_text(packed >> bits) + _fraction_text(packed & (1 << bits) - 1, digits)


def time2_text(packed: int, digits: int) -> str:
    """Give a TIME(0-6) of all its bytes read as a big-endian integer.

    The whole, fraction included, is one number offset by ``0x800000`` in its integer part, which
    is why negative times with a fraction need no special case (mysql-replication has one, wrong).
    """
    bits = 8 * fraction_size_bytes(digits)
    value = packed - (0x800000 << bits)
    sign = ""
    if value < 0:
        sign = "-"
        value = -value
    whole = value >> bits
    text = f"{sign}{whole >> 12 & 0x3FF:02d}:{whole >> 6 & 63:02d}:{whole & 63:02d}"
    return text + _fraction_text(value & (1 << bits) - 1, digits) if digits else text


def old_time_text(packed: int) -> str:
    """Give a TIME of before MySQL 5.6: a signed decimal ``hhmmss`` in three bytes."""
    sign = "-" if packed < 0 else ""
    packed = abs(packed)
    return f"{sign}{packed // 10000:02d}:{packed // 100 % 100:02d}:{packed % 100:02d}"


def old_datetime_text(packed: int) -> str:
    """Give a DATETIME of before MySQL 5.6: a decimal ``YYYYMMDDhhmmss`` in eight bytes."""
    day, time = divmod(packed, 1_000_000)
    return (
        f"{day // 10000:04d}-{day // 100 % 100:02d}-{day % 100:02d}"
        f" {time // 10000:02d}:{time // 100 % 100:02d}:{time % 100:02d}"
    )


_DIGITS_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def decimal_size_bytes(precision: int, scale: int) -> int:
    """Give the size of a DECIMAL's binary form."""
    whole_groups, whole_rest = divmod(precision - scale, 9)
    groups, rest = divmod(scale, 9)
    return 4 * (whole_groups + groups) + _DIGITS_BYTES[whole_rest] + _DIGITS_BYTES[rest]


def binary_decimal_text(data: bytes, precision: int, scale: int) -> str:
    """Give a DECIMAL as the servers print it: all fraction digits, no leading zeros.

    Raises:
        ValueError: a group of digits holds more than its digits.
    """
    number = int.from_bytes(data, "big")
    sign_bit = 1 << (8 * len(data) - 1)
    negative = not number & sign_bit
    number ^= sign_bit
    if negative:
        number ^= (1 << 8 * len(data)) - 1
    raw = number.to_bytes(len(data), "big")
    whole_groups, whole_rest = divmod(precision - scale, 9)
    groups, rest = divmod(scale, 9)
    widths = [whole_rest] if whole_rest else []
    widths += [9] * (whole_groups + groups)
    if rest:
        widths.append(rest)
    digits = ""
    pos = 0
    for width in widths:
        size = _DIGITS_BYTES[width]
        group = f"{int.from_bytes(raw[pos : pos + size], 'big'):0{width}d}"
        if len(group) != width:
            raise ValueError(f"{group} in a DECIMAL's group of {width} digits")
        digits += group
        pos += size
    whole = digits[: precision - scale].lstrip("0") or "0"
    text = f"{whole}.{digits[precision - scale :]}" if scale else whole
    return f"-{text}" if negative and digits.strip("0") else text


def inet4_text(data: bytes) -> str:
    """Give an INET4 of its four bytes."""
    return f"{data[0]}.{data[1]}.{data[2]}.{data[3]}"


def inet6_text(data: bytes) -> str:
    """Give an INET6 of its sixteen bytes, as MariaDB prints it (``Inet6::to_string``).

    The first of the longest runs of zero words is left out, even one of a single word.
    """
    words = [data[at] << 8 | data[at + 1] for at in range(0, 16, 2)]
    gap = gap_words = run = 0
    for index, word in enumerate(words):
        run = 0 if word else run + 1
        if run > gap_words:
            gap, gap_words = index - run + 1, run
    if gap == 0 and (gap_words == 6 or (gap_words == 5 and words[5] == 0xFFFF)):
        return f"::{'ffff:' if gap_words == 5 else ''}{inet4_text(data[12:])}"
    if not gap_words:
        return ":".join(f"{word:x}" for word in words)
    before = ":".join(f"{word:x}" for word in words[:gap])
    after = ":".join(f"{word:x}" for word in words[gap + gap_words :])
    return f"{before}::{after}"


def uuid_text(data: bytes) -> str:
    """Give a UUID of its sixteen bytes in the binlog."""
    text = data.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_PACKED_LENGTH_MASK, _PACKED_RAW_DEFLATE = 0x07, 0x08


def unpack_column(data: bytes, bytes_max: int = 128 * 1024 * 1024) -> bytes:
    """Unpack a value of a COMPRESSED column of MariaDB.

    A byte with the method (high four bits: 0 stored, 8 zlib), whether zlib's own header is left out
    and how long the length is; the unpacked length, big endian; the data. An empty value is just
    that (``Field_longstr::uncompress`` in MariaDB's ``sql/field.cc``).

    Raises:
        ValueError: the value is damaged, of another method, or longer than ``bytes_max``.
    """
    if not data:
        return b""
    method = data[0] >> 4
    if method == 0:
        return data[1:]
    if method != 8:
        raise ValueError(f"a COMPRESSED column's value has the unknown method {method}")
    start = 1 + (data[0] & _PACKED_LENGTH_MASK)
    length = int.from_bytes(data[1:start], "big")
    if length > bytes_max:
        raise ValueError(
            f"a COMPRESSED column's value unpacks to {length} bytes, above {bytes_max}"
            " (limits.event_bytes_max)"
        )
    unpacker = zlib.decompressobj(
        -zlib.MAX_WBITS if data[0] & _PACKED_RAW_DEFLATE else zlib.MAX_WBITS
    )
    try:
        unpacked = unpacker.decompress(data[start:], length + 1)
    except zlib.error as error:
        raise ValueError(f"a COMPRESSED column's value cannot be unpacked: {error}") from error
    if len(unpacked) != length or not unpacker.eof:
        raise ValueError("a COMPRESSED column's value unpacks to another length than it says")
    return unpacked


_pack_float = struct.Struct("<f").pack


def double_text(value: float) -> str:
    """Give the shortest decimal that reads back to the same 64-bit value."""
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def float_text(value: float) -> str:
    """Give the shortest decimal that reads back to the same 32-bit value."""
    packed = _pack_float(value)
    for digits in range(1, 10):
        text = f"{value:.{digits}g}"
        try:
            if _pack_float(float(text)) == packed:
                return double_text(float(text))
        except OverflowError:
            # Rounded up past the greatest 32-bit value: more digits are needed.
            continue
    raise ValueError(f"{value!r} is not a 32-bit number")
