"""Every character that a server can store in a column of a character set reads as the server says.

The servers are asked: a column of the set is filled with all sequences of bytes that can make a
character, and read as utf8mb4.
"""

from __future__ import annotations

import pytest
from typecases import CHARSETS, MYSQL_CHARSETS

from lanecache.ingest.charsets import charset_of_collation, text_decoder
from lanecache.servers import DatabaseServer, MySql

ONE_BYTE = "SELECT b FROM bytes"
TWO_BYTES = "SELECT CONCAT(x.b, y.b) AS b FROM bytes x JOIN bytes y"
THREE_BYTES = "SELECT CONCAT(x'8f', x.b, y.b) AS b FROM bytes x JOIN bytes y"
# All four-byte characters would be 1.6 million; these are the first and the last of each plane, and
# those around the two that differ.
FOUR_BYTES = (
    "SELECT CONCAT(l.b, d.b, x.b, y.b) AS b FROM bytes l JOIN bytes d JOIN bytes x JOIN bytes y"
    " WHERE l.n IN (0x81, 0x84, 0x90, 0xe3, 0xfe) AND d.n IN (0x30, 0x35, 0x32, 0x39)"
    " AND x.n BETWEEN 0xf0 AND 0xfe AND y.n BETWEEN 0x30 AND 0x39"
)
UNICODE_UNITS = frozenset({"ucs2", "utf16", "utf16le"})
MANY_BYTES = {
    **dict.fromkeys(("big5", "sjis", "cp932", "euckr", "gb2312", "gbk"), (ONE_BYTE, TWO_BYTES)),
    **dict.fromkeys(("ujis", "eucjpms"), (ONE_BYTE, TWO_BYTES, THREE_BYTES)),
    **dict.fromkeys(UNICODE_UNITS, (TWO_BYTES,)),
    "gb18030": (ONE_BYTE, TWO_BYTES, FOUR_BYTES),
    "utf32": ("SELECT CONCAT(x'00', l.b, x.b, y.b) AS b FROM bytes l JOIN bytes x JOIN bytes y"
              " WHERE l.n < 0x12 AND x.n IN (0, 0xd7, 0xd8, 0xdf, 0xe0, 0xff)",),
}  # fmt: skip
ENOUGH = {"ascii": 128, "utf32": 18_000, "gb18030": 40_000, **dict.fromkeys(UNICODE_UNITS, 63_000)}


def _meaning(shown: bytes, stored: bytes, charset: str) -> str | None:
    """Give what the server shows for stored bytes, or ``None`` where it has no character."""
    try:
        text = shown.decode()
    except UnicodeDecodeError:
        return None  # a lone surrogate of ucs2, which MariaDB shows as it is
    if not text or ("?" in text and b"?" not in stored):
        return None
    if "\ufffd" in text and charset not in UNICODE_UNITS and charset not in ("gb18030", "utf32"):
        return None
    return text


@pytest.mark.parametrize("charset", [*CHARSETS, *MYSQL_CHARSETS])
async def test_a_character_set_reads_as_on_the_server(
    database: DatabaseServer, schema: str, charset: str
) -> None:
    if charset in MYSQL_CHARSETS and not isinstance(database, MySql):
        pytest.skip(f"MariaDB has no {charset}")
    decode = text_decoder(charset)
    assert decode is not None
    compared = 0
    async with database.session(schema, conv={}, init_command="SET sql_mode = ''") as session:
        await session.execute("SET sql_log_bin = 0")
        await session.execute("CREATE TABLE bytes (n INT PRIMARY KEY, b BINARY(1)) ENGINE=MyISAM")
        everything = ", ".join(f"({n}, x'{n:02x}')" for n in range(256))
        await session.execute(f"INSERT INTO bytes VALUES {everything}")
        for sequences in MANY_BYTES.get(charset, (ONE_BYTE,)):
            await session.execute(
                f"CREATE TABLE t (b VARBINARY(4), c VARCHAR(4) CHARACTER SET {charset})"
                " ENGINE=MyISAM"
            )
            await session.execute(f"INSERT IGNORE INTO t SELECT q.b, q.b FROM ({sequences}) q")
            for stored, shown in await session.query(
                "SELECT HEX(b), HEX(CONVERT(c USING utf8mb4)) FROM t WHERE CAST(c AS BINARY) = b"
            ):
                data = bytes.fromhex(stored)
                wanted = _meaning(bytes.fromhex(shown), data, charset)
                try:
                    found = decode(data)
                except UnicodeDecodeError:
                    found = None
                assert found == wanted, f"{charset} {stored}"
                compared += wanted is not None
            await session.execute("DROP TABLE t")
    least = 20_000 if charset in MANY_BYTES else 126 if charset.startswith("utf8") else 200
    if charset == "swe7":
        least = 127
    assert compared >= ENOUGH.get(charset, least)


async def test_every_collation_belongs_to_the_character_set_that_the_server_names(
    database: DatabaseServer,
) -> None:
    # MariaDB's UCA-1400 collations have one name for several sets, and their numbers elsewhere.
    if isinstance(database, MySql):
        sql = "SELECT ID, CHARACTER_SET_NAME FROM information_schema.COLLATIONS"
    else:
        sql = (
            "SELECT ID, CHARACTER_SET_NAME"
            " FROM information_schema.COLLATION_CHARACTER_SET_APPLICABILITY"
        )
    rows = await database.query(sql)
    assert len(rows) > 250
    for number, charset in rows:
        name = {"utf8": "utf8mb3"}.get(charset, charset)
        assert charset_of_collation(number) == name, number
        if name != "binary":
            assert text_decoder(name) is not None
    assert charset_of_collation(1 << 16) == ""
    assert charset_of_collation(1023) == ""


@pytest.mark.parametrize(
    ("charset", "data", "text"),
    [
        ("sjis", b"a\x81\x5f\x81\x40", "a\\\u3000"),
        # 0x815F stands here, but across two characters.
        ("sjis", b"\x81\x81\x5f", "\uff1d_"),
        ("big5", b"\xa4\x40\xf9\xd6", "\u4e00\u7881"),
        ("eucjpms", b"\xad\xa1\xa1\xc1a", "\u2460\uff5ea"),
        ("eucjpms", b"\x8e\xb1\x8f\xf4\xa1", "\uff71\u2162"),
        ("ujis", b"\xf5\xa1\x8f\xf5\xa1", "\ue000\ue3ac"),
        ("gb18030", b"\xa8\xbc\x81\x35\xf4\x37", "\u1e3f\ue7c7"),
        ("cp866", b"\xfc\xfd", "\u207f\u00b2"),
        ("latin1", b"\x80\x81", "\u20ac\x81"),
    ],
)
def test_what_python_reads_otherwise_is_read_in_its_place(
    charset: str, data: bytes, text: str
) -> None:
    decode = text_decoder(charset)
    assert decode is not None
    assert decode(data) == text
    assert decode(data * 50) == text * 50


@pytest.mark.parametrize(
    ("charset", "data"),
    [
        ("big5", b"\xa1\x5a"),
        ("big5", b"\xa4\x40\xa2\xcc"),
        ("sjis", b"\x81\x5f\x81"),
        ("eucjpms", b"\xad\xa1\xad\xbf"),
        ("eucjpms", b"\xad\xa1\x8f\xa1"),
        ("gb18030", b"\xa8\xbc\xff"),
        ("ucs2", b"\xd8\x3d\xde\x00"),
        ("utf8mb4", b"\xed\xa0\x80"),
        ("ascii", b"\x80"),
        ("cp1256", b"\x8a"),
        ("utf16", b"\xd8\x3d"),
    ],
)
def test_bytes_that_are_no_text_are_refused(charset: str, data: bytes) -> None:
    decode = text_decoder(charset)
    assert decode is not None
    with pytest.raises(UnicodeDecodeError):
        decode(data)


def test_a_character_set_that_is_not_known_has_no_decoder() -> None:
    assert text_decoder("klingon") is None
    assert text_decoder("") is None
