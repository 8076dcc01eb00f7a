"""The bytes of a statement to text, as the server's lexer divides them.

A server reads a statement in the client's character set: in GBK, Big5, Shift-JIS and GB18030 the
second byte of a character may be a backslash, a backtick or a letter. What servers write into the
binlog by themselves (``CREATE TABLE`` in place of ``CREATE TABLE ... SELECT``, ``SELECT f()``,
the names of views and routines) is in UTF-8 all the same, whatever the event says of its character
set. So such bytes are read in both ways, where both are possible.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Final

import msgspec

from lanecache.ingest.charsets import text_decoder

# What stands for a character that Unicode does not have; a name that has it is no known name.
_NO_CHARACTER: Final = "\udcff"

# Characters of several bytes, as the servers' strings/ctype-*.c divide them (``ismbchar``). A byte
# that begins none is a character of its own.
_CHARACTERS: Final = {
    charset: re.compile(pattern + rb"|[\x80-\xff]")
    for charset, pattern in {
        "big5": rb"[\xa1-\xf9][\x40-\x7e\xa1-\xfe]",
        "cp932": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
        "eucjpms": rb"\x8f[\xa1-\xfe][\xa1-\xfe]|\x8e[\xa0-\xdf]|[\xa1-\xfe][\xa1-\xfe]",
        "euckr": rb"[\x81-\xfe][\x41-\x5a\x61-\x7a\x81-\xfe]",
        "gb18030": rb"[\x81-\xfe][\x30-\x39][\x81-\xfe][\x30-\x39]"
        rb"|[\x81-\xfe][\x40-\x7e\x80-\xfe]",
        "gb2312": rb"[\xa1-\xf7][\xa1-\xfe]",
        "gbk": rb"[\x81-\xfe][\x40-\x7e\x80-\xfe]",
        "sjis": rb"[\x81-\x9f\xe0-\xfc][\x40-\x7e\x80-\xfc]",
        "ujis": rb"\x8f[\xa1-\xfe][\xa1-\xfe]|\x8e[\xa0-\xdf]|[\xa1-\xfe][\xa1-\xfe]",
    }.items()
}
_UTF8: Final = frozenset({"utf8mb3", "utf8mb4"})
# No client may use the first ones; in swe7 signs of ASCII are letters.
_UNREADABLE: Final = frozenset({"ucs2", "utf16", "utf16le", "utf32"})
_SWE7_SIGNS: Final = re.compile(rb"[@\[\\\]^`{|}~\x80-\xff]")


class Text(msgspec.Struct, frozen=True):
    """A statement's text; ``one_byte`` says that each of its characters was one byte.

    There a character beyond ASCII may be a sign or a space as well as a letter.
    """

    characters: str
    one_byte: bool = False


def is_word(text: str) -> bool:
    """Tell whether a word of a text of one byte a character has letters only, beyond ASCII."""
    return text.isascii() or all(letter.isascii() or letter.isalpha() for letter in text)


def texts_of(sql: bytes, charset: str, *, cut: bool = False) -> list[Text]:
    """Give every text that the bytes may be; none where that is not known.

    ``charset`` is the client's, ``""`` where that is not known. Of a text that is ``cut``, the last
    character may be cut too.
    """
    if sql.isascii() and charset != "swe7":
        return [] if charset in _UNREADABLE else [Text(sql.decode("ascii"))]
    if charset in _UTF8:
        return [Text(sql.decode("utf-8", "surrogateescape"))]
    own = _read(sql, charset)
    if own is None:
        return []
    try:
        return [own, Text(sql.decode("utf-8"))]
    except UnicodeDecodeError as error:
        if cut and error.end == len(sql) and error.start >= len(sql) - 3:
            return [own, Text(sql[: error.start].decode("utf-8"))]
        return [own]


def _read(sql: bytes, charset: str) -> Text | None:
    if charset == "binary":
        # Such bytes become names as they are, and names are UTF-8.
        return Text(sql.decode("utf-8", "surrogateescape"), one_byte=True)
    if charset == "swe7":
        return None if _SWE7_SIGNS.search(sql) else Text(sql.decode("ascii"))
    if charset in _UNREADABLE or text_decoder(charset) is None:
        return None
    pattern = _CHARACTERS.get(charset)
    if pattern is None:
        return Text(sql.decode("latin-1").translate(_one_byte(charset)), one_byte=True)
    parts: list[str] = []
    end = 0
    for found in pattern.finditer(sql):
        parts += (sql[end : found.start()].decode("ascii"), _character(charset, found[0]))
        end = found.end()
    return Text("".join(parts) + sql[end:].decode("ascii"))


@cache
def _one_byte(charset: str) -> dict[int, str]:
    """Give what each byte of a character set of one byte a character stands for."""
    return {byte: _character(charset, bytes((byte,))) for byte in range(128, 256)}


@lru_cache(maxsize=1 << 14)
def _character(charset: str, data: bytes) -> str:
    decode = text_decoder(charset)
    try:
        character = decode(data) if decode is not None else ""
    except UnicodeDecodeError:
        character = ""
    # What is a character of its own to the lexer must not become a quote or a backslash.
    return _NO_CHARACTER if not character or character.isascii() else character
