"""Every column type of both servers: how to declare it, its values as SQL, and what they become.

``TypeCase.text`` selects a value as text, ``make`` gives of that text what the cached JSON has to
hold (design: the JSON value of a row).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from hypothesis import strategies as st

from lanecache.ingest.charsets import text_decoder

MARIADB, MYSQL = "MariaDB", "MySQL"


@dataclass(frozen=True, slots=True)
class TypeCase:
    """One type: ``values`` are its edge values, ``drawn`` any values; both are SQL expressions."""

    declaration: str
    values: tuple[str, ...]
    drawn: st.SearchStrategy[str]
    text: str
    make: Callable[[str], Any]
    nullable: bool = True

    def expected(self, text: Any) -> Any:
        """Give what the cached JSON holds where the query gave ``text``."""
        if text is None:
            return None
        return self.make(text.decode() if isinstance(text, bytes) else str(text))


def same(text: str) -> Any:
    return text


def float32(text: str) -> Decimal:
    """Give the shortest decimal that reads back to the same 32-bit number."""
    packed = struct.pack("<f", float(text))
    return next(
        Decimal(shortest)
        for digits in range(1, 10)
        if _packs(shortest := f"{float(text):.{digits}g}") == packed
    )


def _packs(text: str) -> bytes:
    try:
        return struct.pack("<f", float(text))
    except OverflowError:
        return b""


def float64(text: str) -> Decimal:
    return Decimal(repr(float(text)))


def to_base64(text: str) -> str:
    return base64.b64encode(bytes.fromhex(text)).decode()


def members(text: str) -> list[str]:
    return text.split(",") if text else []


def document(text: str) -> Any:
    return parse(text)


def parse(text: str | bytes) -> Any:
    """Read JSON without loss: numbers with a point become decimals."""
    return json.loads(text, parse_float=Decimal)


PLAIN, CHARS, HEX = "{}", "CAST({} AS CHAR)", "HEX({})"
NUMBER, EXACT_FLOAT = "{} + 0", "CAST({} AS DOUBLE)"


def quoted(text: str) -> str:
    """Write text as SQL, in a way that no sql_mode and no character set can change."""
    return f"CONVERT(x'{text.encode().hex()}' USING utf8mb4)" if text else "''"


def hexadecimal(data: bytes) -> str:
    return f"x'{data.hex()}'"


def _case(
    declaration: str,
    values: Sequence[str],
    drawn: st.SearchStrategy[str],
    text: str,
    make: Callable[[str], Any],
    *,
    nullable: bool = True,
) -> TypeCase:
    return TypeCase(declaration, tuple(values), drawn, text, make, nullable)


def _integers(name: str, low: int, high: int) -> list[TypeCase]:
    cases = []
    for suffix, least, most in (("", low, high), (" UNSIGNED", 0, high - low)):
        values = [str(n) for n in (least, most, 0, most // 2 + 1)]
        drawn = st.integers(least, most).map(str)
        cases.append(_case(name + suffix, values, drawn, PLAIN, int))
    return cases


def _decimal(precision: int, scale: int, suffix: str = "") -> TypeCase:
    most = Decimal(10**precision - 1).scaleb(-scale)
    least = Decimal(0) if suffix else -most
    # By hand: 65 digits are more than the decimal module's context keeps.
    digits = str(10**precision - 1).rjust(precision, "0")
    big = (
        f"{digits[: precision - scale] or '0'}{'.' + digits[precision - scale :] if scale else ''}"
    )
    tiny = f"0.{'0' * (scale - 1)}1" if scale else "1"
    values = [big, tiny, "0", *(() if suffix else (f"-{big}", f"-{tiny}"))]

    def place(number: int) -> str:
        text = str(abs(number)).rjust(scale + 1, "0")
        whole, fraction = text[: len(text) - scale], text[len(text) - scale :]
        return f"{'-' if number < 0 else ''}{whole}{'.' + fraction if scale else ''}"

    high = 10**precision - 1
    drawn = st.integers(0 if least == 0 else -high, high).map(place)
    return _case(f"DECIMAL({precision},{scale}){suffix}", values, drawn, "CONCAT({})", same)


def _bits(width: int) -> TypeCase:
    most = (1 << width) - 1
    drawn = st.integers(0, most).map(str)
    return _case(f"BIT({width})", ["0", "1", str(most), str(most // 2 + 1)], drawn, NUMBER, int)


_YEARS = st.integers(1, 9999)
_DATE_VALUES = ["'0000-00-00'", "'1000-01-01'", "'2024-02-29'", "'9999-12-31'", "'2024-00-00'"]
_DATES = st.one_of(
    st.dates().map(str),
    st.builds("{:04d}-{:02d}-00".format, _YEARS, st.integers(0, 12)),
).map(lambda text: f"'{text}'")
_MOMENTS = st.one_of(
    st.datetimes().map(lambda moment: f"'{moment.isoformat(' ')}'"),
    _DATES.map(lambda text: text[:-1] + " 01:02:03.45'"),
)
_STAMPS = st.builds(
    lambda second, micro: f"FROM_UNIXTIME({second}.{micro:06d})",
    st.integers(1, 2_147_483_000),
    st.integers(0, 999_999),
)
_TIMES = st.builds(
    "'{}{:d}:{:02d}:{:02d}.{:06d}'".format,
    st.sampled_from(["", "-"]),
    st.integers(0, 838),
    st.integers(0, 59),
    st.integers(0, 59),
    st.integers(0, 999_999),
)


def _times() -> list[TypeCase]:
    cases = [_case("DATE", _DATE_VALUES, _DATES, CHARS, same)]
    for digits in range(7):
        suffix = f"({digits})" if digits else ""
        cases += [
            _case(
                f"TIME{suffix}",
                ["'-838:59:59'", "'838:59:59'", "'00:00:00'", "'-00:00:01'", "'-00:00:00.01'",
                 "'12:34:56.789123'", "'-00:00:01.5'", "'-838:59:58.999999'"],
                _TIMES, CHARS, same,
            ),
            _case(
                f"DATETIME{suffix}",
                ["'0000-00-00 00:00:00'", "'1000-01-01 00:00:00'", "'9999-12-31 23:59:59'",
                 "'2024-02-29 12:34:56.789123'", "'2024-00-00 10:00:00'"],
                _MOMENTS, CHARS, same,
            ),
            _case(
                f"TIMESTAMP{suffix}",
                ["'1970-01-01 00:00:01'", "'2038-01-19 03:14:07'", "0",
                 "'2024-02-29 12:34:56.789123'"],
                _STAMPS, CHARS, same,
            ),
        ]  # fmt: skip
    return cases


_STRINGS = ["''", "'plain'", *map(quoted, ("caf\u00e9 \u20ac", 'q" s\\ t\t n\n', "  spaces  "))]
_WIDE = [*_STRINGS, quoted("\U0001f600 \u4e2d\u6587"), quoted("a\0b")]

# By table column: sets that both servers have, then those of one.
_NAMES = (
    "big5 latin2 dec8 cp850 latin1 hp8 koi8r swe7 ascii ujis sjis cp1251 hebrew tis620 euckr"
    " latin7 koi8u gb2312 greek cp1250 gbk cp1257 latin5 armscii8 utf8mb3 ucs2 cp866 keybcs2 macce"
    " macroman cp852 utf8mb4 utf16 utf16le cp1256 utf32 geostd8 cp932 eucjpms"
)
CHARSETS = tuple(_NAMES.split())
MYSQL_CHARSETS = ("gb18030",)
_UNICODE = frozenset({"utf8mb3", "utf8mb4", "ucs2", "utf16", "utf16le", "utf32", "gb18030"})
_MANY_BYTES = frozenset({"big5", "sjis", "cp932", "ujis", "eucjpms", "euckr", "gb2312", "gbk"})


@cache
def alphabet(charset: str) -> str:
    """Give characters that a character set has, all of them where they are not too many."""
    if charset in _UNICODE:
        return "aZ9 '\"\\\n\u00e9\u20ac\u4e2d\u1e3f\ue7c7\uffee"
    decode = text_decoder(charset)
    assert decode is not None
    wide = [bytes((lead, trail)) for lead in range(0x81, 0xFF, 3) for trail in range(0x40, 0xFF)]
    found = set()
    for data in [*(bytes((n,)) for n in range(256)), *(wide if charset in _MANY_BYTES else ())]:
        try:
            text = decode(data)
        except UnicodeDecodeError:
            continue
        if len(text) == 1:
            found.add(text)
    return "".join(sorted(found))


def _texts(charset: str) -> st.SearchStrategy[str]:
    characters = st.sampled_from(alphabet(charset))
    if charset in ("utf8mb4", "utf16", "utf16le", "utf32", "gb18030"):
        characters |= st.characters(exclude_categories=["Cs"])
    return st.text(characters, max_size=40).map(quoted)


def _characters(charset: str) -> list[TypeCase]:
    sample = alphabet(charset)
    values = ["''", quoted(sample[:40]), quoted(sample[-40:]), quoted("tail  "), "'a'"]
    drawn = _texts(charset)
    texts = ["CHAR(40)", "VARCHAR(40)", "TEXT"]
    if charset in ("utf8mb4", "latin1"):
        values = [*values, *(_WIDE if charset == "utf8mb4" else _STRINGS)]
        texts += ["CHAR(255)", "VARCHAR(400)", "TINYTEXT", "MEDIUMTEXT", "LONGTEXT"]
    return [_case(f"{name} CHARACTER SET {charset}", values, drawn, PLAIN, same) for name in texts]


def labels(charset: str, kind: str) -> TypeCase:
    """Give an ENUM or a SET whose labels are of a character set."""
    usable = [c for c in alphabet(charset) if c.isalpha() and c.lower() == c][-12:]
    first = f"l{usable[0]}" if usable else "lx"
    second = f"m{usable[-1]}" if usable else "my"
    declared = ", ".join(f"'{label}'" for label in ("a", first, second))
    declaration = f"{kind}({declared}) CHARACTER SET {charset}"
    if kind == "ENUM":
        return _case(declaration, ["1", "2", "3", "0"], st.integers(0, 3).map(str), PLAIN, same)
    return _case(declaration, ["0", "7", "2", "4"], st.integers(0, 7).map(str), PLAIN, members)


def _binaries() -> list[TypeCase]:
    values = ["x''", "x'00'", "x'ff00fe'", "x'61000000'"]

    def binary(length: int) -> st.SearchStrategy[str]:
        return st.binary(max_size=length).map(hexadecimal)

    return [
        *(_case(f"BINARY({n})", values if n >= 4 else ["x''", "x'00'"], binary(n), HEX, to_base64)
          for n in (1, 4, 16, 255)),
        _case("VARBINARY(16)", values, binary(16), HEX, to_base64),
        _case("VARBINARY(300)", [*values, "REPEAT(x'00', 300)"], binary(300), HEX, to_base64),
        _case("TINYBLOB", values, binary(255), HEX, to_base64),
        _case("BLOB", [*values, "REPEAT(x'fe', 60000)"], binary(600), HEX, to_base64),
        _case("MEDIUMBLOB", [*values, "REPEAT(x'fd', 70000)"], binary(600), HEX, to_base64),
        _case("LONGBLOB", values, binary(600), HEX, to_base64),
    ]  # fmt: skip


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_LABELS_300 = ", ".join(f"'l{n}'" for n in range(300))
_LABELS_64 = ", ".join(f"'m{n}'" for n in range(64))

NUMBERS = [
    *_integers("TINYINT", -128, 127),
    *_integers("SMALLINT", -32768, 32767),
    *_integers("MEDIUMINT", -(1 << 23), (1 << 23) - 1),
    *_integers("INT", -(1 << 31), (1 << 31) - 1),
    *_integers("BIGINT", -(1 << 63), (1 << 63) - 1),
    _case("INT(10) UNSIGNED ZEROFILL", ["7"], st.integers(0, 99999).map(str), NUMBER, int),
    _case("BOOLEAN", ["TRUE", "FALSE"], st.sampled_from(["TRUE", "FALSE"]), PLAIN, int),
    _case(
        "FLOAT",
        ["0", "1.1", "-3.4028235e38", "1e-45", "16777217", "0.1"],
        st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
        EXACT_FLOAT, float32,
    ),
    _case("FLOAT(7,3)", ["1.2345", "-9999.999", "0"], st.floats(-9999, 9999).map(repr),
          EXACT_FLOAT, float32),
    _case(
        "DOUBLE",
        ["0", "1.1", "-1.7976931348623157e308", "5e-324", "123456789.123456789"],
        _FLOATS.map(repr), PLAIN, float64,
    ),
    _case("DOUBLE(12,4)", ["1.23456", "-9999.99995", "0"], st.floats(-9999, 9999).map(repr),
          PLAIN, float64),
    *(_decimal(precision, scale) for precision, scale in (
        (10, 2), (65, 30), (30, 0), (9, 9), (1, 0), (18, 9), (19, 10), (30, 30), (12, 1), (5, 2))),
    _decimal(10, 2, " UNSIGNED"),
    _decimal(10, 2, " UNSIGNED ZEROFILL"),
    _decimal(5, 5, " UNSIGNED ZEROFILL"),
    *map(_bits, (1, 7, 8, 9, 10, 33, 63, 64)),
    _case("YEAR", ["1901", "2155", "0", "2024"], st.integers(1901, 2155).map(str), NUMBER, int),
]  # fmt: skip

OTHERS = [
    _case("ENUM('a', 'b,c', 'd''e', '\u00fc')", ["'a'", "'b,c'", "'d''e'", "4", "0"],
          st.integers(0, 4).map(str), PLAIN, same),
    _case(f"ENUM({_LABELS_300})", ["'l0'", "'l254'", "'l255'", "'l299'"],
          st.integers(1, 300).map(str), PLAIN, same),
    _case("SET('x', 'y', '\u00fc')", ["''", "'x'", "7"], st.integers(0, 7).map(str),
          PLAIN, members),
    _case(f"SET({_LABELS_64})", ["'m0,m63'", "18446744073709551615", "''"],
          st.integers(0, (1 << 64) - 1).map(str), PLAIN, members),
    _case("GEOMETRY",
          ["ST_GeomFromText('POINT(1 2)')", "ST_GeomFromText('LINESTRING(0 0, 1 1)')"],
          st.builds("ST_GeomFromText('POINT({} {})')".format, st.integers(), st.integers()),
          HEX, to_base64),
]  # fmt: skip

COMMON = [
    *NUMBERS,
    *_times(),
    *_binaries(),
    *OTHERS,
    *(case for charset in CHARSETS for case in _characters(charset)),
    *(labels(charset, kind) for charset in CHARSETS for kind in ("ENUM", "SET")),
]

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    _FLOATS,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text("abc\u00e9", max_size=5), inner)
    ),
    max_leaves=30,
).map(lambda value: f"CAST({quoted(json.dumps(value))} AS JSON)")
_OPAQUE = (
    "JSON_OBJECT('dec', CAST('-12.50' AS DECIMAL(6,2)),"
    " 'dt', TIMESTAMP('2024-02-29 12:34:56.5'), 'd', DATE('2024-02-29'),"
    " 't', CAST('-12:34:56.25' AS TIME(6)), 'b', x'00ff', 'bit', b'101', 'y', CAST(2024 AS YEAR),"
    " 'big', CAST('12345678901234567890.123456789' AS DECIMAL(30,9)))"
)
_DEEP = "{" + '"a": [' * 45 + "1" + "]" * 45 + "}"
DOCUMENTS = [
    "null", "true", "1", "-1", "65536", "4294967296", "18446744073709551615", "1.5", "1e300",
    "1e-300", "-0.0", "123456789012345680000", '""', '"text \\"quoted\\" \u20ac"', "[]", "{}",
    '{"b": 1, "a": [1, 2.5, "x", null, true], "": {"\\u0000": "\\u001f\\u007f"}}',
    json.dumps({"nested": [[[[{"deep": [1]}]]]]}), json.dumps({"k" * 300: "v" * 70000}),
    json.dumps(list(range(-40000, 40000, 7))), "[" * 99 + "]" * 99,
    json.dumps([{"id": n, "f": n / 3} for n in range(3000)]),
    json.dumps({f"key{n:05d}": n * 70000 for n in range(4000)}),
]  # fmt: skip

_HIDDEN_BYTES = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\xff\xff"]), min_size=8, max_size=8).map(
        b"".join
    ),
)


def _vectors(make: str) -> TypeCase:
    numbers = st.lists(st.integers(-99, 99), min_size=3, max_size=3)
    return _case("VECTOR(3)", [f"{make}('[1,2,3]')", f"{make}('[0,0,0]')"],
                 numbers.map(lambda found: f"{make}('{found}')"), HEX, to_base64)  # fmt: skip


def _compressed() -> list[TypeCase]:
    long = "REPEAT('xyz', 200)"
    texts = ["''", "'short'", long, quoted("caf\u00e9")]
    blobs = ["x''", "x'00'", "REPEAT(x'00ff', 200)"]
    drawn = st.integers(0, 600).map("REPEAT('x', {})".format)
    return [
        *(_case(f"VARCHAR({n}) COMPRESSED CHARACTER SET {charset}",
                ["''", "'a'", f"REPEAT('b', {n})"], st.integers(0, n).map("REPEAT('x', {})".format),
                PLAIN, same)
          for n, charset in ((254, "latin1"), (255, "latin1"), (256, "latin1"), (2000, "utf8mb4"))),
        _case("TEXT COMPRESSED CHARACTER SET latin1", texts, drawn, PLAIN, same),
        _case("MEDIUMTEXT COMPRESSED CHARACTER SET utf16", texts, drawn, PLAIN, same),
        _case("LONGTEXT COMPRESSED CHARACTER SET utf8mb4", texts, drawn, PLAIN, same),
        _case("VARBINARY(2000) COMPRESSED", blobs, drawn, HEX, to_base64),
        _case("TINYBLOB COMPRESSED", ["x''", "x'01'", "REPEAT(x'00', 200)"],
              st.integers(0, 250).map("REPEAT('x', {})".format), HEX, to_base64),
        _case("BLOB COMPRESSED", blobs, drawn, HEX, to_base64),
        _case("MEDIUMBLOB COMPRESSED", [*blobs, "REPEAT(x'ab', 100000)"], drawn, HEX, to_base64),
    ]  # fmt: skip


MARIADB_ONLY = [
    _case("INET4", ["'1.2.3.4'", "'0.0.0.0'", "'255.255.0.0'"],
          st.ip_addresses(v=4).map(lambda address: f"'{address}'"), CHARS, same),
    _case("INET6", ["'::'", "'::1'", "'::ffff:1.2.3.4'", "'::1.2.3.4'", "'1::'", "'1:0:2::3'"],
          _HIDDEN_BYTES.map(lambda data: f"CAST({hexadecimal(data)} AS INET6)"), CHARS, same),
    _case("UUID", ["'00000000-0000-0000-0000-000000000000'",
                   "'6ccd780c-baba-1026-9564-5b8c656024db'",
                   "'f81d4fae-7dec-4bd0-a765-00a0c91e6b00'",
                   "'017f22e2-79b0-7cc3-98c4-dc0c0c07398f'"],
          st.uuids().map(lambda found: f"'{found}'"), CHARS, same),
    _case("JSON", ["'{\"a\": 1}'", "'[1, 2]'"], st.integers().map("'[{}]'".format), PLAIN, same),
    *_compressed(),
]  # fmt: skip

MARIADB_11_ONLY = [_vectors("VEC_FromText")]

MYSQL_ONLY = [
    _case("JSON", [*(f"CAST({quoted(text)} AS JSON)" for text in DOCUMENTS), _OPAQUE],
          _DOCUMENTS, PLAIN, document),
    _vectors("STRING_TO_VECTOR"),
    *(case for charset in MYSQL_CHARSETS for case in _characters(charset)),
    *(labels(charset, kind) for charset in MYSQL_CHARSETS for kind in ("ENUM", "SET")),
]  # fmt: skip


def cases_of(product: str, version: tuple[int, ...]) -> list[TypeCase]:
    """Give every type that a server has."""
    if product == MYSQL:
        return [*COMMON, *MYSQL_ONLY]
    return [*COMMON, *MARIADB_ONLY, *(MARIADB_11_ONLY if version >= (11, 7) else ())]
