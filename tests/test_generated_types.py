"""Law 6 over generated tables: hypothesis draws schemas, rows and how the server logs them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typecases import MYSQL, TypeCase, document, quoted
from typelab import Laboratory, laboratory

from lanecache.testing.plugin import NewDatabase

# More of them, and others each time, are found with GENERATED_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("GENERATED_EXAMPLES", "150"))

IMAGES = ["FULL", "MINIMAL", "NOBLOB"]


@dataclass(frozen=True, slots=True)
class Change:
    """One statement: rows inserted, some of their columns updated, or rows deleted."""

    kind: str
    keys: list[int]
    values: dict[int, str]


@dataclass(frozen=True, slots=True)
class Example:
    """A table, what is written to it, and how the server logs it."""

    cases: list[TypeCase]
    has_key: bool
    image: str
    metadata: str
    compressed: bool
    partial_json: bool
    changes: list[Change]


def _value(case: TypeCase) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(["NULL", *case.values]), case.drawn)


# Only what these functions change is logged as a difference.
_COLUMN = "<column>"
_PATHS = st.lists(
    st.sampled_from([".a", ".b", '."a b"', '."é"', ".abc", "[0]", "[1]", "[last]"]),
    min_size=1,
    max_size=3,
).map(lambda legs: quoted("$" + "".join(legs)))


def _changed_document(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    value = st.sampled_from(
        ["1", "NULL", "'text'", "JSON_ARRAY(1, 'x')", "JSON_OBJECT('a', 1.5)", "DATE '2024-02-29'",
         "REPEAT('long', 300)", "CAST(1.50 AS DECIMAL(5,2))"]
    )  # fmt: skip
    function = st.sampled_from(["JSON_SET", "JSON_REPLACE"])
    return st.one_of(
        st.builds("{}({}, {}, {})".format, function, inner, _PATHS, value),
        st.builds(
            "JSON_REMOVE({}, {})".format,
            inner,
            _PATHS.filter(lambda path: path != quoted("$")),
        ),
    )


_DIFFERENCES = st.recursive(st.just(_COLUMN), _changed_document, max_leaves=3).filter(
    lambda text: text != _COLUMN
)


def _new_value(case: TypeCase) -> st.SearchStrategy[str]:
    if case.make is document:
        return st.one_of(_DIFFERENCES, _value(case))
    return _value(case)


@st.composite
def examples(draw: st.DrawFn, known: list[TypeCase]) -> Example:
    """Draw a table of the types that a server has, and a few changes of it."""
    # A quarter of the columns are documents, where there are any: they have ways of their own.
    documents = [case for case in known if case.make is document] or known
    column = st.one_of(*[st.sampled_from(known)] * 3, st.sampled_from(documents))
    cases = draw(st.lists(column, min_size=1, max_size=12))
    columns = range(len(cases))
    changes = []
    for kind in draw(st.lists(st.sampled_from("IIUUUD"), min_size=1, max_size=8)):
        keys = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True))
        chosen = list(columns)
        if kind == "U":
            chosen = draw(st.lists(st.sampled_from(columns), min_size=1, unique=True))
        new = _new_value if kind == "U" else _value
        values = {index: draw(new(cases[index])) for index in chosen if kind != "D"}
        changes.append(Change(kind, keys, values))
    return Example(
        cases=cases,
        has_key=draw(st.booleans()),
        image=draw(st.sampled_from(IMAGES)),
        metadata=draw(st.sampled_from(["FULL", "MINIMAL"])),
        compressed=draw(st.booleans()),
        partial_json=draw(st.booleans()),
        changes=[Change("I", [0, 1, 2], {i: draw(_value(cases[i])) for i in columns}), *changes],
    )


class Examiner:
    """Runs examples, each in a table of its own."""

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab
        self._tables = 0
        self.compared = 0
        self.lacking = 0

    async def examine(self, example: Example) -> None:
        session = self._lab.session
        self._tables += 1
        table = f"g{self._tables}"
        await self._set(example)
        try:
            await self._lab.create(table, example.cases, key=example.has_key)
            live: set[int] = set()
            partly: set[int] = set()
            for change in example.changes:
                keys = set(change.keys)
                if change.kind == "I":
                    for key in sorted(keys - live):
                        row = ", ".join(change.values[i] for i in range(len(example.cases)))
                        await session.execute(f"INSERT INTO {table} VALUES ({key}, {row})")
                    partly -= keys - live
                    live |= keys
                    continue
                where = f"WHERE id IN ({', '.join(map(str, change.keys))})"
                if change.kind == "U":
                    new = ", ".join(
                        f"c{i} = {value.replace(_COLUMN, f'c{i}')}"
                        for i, value in change.values.items()
                    )
                    await session.execute(f"UPDATE {table} SET {new} {where}")
                    partly |= keys & live
                else:
                    await session.execute(f"DELETE FROM {table} {where}")
                    live -= keys
            # Only where an image was not whole may a row that was updated not be cached.
            may_lack = partly if example.image != "FULL" else ()
            self.lacking += await self._lab.compare(table, example.cases, may_lack=may_lack)
            self.compared += len(live)
            for key in {-1, *range(6)} - live:
                assert self._lab.cached(table, key) is None, f"row {key} was deleted"
        finally:
            await session.execute(f"DROP TABLE IF EXISTS {table}")

    async def _set(self, example: Example) -> None:
        on = "ON" if example.compressed else "OFF"
        statements = [
            f"SET SESSION binlog_row_image = '{example.image}'",
            f"SET GLOBAL binlog_row_metadata = '{example.metadata}'",
        ]
        if self._lab.database.product.name == MYSQL:
            options = "PARTIAL_JSON" if example.partial_json else ""
            statements.append(f"SET SESSION binlog_transaction_compression = {on}")
            statements.append(f"SET SESSION binlog_row_value_options = '{options}'")
        else:
            statements.append(f"SET GLOBAL log_bin_compress = {on}")
            statements.append("SET GLOBAL log_bin_compress_min_len = 10")
        for statement in statements:
            await self._lab.session.execute(statement)


async def _start(new_database: NewDatabase) -> Any:
    database = await new_database()
    await database.execute("CREATE DATABASE drawn")
    return database


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # only where one fails
def test_generated_rows_are_cached_as_select_gives_them(new_database: NewDatabase) -> None:
    with start_blocking_portal() as portal:
        database = portal.call(_start, new_database)
        with portal.wrap_async_context_manager(laboratory(database, "drawn")) as lab:
            known = portal.call(lab.cases)
            examiner = Examiner(lab)

            @settings(
                max_examples=EXAMPLES,
                derandomize="GENERATED_EXAMPLES" not in os.environ,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            )
            @given(examples(known))
            def examine(example: Example) -> None:
                portal.call(examiner.examine, example)

            examine()
            assert examiner.compared > examiner.lacking
