"""A cursor over the tokens of one statement: what the readers of statements step with."""

from __future__ import annotations

from lanecache.ingest.sql_statement import UNKNOWN, Statement
from lanecache.ingest.sql_tokens import Token, TokenKind


class NotUnderstood(Exception):
    """The text is not what the grammar of its verb allows."""


class Cursor:
    """A place in the tokens of one statement."""

    def __init__(self, tokens: list[Token], default_schema: str) -> None:
        while tokens and tokens[-1].text == ";":
            tokens = tokens[:-1]
        self._tokens = tokens
        self._default_schema = default_schema
        self.index = 0

    def peek(self, ahead: int = 0) -> Token | None:
        index = self.index + ahead
        return self._tokens[index] if index < len(self._tokens) else None

    def word(self, ahead: int = 0) -> str:
        """Give the unquoted word here in upper case, a sign as it is, else an empty string."""
        token = self.peek(ahead)
        if token is None or token.kind not in (TokenKind.WORD, TokenKind.SIGN):
            return ""
        return token.text.upper()

    def at_end(self) -> bool:
        return self.index >= len(self._tokens)

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

    def table(self) -> tuple[str, str]:
        """Step over a table's name: ``t``, ``s.t``, ``.t``, or ``t.*`` as ``DELETE`` has it."""
        if self.accept("."):
            return self._default_schema, self.identifier()
        first = self.identifier()
        if self.word() == "." and self.word(1) != "*":
            self.index += 1
            second = self.identifier()
            self.accept(".", "*")
            return first, second
        self.accept(".", "*")
        return self._default_schema, first

    @property
    def default_schema(self) -> str:
        """What a name without a schema belongs to."""
        return self._default_schema


def at_end(cursor: Cursor, statement: Statement) -> Statement:
    """Give the statement if nothing follows; else it is not what it looked like."""
    return statement if cursor.at_end() else UNKNOWN
