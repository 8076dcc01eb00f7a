"""Conditions of lanes: what is read, what is refused, and that the code means what SQL means."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lanecache.errors import ConfigError
from lanecache.lanes.where import parse_where
from lanecache.lanes.where_code import BoundWhere, WhereProblem, bind_where
from lanecache.row import Column, ColumnForm, ColumnKind, TableShape

SHAPE = TableShape(
    "shop",
    "product",
    (
        Column("id", ColumnKind.INTEGER),
        Column("stock", ColumnKind.INTEGER),
        Column("price", ColumnKind.DECIMAL),
        Column("weight", ColumnKind.FLOAT),
        Column("name", ColumnKind.TEXT),
        Column("made", ColumnKind.TIME),
        Column("photo", ColumnKind.BINARY),
        Column("tags", ColumnKind.SET),
        Column("extra", ColumnKind.JSON),
        Column("the name", ColumnKind.TEXT),
    ),
)
INDEX = {column.name: index for index, column in enumerate(SHAPE.columns)}
NULLS: dict[str, Any] = dict.fromkeys(INDEX)


def bound(text: str) -> BoundWhere:
    return bind_where(parse_where(text), SHAPE)


def form(name: str, value: Any) -> Any:
    """Give a value in the form that ingest would give."""
    kind = SHAPE.columns[INDEX[name]].kind
    if value is None or kind in (ColumnKind.INTEGER, ColumnKind.BINARY):
        return value
    if kind is ColumnKind.DECIMAL:
        return format(value, "f")
    return str(value)


def holds(text: str, **row: Any) -> bool:
    condition = bound(text)
    values = {**NULLS, **row}
    names = [SHAPE.columns[use.index].name for use in condition.uses]
    return condition.matcher()(*(form(name, values[name]) for name in names))


# What is read.


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("id = 1", {"id": 1}, True),
        ("ID=1", {"id": 1}, True),
        ("id = 1", {"id": 2}, False),
        ("id = 1", {}, False),
        ("NOT id = 1", {}, False),
        ("id <> 1", {"id": 2}, True),
        ("id != 1", {}, False),
        ("1 < id", {"id": 2}, True),
        ("id between -1 and +1", {"id": -1}, True),
        ("id not between -1 and 1", {"id": 0}, False),
        ("id NOT BETWEEN -1 AND 1", {}, False),
        ("id is null", {}, True),
        ("id IS NOT NULL", {"id": 0}, True),
        ("id IN (1, 2)", {"id": 2}, True),
        ("id NOT IN (1, 2)", {"id": 3}, True),
        ("id NOT IN (1, NULL)", {"id": 3}, False),
        ("id IN (1, NULL)", {"id": 1}, True),
        ("id IN (NULL)", {}, False),
        ("id = NULL", {"id": 1}, False),
        ("NOT id = NULL", {"id": 1}, False),
        ("stock", {"stock": 2}, True),
        ("NOT stock", {"stock": 0}, True),
        ("NOT stock", {}, False),
        ("stock = TRUE", {"stock": 1}, True),
        ("TRUE", {}, True),
        ("NULL OR id = 1", {"id": 1}, True),
        ("NOT (NULL AND id = 1)", {"id": 2}, True),
        ("NOT (NULL AND id = 1)", {"id": 1}, False),
        ("NOT NOT id = 1", {"id": 1}, True),
        ("id = 1 OR id = 2 AND stock = 3", {"id": 1}, True),
        ("(id = 1 OR id = 2) AND stock = 3", {"id": 1}, False),
        ("id = stock", {"id": 4, "stock": 4}, True),
        ("id = stock", {"id": 4}, False),
        # Numbers are exact.
        ("price = 1.5", {"price": Decimal("1.50")}, True),
        ("price > 1", {"price": Decimal("1." + "0" * 29 + "1")}, True),
        ("price = 1e0", {"price": Decimal("1.00")}, True),
        ("price IN (1, 2.5)", {"price": Decimal("2.500")}, True),
        ("id > 9007199254740992", {"id": 9007199254740993}, True),
        ("id = 9007199254740993.0", {"id": 9007199254740993}, True),
        ("id < price", {"id": 1, "price": Decimal("1.01")}, True),
        ("weight = 0.1", {"weight": 0.1}, True),
        ("weight = .1", {"weight": 0.1}, True),
        ("weight IN (0.1, 3)", {"weight": 3}, True),
        ("weight = price", {"weight": 0.1, "price": Decimal("0.10")}, True),
        ("weight < 1e400", {"weight": 1.7e308}, True),
        # Text is compared by code points.
        ("name = 'pen'", {"name": "pen"}, True),
        ("name = 'pen'", {"name": "Pen"}, False),
        ("name = 'pen'", {"name": "pen "}, False),
        ("name = ''", {"name": ""}, True),
        ("name < 'b'", {"name": "B"}, True),
        ("name = 'it''s'", {"name": "it's"}, True),
        ('name = "it\'s"', {"name": "it's"}, True),
        ('name = "a""b"', {"name": 'a"b'}, True),
        (r"name = 'a\n'", {"name": r"a\n"}, True),
        ("`the name` = 'x'", {"the name": "x"}, True),
        ("name IN ('a', 'b')", {"name": "b"}, True),
        ("name = made", {"name": "2024-01-01", "made": "2024-01-01"}, True),
        ("made >= '2024-01-01'", {"made": "2024-01-01 00:00:00"}, True),
        ("tags = 'a,b'", {"tags": "a,b"}, True),
        ("photo = x'fF00'", {"photo": b"\xff\x00"}, True),
        ("photo = 'ü'", {"photo": "ü".encode()}, True),
        ("photo IN ('a', x'00')", {"photo": b"\0"}, True),
        ("extra IS NULL", {}, True),
        ("extra IS NOT NULL", {"extra": "null"}, True),
        ("name LIKE 'p%'", {"name": "p\nen"}, True),
        ("name LIKE 'p_n'", {"name": "pen"}, True),
        ("name LIKE 'p_n'", {"name": "peen"}, False),
        ("name NOT LIKE '%x%'", {"name": "pen"}, True),
        ("name NOT LIKE '%x%'", {}, False),
        (r"name LIKE '100\%'", {"name": "100%"}, True),
        (r"name LIKE '100\%'", {"name": "1000"}, False),
        (r"name LIKE 'a\\%'", {"name": "a\\b"}, True),
        ("name LIKE 'a.c'", {"name": "abc"}, False),
        ("name LIKE 'ab%bc'", {"name": "abc"}, False),
        ("name LIKE '%ab%ab'", {"name": "ab_ab_ab"}, True),
        ("name LIKE ''", {"name": ""}, True),
        ("name LIKE '%'", {"name": ""}, True),
    ],
)
def test_a_condition_takes_the_rows_that_sql_takes(
    text: str, row: dict[str, Any], expected: bool
) -> None:
    assert holds(text, **row) is expected


@pytest.mark.parametrize("sign", sorted({"=", "<>", "!=", "<", "<=", ">", ">="}))
@pytest.mark.parametrize("value", [4, 5, 6, None])
def test_not_is_true_exactly_where_a_comparison_is_false(sign: str, value: int | None) -> None:
    plain, negated = f"id {sign} 5", f"NOT (id {sign} 5)"
    expected = None if value is None else COMPARE[sign](value, 5)
    assert holds(plain, id=value) is (expected is True)
    assert holds(negated, id=value) is (expected is False)
    assert holds(f"NOT (id {sign} stock)", id=value, stock=5) is (expected is False)


def test_a_like_pattern_of_many_parts_is_fast() -> None:
    pattern = "%a" * 40 + "%b"
    assert not holds(f"name LIKE '{pattern}'", name="a" * 5_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "where is empty"),
        ("  ", "where is empty"),
        ("id =", "needs a column or a value at column 5, where it ends"),
        ("id 1", 'needs AND, OR or the end at column 4, where it has "1"'),
        ("id = 1 2", "needs AND, OR or the end at column 8"),
        ("id == 1", 'needs a column or a value at column 5, where it has "="'),
        ("= 1", "needs a column, a value or a condition at column 1"),
        ("(id = 1", "needs ) at column 8, where it ends"),
        ("id = 1)", 'needs AND, OR or the end at column 7, where it has ")"'),
        ("id IN 1", 'needs ( at column 7, where it has "1"'),
        ("id IN ()", 'needs a value at column 8, where it has ")"'),
        ("id IN (stock)", 'needs a value at column 8, where it has "stock"'),
        ("id NOT 1", "needs IN, BETWEEN or LIKE behind NOT at column 8"),
        ("id IS 1", "needs NULL at column 7"),
        ("id BETWEEN 1", "needs AND at column 13"),
        ("name LIKE 1", "needs a text in quotes behind LIKE at column 11"),
        ("name LIKE stock", "needs a text in quotes at column 11"),
        ("name = 'x", "'x\" at column 8, which is not understood: the quote is never closed"),
        ("a && b", "write AND"),
        ("a || b", "write OR"),
        ("!a", "write NOT"),
        ("id + 1 = 2", "at column 4, which is not understood: there is no arithmetic"),
        ("id; DROP TABLE x", "at column 3, which is not understood"),
        ("__import__('os')", "needs AND, OR or the end at column 11"),
        ("1x = 2", "at column 1, which is neither a number nor a name"),
        ("1.2.3 = 2", "which is neither a number nor a name"),
        ("photo = x'0'", "at column 9, which is not an even number of hexadecimal digits"),
        ("photo = x'zz'", "not an even number of hexadecimal digits"),
        ("price = 1e999999999", "a number that no column can hold at column 9"),
        ("price = " + "1" * 500, "too many digits at column 9"),
        ("(" * 60 + "id" + ")" * 60, "nested deeper than 50 levels"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse_where(text)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="id =<>!()'\"`,.x1-%_\nANDORNOTINLIKEé", max_size=30))
@example("id = 1 AND")
def test_any_text_is_a_condition_or_a_config_error(text: str) -> None:
    try:
        condition = parse_where(text)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 which texts are refused is not known here
        return
    with suppress(WhereProblem):
        bind_where(condition, SHAPE).matcher()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("idd = 1", 'has no column "idd" (column 1 of where); did you mean "id"?'),
        ("id = 1 AND zzz IS NULL", '"zzz" (column 12 of where)'),
        ("id = 'x'", '"id" (a number, column 1 of where) cannot be compared with text (column 6'),
        ("name = 1", '"name" (text, column 1 of where) cannot be compared with a number'),
        ("id IN (1, 'x')", "cannot be compared with text (column 11 of where)"),
        ("id = name", 'cannot be compared with "name" (text, column 6 of where)'),
        ("name = x'00'", "cannot be compared with binary"),
        ("name = photo", "cannot be compared"),
        ("photo LIKE 'x'", '"photo" (binary, column 1 of where) cannot be compared with LIKE'),
        ("id LIKE 'x'", "cannot be compared with text"),
        ("extra = '{}'", "only IS NULL has a meaning"),
        ("extra = NULL", "only IS NULL has a meaning"),
        ("name", '"name" (text, column 1 of where) is not a condition; compare it with a value'),
        ("extra", "is not a condition"),
        ("'x' = 1", "text (column 1 of where) cannot be compared with a number (column 7"),
    ],
)
def test_a_condition_that_does_not_fit_the_table_says_where(text: str, message: str) -> None:
    with pytest.raises(WhereProblem, match=re.escape(message)):
        bound(text)


def test_only_the_columns_that_are_compared_are_wanted() -> None:
    uses = bound("photo IS NULL AND id = 1 AND ID < 5").uses
    assert [(use.index, use.form) for use in uses] == [
        (INDEX["photo"], ColumnForm.RAW),
        (INDEX["id"], ColumnForm.TEXT),
    ]


# The code that is generated means what an interpreter of SQL's three values means.

Truth = bool | None
Row = dict[str, Any]
Case = tuple[str, Callable[[Row], Truth]]
"""A condition's text, and what it is for a row."""

NUMBERS = ["-2", "0", "1", "1.0", "1.5", "-0.5", "9007199254740993", "TRUE", "NULL"]
TEXTS = ["''", "'a'", "'A'", "'ab'", "'b''c'", "'%'", "NULL"]
LITERALS: dict[str, Any] = {
    **{text: Decimal(text) for text in NUMBERS[:7]},
    "TRUE": Decimal(1),
    "NULL": None,
    **{text: text[1:-1].replace("''", "'") for text in TEXTS[:6]},
}
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def sql_and(values: list[Truth]) -> Truth:
    if any(value is False for value in values):
        return False
    return None if None in values else True


def sql_not(value: Truth) -> Truth:
    return None if value is None else not value


def sql_or(values: list[Truth]) -> Truth:
    return sql_not(sql_and([sql_not(value) for value in values]))


def sql_compare(sign: str, left: Any, right: Any) -> Truth:
    return None if left is None or right is None else COMPARE[sign](left, right)


def sql_like(value: str | None, pattern: str) -> Truth:
    """Match by trying every split: slow and plain."""
    if value is None:
        return None
    if not pattern:
        return not value
    if pattern[0] == "%":
        return any(sql_like(value[start:], pattern[1:]) for start in range(len(value) + 1))
    return bool(value) and pattern[0] in ("_", value[0]) and sql_like(value[1:], pattern[1:])


def operand(text: str) -> Callable[[Row], Any]:
    if text in LITERALS:
        return lambda row: LITERALS[text]
    return lambda row: row[text]


@st.composite
def predicates(draw: st.DrawFn) -> Case:
    numeric = draw(st.booleans())
    columns = ["id", "stock", "price"] if numeric else ["name", "the name"]
    literals = NUMBERS if numeric else TEXTS
    name = draw(st.sampled_from(columns))
    left_text = f"`{name}`"

    def left(row: Row) -> Any:
        return row[name]

    def other() -> tuple[str, Callable[[Row], Any]]:
        chosen = draw(st.sampled_from([*columns, *literals]))
        return (chosen if chosen in literals else f"`{chosen}`"), operand(chosen)

    which = draw(st.integers(0, 5))
    negative = draw(st.booleans())
    word = "NOT " if negative else ""

    def signed(value: Truth) -> Truth:
        return sql_not(value) if negative else value

    if which == 0:
        return f"{left_text} IS {word}NULL", lambda row: signed(left(row) is None)
    if which == 1:
        items = draw(st.lists(st.sampled_from(literals), min_size=1, max_size=4))
        return f"{left_text} {word}IN ({', '.join(items)})", lambda row: signed(
            sql_or([sql_compare("=", left(row), LITERALS[item]) for item in items])
        )
    if which == 2:
        (low_text, low), (high_text, high) = other(), other()
        return f"{left_text} {word}BETWEEN {low_text} AND {high_text}", lambda row: signed(
            sql_and(
                [sql_compare(">=", left(row), low(row)), sql_compare("<=", left(row), high(row))]
            )
        )
    if which == 3 and not numeric:
        pattern = draw(st.text(alphabet="ab%_", max_size=5))
        return f"{left_text} {word}LIKE '{pattern}'", lambda row: signed(
            sql_like(left(row), pattern)
        )
    if which == 4 and numeric:
        return f"{word}{left_text}", lambda row: signed(sql_compare("!=", left(row), Decimal(0)))
    sign = draw(st.sampled_from(sorted(COMPARE)))
    right_text, right = other()
    return f"{left_text} {sign} {right_text}", lambda row: sql_compare(sign, left(row), right(row))


def _joined(word: str, combine: Callable[[list[Truth]], Truth]) -> Callable[[list[Case]], Case]:
    def join(cases: list[Case]) -> Case:
        return (
            f" {word} ".join(f"({text})" for text, _ in cases),
            lambda row: combine([value(row) for _, value in cases]),
        )

    return join


def _negated(case: Case) -> Case:
    text, value = case
    return f"NOT ({text})", lambda row: sql_not(value(row))


CASES: st.SearchStrategy[Case] = st.recursive(
    predicates(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(_joined("AND", sql_and)),
        st.lists(inner, min_size=2, max_size=3).map(_joined("OR", sql_or)),
        inner.map(_negated),
    ),
    max_leaves=6,
)
WHOLE = st.none() | st.sampled_from([-2, 0, 1, 2, 9007199254740993])
WORDS = st.none() | st.text(alphabet="abA'%", max_size=4)
ROWS = st.fixed_dictionaries(
    {
        "id": WHOLE,
        "stock": WHOLE,
        "price": st.none()
        | st.sampled_from([Decimal("1.0"), Decimal("1.50"), Decimal("-0.5"), Decimal("0.00")]),
        "name": WORDS,
        "the name": WORDS,
    }
)


@settings(max_examples=300)
@given(CASES, st.lists(ROWS, min_size=1, max_size=6))
def test_generated_code_agrees_with_an_interpreter(case: Case, rows: list[Row]) -> None:
    text, value = case
    for row in rows:
        assert holds(text, **row) is (value(row) is True), (text, row)
