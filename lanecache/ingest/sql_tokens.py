"""SQL text to tokens, as MySQL and MariaDB read it: comments, quotes, names, version comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import Final

import msgspec


class TokenKind(Enum):
    """What a token is."""

    WORD = "word"  # a keyword or an unquoted name
    QUOTED = "quoted"  # a name in backticks
    DOUBLE = "double"  # in double quotes: a string, or a name under ANSI_QUOTES
    STRING = "string"
    HEXADECIMAL = "hexadecimal"  # X'61' or 0x61: its digits
    NUMBER = "number"
    SIGN = "sign"


class Token(msgspec.Struct, frozen=True, gc=False):
    """A token with its quotes taken off.

    ``conditional`` tells that it stands in a comment such as ``/*!80013 ... */``, which only some
    versions execute; ``end`` is the offset behind it.
    """

    kind: TokenKind
    text: str
    conditional: bool
    end: int

    @property
    def is_name(self) -> bool:
        """Whether it can be the name of a table or schema."""
        return self.kind in (TokenKind.WORD, TokenKind.QUOTED, TokenKind.DOUBLE)


class UnreadableText(Exception):
    """A quote or comment is not closed."""


class TextTooLong(Exception):
    """More of the text is wanted than may be looked at."""


# Content for versions below this is executed by every server that lanecache supports. MariaDB
# leaves out 50700 to 99999, MySQL what is above its own version.
_ALWAYS_EXECUTED_BELOW: Final = 50700

# Only ASCII separates: a no-break space, say, is a letter of a name.
_TOKEN: Final = re.compile(
    r"""
      (?P<space>   [\x00\t-\r\x20]+ | \#[^\n]* | --(?=[\x00-\x20]|\Z)[^\n]* )
    | (?P<version> /\*(?P<maria>M)?!(?P<digits>[0-9]{5,6})? )
    | (?P<comment> /\* )
    | (?P<close>   \*/ )
    | (?P<hex>     [xX]'[0-9a-fA-F]*' | 0x[0-9a-fA-F]+(?![0-9A-Za-z_$\x80-\U0010ffff]) )
    | (?P<number>  [0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9A-Za-z_$\x80-\U0010ffff]) )
    | (?P<word>    [0-9A-Za-z_$\x80-\U0010ffff]+ )
    | (?P<quote>   ['"`] )
    | (?P<sign>    . )
    """,
    re.VERBOSE | re.DOTALL,
)
_QUOTED: Final = {
    ("[", True): re.compile(r"((?:[^\]]++|\]\])*+)\]"),
    ("[", False): re.compile(r"((?:[^\]]++|\]\])*+)\]"),
    ("'", True): re.compile(r"((?:[^'\\]++|\\.|'')*+)'", re.DOTALL),
    ('"', True): re.compile(r'((?:[^"\\]++|\\.|"")*+)"', re.DOTALL),
    ("'", False): re.compile(r"((?:[^']++|'')*+)'"),
    ('"', False): re.compile(r'((?:[^"]++|"")*+)"'),
    ("`", True): re.compile(r"((?:[^`]++|``)*+)`"),
    ("`", False): re.compile(r"((?:[^`]++|``)*+)`"),
}
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "Z": "\x1a"}


def tokenize(
    text: str,
    *,
    backslash_escapes: bool,
    double_quotes: TokenKind = TokenKind.DOUBLE,
    brackets_quote: bool = False,
    cut: bool = False,
) -> Iterator[Token]:
    """Walk the tokens of one statement, one at a time.

    Args:
        text: the statement.
        backslash_escapes: false under ``NO_BACKSLASH_ESCAPES``.
        double_quotes: what stands in double quotes: a ``STRING``, a name (``QUOTED``), or
            ``DOUBLE`` where that is not known.
        brackets_quote: whether names may stand in brackets.
        cut: whether this is only the front of the text.

    Raises:
        UnreadableText: a quote or a comment is not closed.
        TextTooLong: the rest of a text that is cut is wanted.
    """
    place, length = 0, len(text)
    open_comments: list[bool] = []  # of version comments: whether the content is conditional
    conditional = 0  # how many of them are
    while place < length:
        match = _TOKEN.match(text, place)
        if match is None:
            raise UnreadableText
        start, place = place, match.end()
        if cut and place == length:
            raise TextTooLong
        kind = "version" if match["version"] else match.lastgroup
        if kind == "space":
            continue
        if kind == "comment":
            end = text.find("*/", place)
            if end < 0:
                raise TextTooLong if cut else UnreadableText
            place = end + 2
        elif kind == "version":
            digits = match["digits"]
            too_new = digits is not None and int(digits) >= _ALWAYS_EXECUTED_BELOW
            # MySQL takes /*M! ... */ for a plain comment.
            open_comments.append(too_new or match["maria"] is not None)
            conditional += open_comments[-1]
        elif kind == "close" and open_comments:
            conditional -= open_comments.pop()
        elif kind == "quote" or (brackets_quote and match[0] == "["):
            quote = match[0]
            token_kind = double_quotes if quote == '"' else _KIND_OF_QUOTE[quote]
            escapes = backslash_escapes and token_kind is not TokenKind.QUOTED
            quoted = _QUOTED[quote, escapes].match(text, place)
            if quoted is None or (cut and quoted.end() == length):
                raise TextTooLong if cut else UnreadableText
            place = quoted.end()
            content = _unquoted(quoted[1], quote, escapes)
            yield Token(token_kind, content, conditional > 0, place)
        else:
            token_kind, content = _plain(kind, text[start:place])
            yield Token(token_kind, content, conditional > 0, place)
    if cut:
        raise TextTooLong
    if open_comments:
        raise UnreadableText


_KIND_OF_QUOTE: Final = {
    "'": TokenKind.STRING,
    "`": TokenKind.QUOTED,
    "[": TokenKind.QUOTED,
}


def _plain(kind: str | None, text: str) -> tuple[TokenKind, str]:
    if kind == "hex":
        return TokenKind.HEXADECIMAL, text[2:].rstrip("'")
    if kind == "number":
        return TokenKind.NUMBER, text
    if kind == "word":
        return TokenKind.WORD, text
    return TokenKind.SIGN, text


def _unquoted(text: str, quote: str, escapes: bool) -> str:
    if escapes and "\\" in text:
        text = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)
    closing = "]" if quote == "[" else quote
    return text.replace(closing * 2, closing)
