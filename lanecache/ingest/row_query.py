"""Rows by primary key with SQL, exactly as the row decoders would give them.

What SELECT prints goes through the client's character set and the server's own number formats; so
text is read as its bytes and decoded as the decoders do it, labels by their number, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from json import loads
from json.encoder import encode_basestring as json_text
from typing import TYPE_CHECKING, Any

from lanecache.ingest.charsets import text_decoder
from lanecache.ingest.columns import CODE_NAMES
from lanecache.ingest.facts import text_of
from lanecache.ingest.values import double_text, float_text
from lanecache.row import ColumnForm, ColumnKind, ColumnUse, Image

if TYPE_CHECKING:
    from lanecache.ingest.reread import Value
    from lanecache.ingest.rows import TableCode
    from lanecache.ingest.schema import ColumnFacts

SESSION = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION time_zone = '+00:00'",
)
"""What the queries need of their session."""

ENGINE_QUERY = (
    "SELECT ENGINE AS engine FROM information_schema.TABLES"
    " WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s"
)

ENGINES = frozenset({"INNODB"})
"""Engines that show nothing of a change before it is in the binlog."""

_UTF8 = frozenset({"utf8", "utf8mb3", "utf8mb4"})
_KEY_CHARSETS = _UTF8 | {"ascii"}
_PRINTED = frozenset({"date", "time", "datetime", "timestamp", "inet4", "inet6", "uuid"})

Base = Any
"""A column's plain value, as ``ColumnCode.base`` makes it."""


class RowQuery:
    """Reads rows of one table by primary key.

    Raises:
        ValueError: the table cannot be read exactly, or is not the one that the binlog has.
    """

    def __init__(self, code: TableCode, facts: Sequence[ColumnFacts]) -> None:
        shape = code.shape
        shown = [index for index, each in enumerate(shape.columns) if not each.hidden]
        if [each.name for each in facts] != [shape.columns[index].name for index in shown]:
            raise ValueError("the table has other columns by now")
        by_index = dict(zip(shown, facts, strict=True))
        key = sorted(
            (each.primary_key_index, index)
            for index, each in by_index.items()
            if each.primary_key_index is not None
        )
        if not key or tuple(index for _, index in key) != shape.primary_key:
            raise ValueError("the table has another primary key by now")
        self._table = f"{quote_name(shape.schema)}.{quote_name(shape.table)}"
        self._key = shape.primary_key
        self._names = {index: quote_name(each.name) for index, each in by_index.items()}
        self._literals = [_literal(by_index[index]) for index in self._key]
        self._kinds = [each.kind for each in code.columns]
        columns = {
            index: _column(each, self._kinds[index], self._names[index])
            for index, each in by_index.items()
        }
        self._selected = ", ".join(
            f"{expression} AS c{index}" for index, (expression, _) in columns.items()
        )
        self._readers = {index: reader for index, (_, reader) in columns.items()}
        self._forms = [
            {form: _form(source) for form, source in column.forms.items()}
            for column in code.columns
        ]

    def statement(self, keys: Sequence[tuple[Value, ...]]) -> str:
        """Give the query for rows with these primary keys (RAW forms)."""
        conditions = [
            " AND ".join(
                f"{self._names[index]} = {literal(value)}"
                for index, literal, value in zip(self._key, self._literals, key, strict=True)
                if value is not None
            )
            for key in keys
        ]
        where = " OR ".join(f"({condition})" for condition in conditions)
        return f"SELECT {self._selected} FROM {self._table} WHERE {where}"

    def read(self, row: Mapping[str, Any]) -> list[Base]:
        """Read a result row; a hidden column has no value.

        Raises:
            ValueError: a value cannot be given exactly.
        """
        values: list[Base] = [None] * len(self._kinds)
        for index, reader in self._readers.items():
            found = row[f"c{index}"]
            values[index] = None if found is None else reader(found)
        return values

    def primary_key(self, row: Sequence[Base]) -> tuple[Value, ...]:
        """Give a row's primary key in RAW forms."""
        return tuple(self._value(ColumnUse(index, ColumnForm.RAW), row) for index in self._key)

    def image(self, row: Sequence[Base], uses: Sequence[ColumnUse]) -> Image:
        """Give a row as the image that a plan asks for."""
        return tuple(self._value(use, row) for use in uses)

    def agrees(self, row: Sequence[Base], image: Mapping[int, Value]) -> bool:
        """Tell whether a row has just the values that an image holds."""
        return all(self._same(index, row, value) for index, value in image.items())

    def _same(self, index: int, row: Sequence[Base], value: Value) -> bool:
        found: Value = self._value(ColumnUse(index, ColumnForm.RAW), row)
        if found is None or value is None or self._kinds[index] is not ColumnKind.JSON:
            return found == value
        return comparable_document(found.decode()) == comparable_document(value.decode())

    def _value(self, use: ColumnUse, row: Sequence[Base]) -> Any:
        value = row[use.index]
        if value is None:
            return "null" if use.form is ColumnForm.JSON else None
        return self._forms[use.index][use.form](value)


def quote_name(name: str) -> str:
    """Quote an identifier."""
    return f"`{name.replace('`', '``')}`"


def _form(source: str) -> Callable[[Base], Any]:
    # The fragments are those that the row decoders are compiled from.
    make: Callable[[Base], Any] = eval(f"lambda value: {source.replace('{}', 'value')}", CODE_NAMES)
    return make


def _column(facts: ColumnFacts, kind: ColumnKind, name: str) -> tuple[str, Callable[[Any], Base]]:
    """Give the expression that selects a column, and what reads its result."""
    data_type = facts.data_type
    if kind is ColumnKind.INTEGER:
        return f"{name} + 0", int
    if kind is ColumnKind.FLOAT:
        single = data_type == "float"
        return f"CAST({name} AS DOUBLE)", _single_text if single else _double_text
    if kind is ColumnKind.DECIMAL:
        return f"CONCAT({name})", text_of
    if kind is ColumnKind.TIME or data_type in _PRINTED:
        return f"CAST({name} AS CHAR)", text_of
    if kind is ColumnKind.SET:
        return f"CAST({name} AS UNSIGNED)", _members(facts.labels)
    if data_type == "enum":
        return f"{name} + 0", _label(facts.labels)
    if kind is ColumnKind.JSON:
        return f"CAST({name} AS CHAR)", _document
    if kind is ColumnKind.BINARY:
        return f"HEX({name})", _from_hex
    return f"HEX({name})", _text(facts.charset or "")


def _from_hex(text: Any) -> bytes:
    return bytes.fromhex(text_of(text))


def _single_text(value: Any) -> str:
    return float_text(float(value))


def _double_text(value: Any) -> str:
    return double_text(float(value))


def _document(text: Any) -> str:
    return document_text(text_of(text))


def _text(charset: str) -> Callable[[Any], str]:
    if charset in _UTF8:
        return lambda text: _from_hex(text).decode()
    decode = text_decoder(charset)
    if decode is None:
        raise ValueError(f"no exact decoder for the character set {charset!r}")
    return lambda text: decode(_from_hex(text))


def _label(labels: Sequence[str]) -> Callable[[Any], str]:
    texts = ("", *labels)
    return lambda number: texts[int(number)]


def _members(labels: Sequence[str]) -> Callable[[Any], tuple[str, ...]]:
    def members(bits: Any) -> tuple[str, ...]:
        return tuple(label for nth, label in enumerate(labels) if int(bits) >> nth & 1)

    return members


def _literal(facts: ColumnFacts) -> Callable[[bytes], str]:
    """Give what writes a value of a primary key's column, in a way that an index can serve.

    Raises:
        ValueError: there is no such way that is exact.
    """
    data_type = facts.data_type
    if data_type.endswith("int") or data_type in ("decimal", "year"):
        return lambda value: value.decode("ascii")
    if data_type in _PRINTED:
        return lambda value: f"'{value.decode('ascii')}'"
    if data_type in ("binary", "varbinary"):
        return lambda value: f"x'{value.hex()}'"
    if data_type in ("char", "varchar") and facts.charset in _KEY_CHARSETS:
        return lambda value: f"_{facts.charset} x'{value.hex()}'"
    raise ValueError(f"rows cannot be found by a primary key of type {data_type}")


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\s+', re.DOTALL)
_NUMBER_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*', re.DOTALL)


def document_text(text: str) -> str:
    """Give MySQL's text of a JSON document as the decoder writes it: all digits, no spaces.

    >>> document_text('{"a": [1, 2.50, "x y"]}')
    '{"a":[1,2.50,"x y"]}'
    """
    return _TOKEN.sub(lambda m: json_text(loads(m[0])) if m[0][0] == '"' else "", text)


def comparable_document(text: str) -> str:
    """Give a document with each number in one form only, to compare it with another.

    >>> comparable_document("[1e300,10,1.50]") == comparable_document("[1e+300,10.0,1.5]")
    True
    """
    return _NUMBER_TOKEN.sub(lambda m: m[0] if m[0][0] == '"' else _plain_number(m[0]), text)


def _plain_number(text: str) -> str:
    sign, digits, exponent = Decimal(text).as_tuple()
    kept = list(digits)
    zeros = 0
    while kept and kept[-1] == 0:
        kept.pop()
        zeros += 1
    if not kept:
        return "0"
    assert isinstance(exponent, int)  # JSON has neither NaN nor infinity
    return f"{'-' if sign else ''}{''.join(map(str, kept))}e{exponent + zeros}"
