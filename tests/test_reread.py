"""Rows whose binlog images lack columns: read again, and never wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typecases import TypeCase
from typelab import COLUMNS_PER_TABLE, Laboratory, laboratory

import lanecache
from lanecache.ingest.reread import TRIES_MAX, PartialRow, PartialRows, Rereads
from lanecache.ingest.row_query import RowQuery, comparable_document, document_text
from lanecache.operation import Delete, OperationSet, Position, Set
from lanecache.servers import DatabaseServer

TABLE: Any = type("Table", (), {"schema": "shop", "table": "t"})()


def effect(*deleted: str, cleared: str = "") -> list[OperationSet]:
    operations = OperationSet()
    if cleared:
        operations.clear(cleared)
    for key in deleted:
        operations.add(Delete(key))
    return [operations]


def partial_row(number: int) -> PartialRow:
    return PartialRow(TABLE, (b"%d" % number,), {0: b"%d" % number}, (frozenset({key(number)}),))


def key(number: int) -> str:
    return f"row:{number}"


def at(offset: int, number: int = 1) -> Position:
    return Position(None, f"binlog.{number:06d}", offset)


class Core:
    """One pending row, 7, noted by the transaction that ends at 100."""

    def __init__(self) -> None:
        self.rereads = Rereads()
        self.row = partial_row(7)
        self.rereads.committed(effect(key(7)), [self.row])
        self.rereads.read_up_to(at(100))

    def read(self, up_to: Position) -> None:
        assert self.rereads.batch(10) == [self.row]
        self.rereads.found(self.row, [[Set(key(7), b"new"), Set("row:other", b"x")]], up_to)

    def settled(self) -> list[Any]:
        return [found.writes for found in self.rereads.settled()]


RIGHT = [((Set(key(7), b"new"),),)]


def test_a_row_is_offered_once_when_the_stream_has_come_to_where_it_was_read() -> None:
    core = Core()
    core.read(at(200))
    assert core.settled() == []
    core.rereads.committed(effect(key(8)))
    core.rereads.read_up_to(at(199))
    assert core.settled() == []
    core.rereads.read_up_to(at(200))
    assert core.settled() == RIGHT
    assert core.settled() == []
    assert not core.rereads


def test_an_idle_stream_that_is_there_already_offers_at_once() -> None:
    core = Core()
    core.read(at(100))
    assert core.settled() == RIGHT


def test_a_later_file_covers_all_of_an_earlier_one() -> None:
    core = Core()
    core.read(at(5000))
    core.rereads.read_up_to(at(4, number=2))
    assert core.settled() == RIGHT


@pytest.mark.parametrize(
    "change",
    [
        lambda rereads: rereads.committed(effect(key(7))),
        lambda rereads: rereads.committed(effect(cleared="row:")),
        lambda rereads: rereads.committed(effect(), spilled=True),
        lambda rereads: rereads.discard(),
    ],
    ids=["write", "clear", "spilled", "reconnect"],
)
@pytest.mark.parametrize("after_reading", [True, False])
def test_what_touches_the_key_in_between_drops_the_row(
    change: Callable[[Rereads], None], after_reading: bool
) -> None:
    core = Core()
    if after_reading:
        core.read(at(200))
        change(core.rereads)
    else:
        batch = core.rereads.batch(10)
        change(core.rereads)
        for row in batch:
            core.rereads.found(row, [[Set(key(7), b"new")]], at(200))
    core.rereads.read_up_to(at(300))
    assert core.settled() == []
    assert not core.rereads


def test_changes_of_other_keys_and_prefixes_leave_the_row() -> None:
    core = Core()
    core.read(at(200))
    core.rereads.committed(effect(key(70), cleared="rows:"))
    core.rereads.read_up_to(at(200))
    assert core.settled() == RIGHT


def test_without_a_known_end_of_the_binlog_the_key_stays_deleted() -> None:
    core = Core()
    core.read(Position(None))
    core.rereads.read_up_to(at(10**9))
    assert core.settled() == []


def test_a_row_that_never_agrees_is_given_up() -> None:
    core = Core()
    for _ in range(TRIES_MAX):
        assert core.rereads.batch(10) == [core.row]
        core.rereads.try_again(core.row)
    assert core.rereads.batch(10) == []
    assert not core.rereads


def test_two_rows_of_a_transaction_with_one_key_are_not_read() -> None:
    rereads = Rereads()
    rows = [PartialRow(TABLE, (b"%d" % n,), {}, (frozenset({"shared"}),)) for n in range(3)]
    rereads.committed(effect("shared"), rows)
    assert not rereads


def test_no_more_rows_are_kept_than_allowed() -> None:
    rereads = Rereads(rows_max=3)
    rereads.committed(effect(), [partial_row(n) for n in range(5)])
    assert len(rereads) == 3


def test_a_transaction_notes_only_rows_all_of_whose_changes_it_can_follow() -> None:
    partial = PartialRows()
    keys = [frozenset({key(1)})]
    partial.note(TABLE, (b"1",), {0: b"1", 1: b"a"}, keys)
    partial.note(TABLE, (b"1",), {0: b"1", 2: b"b"}, keys)
    (row,) = partial.take(effect(key(1)))
    assert row.image == {0: b"1", 1: b"a", 2: b"b"}
    partial.refuse(("shop", "t"))
    partial.note(TABLE, (b"1",), {0: b"1"}, keys)
    assert partial.take(effect(key(1))) == []
    partial.note(TABLE, (b"1",), {0: b"1"}, keys)
    partial.refuse(("shop", "t"))
    assert partial.take(effect(key(1))) == []
    partial.note(TABLE, (b"1",), {0: b"1"}, keys)
    assert partial.take(effect(key(1), cleared="row:")) == []
    partial.note(TABLE, (b"1",), {0: b"1"}, keys)
    partial.discard()
    assert partial.take(effect(key(1))) == []
    stored = OperationSet()
    stored.add(Set(key(1), b"whole"))
    partial.note(TABLE, (b"1",), {0: b"1"}, keys)
    assert partial.take([stored]) == []


class Model:
    """A table of one row; each change is one event, seen by a reader before or after the dump."""

    def __init__(self) -> None:
        self.history = [0]  # the row's value after each event
        self.visible = 0  # events that the engine shows
        self.streamed = 0
        self.cached: int | None = 0
        self.cached_at = 0
        self.rereads = Rereads()
        self.notes: dict[int, int] = {}


@given(
    st.lists(st.sampled_from(["part", "whole", "show", "stream", "read", "end"]), max_size=60),
    st.lists(st.integers(0, 2), min_size=60, max_size=60),
)
def test_in_no_order_of_events_is_an_older_value_stored(steps: list[str], drawn: list[int]) -> None:
    model = Model()
    partly = [False]
    open_reads: list[tuple[PartialRow, int]] = []

    def settle() -> None:
        for found in model.rereads.settled():
            value = int(found.writes[0][0].value)  # type: ignore[arg-type]
            # It is exactly what the row is at the place in the stream where it is stored.
            assert value == model.history[model.streamed]
            model.cached = value

    for step, number in zip(steps, drawn, strict=False):
        if step in ("part", "whole") and model.visible == len(model.history) - 1:
            # The row's lock: the next change comes when the last one is visible.
            model.history.append(number)
            partly.append(step == "part")
        elif step == "show":
            model.visible = len(model.history) - 1
        elif step == "stream" and model.streamed < len(model.history) - 1:
            model.streamed += 1
            value = model.history[model.streamed]
            if partly[model.streamed]:
                image = {0: b"%d" % value}
                row = PartialRow(TABLE, (b"7",), image, (frozenset({key(7)}),))
                model.rereads.committed(effect(key(7)), [row])
                model.cached = None
            else:
                model.rereads.committed(effect(key(7)))
                model.cached = value
            model.rereads.read_up_to(at(model.streamed))
            settle()
        elif step == "read":
            open_reads += [(row, model.history[model.visible]) for row in model.rereads.batch(9)]
        elif step == "end":
            for row, value in open_reads:
                if b"%d" % value == row.image[0]:
                    end = at(len(model.history) - 1)
                    model.rereads.found(row, [[Set(key(7), b"%d" % value)]], end)
                else:
                    model.rereads.try_again(row)
            open_reads = []
            settle()
        assert model.cached is None or model.cached == model.history[model.streamed]


def test_documents_are_written_without_spaces_and_compared_by_their_numbers() -> None:
    text = '{"a b": [1, -2.50, 1e300, "x: \\"y, z\\" \\u001f"], "": {"c": null}}'
    assert json.loads(document_text(text)) == json.loads(text)
    assert document_text(text).startswith('{"a b":[1,-2.50,1e300,"x: \\"y, z')
    assert comparable_document("[1.50,10,-0.0]") == comparable_document("[1.5,10.0,0]")
    assert comparable_document("[1]") != comparable_document("[true]")
    assert comparable_document('["1.50"]') != comparable_document('["1.5"]')
    assert comparable_document("[12345678901234567890.1]") != comparable_document(
        "[12345678901234567890.2]"
    )


# Live.


async def wait_until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


def simple(case: TypeCase) -> bool:
    charset = re.search(r"CHARACTER SET (\w+)", case.declaration)
    return charset is None or charset[1] in ("utf8mb4", "latin1", "sjis", "utf16")


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
async def test_rows_updated_in_part_are_soon_cached_as_select_gives_them(
    database: DatabaseServer, schema: str, image: str
) -> None:
    async with laboratory(database, schema) as lab:
        session = lab.session
        await session.execute(f"SET SESSION binlog_row_image = '{image}'")
        cases = [case for case in await lab.cases() if simple(case)]
        rows_total = 0
        for number, first in enumerate(range(0, len(cases), COLUMNS_PER_TABLE - 2)):
            chosen = cases[first : first + COLUMNS_PER_TABLE - 2]
            table = f"t{number}"
            # A BLOB, so that NOBLOB leaves something out; and a column to change.
            blob, changed = len(chosen), len(chosen) + 1
            extra = [case for case in cases if case.declaration in ("BLOB", "INT")]
            chosen = [*chosen, *sorted(extra, key=lambda case: case.declaration)]
            await lab.create(table, chosen)
            rows = max(len(case.values) for case in chosen) + 1
            for row in range(rows):
                values = [case.values[row % len(case.values)] for case in chosen]
                if row == rows - 1:
                    values = ["NULL" for _ in chosen]
                values[blob], values[changed] = f"x'00{row:02x}'", "1"
                await session.execute(f"INSERT INTO {table} VALUES ({row}, {', '.join(values)})")
            await session.execute(f"UPDATE {table} SET c{changed} = 2")
            await lab.caught_up()
            await wait_until(lambda: all(lab.cached(table, row) for row in range(rows)))  # noqa: B023
            assert await lab.compare(table, chosen) == 0
            rows_total += rows
        # The row with which a table begins may be read again too, before it is deleted.
        assert 0 <= lab.service.statistics().source.reread_rows - rows_total <= number + 1


@pytest.mark.parametrize("image", ["MINIMAL", "NOBLOB"])
async def test_racing_writers_never_bring_back_an_older_value(
    database: DatabaseServer, schema: str, image: str
) -> None:
    async with laboratory(database, schema) as lab:
        await lab.session.execute(
            "CREATE TABLE r (id INT PRIMARY KEY, n INT, m INT, s INT, b BLOB, t TEXT)"
        )
        keys = range(1, 4)
        for number in keys:
            await lab.session.execute(f"INSERT INTO r VALUES ({number}, 0, 0, 0, x'00', 'text')")
        await lab.caught_up()
        seen: dict[int, list[tuple[int, int, int]]] = {number: [] for number in keys}
        done = anyio.Event()

        async def watch() -> None:
            while not done.is_set():
                for number in keys:
                    row = lab.cached("r", number)
                    if row is not None:
                        version = (row["s"], row["n"], row["m"])
                        if version not in seen[number][-1:]:
                            seen[number].append(version)
                await anyio.lowlevel.checkpoint()

        async def write(column: str) -> None:
            async with database.session(schema) as session:
                await session.execute(f"SET SESSION binlog_row_image = '{image}'")
                for nth in range(150):
                    await session.execute(
                        f"UPDATE r SET {column} = {column} + 1, s = s + 1 WHERE id = %s",
                        (keys[nth % 3],),
                    )
                    if nth % 10 == 0:
                        await anyio.sleep(0.02)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            async with anyio.create_task_group() as writers:
                writers.start_soon(write, "n")
                writers.start_soon(write, "m")
            await lab.caught_up()
            await wait_until(lambda: all(lab.cached("r", number) for number in keys))
            done.set()
        for number in keys:
            row = lab.cached("r", number)
            assert row is not None
            assert (row["n"], row["m"], row["s"]) == (50, 50, 100)
            assert (row["b"], row["t"]) == ("AA==", "text")
            # ``s`` counts the changes, and is the sum of both in each state that ever was.
            assert seen[number] == sorted(seen[number])
            assert all(s == n + m for s, n, m in seen[number])
        assert lab.service.statistics().source.reread_rows >= len(keys)


async def _one_row(lab: Laboratory, engine: str) -> None:
    await lab.session.execute(
        f"CREATE TABLE e (id INT PRIMARY KEY, n INT, b BLOB) ENGINE = {engine}"
    )
    await lab.session.execute("INSERT INTO e VALUES (1, 1, x'00'), (2, 1, x'00')")
    await lab.session.execute("SET SESSION binlog_row_image = 'MINIMAL'")


async def test_an_inserted_row_whose_defaults_are_not_logged_is_cached_with_them(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        await lab.session.execute(
            "CREATE TABLE d (id INT PRIMARY KEY, n INT DEFAULT 7, u VARCHAR(9) DEFAULT 'x', b BLOB)"
        )
        await lab.session.execute("SET SESSION binlog_row_image = 'MINIMAL'")
        for statement in (
            "BEGIN",
            "INSERT INTO d (id, u) VALUES (1, 'one'), (2, 'two')",
            "UPDATE d SET b = x'01' WHERE id = 2",
            "COMMIT",
        ):
            await lab.session.execute(statement)
        await lab.caught_up()
        await wait_until(lambda: all(lab.cached("d", number) for number in (1, 2)))
        assert lab.cached("d", 1) == {"id": 1, "n": 7, "u": "one", "b": None}
        assert lab.cached("d", 2) == {"id": 2, "n": 7, "u": "two", "b": "AQ=="}


async def test_every_kind_of_value_and_condition_is_made_of_a_row_that_was_read_again(
    database: DatabaseServer, schema: str
) -> None:
    config = {
        "source": {"url": database.url(), "name": schema},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [
            {"table": f"{schema}.k", "key": "hash:{id}", "value": "hash", "ttl_s": 3600},
            {"table": f"{schema}.k", "key": "pack:{id}", "value": "msgpack"},
            {"table": f"{schema}.k", "key": "text:{id}", "value": "column:t"},
            {"table": f"{schema}.k", "key": "some:{id}", "where": "n > 5"},
        ],
    }
    async with lanecache.start(config) as service, database.session(schema) as session:
        target: Any = service.sinks["main"].target
        await session.execute("CREATE TABLE k (id INT PRIMARY KEY, n INT, m INT, t TEXT)")
        await session.execute("INSERT INTO k VALUES (1, 9, 1, 'a'), (2, 1, 1, 'b')")
        await session.execute("SET SESSION binlog_row_image = 'MINIMAL'")
        await session.execute("UPDATE k SET m = 2")
        await service.wait_for(await lanecache.commit_token(session.connection), timeout_s=30.0)
        await wait_until(lambda: target.get("hash:1") is not None and target.get("hash:2"))
        found = target.snapshot()
        assert found["hash:1"] == {"id": b"1", "n": b"9", "m": b"2", "t": b"a"}
        packed = msgspec.msgpack.decode(found["pack:2"])
        assert packed == {"id": 2, "n": 1, "m": 2, "t": "b"}
        assert found["text:2"] == b"b"
        assert json.loads(found["some:1"]) == {"id": 1, "n": 9, "m": 2, "t": "a"}
        assert "some:2" not in found


async def test_a_row_that_was_read_before_its_change_could_be_seen_is_read_once_more(
    database: DatabaseServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The dump sends a transaction before the engine shows it; that moment is too short to meet.
    read, early = RowQuery.read, [True, True]

    def as_it_was(self: RowQuery, row: Mapping[str, Any]) -> list[Any]:
        found = read(self, row)
        if early:
            early.pop()
            found[1] = 1
        return found

    monkeypatch.setattr(RowQuery, "read", as_it_was)
    async with laboratory(database, schema) as lab:
        await _one_row(lab, "InnoDB")
        await lab.session.execute("UPDATE e SET n = 2 WHERE id = 1")
        await lab.caught_up()
        await wait_until(lambda: lab.cached("e", 1) is not None)
        assert lab.cached("e", 1) == {"id": 1, "n": 2, "b": "AA=="}
        assert not early


async def test_a_row_that_was_replaced_in_the_same_transaction_stays_deleted(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        await _one_row(lab, "InnoDB")
        for statement in (
            "BEGIN",
            "DELETE FROM e WHERE id = 1",
            "INSERT INTO e VALUES (1, 5, x'01')",
            "UPDATE e SET n = 1 WHERE id = 1",
            "COMMIT",
            "UPDATE e SET n = 2 WHERE id = 2",
        ):
            await lab.session.execute(statement)
        await lab.caught_up()
        await wait_until(lambda: lab.cached("e", 2) is not None)
        assert lab.cached("e", 2) == {"id": 2, "n": 2, "b": "AA=="}
        assert lab.cached("e", 1) is None


async def test_engines_that_show_changes_before_they_are_logged_are_not_asked(
    database: DatabaseServer, schema: str
) -> None:
    async with laboratory(database, schema) as lab:
        await _one_row(lab, "MyISAM")
        await lab.session.execute("UPDATE e SET n = 2 WHERE id = 1")
        await lab.session.execute("CREATE TABLE i LIKE e")
        await lab.session.execute("ALTER TABLE i ENGINE = InnoDB")
        await lab.session.execute("INSERT INTO i VALUES (1, 1, x'00')")
        await lab.session.execute("UPDATE i SET n = 2 WHERE id = 1")
        await lab.caught_up()
        # The rows are read in their order: when the later is there, the earlier was given up.
        await wait_until(lambda: lab.cached("i", 1) is not None)
        assert lab.cached("e", 1) is None
