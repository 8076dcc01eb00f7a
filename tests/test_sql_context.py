"""The status variables of query events: captured from servers, cut off, and of kinds to come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.ingest.sql_context import Context, parse_context

STRICT_OF_MYSQL = 0x45A00020
STRICT_OF_MARIADB = 0x54200000


@pytest.mark.parametrize(
    ("status", "context"),
    [
        # MySQL 9.7, CREATE TABLE under SET NAMES gbk.
        (
            "0000000000012000a045000000000603737464041c001c00ff000c016c61620011160000000000000012ff001300",
            Context("gbk", STRICT_OF_MYSQL),
        ),
        # With the code 21, which MySQL has had since 9.6.
        (
            "0000000000012000a04500000000060373746404ff00ff00ff000c016c61620012ff001500",
            Context("utf8mb4", STRICT_OF_MYSQL),
        ),
        # CREATE VIEW: with the invoker.
        (
            "0000000000012000a045000000000603737464041c001c00ff000b047265706c093132372e302e302e310c01"
            "6c616200111b0000000000000012ff00",
            Context("gbk", STRICT_OF_MYSQL),
        ),
        # MariaDB 10.11 and 11.8, whose default is a collation of UCA 14.
        (
            "00000000010100002054000000000603737464041c001c002d00811100000000000000",
            Context("gbk", STRICT_OF_MARIADB),
        ),
        (
            "0000000001010000205400000000060373746404000900090009810c00000000000000",
            Context("utf8mb4", STRICT_OF_MARIADB),
        ),
    ],
)
def test_what_servers_wrote_is_read(status: str, context: Context) -> None:
    assert parse_context(bytes.fromhex(status)) == context


SQL_MODE = b"\x01" + (1 << 20).to_bytes(8, "little")
GBK = b"\x04\x1c\x00\x1c\x00\x2d\x00"


@pytest.mark.parametrize(
    "before",
    [
        b"\x02\x03std\x00",  # the catalog of MySQL 5.0.3
        b"\x05\x06+01:00",
        b"\x03\x01\x00\x01\x00",
        b"\x0b\x01u\x02hh",
        b"\x0c\x02a\x00bc\x00",
        b"\x0c\xfe",  # too many schemas to be named
        b"\x0d\x01\x02\x03",
        b"\x80\x01\x02\x03",
        b"\x81" + bytes(8),
        b"\x82\x02",
        b"\x82\x04" + bytes(8),  # with the number of the ALTER that ends
        b"\x83\x02\x2d\x00\x2e\x00\x08\x00\x2f\x00",  # MariaDB 11.5 has it before the charset
    ],
    ids=bytes.hex,
)
def test_every_known_variable_is_stepped_over(before: bytes) -> None:
    context = parse_context(before + SQL_MODE + GBK)
    assert context == Context("gbk", 1 << 20)
    assert context.backslash_escapes is False
    assert context.double_quotes_strings is True


def test_an_unknown_variable_ends_the_reading() -> None:
    assert parse_context(SQL_MODE + b"\x63\x00" + GBK) == Context("", 1 << 20)
    assert parse_context(b"\x63" + SQL_MODE + GBK) == Context()
    assert Context().backslash_escapes is None


def test_an_unknown_collation_is_no_character_set() -> None:
    assert parse_context(b"\x04\xff\x7f\x1c\x00\x2d\x00") == Context()


@given(st.binary())
def test_no_bytes_raise(status: bytes) -> None:
    assert isinstance(parse_context(status), Context)


@given(st.integers(0, len(SQL_MODE + GBK)))
def test_what_is_cut_off_is_not_known(length: int) -> None:
    context = parse_context((SQL_MODE + GBK)[:length])
    assert (context.sql_mode is None) is (length < len(SQL_MODE))
    assert (context.charset == "gbk") is (length == len(SQL_MODE + GBK))
