"""The bytes of a statement to text, as the server's lexer divides them.

A server reads a statement in the client's character set: in GBK, Big5, Shift-JIS and GB18030 the
second byte of a character may be a backslash, a backtick or a letter. What servers write into the
binlog by themselves is in UTF-8 all the same, whatever the event says of its character set: all of
``CREATE TABLE`` in place of ``CREATE TABLE ... SELECT`` and of ``SELECT f()``; on MySQL the names
of views and routines, before text of the client's. So where bytes may be UTF-8, they are read in
both ways.
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
}
_ONE_BYTE: Final = rb"[\x80-\xff]"
_UTF8_CHARACTER: Final = (
    rb"(?P<utf8>[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]"
    rb"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
)
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


def texts_of(sql: bytes, charset: str) -> list[Text]:
    """Give every text that the bytes may be; none where that is not known.

    ``charset`` is the client's, ``""`` where that is not known.
    """
    if charset in _UNREADABLE or (charset == "swe7" and _SWE7_SIGNS.search(sql)):
        return []
    if sql.isascii():
        return [Text(sql.decode("ascii"))]
    if charset in _UTF8:
        return [Text(sql.decode("utf-8", "surrogateescape"))]
    if charset == "binary":
        # Such bytes become names as they are, and names are UTF-8.
        return [Text(sql.decode("utf-8", "surrogateescape"), one_byte=True)]
    if text_decoder(charset) is None:
        return []
    one_byte = charset not in _CHARACTERS
    texts = [Text(_decode(sql, charset, _pattern(charset)), one_byte)]
    if _MAY_BE_UTF8.search(sql):
        texts.append(Text(_decode(sql, charset, _pattern(charset, utf8_first=True)), one_byte))
    return texts


@cache
def _pattern(charset: str, *, utf8_first: bool = False) -> re.Pattern[bytes]:
    """Give what matches a character beyond ASCII."""
    several = [_CHARACTERS[charset]] if charset in _CHARACTERS else []
    return re.compile(b"|".join([*([_UTF8_CHARACTER] if utf8_first else []), *several, _ONE_BYTE]))


_MAY_BE_UTF8: Final = re.compile(_UTF8_CHARACTER)


def _decode(sql: bytes, charset: str, pattern: re.Pattern[bytes]) -> str:
    parts: list[str] = []
    end = 0
    for found in pattern.finditer(sql):
        parts.append(sql[end : found.start()].decode("ascii"))
        utf8 = found.lastgroup is not None
        parts.append(found[0].decode("utf-8") if utf8 else _character(charset, found[0]))
        end = found.end()
    return "".join(parts) + sql[end:].decode("ascii")


@lru_cache(maxsize=1 << 14)
def _character(charset: str, data: bytes) -> str:
    decode = text_decoder(charset)
    try:
        character = decode(data) if decode is not None else ""
    except UnicodeDecodeError:
        character = ""
    # What is a character of its own to the lexer must not become a quote or a backslash.
    return _NO_CHARACTER if not character or character.isascii() else character
