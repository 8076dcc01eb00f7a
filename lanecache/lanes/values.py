"""A column's value as Python has it: for MessagePack, for conditions, and for lanes in Python.

All begin with the same forms that keys and hashes use: ``TEXT``, or ``RAW`` for ``BINARY``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import msgspec

from lanecache.row import ColumnForm, ColumnKind, ColumnUse, TableShape

Value = Any
"""``int``, ``float``, ``Decimal``, ``str``, ``bytes``, ``date``, ``datetime``, ``timedelta``,
``frozenset[str]``, what ``json`` gives, or ``None``."""

_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**64 - 1


def plain_use(shape: TableShape, index: int) -> ColumnUse:
    """Give the form that a column's Python value is made of."""
    binary = shape.columns[index].kind is ColumnKind.BINARY
    return ColumnUse(index, ColumnForm.RAW if binary else ColumnForm.TEXT)


pack_row: Final[Callable[[object], bytes]] = msgspec.msgpack.Encoder().encode


def members(text: str) -> list[str]:
    """Give a SET's labels, in the column's order; no label has a comma in it."""
    return text.split(",") if text else []


def packed_document(text: str) -> Value:
    """Give a JSON document for MessagePack: a number that it has not is its digits as text."""
    return json.loads(text, parse_float=_packed_float, parse_int=_packed_int)


def document(text: str) -> Value:
    """Give a JSON document as Python has it; a number that ``float`` has not is a ``Decimal``."""
    return json.loads(text, parse_float=_exact_float)


def _packed_int(text: str) -> int | str:
    number = int(text)
    return number if _INTEGER_MIN <= number <= _INTEGER_MAX else text


def _packed_float(text: str) -> float | str:
    number = _exact_float(text)
    return number if isinstance(number, float) else text


def _exact_float(text: str) -> float | Decimal:
    number = float(text)
    # The shortest decimal of the float names the same number, or digits would be lost.
    exact = Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


PACKED: Final[dict[ColumnKind, str]] = {
    ColumnKind.FLOAT: "float",
    ColumnKind.SET: "members",
    ColumnKind.JSON: "packed_document",
}
"""Names of the functions that make of a form what MessagePack stores; others are it already."""

PACKED_NAMES: Final[dict[str, Callable[[str], Any]]] = {
    "float": float,
    "members": members,
    "packed_document": packed_document,
}


def time_value(text: str) -> date | datetime | timedelta | None:
    """Give a DATE, DATETIME, TIMESTAMP or TIME; ``None`` for a date that the calendar has not.

    Datetimes have no time zone: those of TIMESTAMP are in UTC.
    """
    try:
        if text[4:5] == "-":
            return datetime.fromisoformat(text) if " " in text else date.fromisoformat(text)
    except ValueError:  # 0000-00-00, 2024-02-00, 2024-02-30: both servers can hold them
        return None
    sign = -1 if text.startswith("-") else 1
    hours, minutes, seconds = text.lstrip("-").split(":")
    whole, _, fraction = seconds.partition(".")
    return sign * timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(whole),
        microseconds=int(fraction.ljust(6, "0")) if fraction else 0,
    )


_VALUES: Final[dict[ColumnKind, Callable[[Any], Value]]] = {
    ColumnKind.FLOAT: float,
    ColumnKind.DECIMAL: Decimal,
    ColumnKind.TIME: time_value,
    ColumnKind.SET: lambda text: frozenset(members(text)),
    ColumnKind.JSON: document,
}


def python_value(kind: ColumnKind, form: Any) -> Value:
    """Give the Python value of a form (see ``plain_use``)."""
    make = _VALUES.get(kind)
    return form if form is None or make is None else make(form)
