"""Values from raw bytes: those that a server writes, and those that none does."""

from __future__ import annotations

import ipaddress
import json
import struct
import uuid
import zlib
from decimal import Decimal
from typing import Any

import pytest
from counted_work import at_most
from hypothesis import given, settings
from hypothesis import strategies as st

from lanecache.ingest.json_binary import json_document_text
from lanecache.ingest.json_diff import apply_json_diff
from lanecache.ingest.values import (
    binary_decimal_text,
    date_text,
    datetime2_text,
    datetime_text,
    decimal_size_bytes,
    double_text,
    float_text,
    inet4_text,
    inet6_text,
    old_datetime_text,
    old_time_text,
    time2_text,
    timestamp2_text,
    timestamp_text,
    unpack_column,
    uuid_text,
)

DIGITS_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def pack_decimal(number: int, precision: int, scale: int) -> bytes:
    """Pack ``number / 10 ** scale`` as MySQL's ``decimal2bin`` does."""
    digits = f"{abs(number):0{precision}d}"
    whole, fraction = digits[: precision - scale], digits[precision - scale :]
    groups = []
    if len(whole) % 9:
        groups.append(whole[: len(whole) % 9])
    groups += [whole[at : at + 9] for at in range(len(whole) % 9, len(whole), 9)]
    groups += [fraction[at : at + 9] for at in range(0, len(fraction), 9)]
    packed = b"".join(int(group).to_bytes(DIGITS_BYTES[len(group)], "big") for group in groups)
    if number < 0:
        packed = bytes(byte ^ 0xFF for byte in packed)
    return bytes((packed[0] ^ 0x80,)) + packed[1:]


@st.composite
def decimals(draw: st.DrawFn) -> tuple[int, int, int]:
    precision = draw(st.integers(1, 65))
    scale = draw(st.integers(0, min(30, precision)))
    most = 10**precision - 1
    return draw(st.integers(-most, most)), precision, scale


@given(decimals())
def test_a_decimal_keeps_all_its_digits(given_decimal: tuple[int, int, int]) -> None:
    number, precision, scale = given_decimal
    data = pack_decimal(number, precision, scale)
    assert len(data) == decimal_size_bytes(precision, scale)
    text = binary_decimal_text(data, precision, scale)
    assert int(text.replace(".", "")) == number
    assert len(text.partition(".")[2]) == scale
    assert text.lstrip("-").partition(".")[0] == str(abs(number) // 10**scale)


def test_a_decimal_with_too_many_digits_in_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        binary_decimal_text(b"\xff\xff\xff\xff", 9, 0)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_double_reads_back_to_the_same_number(value: float) -> None:
    assert struct.pack("<d", float(double_text(value))) == struct.pack("<d", value)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_reads_back_to_the_same_number_and_is_the_shortest_that_does(value: float) -> None:
    text = float_text(value)
    assert struct.pack("<f", float(text)) == struct.pack("<f", value)
    shown = sum(map(str.isdigit, text.partition("e")[0].replace(".", "").strip("-0")))
    for digits in range(1, shown):
        try:
            shorter = struct.pack("<f", float(f"{value:.{digits}g}"))
        except OverflowError:
            continue
        assert shorter != struct.pack("<f", value)


@given(
    st.integers(-838, 838), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999),
    st.integers(0, 6), st.booleans(),
)  # fmt: skip
def test_a_time_is_read_at_every_precision_and_sign(
    hour: int, minute: int, second: int, micro: int, digits: int, negative: bool
) -> None:
    # As TIME_to_longlong_time_packed and my_time_packed_to_binary do.
    negative = negative or hour < 0
    micro -= micro % 10 ** (6 - digits)
    packed = (abs(hour) << 12 | minute << 6 | second) << 24 | micro
    packed = -packed if negative else packed
    kept = (digits + 1) // 2
    if kept == 3:
        stored = packed + 0x800000000000
    else:
        step = 10 ** (6 - 2 * kept)
        whole, fraction = packed >> 24, packed % (1 << 24)
        if packed < 0 and fraction:
            fraction -= 1 << 24
            whole += 1
        # MY_PACKED_TIME_GET_FRAC_PART keeps the sign: -1.5 s is -1 and -50, as one number.
        stored = (((whole + 0x800000) << 8 * kept) + int(fraction / step)) if kept else 0
        stored = stored or whole + 0x800000
    text = time2_text(stored, digits)
    sign = "-" if negative and packed else ""
    wanted = f"{sign}{abs(hour):02d}:{minute:02d}:{second:02d}"
    assert text == wanted + (f".{micro:06d}"[: digits + 1] if digits else "")


@given(st.datetimes(), st.integers(0, 6))
def test_a_datetime_is_read_at_every_precision(moment: Any, digits: int) -> None:
    whole = (moment.year * 13 + moment.month) << 22 | moment.day << 17
    whole |= moment.hour << 12 | moment.minute << 6 | moment.second
    whole += 0x8000000000
    plain = f"{moment.year:04d}-{moment.month:02d}-{moment.day:02d} {moment:%H:%M:%S}"
    if not digits:
        assert datetime_text(whole) == plain
        return
    kept = (digits + 1) // 2
    micro = moment.microsecond - moment.microsecond % 10 ** (6 - digits)
    packed = whole << 8 * kept | micro // 10 ** (6 - 2 * kept)
    assert datetime2_text(packed, digits) == plain + f".{micro:06d}"[: digits + 1]


def test_zero_and_partial_dates_are_printed_as_the_servers_print_them() -> None:
    assert date_text(0) == "0000-00-00"
    assert date_text(2024 << 9) == "2024-00-00"
    assert datetime_text(0x8000000000) == "0000-00-00 00:00:00"
    assert datetime_text(0x8000000000 + ((2024 * 13) << 22)) == "2024-00-00 00:00:00"
    assert timestamp_text(0) == "0000-00-00 00:00:00"
    assert timestamp2_text(0, 3) == "0000-00-00 00:00:00.000"
    assert timestamp_text(2_147_483_647) == "2038-01-19 03:14:07"
    assert timestamp_text(4_294_967_295) == "2106-02-07 06:28:15"
    assert old_time_text(-8385959) == "-838:59:59"
    assert old_datetime_text(20240229123456) == "2024-02-29 12:34:56"


@given(st.binary(min_size=16, max_size=16))
def test_addresses_and_uuids_mean_what_their_bytes_are(data: bytes) -> None:
    assert ipaddress.IPv6Address(inet6_text(data)).packed == data
    assert ipaddress.IPv4Address(inet4_text(data[:4])).packed == data[:4]
    assert uuid.UUID(uuid_text(data)).bytes == data


@pytest.mark.parametrize(
    ("address", "text"),
    [("::", "::"), ("::1", "::1"), ("1::", "1::"), ("::ffff:102:304", "::ffff:1.2.3.4"),
     ("::102:304", "::1.2.3.4"), ("1:2:3:0:5:6:7:8", "1:2:3::5:6:7:8"),
     ("1:0:0:2:3:0:0:4", "1::2:3:0:0:4")],
)  # fmt: skip
def test_an_inet6_is_printed_as_mariadb_prints_it(address: str, text: str) -> None:
    assert inet6_text(ipaddress.IPv6Address(address).packed) == text


@given(st.binary(max_size=2000), st.booleans(), st.integers(1, 4))
def test_a_compressed_column_is_unpacked(data: bytes, raw: bool, length_bytes: int) -> None:
    if len(data) >> 8 * length_bytes:
        length_bytes = 2
    packer = zlib.compressobj(wbits=-15 if raw else 15)
    body = packer.compress(data) + packer.flush()
    head = bytes((0x80 | raw << 3 | length_bytes,)) + len(data).to_bytes(length_bytes, "big")
    assert unpack_column(head + body) == data
    assert unpack_column(b"\0" + data) == data


@pytest.mark.parametrize(
    "data",
    [b"\x10abc", b"\x81", b"\x81\x05", b"\x89\x05" + zlib.compress(b"hello"),
     b"\x81\x04" + zlib.compress(b"hello"), b"\x81\x06" + zlib.compress(b"hello"),
     b"\x81\x05" + zlib.compress(b"hello")[:-4],
     b"\x82\xff\xff" + zlib.compress(bytes(10_000_000))],
)  # fmt: skip
def test_a_damaged_compressed_column_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="COMPRESSED"):
        unpack_column(data)


# Binary JSON, as sql-common/json_binary.cc writes it.

INT16, UINT16, INT32, UINT32, INT64, UINT64, DOUBLE, STRING, OPAQUE = 5, 6, 7, 8, 9, 10, 11, 12, 15


def pack_length(length: int) -> bytes:
    packed = b""
    while True:
        packed += bytes((length & 0x7F | (0x80 if length >> 7 else 0),))
        length >>= 7
        if not length:
            return packed


def pack_value(value: Any, large: bool) -> tuple[int, bytes]:
    """Give the type and the bytes of a value; those of a literal are its one byte."""
    if value is None or isinstance(value, bool):
        return 4, bytes((0 if value is None else 1 if value else 2,))
    if isinstance(value, int):
        for kind, layout, low, high in (
            (INT16, "<h", -(1 << 15), 1 << 15), (UINT16, "<H", 0, 1 << 16),
            (INT32, "<i", -(1 << 31), 1 << 31), (UINT32, "<I", 0, 1 << 32),
            (INT64, "<q", -(1 << 63), 1 << 63), (UINT64, "<Q", 0, 1 << 64),
        ):  # fmt: skip
            if low <= value < high:
                return kind, struct.pack(layout, value)
        raise AssertionError(value)
    if isinstance(value, float):
        return DOUBLE, struct.pack("<d", value)
    if isinstance(value, str):
        return STRING, pack_length(len(value.encode())) + value.encode()
    return pack_container(value, large)


def pack_container(value: Any, large: bool) -> tuple[int, bytes]:
    width, layout = (4, "<I") if large else (2, "<H")
    is_object = isinstance(value, dict)
    keys = sorted((key.encode() for key in value), key=lambda k: (len(k), k)) if is_object else []
    items = [value[key.decode()] for key in keys] if is_object else value
    at = 2 * width + len(keys) * (width + 2) + len(items) * (width + 1)
    key_entries = value_entries = tail = b""
    for key in keys:
        key_entries += struct.pack(layout, at + len(tail)) + struct.pack("<H", len(key))
        tail += key
    for item in items:
        kind, packed = pack_value(item, large)
        value_entries += bytes((kind,))
        if kind == 4 or kind in (INT16, UINT16) or (large and kind in (INT32, UINT32)):
            padding = b"\xff" if packed[-1] & 0x80 and kind in (INT16, INT32) else b"\0"
            value_entries += packed.ljust(width, padding)
        else:
            value_entries += struct.pack(layout, at + len(tail))
            tail += packed
    size = at + len(tail)
    head = struct.pack(layout, len(items)) + struct.pack(layout, size)
    return (0 if is_object else 2) + large, head + key_entries + value_entries + tail


def pack_document(value: Any, large: bool = False) -> bytes:
    kind, packed = pack_value(value, large)
    return bytes((kind,)) + packed


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(max_size=200)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
).filter(lambda value: len(str(value)) < 8000)  # fmt: skip


@given(DOCUMENTS, st.booleans())
def test_a_document_is_read_in_both_layouts(value: Any, large: bool) -> None:
    assert json.loads(json_document_text(pack_document(value, large))) == value


@given(DOCUMENTS, st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_document_is_refused_or_read_but_never_anything_else(
    value: Any, large: bool, data: st.DataObject
) -> None:
    packed = bytearray(pack_document(value, large))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    for damaged in (bytes(packed), cut):
        try:
            json.loads(json_document_text(damaged))
        except ValueError:
            continue


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_bytes_do_more_than_be_refused(document: bytes, diff: bytes) -> None:
    for read in (
        lambda: json_document_text(document),
        lambda: apply_json_diff(pack_document({"a": [1]}), diff),
        lambda: apply_json_diff(document, b"\0\x02$\x00\x03\x05\x01\x00"),
        lambda: unpack_column(document),
    ):
        try:
            read()
        except ValueError:
            continue


def cyclic(size: int) -> bytes:
    """Make an array whose every element is the array itself."""
    count = (size - 5) // 3
    entries = b"\x02\x00\x00" * count
    return b"\x02" + struct.pack("<HH", count, 4 + len(entries)) + entries


def test_a_document_that_contains_itself_takes_no_more_time_than_its_size_allows() -> None:
    with at_most(10_000), pytest.raises(ValueError, match=r"deeper|again"):
        json_document_text(cyclic(60_000))


def test_a_document_whose_elements_share_their_bytes_is_bounded_by_its_size() -> None:
    # Thirty arrays, each of which names the next one a hundred times: 100 ** 30 values.
    levels, width = 30, 100
    size = 4 + 3 * width
    packed = b""
    for level in range(levels):
        rest = (levels - level) * size
        entry = struct.pack("<BH", 2, size) if level + 1 < levels else struct.pack("<BH", INT16, 7)
        packed += struct.pack("<HH", width, rest) + entry * width
    # A million values at the most, with a handful of calls for each.
    with at_most(10_000_000), pytest.raises(ValueError, match="again"):
        json_document_text(b"\x02" + packed)


def test_strings_that_share_their_bytes_are_bounded_too() -> None:
    text = b"x" * 20_000
    count = 10_000
    at = 4 + 3 * count
    body = struct.pack("<HH", count, at + 3 + len(text)) + struct.pack("<BH", STRING, at) * count
    with at_most(10_000), pytest.raises(ValueError, match="again"):
        json_document_text(b"\x02" + body + pack_length(len(text)) + text)


def test_opaque_values_are_read_as_mysql_prints_them() -> None:
    def opaque(kind: int, data: bytes) -> bytes:
        return bytes((OPAQUE, kind)) + pack_length(len(data)) + data

    decimal = b"\x06\x02" + pack_decimal(-1250, 6, 2)
    assert Decimal(json_document_text(opaque(246, decimal))) == Decimal("-12.50")
    assert json_document_text(opaque(252, b"\x00\xff")) == '"base64:type252:AP8="'
    moment = ((2024 * 13 + 2) << 5 | 29) << 17 | 12 << 12 | 34 << 6 | 56
    packed = (moment << 24 | 500_000).to_bytes(8, "little")
    assert json_document_text(opaque(12, packed)) == '"2024-02-29 12:34:56.500000"'
    for damaged in (
        opaque(246, b"\x06"),
        opaque(246, b"\x06\x02\x80"),
        opaque(246, b"\x02\x06\x80"),
        opaque(246, b"\xff\x02" + bytes(9)),
        opaque(12, b"\x00"),
        bytes((OPAQUE,)),
    ):
        with pytest.raises(ValueError, match=r"JSON|DECIMAL"):
            json_document_text(damaged)


def diff_of(operation: int, path: str, value: Any = None) -> bytes:
    packed = bytes((operation, len(path))) + path.encode()
    if operation == 2:
        return packed
    document = pack_document(value)
    return packed + bytes((len(document),)) + document


def test_differences_apply_one_after_the_other() -> None:
    before = pack_document({"a": [1, 2, {"b": "c"}], "d e": None})
    diff = (
        diff_of(0, "$.a[0]", 10) + diff_of(1, "$.a[1]", "in") + diff_of(2, '$."d e"')
        + diff_of(0, "$.a[3].b", [True]) + diff_of(1, "$.f", {})
    )  # fmt: skip
    assert json.loads(apply_json_diff(before, diff)) == {
        "a": [10, "in", 2, {"b": [True]}], "f": {},
    }  # fmt: skip


def test_a_difference_may_count_from_the_end_of_an_array() -> None:
    before = pack_document([1, [2, 3], 4])
    diff = diff_of(0, "$[last]", 40) + diff_of(2, "$[last-1][last-1]") + diff_of(2, "$[last-2]")
    assert json.loads(apply_json_diff(before, diff)) == [[3], 40]
    with pytest.raises(ValueError, match="has no"):
        apply_json_diff(before, diff_of(2, "$[last-3]"))
    with pytest.raises(ValueError, match="inserted"):
        apply_json_diff(before, diff_of(1, "$[last-3]", 1))


@pytest.mark.parametrize(
    "diff",
    [diff_of(0, "$.x", 1), diff_of(2, "$.a[7]"), diff_of(1, "$.a", 1), diff_of(0, "a", 1),
     diff_of(0, "$.a.b", 1), diff_of(2, "$"), diff_of(3, "$.a", 1), diff_of(0, "$.a", 1)[:-1],
     b"\x00\xff", b"\x00\xfd\x01"],
)  # fmt: skip
def test_a_difference_that_does_not_fit_is_refused(diff: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        apply_json_diff(pack_document({"a": [1]}), diff)
    assert not isinstance(caught.value, UnicodeDecodeError)


def test_a_difference_without_its_document_is_refused() -> None:
    with pytest.raises(ValueError, match="before image"):
        apply_json_diff(None, diff_of(0, "$.a", 1))
