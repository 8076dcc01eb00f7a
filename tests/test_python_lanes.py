"""Lanes in Python: what they are given, what they may do, and what happens when they fail."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.config import LaneConfig, load_config
from lanecache.errors import ConfigError
from lanecache.finding import Severity
from lanecache.lanes import ChangeKind, Lanes, PythonLane, RowChange, lane, lanes_of
from lanecache.lanes.python import load_python_lanes
from lanecache.lanes.values import document, time_value
from lanecache.operation import Clear, Delete, Operation, OperationSet, Set
from lanecache.row import (
    Column,
    ColumnForm,
    ColumnKind,
    ColumnUse,
    Problem,
    TableShape,
    Unreadable,
)

ORDERS = TableShape(
    "shop",
    "orders",
    (
        Column("id", ColumnKind.INTEGER),
        Column("user_id", ColumnKind.INTEGER),
        Column("total", ColumnKind.DECIMAL),
        Column("weight", ColumnKind.FLOAT),
        Column("note", ColumnKind.TEXT),
        Column("photo", ColumnKind.BINARY),
        Column("placed", ColumnKind.TIME),
        Column("tags", ColumnKind.SET),
        Column("extra", ColumnKind.JSON),
    ),
    (0,),
)
ROW: tuple[Any, ...] = (
    1, 7, "9.90", "0.1", "hi", b"\xff", "2024-02-29 12:00:00.5", "x,y", '{"a":[1,2.50]}',
)  # fmt: skip
NULLS: tuple[Any, ...] = (1, *[None] * 8)
BROKEN = Unreadable("a bad offset")


class Table:
    """The orders table with lanes; images hold the forms that the plans ask for."""

    def __init__(
        self,
        *python: PythonLane,
        configs: tuple[LaneConfig, ...] = (),
        clock: Callable[[], float] = lambda: 0.0,
        sinks: tuple[str, ...] = ("main",),
    ) -> None:
        self.lanes = Lanes(configs, sinks, python=python, clock=clock)
        self.bound = self.lanes.bind(ORDERS)
        self.into = [OperationSet() for _ in self.lanes.audiences]

    def before(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row[use.index] for use in self.bound.before)

    def after(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row[use.index] for use in self.bound.after)

    def write(self, *rows: tuple[Any, ...]) -> list[Problem] | None:
        return self.bound.write([self.after(row) for row in rows], self.into)

    def delete(self, *rows: tuple[Any, ...]) -> list[Problem] | None:
        return self.bound.delete([self.before(row) for row in rows], self.into)

    def update(self, before: tuple[Any, ...], after: tuple[Any, ...]) -> list[Problem] | None:
        return self.bound.update([self.before(before), self.after(after)], self.into)

    def written(self) -> list[Set | Delete]:
        return list(self.into[0].writes())


@lane("shop.orders", prefix="user:")
def order_keys(change: RowChange) -> Iterator[Operation]:
    """Say whose orders changed."""
    for row in (change.before, change.after):
        if row is not None:
            yield Delete(f"user:{row['user_id']}:orders")


def failing(body: Callable[[RowChange], Any], **options: Any) -> PythonLane:
    return lane("shop.orders", **{"prefix": "f:", **options})(body)


# What they are given.


def recorded() -> tuple[list[RowChange], PythonLane]:
    changes: list[RowChange] = []

    @lane("shop.orders", prefix="r:")
    def record(change: RowChange) -> None:
        changes.append(change)

    return changes, record


def test_a_lane_gets_both_images_with_the_types_of_python() -> None:
    changes, record = recorded()
    table = Table(record)
    assert table.update(NULLS, ROW) == []
    (change,) = changes
    assert (change.schema, change.table, change.kind) == ("shop", "orders", ChangeKind.UPDATE)
    assert change.row is change.after
    assert change.before == dict.fromkeys((c.name for c in ORDERS.columns), None) | {"id": 1}
    assert change.after == {
        "id": 1,
        "user_id": 7,
        "total": Decimal("9.90"),
        "weight": 0.1,
        "note": "hi",
        "photo": b"\xff",
        "placed": datetime(2024, 2, 29, 12, 0, 0, 500_000),
        "tags": frozenset({"x", "y"}),
        "extra": {"a": [1, 2.5]},
    }
    assert str(change.after["total"]) == "9.90"


def test_an_insert_and_a_delete_have_one_image() -> None:
    changes, record = recorded()
    table = Table(record)
    table.write(ROW)
    table.delete(ROW)
    inserted, deleted = changes
    assert (inserted.kind, inserted.before) == (ChangeKind.INSERT, None)
    assert (deleted.kind, deleted.after) == (ChangeKind.DELETE, None)
    assert inserted.row == deleted.row == inserted.after == deleted.before


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-02-29", date(2024, 2, 29)),
        ("0000-00-00", None),
        ("2024-00-10", None),
        ("2023-02-29", None),
        ("1000-01-01 00:00:00", datetime(1000, 1, 1)),
        ("2024-02-29 12:34:56.789123", datetime(2024, 2, 29, 12, 34, 56, 789123)),
        ("2024-02-29 12:34:56.1", datetime(2024, 2, 29, 12, 34, 56, 100000)),
        ("2024-02-29 12:34:56.12345", datetime(2024, 2, 29, 12, 34, 56, 123450)),
        ("0000-00-00 00:00:00.000", None),
        ("00:00:00", timedelta(0)),
        ("838:59:59", timedelta(hours=838, minutes=59, seconds=59)),
        ("-838:59:58.999", -timedelta(hours=838, minutes=59, seconds=58, milliseconds=999)),
        ("-00:00:00.01", -timedelta(milliseconds=10)),
        ("01:02:03.000004", timedelta(hours=1, minutes=2, seconds=3, microseconds=4)),
    ],
)
def test_times_are_pythons_where_python_has_them(text: str, value: object) -> None:
    assert time_value(text) == value


@given(st.datetimes() | st.dates() | st.timedeltas(timedelta(hours=-838), timedelta(hours=838)))
def test_every_time_reads_back(value: date | datetime | timedelta) -> None:
    if isinstance(value, timedelta):
        micros = abs(value) // timedelta(microseconds=1)
        seconds, fraction = divmod(micros, 1_000_000)
        text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:06d}"
        assert time_value(f"-{text}" if value < timedelta(0) else text) == value
    else:
        text = value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
        assert time_value(text) == value


def test_a_json_number_that_a_float_would_round_is_a_decimal() -> None:
    assert document("[1.5, 1.10, 18446744073709551616]") == [1.5, 1.1, 2**64]
    (number,) = document("[0.1234567890123456789]")
    assert number == Decimal("0.1234567890123456789")


def test_only_wanted_columns_are_read_and_given() -> None:
    changes: list[RowChange] = []
    table = Table(failing(changes.append, columns=["USER_ID", "photo"]))
    assert [(use.index, use.form) for use in table.bound.after] == [
        (1, ColumnForm.TEXT),
        (5, ColumnForm.RAW),
    ]
    table.write(ROW)
    assert changes[0].row == {"user_id": 7, "photo": b"\xff"}


# What they do.


def test_operations_are_added_in_row_order() -> None:
    table = Table(order_keys)
    moved = (1, 8, *ROW[2:])
    assert table.update(ROW, moved) == []
    assert table.written() == [Delete("user:7:orders"), Delete("user:8:orders")]


def test_set_and_clear_are_taken_too() -> None:
    @lane("shop.orders", prefix=("o:", "h:"))
    def store(change: RowChange) -> list[Operation]:
        return [
            Clear("h:old:"),
            Set("o:1", b"x", 5),
            Set("h:1", {"total": b"9.90"}),
            Delete("o:2"),
        ]

    table = Table(store)
    assert table.write(ROW) == []
    assert table.into[0].clears() == ("h:old:",)
    assert table.written() == [Set("o:1", b"x", 5), Set("h:1", {"total": b"9.90"}), Delete("o:2")]


def test_a_lane_in_python_stands_beside_declared_ones() -> None:
    declared = LaneConfig(table="shop.orders", key="order:{id}", value="column:note")
    table = Table(order_keys, configs=(declared,))
    assert table.lanes.names == (
        "lane 1 (shop.orders -> order:{id})",
        f"lane 2 (shop.orders -> {__name__}.order_keys)",
    )
    assert [(each.table, each.key) for each in table.lanes.described] == [
        ("shop.orders", "order:{id}"),
        ("shop.orders", f"{__name__}.order_keys"),
    ]
    note_raw = ColumnUse(4, ColumnForm.RAW)
    image = tuple(b"hi" if use == note_raw else ROW[use.index] for use in table.bound.after)
    assert table.bound.write([image], table.into) == []
    assert table.written() == [Set("order:1", b"hi"), Delete("user:7:orders")]
    assert table.lanes.makers(Delete("user:7:orders"), ["main"]) == (table.lanes.names[1],)


def test_its_sinks_make_audiences() -> None:
    only_b = failing(lambda change: [Delete("f:1")], sinks=["b"])
    table = Table(order_keys, only_b, sinks=("a", "b"))
    table.write(ROW)
    assert table.lanes.audiences == (("a",), ("b",))
    assert [len(list(one.writes())) for one in table.into] == [1, 2]
    with pytest.raises(ConfigError, match=r'lane 1 .*the sink "c" is not configured'):
        Lanes([], ["a"], python=[failing(print, sinks=["c"])])


def test_its_prefixes_are_cleared_and_signed() -> None:
    table = Table(order_keys)
    assert table.lanes.wants("shop", "orders")
    assert table.lanes.prefixes("main") == ("user:",)
    assert table.lanes.clear_table("shop", "orders", table.into) == ["user:"]
    assert table.lanes.clear_schema("shop", table.into) == ["user:"]
    assert table.lanes.clear_all(table.into) == ["user:"]


def test_its_signature_changes_with_its_text_and_its_version() -> None:
    def signature(**options: Any) -> str:
        made = failing(lambda change: None, **options)
        return Lanes([], ["main"], python=[made]).signatures("main")["f:"]

    one = signature()
    assert signature() == one
    assert signature(version=2) != one
    assert signature(columns=["id"]) != one
    assert signature(timeout_s=5.0) == one
    other = failing(lambda change: [])
    assert Lanes([], ["main"], python=[other]).signatures("main")["f:"] != one


# What happens when they fail.


def raises(change: RowChange) -> Iterator[Operation]:
    yield Delete("f:1")
    raise KeyError("no\nsuch")


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def raises_badly(change: RowChange) -> None:
    raise BadText


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (raises, r"it raised KeyError: 'no\nsuch' (test_python_lanes.py, line "),
        (raises_badly, "it raised BadText (test_python_lanes.py"),
        (lambda change: [Delete("g:1")], 'outside of what it declared ("f:")'),
        (lambda change: [Clear("f")], "outside of what it declared"),
        (lambda change: ["f:1"], "it yielded str, which is none of Set, Delete and Clear"),
        (lambda change: Delete("f:1"), "it raised TypeError"),
        (lambda change: [Delete(b"f:1")], "a key that is bytes, not str"),
        (lambda change: [Delete("f:\ud800")], "a key that has no UTF-8"),
        (lambda change: [Set("f:1", "text")], "a Set whose value is str"),
        (lambda change: [Set("f:1", {"a": 1})], "not one of text to bytes"),
        (lambda change: [Set("f:1", b"", 0)], "ttl_s is not a number of seconds above 0"),
        (lambda change: [Set("f:1", b"", float("nan"))], "ttl_s is not"),
        (lambda change: iter(lambda: Delete("f:1"), None), "more than 10000 operations"),
        (lambda change: change.row["nope"], "it raised KeyError: 'nope'"),
    ],
)
@pytest.mark.parametrize("way", ["write", "delete", "update", "careful"])
def test_a_lane_that_fails_clears_what_it_declared(body: Any, reason: str, way: str) -> None:
    table = Table(failing(body), order_keys)
    table.into[0].add(Set("f:old", b"old"))
    problems = {
        "write": lambda: table.write(ROW),
        "delete": lambda: table.delete(ROW),
        "update": lambda: table.update(ROW, ROW),
        "careful": lambda: table.bound.change_carefully(None, table.after(ROW), table.into),
    }[way]()
    assert problems is not None
    (problem,) = problems
    assert problem.lane == table.lanes.names[0]
    assert problem.scope == "f:*"
    assert reason in problem.reason
    assert "\n" not in problem.reason
    assert table.into[0].clears() == ("f:",)
    assert table.written() == [Delete("user:7:orders")]


def test_a_failure_of_one_row_leaves_the_rows_behind_it_alone() -> None:
    def picky(change: RowChange) -> Iterator[Operation]:
        if change.row["id"] == 2:
            raise ValueError
        yield Set(f"f:{change.row['id']}", b"")

    table = Table(failing(picky))
    problems = table.write(ROW, (2, *ROW[1:]), (3, *ROW[1:]))
    assert problems is not None
    assert len(problems) == 1
    assert table.into[0].clears() == ("f:",)
    assert table.written() == [Set("f:3", b"")]


@pytest.mark.parametrize(("took_s", "late"), [(0.5, False), (0.6, True)])
def test_a_lane_that_takes_longer_than_its_limit_clears_what_it_declared(
    took_s: float, late: bool
) -> None:
    now = [0.0]

    def slow(change: RowChange) -> list[Operation]:
        now[0] += took_s
        return [Delete("f:1")]

    table = Table(failing(slow, timeout_s=0.5), clock=lambda: now[0])
    problems = table.write(ROW)
    assert problems is not None
    assert [problem.reason for problem in problems] == [
        "it took longer than its limit of 0.5 s"
    ] * late
    assert table.into[0].clears() == (("f:",) if late else ())
    assert table.written() == ([] if late else [Delete("f:1")])


def test_a_generator_is_stopped_at_its_limit() -> None:
    now = [0.0]

    def endless(change: RowChange) -> Iterator[Operation]:
        while True:
            now[0] += 0.01
            yield Delete("f:1")

    problems = Table(failing(endless, timeout_s=0.1), clock=lambda: now[0]).write(ROW)
    assert problems is not None
    assert "longer than its limit" in problems[0].reason
    assert now[0] < 0.2


def test_a_column_that_cannot_be_read_clears_what_the_lane_declared() -> None:
    table = Table(failing(lambda change: [Set("f:1", b"")], columns=["note"]), order_keys)
    broken = (1, 7, "9.90", "0.1", BROKEN, *ROW[5:])
    problems = table.bound.change_carefully(None, table.after(broken), table.into)
    assert {problem.scope: problem.reason for problem in problems} == {
        "f:*": 'column "note": a bad offset',
        "user:*": 'column "note": a bad offset',
    }
    narrow = Table(failing(lambda change: [Set("f:1", b"")], columns=["id"]))
    assert narrow.bound.change_carefully(None, narrow.after(broken), narrow.into) == []
    assert narrow.written() == [Set("f:1", b"")]


def test_a_column_that_is_not_there_is_a_problem_of_the_lane() -> None:
    table = Table(failing(print, columns=["notes"], prefix=["f:", "g:"]))
    assert [problem.scope for problem in table.bound.problems] == ["f:*", "g:*"]
    assert 'no column "notes"; did you mean "note"?' in table.bound.problems[0].reason
    table.write(ROW)
    assert table.into[0].clears() == ("f:", "g:")
    (finding,) = table.lanes.lane_findings(ORDERS)
    assert finding.severity is Severity.FAULT
    assert Table(order_keys).lanes.lane_findings(ORDERS) == []


# Declaring and loading.


def asynchronous() -> None:
    async def later(change: RowChange) -> None: ...

    lane("a.b", prefix="x:")(later)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: lane("orders", prefix="x:"), "must be written schema.table"),
        (lambda: lane("a.b", prefix=""), "prefix is empty"),
        (lambda: lane("a.b", prefix=[]), "declares no prefix"),
        (lambda: lane("a.b", prefix="lane"), 'overlaps the "lanecache:" keys'),
        (lambda: lane("a.b", prefix="x y"), "whitespace"),
        (lambda: lane("a.b", prefix="x:", columns=[]), "columns as a list of names"),
        (lambda: lane("a.b", prefix="x:", columns="id"), "columns as a list of names"),
        (lambda: lane("a.b", prefix="x:", timeout_s=0), "timeout_s is 0"),
        (asynchronous, "is asynchronous"),
    ],
)
def test_what_cannot_be_a_lane_is_refused(declare: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        declare()


def test_a_decorated_function_can_still_be_called() -> None:
    change = RowChange("s", "t", ChangeKind.INSERT, None, {"user_id": 3})
    assert list(order_keys(change) or ()) == [Delete("user:3:orders")]
    assert order_keys.__doc__ == "Say whose orders changed."


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_lanes_are_loaded_from_modules_each_once(modules: Path) -> None:
    (modules / "mine_a.py").write_text(
        "from lanecache.lanes import lane\n"
        "@lane('s.t', prefix='a:')\ndef one(change): ...\n"
        "@lane('s.t', prefix='b:')\ndef two(change): ...\nalias = one\n"
    )
    (modules / "mine_b.py").write_text("from mine_a import two\n")
    lanes = load_python_lanes(["mine_a", "mine_b"])
    assert [each.label for each in lanes] == ["mine_a.one", "mine_a.two"]
    config = load_config(
        {
            "source": {"url": "mysql://db"},
            "sinks": {"main": {"url": "memory:"}},
            "ingest": {"modules": ["mine_a"]},
        },
        {},
    )
    assert lanes_of(config).prefixes("main") == ("a:", "b:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be imported (ModuleNotFoundError: No module named 'mine_c')"),
        ("import nope_nope", "(ModuleNotFoundError: No module named 'nope_nope')"),
        ("x = (", "cannot be imported (SyntaxError: "),
        ("raise ValueError('a\\nb')", "cannot be imported (ValueError: a b)"),
        ("raise SystemExit", "cannot be imported (SystemExit)"),
        ("x = 1", "has no lane; put @lanecache.lane(...) before a function"),
        ("from lanecache.lanes import lane\nlane('x', prefix='a:')", "must be written schema."),
    ],
)
def test_a_module_that_cannot_be_used_is_one_sentence(
    modules: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (modules / "mine_c.py").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_python_lanes(["mine_c"])
    assert caught.value.path == "ingest.modules[0]"
    assert "\n" not in str(caught.value)
