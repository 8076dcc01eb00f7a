"""The condition of a lane: a small comparison language over columns, as SQL writes it.

::

    condition  = conjunction { OR conjunction }
    conjunction = negation { AND negation }
    negation   = [ NOT ] predicate
    predicate  = "(" condition ")" | operand [ comparison ]
    comparison = ( = | <> | != | < | <= | > | >= ) operand
               | IS [ NOT ] NULL
               | [ NOT ] IN "(" literal { "," literal } ")"
               | [ NOT ] BETWEEN operand AND operand
               | [ NOT ] LIKE text
    operand    = column | `column` | literal
    literal    = text | number | x'hexadecimal' | NULL | TRUE | FALSE

Text stands in single or double quotes, doubled inside; a backslash is itself, except in ``LIKE``,
where it takes away the meaning of the ``%``, ``_`` or backslash that follows. Keywords and column
names are matched in any case.

This module reads the text into a tree. What it means over a table's columns, and the Python that
is generated for that, is in ``where_code``; nothing of the text is ever run.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, NoReturn

import msgspec

from lanecache.errors import ConfigError

# Python's own parser takes 200 levels; nobody reads a condition of fifty.
_DEPTH_MAX: Final = 50
# Above what any column holds (65 digits; 1.8e308), and below what is slow to compute with.
_DIGITS_MAX: Final = 400

_SHOWN_MAX: Final = 40  # characters of a token, in a message

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<hex>[xX]'[^']*')
      | (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*")
      | (?P<quoted>`(?:[^`]|``)+`)
      | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<word>[^\W\d][\w$]*)
      | (?P<sign><>|!=|<=|>=|[=<>(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = frozenset(
    {"AND", "BETWEEN", "FALSE", "IN", "IS", "LIKE", "NOT", "NULL", "OR", "TRUE"}
)
_COMPARISONS: Final = frozenset({"=", "<>", "!=", "<", "<=", ">", ">="})

LiteralValue = str | bytes | int | Decimal | bool | None


class ColumnName(msgspec.Struct, frozen=True):
    """A column as written; ``at`` is its place in the text, from 1."""

    name: str
    at: int


class Literal(msgspec.Struct, frozen=True):
    """A value as written; ``None`` is NULL."""

    value: LiteralValue
    at: int


Operand = ColumnName | Literal


class Compare(msgspec.Struct, frozen=True):
    """``left sign right``; the sign is one of = != < <= > >=."""

    sign: str
    left: Operand
    right: Operand


class IsNull(msgspec.Struct, frozen=True):
    operand: Operand


class In(msgspec.Struct, frozen=True):
    operand: Operand
    items: tuple[Literal, ...]


class Like(msgspec.Struct, frozen=True):
    operand: Operand
    pattern: str


class Truth(msgspec.Struct, frozen=True):
    """An operand by itself: true where it is a number other than 0."""

    operand: Operand


class Not(msgspec.Struct, frozen=True):
    part: Condition


class And(msgspec.Struct, frozen=True):
    parts: tuple[Condition, ...]


class Or(msgspec.Struct, frozen=True):
    parts: tuple[Condition, ...]


Condition = Compare | IsNull | In | Like | Truth | Not | And | Or


def parse_where(text: str) -> Condition:
    """Read a condition.

    Raises:
        ConfigError: it is none; the message names the column of the text, from 1.
    """
    return _Parser(text).whole()


class _Token(msgspec.Struct, frozen=True):
    kind: str  # a group of _TOKEN, "keyword" or "end"
    text: str
    at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._next = 0
        self._depth = 0

    def whole(self) -> Condition:
        if self._token.kind == "end":
            raise ConfigError("where is empty; leave it out to take every row")
        condition = self._condition()
        if self._token.kind != "end":
            self._fail("AND, OR or the end")
        return condition

    # Tokens.

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        pos = 0
        text = self._text.rstrip()
        while pos < len(text):
            match = _TOKEN.match(text, pos)
            if match is None or match.lastgroup is None:
                while text[pos].isspace():
                    pos += 1
                raise ConfigError(
                    f"where has {text[pos : pos + 8]!r} at column {pos + 1}, which is not"
                    f" understood{_hint(text[pos:])}"
                )
            kind = match.lastgroup
            token = match[kind]
            if kind == "word" and token.upper() in _KEYWORDS:
                kind, token = "keyword", token.upper()
            pos = match.end()
            follows = text[pos : pos + 1]
            at = match.start(match.lastgroup) + 1
            if kind in ("number", "hex") and (follows.isalnum() or follows in ("_", ".", "'")):
                raise ConfigError(
                    f"where has {token + follows!r} at column {at}, which is neither a number nor"
                    " a name"
                )
            tokens.append(_Token(kind, token, at))
        tokens.append(_Token("end", "", len(text) + 1))
        return tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> bool:
        """Step over a keyword or sign if it is one of these."""
        token = self._token
        if token.kind in ("keyword", "sign") and token.text in texts:
            self._next += 1
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._take(text):
            self._fail(text)

    def _fail(self, wanted: str) -> NoReturn:
        token = self._token
        shown = " ".join(token.text.split())
        shown = f"{shown[:_SHOWN_MAX]}…" if len(shown) > _SHOWN_MAX else shown
        found = "it ends" if token.kind == "end" else f'it has "{shown}"'
        raise ConfigError(f"where needs {wanted} at column {token.at}, where {found}")

    # The grammar.

    def _condition(self) -> Condition:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise ConfigError(
                f"where is nested deeper than {_DEPTH_MAX} levels at column {self._token.at}"
            )
        parts = [self._conjunction()]
        while self._take("OR"):
            parts.append(self._conjunction())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self) -> Condition:
        parts = [self._negation()]
        while self._take("AND"):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _negation(self) -> Condition:
        negative = False
        while self._take("NOT"):
            negative = not negative
        predicate = self._predicate()
        return Not(predicate) if negative else predicate

    def _predicate(self) -> Condition:
        if self._take("("):
            condition = self._condition()
            self._expect(")")
            return condition
        left = self._operand("a column, a value or a condition")
        token = self._token
        if token.kind == "sign" and token.text in _COMPARISONS:
            self._next += 1
            sign = "!=" if token.text == "<>" else token.text
            return Compare(sign, left, self._operand("a column or a value"))
        if self._take("IS"):
            negative = self._take("NOT")
            self._expect("NULL")
            return Not(IsNull(left)) if negative else IsNull(left)
        negative = self._take("NOT")
        found = self._membership(left)
        if found is None:
            if negative:
                self._fail("IN, BETWEEN or LIKE behind NOT")
            return Truth(left)
        return Not(found) if negative else found

    def _membership(self, left: Operand) -> Condition | None:
        if self._take("IN"):
            self._expect("(")
            items = [self._literal("a value")]
            while self._take(","):
                items.append(self._literal("a value"))
            self._expect(")")
            return In(left, tuple(items))
        if self._take("BETWEEN"):
            low = self._operand("a column or a value")
            self._expect("AND")
            high = self._operand("a column or a value")
            return And((Compare(">=", left, low), Compare("<=", left, high)))
        if self._take("LIKE"):
            token = self._token
            pattern = self._literal("a text in quotes").value
            if not isinstance(pattern, str):
                raise ConfigError(f"where needs a text in quotes behind LIKE at column {token.at}")
            return Like(left, pattern)
        return None

    def _operand(self, wanted: str) -> Operand:
        token = self._token
        if token.kind == "word":
            self._next += 1
            return ColumnName(token.text, token.at)
        if token.kind == "quoted":
            self._next += 1
            return ColumnName(token.text[1:-1].replace("``", "`"), token.at)
        return self._literal(wanted)

    def _literal(self, wanted: str) -> Literal:
        token = self._token
        value: LiteralValue
        if token.kind == "text":
            quote = token.text[0]
            value = token.text[1:-1].replace(quote * 2, quote)
        elif token.kind == "number":
            value = _number(token)
        elif token.kind == "hex":
            value = _hexadecimal(token)
        elif token.kind == "keyword" and token.text in ("NULL", "TRUE", "FALSE"):
            value = {"NULL": None, "TRUE": True, "FALSE": False}[token.text]
        else:
            self._fail(wanted)
        self._next += 1
        return Literal(value, token.at)


def _number(token: _Token) -> int | Decimal:
    if len(token.text) > _DIGITS_MAX:
        raise ConfigError(f"where has a number of too many digits at column {token.at}")
    if token.text.lstrip("+-").isdigit():
        return int(token.text)
    number = Decimal(token.text)
    if number and abs(number.adjusted()) > _DIGITS_MAX:
        raise ConfigError(f"where has a number that no column can hold at column {token.at}")
    return number


def _hexadecimal(token: _Token) -> bytes:
    digits = token.text[2:-1]
    if len(digits) % 2 or not re.fullmatch("[0-9a-fA-F]*", digits):
        raise ConfigError(
            f"where has {token.text} at column {token.at}, which is not an even number of"
            " hexadecimal digits"
        )
    return bytes.fromhex(digits)


def _hint(rest: str) -> str:
    if rest[0] in "'\"`":
        return ": the quote is never closed"
    for wrong, right in (("&&", "AND"), ("||", "OR"), ("!", "NOT")):
        if rest.startswith(wrong):
            return f"; write {right}"
    if rest[0] in "+-*/%":
        return ": there is no arithmetic"
    return ""
