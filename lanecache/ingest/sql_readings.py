"""The ways in which the text of a statement may be read, each only as far as it matters.

A statement may be a gigabyte of VALUES; its verb and its first tables stand at the beginning. No
more than a front of 1 MiB is ever looked at, and no more than ``TOKENS_MAX`` tokens of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from lanecache.ingest.sql_cursor import Cursor
from lanecache.ingest.sql_text import Text, is_word, texts_of
from lanecache.ingest.sql_tokens import TextTooLong, Token, TokenKind, UnreadableText, tokenize

if TYPE_CHECKING:
    from lanecache.ingest.sql_context import Context

Found = TypeVar("Found")

_TEXT_LENGTHS: Final = (16 * 1024, 1024 * 1024)
TOKENS_MAX: Final = 1 << 17
"""How many tokens are read of a statement, in all readings together."""


def read_text(
    sql: bytes | str, default_schema: str, context: Context, reader: Callable[[Cursor], Found]
) -> list[Found]:
    """Have a text read in each way that the settings leave open; give what each reading found.

    The content of ``/*!80013 ... */`` is read and left out; where it is not known whether a
    backslash escapes, it does and does not; bytes are read in each character set that they may be
    in. A way in which the text cannot be read (a quote is not closed, say) was not the server's,
    and is left out: nothing is found where that is so of all, or the character set is not known.

    Raises:
        TextTooLong: it would take more than may be looked at.
    """
    for length in _TEXT_LENGTHS:
        try:
            return _Readings(sql, length, context).read(reader, default_schema)
        except TextTooLong:
            if len(sql) <= length:
                break
    raise TextTooLong


class _Readings:
    """The readings of the front of a text."""

    def __init__(self, sql: bytes | str, length: int, context: Context) -> None:
        front, self._cut = sql[:length], len(sql) > length
        self._texts = (
            [Text(front)] if isinstance(front, str) else texts_of(bytes(front), context.charset)
        )
        self._context = context
        self._tokens_left = TOKENS_MAX

    def read(self, reader: Callable[[Cursor], Found], default_schema: str) -> list[Found]:
        escapes = self._context.backslash_escapes
        readings: list[Found] = []
        for text in self._texts:
            for backslash_escapes in (True, False) if escapes is None else (escapes,):
                cursor = Cursor(self._tokens(text, backslash_escapes), default_schema)
                before = len(readings)
                with suppress(UnreadableText):
                    readings.append(reader(cursor))
                if cursor.read_conditional:
                    always = self._tokens(text, backslash_escapes, conditional=False)
                    with suppress(UnreadableText):
                        readings.append(reader(Cursor(always, default_schema)))
                if len(readings) > before and "\\" not in text.characters[: cursor.read_end]:
                    break  # escapes or not, it is the same
        return readings

    def _tokens(
        self, text: Text, backslash_escapes: bool, *, conditional: bool = True
    ) -> Iterator[Token]:
        strings = self._context.double_quotes_strings
        double = TokenKind.STRING if strings else TokenKind.QUOTED
        for token in tokenize(
            text.characters,
            backslash_escapes=backslash_escapes,
            double_quotes=TokenKind.DOUBLE if strings is None else double,
            brackets_quote=self._context.brackets_quote,
            cut=self._cut,
        ):
            self._tokens_left -= 1
            if self._tokens_left < 0:
                raise TextTooLong
            if text.one_byte and token.kind is TokenKind.WORD and not is_word(token.text):
                raise UnreadableText
            if conditional or not token.conditional:
                yield token
