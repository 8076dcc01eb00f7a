"""Columns that a server has for itself, and schemas that do not fit the binlog (any more)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from lanecache.config import LaneConfig
from lanecache.gtid import parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest.completion import with_schema
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.looks import DELAY_MAX_S, Looks
from lanecache.ingest.outputs import Committed, ForeignKeysWanted, SchemaWanted
from lanecache.ingest.schema import ColumnFacts, SchemaReading, hidden_number
from lanecache.ingest.table import TableMap, parse_table_map
from lanecache.ingest.tables import Kept, NamedTable
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Clear, Delete, Operation, Position, Set
from lanecache.row import Problem
from lanecache.testing.binlog import BinlogBuilder

Kind = tuple[int, bytes, bool]
"""A column's type, its metadata, and whether it is nullable."""

INT: Kind = (3, b"", False)
BIGINT: Kind = (8, b"", False)
HASH: Kind = (8, b"", True)
TEXT: Kind = (252, b"\2", True)
HISTORY: Kind = (17, b"\6", False)
NAME = NamedTable("shop", "product")


def table_map(columns: Sequence[tuple[str, Kind]], *, names: bool = True) -> bytes:
    """Make a TABLE_MAP body, with optional metadata as MariaDB writes it."""
    body = struct.pack("<IHH", 100, 0, 1) + b"\4shop\0\7product\0"
    body += bytes([len(columns)]) + bytes(kind[0] for _, kind in columns)
    metadata = b"".join(kind[1] for _, kind in columns)
    body += bytes([len(metadata)]) + metadata
    nullable = sum(kind[2] << index for index, (_, kind) in enumerate(columns))
    body += nullable.to_bytes((len(columns) + 7) // 8, "little")
    numbers = [kind for _, kind in columns if kind[0] in (3, 8)]
    signs = sum((kind[0] == 8) << (7 - nth) for nth, kind in enumerate(numbers))
    body += bytes([1, 1, signs])
    if any(kind is TEXT for _, kind in columns):
        body += bytes([2, 1, 45])
    if names:
        text = b"".join(bytes([len(name)]) + name.encode() for name, _ in columns)
        body += bytes([4, len(text)]) + text + b"\x08\1\0"
    return body


def mapped(
    columns: Sequence[tuple[str, Kind]], *, names: bool = True, mariadb: bool = True
) -> TableMap:
    return parse_table_map(table_map(columns, names=names)[8:], mariadb=mariadb)


def facts(name: str, data_type: str = "int", *, key: int | None = None) -> ColumnFacts:
    return ColumnFacts(
        name=name,
        data_type=data_type,
        column_type=data_type,
        unsigned=False,
        charset="utf8mb4" if data_type == "text" else None,
        collation=None,
        labels=(),
        nullable=True,
        generated="",
        invisible=False,
        compressed=False,
        character_length=None,
        octet_length=None,
        datetime_precision=6 if data_type == "timestamp" else None,
        numeric_precision=None,
        numeric_scale=None,
        primary_key_index=key,
        ends_history=name == "row_end",
    )


def hidden(found: TableMap | str) -> list[int]:
    assert isinstance(found, TableMap), found
    return [index for index, column in enumerate(found.columns) if column.hidden]


ID, URL = ("id", INT), ("url", TEXT)
FIRST, SECOND = ("DB_ROW_HASH_1", HASH), ("DB_ROW_HASH_2", HASH)
START, END = ("row_start", HISTORY), ("row_end", HISTORY)


def test_the_hash_of_a_long_unique_is_hidden_by_its_name() -> None:
    assert hidden(mapped([ID, URL, FIRST, SECOND])) == [2, 3]
    # Elsewhere, of another type, or on MySQL, somebody has named his column so.
    assert hidden(mapped([FIRST, ID])) == []
    assert hidden(mapped([ID, ("DB_ROW_HASH_1", INT)])) == []
    assert hidden(mapped([ID, URL, FIRST], mariadb=False)) == []


def test_implicit_history_is_hidden_unless_the_schema_shows_it() -> None:
    found = mapped([ID, URL, START, END, FIRST])
    assert hidden(found) == [2, 3, 4]
    assert found.row_end == 3
    assert found.complete
    implicit = with_schema(found, [facts("id", key=0), facts("url", "text")])
    assert hidden(implicit) == [2, 3, 4]
    shown = [facts("id", key=0), facts("url", "text")]
    shown += [facts("row_start", "timestamp"), facts("row_end", "timestamp")]
    declared = with_schema(found, shown)
    assert hidden(declared) == [4]
    assert isinstance(declared, TableMap)
    assert not declared.undecided
    assert declared.row_end == 3


def test_without_names_hidden_columns_are_told_by_their_number_and_type() -> None:
    shown = [facts("id", key=0), facts("url", "text")]
    found = mapped([ID, URL, START, END, FIRST], names=False)
    assert hidden(with_schema(found, shown, row_hashes_max=1)) == [2, 3, 4]
    found = mapped([ID, URL, FIRST, SECOND], names=False)
    assert hidden(with_schema(found, shown, row_hashes_max=2)) == [2, 3]
    # No more of them than there are keys that need one: it could be a column that is gone.
    assert "2 columns today and 4" in str(with_schema(found, shown, row_hashes_max=1))
    found = mapped([ID, URL, ("n", BIGINT)], names=False)
    assert "2 columns today and 3" in str(with_schema(found, shown, row_hashes_max=1))


def test_mysql_s_generated_key_is_hidden_where_the_schema_does_not_show_it() -> None:
    columns = [("my_row_id", BIGINT), ("n", HASH)]
    found = mapped(columns, mariadb=False)
    assert hidden(found) == []
    assert hidden(with_schema(found, [hidden_number("n")], mariadb=False)) == [0, 1]
    shown = [facts("my_row_id", "bigint", key=0), facts("n", "bigint")]
    assert hidden(with_schema(found, shown, mariadb=False)) == []
    unnamed = mapped(columns, names=False, mariadb=False)
    completed = with_schema(unnamed, [facts("n", "bigint")], mariadb=False)
    assert hidden(completed) == [0]
    assert isinstance(completed, TableMap)
    assert completed.primary_key == (0,)


def test_a_look_is_taken_again_ever_more_seldom() -> None:
    now = 100.0
    looks = Looks(lambda: now)
    assert looks.due("t")
    waited = []
    for _ in range(11):
        looks.looked("t")
        before = now
        while not looks.due("t"):
            now += 1
        waited.append(now - before)
    assert waited == [1, 2, 4, 8, 16, 32, 64, 128, 256, DELAY_MAX_S, DELAY_MAX_S]
    looks.forget("t")
    looks.looked("t")
    now += 1
    assert looks.due("t")
    assert not Looks().due("t")


class Reading:
    """A decoder over ``shop.product``, with a clock and a schema that can be changed."""

    def __init__(self, *, columns: tuple[str, ...] | None = None, kept: Kept | None = None) -> None:
        self.now = 0.0
        self.asked = 0
        self.schema: SchemaReading | None = None
        self.problems: list[Problem] = []
        lane = LaneConfig(table="shop.product", key="p:{id}", columns=columns)
        self.decoder = Decoder(
            Lanes([lane], ["main"]),
            Position(parse_gtid_set("", "mariadb"), "binlog.000001", 4),
            transaction_bytes_max=1 << 26,
            report=lambda problem, where: self.problems.append(problem),
            kept=kept,
            clock=lambda: self.now,
        )

    def feed(self, builder: BinlogBuilder) -> list[list[Operation]]:
        found = []
        for output in self.decoder.feed(builder.block()):
            if isinstance(output, SchemaWanted):
                self.asked += 1
                self.decoder.provide_schema(output.table, self.schema)
            elif isinstance(output, Committed):
                effect = output.operations[0]
                found.append([*(Clear(each) for each in effect.clears()), *effect.writes()])
            else:
                assert isinstance(output, ForeignKeysWanted)
        return found


def read_now(*columns: ColumnFacts) -> SchemaReading:
    return SchemaReading(columns, Position(parse_gtid_set("", "mariadb"), "binlog.000001", 4))


def insert(builder: BinlogBuilder, *values: int, names: bool = False) -> None:
    """Add a transaction that inserts a row of INTs, whose names are a, b, c behind the id."""
    columns = [(name, INT) for name in ("id", "a", "b", "c")[: len(values)]]
    builder.begin()
    builder.event(b.TABLE_MAP, table_map(columns, names=names))
    builder.rows("write", values)
    builder.commit()


CLEARED = [Clear("p:")]


def json_set(text: str) -> list[Operation]:
    return [Set("p:1", text.encode())]


def test_a_hidden_column_is_neither_stored_nor_to_be_named() -> None:
    builder = BinlogBuilder(mariadb=True)
    for columns in (None, ("id", "DB_ROW_HASH_1")):
        builder.begin()
        builder.event(b.TABLE_MAP, table_map([ID, FIRST]))
        body = struct.pack("<IHH", 100, 0, 1) + b"\2\xff\xfc" + struct.pack("<iQ", 1, 2**63)
        builder.event(b.WRITE_ROWS_V1, body)
        builder.commit()
        reading = Reading(columns=columns)
        (written,) = reading.feed(builder)
        assert written == (json_set('{"id":1}') if columns is None else [Delete("p:1")])
        builder.describe()


def test_a_schema_that_does_not_fit_is_read_again_with_back_off() -> None:
    """As a column comes with sql_log_bin = 0, and the schema was read before or is still old."""
    builder = BinlogBuilder(mariadb=True)
    reading = Reading()
    reading.schema = read_now(facts("id", key=0), facts("a"))
    insert(builder, 1, 2)
    assert reading.feed(builder) == [json_set('{"id":1,"a":2}')]
    assert reading.asked == 1
    for now, asked in ((0.5, 2), (0.9, 2), (1.5, 3), (3.0, 3), (3.5, 4), (7.4, 4)):
        reading.now = now
        insert(builder, 1, 2, 3)
        assert reading.feed(builder) == [CLEARED]
        assert reading.asked == asked
    reading.schema = read_now(facts("id", key=0), facts("a"), facts("b"))
    reading.now = 7.5
    insert(builder, 1, 2, 3)
    insert(builder, 1, 4, 3)
    assert reading.feed(builder) == [
        json_set('{"id":1,"a":2,"b":3}'),
        json_set('{"id":1,"a":4,"b":3}'),
    ]
    assert reading.asked == 5


def test_a_table_that_may_be_seen_later_is_cached_then() -> None:
    builder = BinlogBuilder(mariadb=True)
    reading = Reading()
    insert(builder, 1, 2)
    assert reading.feed(builder) == [CLEARED]
    reading.schema = read_now(facts("id", key=0), facts("a"))
    reading.now = 1.0
    insert(builder, 1, 2)
    assert reading.feed(builder) == [json_set('{"id":1,"a":2}')]


def test_a_lane_s_column_that_was_renamed_without_a_word_is_found_again() -> None:
    builder = BinlogBuilder(mariadb=True)
    reading = Reading(columns=("id", "b"))
    reading.schema = read_now(facts("id", key=0), facts("a"))
    insert(builder, 1, 2)
    assert reading.feed(builder) == [[Delete("p:1")]]
    reading.schema = read_now(facts("id", key=0), facts("b"))
    reading.now = 1.0
    insert(builder, 1, 2)
    assert reading.feed(builder) == [json_set('{"id":1,"b":2}')]


@pytest.mark.parametrize("reconnects", [False, True])
def test_a_shape_that_changes_without_a_statement_clears_what_has_the_old_one(
    reconnects: bool,
) -> None:
    """With full metadata the new rows can be read; those that are cached lack the column."""
    builder = BinlogBuilder(mariadb=True)
    kept = Kept()
    reading = Reading(kept=kept)
    insert(builder, 1, 2, names=True)
    assert reading.feed(builder) == [json_set('{"id":1,"a":2}')]
    if reconnects:
        reading = Reading(kept=kept)
        builder.describe()
    insert(builder, 1, 2, 3, names=True)
    insert(builder, 1, 2, 4, names=True)
    insert(builder, 1, 5, names=True)
    assert reading.feed(builder) == [
        [*CLEARED, *json_set('{"id":1,"a":2,"b":3}')],
        json_set('{"id":1,"a":2,"b":4}'),
        [*CLEARED, *json_set('{"id":1,"a":5}')],
    ]
    assert "not in the binlog" in reading.problems[0].reason


def test_a_shape_that_a_statement_changed_or_the_metadata_s_setting_clears_nothing() -> None:
    builder = BinlogBuilder(mariadb=True)
    reading = Reading()
    reading.schema = read_now(facts("id", key=0), facts("a"))
    insert(builder, 1, 2, names=True)
    insert(builder, 1, 3, names=False)
    builder.gtid(standalone=True)
    builder.query("CREATE INDEX i ON product (a)")
    insert(builder, 1, 2, 4, names=True)
    *_, last = reading.feed(builder)
    assert last == json_set('{"id":1,"a":2,"b":4}')
    assert reading.problems == []
