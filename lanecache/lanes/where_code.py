"""A lane's condition over a table's columns: what it compares, and the Python that does it.

SQL's logic has three values. Instead of computing with them, two expressions are generated for
each condition, one that holds exactly where it is true and one exactly where it is false; ``NOT``
swaps them, and where neither holds it is NULL. A row is taken where the condition is true.

How columns are compared:

- INTEGER, DECIMAL, FLOAT columns and numbers: as numbers, exactly. Beside a FLOAT or DOUBLE column
  a number with a fraction means the nearest 64-bit value, and FLOAT the value that its shortest
  decimal names (the one in the JSON). TRUE is 1, FALSE is 0.
- TEXT (ENUM its label, SET its labels with commas) and text: by Unicode code points, so case and
  accents count and trailing spaces too, whatever the column's collation.
- TIME and text: by their text, as the JSON has it (``2024-02-29 12:00:00``; TIMESTAMP in UTC).
- BINARY, text (in UTF-8) and x'...': by their bytes.
- JSON: ``IS NULL`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from lanecache.lanes.lane import nearest
from lanecache.lanes.values import plain_use
from lanecache.lanes.where import (
    And,
    ColumnName,
    Compare,
    Condition,
    In,
    IsNull,
    Like,
    Literal,
    Not,
    Operand,
    Or,
    Truth,
)
from lanecache.row import ColumnKind, ColumnUse, TableShape

_NUMBERS: Final = frozenset({ColumnKind.INTEGER, ColumnKind.FLOAT, ColumnKind.DECIMAL})
_TEXTS: Final = frozenset({ColumnKind.TEXT, ColumnKind.SET, ColumnKind.TIME})
_OPPOSITE: Final = {"=": "!=", "!=": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_PYTHON_SIGN: Final = {"=": "=="}


class WhereProblem(Exception):
    """The condition cannot be over this table: a sentence, and what to do."""


class BoundWhere(msgspec.Struct, frozen=True):
    """A condition whose columns were found in a table, and fit what they are compared with."""

    condition: Condition
    columns: Mapping[str, int]  # names as written, to indexes
    shape: TableShape

    @property
    def uses(self) -> tuple[ColumnUse, ...]:
        """What is wanted of both images."""
        return tuple(dict.fromkeys(plain_use(self.shape, index) for index in self.columns.values()))

    def source(self, variables: Mapping[ColumnUse, str], constant: Callable[[object], str]) -> str:
        """Give the Python expression that is true exactly where the condition is.

        Args:
            variables: the names that the uses have there.
            constant: keeps a value for the code to run with, and gives its name there.
        """
        return _Writer(self, variables, constant).true(self.condition)

    def matcher(self) -> Callable[..., bool]:
        """Compile a function of the values of ``uses``, in their order."""
        names: dict[str, Any] = {**WHERE_NAMES}
        variables = {use: f"x{index}" for index, use in enumerate(self.uses)}

        def constant(value: object) -> str:
            name = f"q{len(names)}"
            names[name] = value
            return name

        code = f"lambda {', '.join(variables.values())}: bool({self.source(variables, constant)})"
        matcher: Callable[..., bool] = eval(code, names)  # generated just above
        return matcher


WHERE_NAMES: Final[Mapping[str, Any]] = {"Decimal": Decimal}
"""What the generated expressions run with, beside their constants."""


def bind_where(condition: Condition, shape: TableShape) -> BoundWhere:
    """Find a condition's columns in a table, and judge what they are compared with.

    Raises:
        WhereProblem: a column is not there, or is compared with what it cannot be compared with.
    """
    by_name = {column.name.lower(): index for index, column in enumerate(shape.columns)}
    columns: dict[str, int] = {}
    for operand in _operands(condition):
        if isinstance(operand, ColumnName):
            index = by_name.get(operand.name.lower())
            if index is None:
                hint = nearest(operand.name, [column.name for column in shape.columns])
                raise WhereProblem(
                    f'the table {shape.schema}.{shape.table} has no column "{operand.name}"'
                    f" (column {operand.at} of where){hint}"
                )
            columns[operand.name] = index
    bound = BoundWhere(condition, columns, shape)
    _judge(condition, bound)
    return bound


def _operands(condition: Condition) -> list[Operand]:
    match condition:
        case And(parts) | Or(parts):
            return [operand for part in parts for operand in _operands(part)]
        case Not(part):
            return _operands(part)
        case Compare(_, left, right):
            return [left, right]
        case In(operand, items):
            return [operand, *items]
        case IsNull(operand) | Like(operand, _) | Truth(operand):
            return [operand]


def _judge(condition: Condition, bound: BoundWhere) -> None:
    match condition:
        case And(parts) | Or(parts):
            for part in parts:
                _judge(part, bound)
        case Not(part):
            _judge(part, bound)
        case Compare(_, left, right):
            _judge_pair(left, right, bound)
        case In(operand, items):
            for item in items:
                _judge_pair(operand, item, bound)
        case Like(operand, pattern):
            _judge_pair(operand, Literal(pattern, operand.at), bound)
            if _kind(operand, bound) is ColumnKind.BINARY:
                raise WhereProblem(f"{_described(operand, bound)} cannot be compared with LIKE")
        case Truth(operand):
            if _kind(operand, bound) not in {*_NUMBERS, None}:
                raise WhereProblem(
                    f"{_described(operand, bound)} is not a condition; compare it with a value"
                )
        case IsNull(_):
            pass


def _judge_pair(left: Operand, right: Operand, bound: BoundWhere) -> None:
    one, other = _kind(left, bound), _kind(right, bound)
    for operand, kind in ((left, one), (right, other)):
        if kind is ColumnKind.JSON:
            raise WhereProblem(
                f"{_described(operand, bound)} cannot be compared: only IS NULL has a meaning"
            )
    if one is None or other is None:
        return
    text = {ColumnKind.TEXT}
    alike = (
        (one in _NUMBERS and other in _NUMBERS)
        or (one in _TEXTS and other in _TEXTS)
        or one is other
        or (isinstance(left, Literal) and {one} == text and other is ColumnKind.BINARY)
        or (isinstance(right, Literal) and {other} == text and one is ColumnKind.BINARY)
    )
    if not alike:
        raise WhereProblem(
            f"{_described(left, bound)} cannot be compared with {_described(right, bound)}"
        )


def _kind(operand: Operand, bound: BoundWhere) -> ColumnKind | None:
    """Give what an operand is; ``None`` for NULL."""
    if isinstance(operand, ColumnName):
        return bound.shape.columns[bound.columns[operand.name]].kind
    value = operand.value
    if value is None:
        return None
    if isinstance(value, str):
        return ColumnKind.TEXT
    if isinstance(value, bytes):
        return ColumnKind.BINARY
    return ColumnKind.DECIMAL if isinstance(value, Decimal) else ColumnKind.INTEGER


_WORDS: Final = {
    ColumnKind.INTEGER: "a number",
    ColumnKind.FLOAT: "a number",
    ColumnKind.DECIMAL: "a number",
    ColumnKind.TEXT: "text",
    ColumnKind.SET: "text",
    ColumnKind.TIME: "a time",
    ColumnKind.BINARY: "binary",
    ColumnKind.JSON: "JSON",
}


def _described(operand: Operand, bound: BoundWhere) -> str:
    kind = _kind(operand, bound)
    word = _WORDS[kind] if kind is not None else "NULL"
    if isinstance(operand, ColumnName):
        return f'"{operand.name}" ({word}, column {operand.at} of where)'
    return f"{word} (column {operand.at} of where)"


class _Writer:
    """Writes conditions as Python; every expression stands in brackets where that matters."""

    def __init__(
        self,
        bound: BoundWhere,
        variables: Mapping[ColumnUse, str],
        constant: Callable[[object], str],
    ) -> None:
        self._bound = bound
        self._variables = variables
        self._constant = constant

    def true(self, condition: Condition) -> str:
        match condition:
            case And(parts):
                return self._joined(" and ", [self.true(part) for part in parts])
            case Or(parts):
                return self._joined(" or ", [self.true(part) for part in parts])
            case Not(part):
                return self.false(part)
            case IsNull(operand):
                return self._null(operand, "is")
            case _:
                return self._known(condition, positive=True)

    def false(self, condition: Condition) -> str:
        match condition:
            case And(parts):
                return self._joined(" or ", [self.false(part) for part in parts])
            case Or(parts):
                return self._joined(" and ", [self.false(part) for part in parts])
            case Not(part):
                return self.true(part)
            case IsNull(operand):
                return self._null(operand, "is not")
            case _:
                return self._known(condition, positive=False)

    def _joined(self, word: str, parts: list[str]) -> str:
        return f"({word.join(parts)})"

    def _null(self, operand: Operand, word: str) -> str:
        if isinstance(operand, Literal):
            return repr((operand.value is None) == (word == "is"))
        return f"{self._variable(operand)} {word} None"

    def _known(self, condition: Condition, *, positive: bool) -> str:
        """Write a comparison that is NULL where an operand is."""
        match condition:
            case Compare(sign, left, right):
                if Literal(None, left.at) == left or Literal(None, right.at) == right:
                    return "False"
                sign = sign if positive else _OPPOSITE[sign]
                one, other = self._pair(left, right)
                return self._guarded([left, right], f"{one} {_PYTHON_SIGN.get(sign, sign)} {other}")
            case In(operand, items):
                return self._membership(operand, items, positive=positive)
            case Like(operand, pattern):
                if isinstance(operand, Literal) and operand.value is None:
                    return "False"
                match_whole = self._constant(like_pattern(pattern).fullmatch)
                value, _ = self._pair(operand, Literal(pattern, operand.at))
                word = "is not None" if positive else "is None"
                return self._guarded([operand], f"{match_whole}({value}) {word}")
            case Truth(operand):
                return self._known(
                    Compare("!=", operand, Literal(0, operand.at)), positive=positive
                )
        raise AssertionError(condition)

    def _membership(self, operand: Operand, items: tuple[Literal, ...], *, positive: bool) -> str:
        if isinstance(operand, Literal) and operand.value is None:
            return "False"
        known = [item for item in items if item.value is not None]
        if not positive and len(known) < len(items):
            return "False"  # it may be equal to the NULL: never known to be false
        if not known:
            return "False"
        values = frozenset(self._literal(item, self._kind_of(operand)) for item in known)
        value, _ = self._pair(operand, known[0])
        word = "in" if positive else "not in"
        return self._guarded([operand], f"{value} {word} {self._constant(values)}")

    def _guarded(self, operands: list[Operand], expression: str) -> str:
        variables = dict.fromkeys(
            self._variable(operand) for operand in operands if isinstance(operand, ColumnName)
        )
        guards = [f"{variable} is not None" for variable in variables]
        return f"({' and '.join([*guards, expression])})"

    def _pair(self, left: Operand, right: Operand) -> tuple[str, str]:
        one, other = self._kind_of(left), self._kind_of(right)
        return self._value(left, other), self._value(right, one)

    def _value(self, operand: Operand, beside: ColumnKind | None) -> str:
        if isinstance(operand, Literal):
            value = self._literal(operand, beside)
            # bool, int, str and bytes read back from their repr, whatever they hold.
            return self._constant(value) if isinstance(value, Decimal | float) else repr(value)
        variable, kind = self._variable(operand), self._kind_of(operand)
        if kind is ColumnKind.FLOAT or (kind is ColumnKind.DECIMAL and beside is ColumnKind.FLOAT):
            return f"float({variable})"
        return f"Decimal({variable})" if kind is ColumnKind.DECIMAL else variable

    def _literal(self, operand: Literal, beside: ColumnKind | None) -> object:
        value = operand.value
        if isinstance(value, str) and beside is ColumnKind.BINARY:
            return value.encode("utf-8", "surrogatepass")
        if isinstance(value, Decimal) and beside is ColumnKind.FLOAT:
            return float(value)
        return value

    def _kind_of(self, operand: Operand) -> ColumnKind | None:
        return _kind(operand, self._bound)

    def _variable(self, operand: ColumnName) -> str:
        index = self._bound.columns[operand.name]
        return self._variables[plain_use(self._bound.shape, index)]


def like_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a ``LIKE`` pattern into a regular expression that is matched in one pass."""
    segments: list[list[str]] = [[]]
    characters = iter(pattern)
    for character in characters:
        if character == "%":
            segments.append([])
        elif character == "_":
            segments[-1].append(".")
        elif character == "\\":
            following = next(characters, "")
            kept = following if following in ("%", "_", "\\") else f"\\{following}"
            segments[-1].append(re.escape(kept))
        else:
            segments[-1].append(re.escape(character))
    first, *middle = ("".join(segment) for segment in segments)
    if not middle:
        return re.compile(first, re.DOTALL)
    # Each piece is found at its first place and kept (an atomic group): that is always right for
    # all but the last one, which stands at the end, and needs no going back.
    *middle, last = middle
    inner = "".join(f"(?>.*?{segment})" for segment in middle if segment)
    return re.compile(f"{first}{inner}.*{last}", re.DOTALL)
