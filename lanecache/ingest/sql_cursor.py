"""A cursor over the tokens of one statement: what the readers of statements step with."""

from __future__ import annotations

from collections.abc import Iterable

from lanecache.ingest.sql_statement import UNKNOWN, Statement
from lanecache.ingest.sql_tokens import Token, TokenKind


class NotUnderstood(Exception):
    """The text is not what the grammar of its verb allows."""


class Cursor:
    """A place in the tokens of one statement, which are read only as far as they are wanted.

    ``read_end`` is the offset behind the last token that was read, and ``read_conditional`` tells
    whether one of them was conditional.
    """

    def __init__(self, tokens: Iterable[Token], default_schema: str) -> None:
        self._source = iter(tokens)
        self._tokens: list[Token] = []
        self._default_schema = default_schema
        self.index = 0
        self.read_end = 0
        self.read_conditional = False

    def peek(self, ahead: int = 0) -> Token | None:
        index = self.index + ahead
        while index >= len(self._tokens):
            if not self._pull():
                return None
        return self._tokens[index]

    def _pull(self) -> bool:
        """Read one more token; semicolons that end the text are no part of the statement."""
        semicolons = []
        for token in self._source:
            self.read_end = token.end
            self.read_conditional = self.read_conditional or token.conditional
            if token.text == ";" and token.kind is TokenKind.SIGN:
                semicolons.append(token)
                continue
            self._tokens += semicolons
            self._tokens.append(token)
            return True
        return False

    def word(self, ahead: int = 0) -> str:
        """Give the unquoted word here in upper case, a sign as it is, else an empty string."""
        token = self.peek(ahead)
        if token is None or token.kind not in (TokenKind.WORD, TokenKind.SIGN):
            return ""
        return token.text.upper()

    def at_end(self) -> bool:
        return self.peek() is None

    def accept(self, *words: str) -> bool:
        """Step over a run of words if it stands here."""
        if all(self.word(ahead) == word for ahead, word in enumerate(words)):
            self.index += len(words)
            return True
        return False

    def accept_any(self, words: frozenset[str] | set[str]) -> str:
        """Step over one word of a set if it stands here, and give it."""
        word = self.word()
        if word and word in words:
            self.index += 1
            return word
        return ""

    def skip(self, words: frozenset[str] | set[str]) -> None:
        while self.accept_any(words):
            pass

    def skip_group(self) -> None:
        """Step over what stands in the parentheses that open here."""
        depth = 0
        while not self.at_end():
            word = self.word()
            self.index += 1
            depth += (word == "(") - (word == ")")
            if depth == 0:
                return
        raise NotUnderstood

    def find(self, words: frozenset[str] | set[str]) -> str:
        """Go to the first of these words outside parentheses and give it; empty: at the end."""
        while not self.at_end():
            word = self.word()
            if word in words:
                return word
            if word == "(":
                self.skip_group()
            else:
                self.index += 1
        return ""

    def identifier(self) -> str:
        token = self.peek()
        if token is None or not token.is_name:
            raise NotUnderstood
        self.index += 1
        return token.text

    def table(self, default_schema: str | None = None) -> tuple[str, str]:
        """Step over a table's name: ``t``, ``s.t``, ``.t``, or ``t.*`` as ``DELETE`` has it.

        One without a schema belongs to ``default_schema``, where that is another than the current.
        """
        current = self._default_schema if default_schema is None else default_schema
        if self.accept("."):
            return current, self._behind_dot()
        first = self.identifier()
        if self.word() == "." and self.word(1) != "*":
            self.index += 1
            second = self._behind_dot()
            self.accept(".", "*")
            return first, second
        self.accept(".", "*")
        return current, first

    def _behind_dot(self) -> str:
        """Step over a name behind a dot, which may be all digits there."""
        token = self.peek()
        if token is not None and token.kind is TokenKind.NUMBER and token.text.isdecimal():
            self.index += 1
            return token.text
        return self.identifier()

    @property
    def default_schema(self) -> str:
        """What a name without a schema belongs to."""
        return self._default_schema


def at_end(cursor: Cursor, statement: Statement) -> Statement:
    """Give the statement if nothing follows; else it is not what it looked like."""
    return statement if cursor.at_end() else UNKNOWN
