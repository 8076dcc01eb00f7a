"""The decoder over events made by hand: transactions, positions, and every way to go wrong."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from lanecache.config import LaneConfig
from lanecache.errors import BinlogError, EventUnknown
from lanecache.gtid import parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest.cascades import Links
from lanecache.ingest.catalogue import Catalogue, parse_definitions
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.framing import Block
from lanecache.ingest.outputs import (
    CatalogueWanted,
    Committed,
    Discarded,
    ForeignKeysWanted,
    Overflow,
    SchemaWanted,
)
from lanecache.ingest.sql_statement import ObjectKind
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Clear, Delete, Operation, Position, Set
from lanecache.row import Problem
from lanecache.testing.binlog import SOURCE_UUID, BinlogBuilder, make_block


class Reading:
    """A decoder over the product lane, and what it reported."""

    def __init__(
        self,
        *,
        mariadb: bool = False,
        gtids: bool = True,
        transaction_bytes_max: int = 1 << 26,
        key: str = "product:{id}",
        value: str = "json",
        reread: bool = False,
        columns: list[str | dict[str, str]] | None = None,
        table: str = "shop.product",
        lower_case_table_names: int | None = None,
    ) -> None:
        self.problems: list[Problem] = []
        config = LaneConfig(table=table, key=key, value=value, columns=columns)
        lanes = Lanes([config], ["main"])
        flavor = "mariadb" if mariadb else "mysql"
        position = Position(
            gtids=parse_gtid_set("", flavor) if gtids else None, file="binlog.000001", offset=4
        )
        self.decoder = Decoder(
            lanes,
            position,
            transaction_bytes_max=transaction_bytes_max,
            report=lambda problem, where: self.problems.append(problem),
            reread=reread,
            lower_case_table_names=lower_case_table_names,
        )

    def feed(self, builder: BinlogBuilder) -> list[Any]:
        outputs = self.decoder.feed(builder.block())
        asked = (ForeignKeysWanted, CatalogueWanted)
        return [output for output in outputs if not isinstance(output, asked)]


def operations(output: Any) -> list[Operation]:
    found = output.operations[0]
    return [*(Clear(prefix) for prefix in found.clears()), *found.writes()]


def json_set(number: int, name: str) -> Set:
    return Set(f"product:{number}", f'{{"id":{number},"name":"{name}"}}'.encode())


@pytest.fixture(params=[False, True], ids=["mysql", "mariadb"])
def mariadb(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("checksummed", [True, False])
def test_a_transaction_comes_out_whole_at_its_end(mariadb: bool, checksummed: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb, checksummed=checksummed)
    reading = Reading(mariadb=mariadb)
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"), (2, "b"))
    builder.rows("update", (1, "a"), (1, "c"), (2, "b"), (3, "b"))
    assert reading.feed(builder) == []
    builder.commit()
    (committed,) = reading.feed(builder)
    assert operations(committed) == [json_set(1, "c"), Delete("product:2"), json_set(3, "b")]
    expected = "0-1-1" if mariadb else f"{SOURCE_UUID}:1"
    assert str(committed.position.gtids) == expected
    assert reading.decoder.counts.rows == 4


def test_the_position_is_the_end_of_the_transaction_and_no_other_place(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    reading = Reading(mariadb=mariadb)
    builder.transaction(("write", [(1, "a")]))
    events = builder.take()
    size = 4 + sum(map(len, events))
    (committed,) = reading.decoder.feed(make_block(events))
    assert (committed.position.file, committed.position.offset) == ("binlog.000001", size)


def test_an_event_without_a_next_position_moves_the_offset_by_its_size() -> None:
    builder = BinlogBuilder(mariadb=True)
    reading = Reading(mariadb=True)
    builder.gtid()
    builder.table()
    builder.event(b.XID, bytes(8), next_position=0)
    events = builder.take()
    size = 4 + sum(map(len, events))
    (committed,) = reading.decoder.feed(make_block(events))
    assert committed.position.offset == size


def test_an_offset_beyond_4_gib_goes_on_rising() -> None:
    reading = Reading(gtids=False)
    builder = BinlogBuilder()
    builder.event(b.STOP, b"", next_position=(1 << 32) - 10)
    builder.query("BEGIN")
    builder.commit()
    events = builder.take()
    (committed,) = reading.decoder.feed(make_block(events))
    # The builder's own offsets are small: what the servers write is the rest modulo 2 ** 32.
    assert committed.position.offset == (1 << 32) + 4 + sum(map(len, events))


def test_a_rolled_back_transaction_only_deletes(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"))
    builder.query("ROLLBACK")
    (committed,) = Reading(mariadb=mariadb).feed(builder)
    assert operations(committed) == [Delete("product:1")]
    assert committed.invalidated


def test_a_rollback_to_a_savepoint_leaves_deletions_only() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table()
    builder.query("SAVEPOINT `x`")
    builder.rows("write", (1, "a"))
    builder.query("ROLLBACK TO `x`")
    builder.commit()
    (committed,) = Reading().feed(builder)
    assert operations(committed) == [Delete("product:1")]


def test_an_unfinished_transaction_is_dropped_when_the_server_begins_anew(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"))
    builder.describe()
    builder.transaction(("write", [(2, "b")]))
    (committed,) = Reading(mariadb=mariadb).feed(builder)
    assert operations(committed) == [json_set(2, "b")]


def test_table_ids_mean_nothing_in_the_next_file() -> None:
    builder = BinlogBuilder()
    builder.transaction(("write", [(1, "a")]))
    builder.rotate("binlog.000002")
    builder.begin()
    builder.rows("write", (2, "b"))
    with pytest.raises(BinlogError, match="table id 100, which no table map announced"):
        Reading().feed(builder)


def test_tables_without_a_lane_are_skipped_unread() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table(7, table="other")
    builder.rows("write", (1, "a"), table_id=7, body_tail=b"no rows at all")
    builder.commit()
    reading = Reading()
    (committed,) = reading.feed(builder)
    assert operations(committed) == []
    assert reading.decoder.counts.skipped_events == 1


@pytest.mark.parametrize(
    ("sql", "cleared"),
    [
        ("TRUNCATE TABLE product", ["product:"]),
        ("DROP TABLE `product` /* generated by server */", ["product:"]),
        ("RENAME TABLE product TO product_old, product_new TO product", ["product:"]),
        ("ALTER TABLE product ADD COLUMN size INT", ["product:"]),
        ("ALTER TABLE product ADD INDEX (name)", []),
        ("TRUNCATE TABLE other", []),
        ("DROP DATABASE shop", ["product:"]),
        ("DROP DATABASE elsewhere", []),
        ("CREATE USER x", []),
        ("FROBNICATE THE LOT", ["product:"]),
        ("UPDATE product SET name = 'x'", ["product:"]),
        ("UPDATE mysql.heartbeat SET at = NOW()", []),
        ("CREATE DATABASE IF NOT EXISTS shop", []),
        ("ALTER DATABASE shop CHARACTER SET utf8mb4", []),
        ("ALTER TABLE product ADD PARTITION PARTITIONS 2", []),
    ],
)
def test_statements_clear_what_they_may_have_changed(
    sql: str, cleared: list[str], mariadb: bool
) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.gtid(standalone=True)
    builder.query(sql)
    (committed,) = Reading(mariadb=mariadb).feed(builder)
    assert operations(committed) == [Clear(prefix) for prefix in cleared]


@pytest.mark.parametrize("lower_case_table_names", [0, 1, 2, None])
@pytest.mark.parametrize(
    "sql",
    [
        "DROP DATABASE Shop",
        "TRUNCATE SHOP.Product",
        "ALTER TABLE Shop.Product CHANGE id name INT, CHANGE name id INT",
        "RENAME TABLE Shop.Product TO Shop.Other",
        "RENAME TABLE Shop.Other TO Shop.Product",
        "UPDATE Shop.PRODUCT SET name = 'x'",
        "CREATE TABLE Shop.Product SELECT 1",
    ],
)
def test_names_in_statements_are_compared_as_the_server_does(
    sql: str, lower_case_table_names: int | None
) -> None:
    builder = BinlogBuilder()
    builder.gtid()
    builder.query(sql)
    reading = Reading(lower_case_table_names=lower_case_table_names)
    position = Position(parse_gtid_set("", "mysql"), "binlog.000001", 4)
    reading.decoder.provide_catalogue(Catalogue(position))
    (committed,) = reading.feed(builder)
    cleared = [] if lower_case_table_names == 0 else [Clear("product:")]
    assert operations(committed) == cleared


@pytest.mark.parametrize("pattern", ["t_*.ord", "T_*.Ord", "*.*"])
def test_lanes_of_several_schemas_are_cleared_in_the_spelling_of_their_rows(pattern: str) -> None:
    builder = BinlogBuilder()
    builder.gtid()
    builder.query("DROP DATABASE T_Am")
    reading = Reading(table=pattern, key="o:{@schema}:{@table}:{id}", lower_case_table_names=1)
    (committed,) = reading.feed(builder)
    assert Clear("o:t_am:") in operations(committed)


def test_a_definition_in_another_spelling_makes_the_columns_be_read_anew() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table(names=False)
    builder.commit()
    reading = Reading(lower_case_table_names=1)

    def wanted() -> int:
        outputs = 0
        for output in reading.decoder.feed(builder.block()):
            if isinstance(output, SchemaWanted):
                outputs += 1
                reading.decoder.provide_schema(output.table, None)
        return outputs

    assert wanted() == 1
    builder.gtid()
    builder.query("ALTER TABLE SHOP.Product ADD INDEX (name)")
    builder.begin()
    builder.table(names=False)
    builder.commit()
    assert wanted() == 1


@pytest.mark.parametrize(
    ("sql", "status", "cleared"),
    [
        # GBK: a table's name, and one that is another name in UTF-8.
        ("TRUNCATE 表".encode("gbk"), b"\x04\x1c\0\x1c\0\x2d\0", True),
        ("TRUNCATE 琛ㄨ〃".encode("gbk"), b"\x04\x1c\0\x1c\0\x2d\0", False),
        # Nothing says what it is.
        ("TRUNCATE 表".encode("gbk"), b"", True),
        (b"TRUNCATE other", b"", False),
        # ANSI_QUOTES
        ('TRUNCATE "表"'.encode(), b"\x01\x04" + bytes(7) + b"\x04\x2d\0\x2d\0\x2d\0", True),
    ],
)
def test_a_statement_is_read_in_its_context(sql: bytes, status: bytes, cleared: bool) -> None:
    builder = BinlogBuilder()
    builder.gtid()
    builder.query(sql, status=status)
    (committed,) = Reading(table="shop.表").feed(builder)
    assert operations(committed) == ([Clear("product:")] if cleared else [])


@pytest.mark.parametrize("known", [frozenset({("shop", "product")}), frozenset(), None])
def test_a_rewrite_of_rows_that_are_computed_clears(
    known: frozenset[tuple[str, str]] | None,
) -> None:
    """By the session's time zone, say: an index may be added by writing every row anew."""
    reading = Reading()
    reading.decoder.learn_links(Links(computed=known))
    builder = BinlogBuilder()
    cleared = []
    for sql in (
        "ALTER TABLE product ADD INDEX (id)",
        "OPTIMIZE TABLE product",
        "CREATE TABLE IF NOT EXISTS product (id INT, a INT AS (id) STORED)",
        "CREATE INDEX i ON product (id)",
        "ALTER TABLE other COMMENT 'x'",
    ):
        builder.gtid()
        builder.query(sql)
        (committed,) = reading.feed(builder)
        cleared.append(operations(committed) == [Clear("product:")])
    # The third statement tells of such a column, and clears nothing itself.
    assert cleared == [known != frozenset(), known != frozenset(), False, True, False]


def test_a_statement_clears_what_it_reaches_where_that_is_known(mariadb: bool) -> None:
    reading = Reading(mariadb=mariadb)
    view = {"s": "x", "n": "v", "definition": "select 1 from `shop`.`product`"}
    flavor = "mariadb" if mariadb else "mysql"
    position = Position(parse_gtid_set("", flavor), "binlog.000001", 4)
    definitions = tuple(parse_definitions(ObjectKind.VIEW, [view]))
    reading.decoder.provide_catalogue(Catalogue(position, definitions))
    for sql, cleared in (
        ("UPDATE x.plain SET a = 1", False),
        ("UPDATE x.v SET a = 1", True),
        ("INSERT INTO x.plain SELECT * FROM shop.product", False),
        ("CREATE VIEW x.w AS SELECT * FROM product", False),
        ("DELETE FROM x.w", True),
        # A MERGE table shows the rows of its members.
        ("CREATE TABLE x.all (id INT) ENGINE = MERGE UNION = (shop.product)", False),
        ("CREATE VIEW x.u AS SELECT * FROM x.all", False),
        ("UPDATE x.u SET id = 1", True),
        ("FROBNICATE", True),
        ("UPDATE x.plain SET a = 1", True),
    ):
        builder = BinlogBuilder(mariadb=mariadb)
        builder.gtid()
        builder.query("BEGIN")
        builder.query(sql)
        builder.commit()
        (committed,) = reading.feed(builder)
        assert operations(committed) == ([Clear("product:")] if cleared else []), sql


def test_the_catalogue_is_asked_for_when_a_statement_first_writes() -> None:
    reading = Reading()
    builder = BinlogBuilder()
    for sql in ("INSERT INTO mysql.heartbeat VALUES (1)", "INSERT INTO a VALUES (1)"):
        builder.gtid()
        builder.query(sql)
    asked = 0
    for output in reading.decoder.feed(builder.block()):
        if isinstance(output, CatalogueWanted):
            asked += 1
            # Read just now, behind the statement: what it reached then is not known.
            now = Position(parse_gtid_set(f"{SOURCE_UUID}:1-5", "mysql"))
            reading.decoder.provide_catalogue(Catalogue(now))
        else:
            assert isinstance(output, Committed)
            assert operations(output) == ([Clear("product:")] if asked else [])
    assert asked == 1
    builder.gtid()
    builder.query("INSERT INTO a VALUES (1)")
    (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]
    for number in (4, 5, 6):
        builder.gtid(number)
        builder.query("INSERT INTO a VALUES (1)")
    *_, last = reading.feed(builder)
    assert operations(last) == []


def test_a_clear_stands_in_order_with_the_rows_around_it() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"))
    builder.query("TRUNCATE TABLE product")
    builder.rows("write", (2, "b"))
    builder.commit()
    (committed,) = Reading().feed(builder)
    assert operations(committed) == [Clear("product:"), json_set(2, "b")]


def test_a_wrong_checksum_ends_the_walk_before_the_event() -> None:
    builder = BinlogBuilder()
    builder.transaction(("write", [(1, "a")]))
    builder.begin()
    builder.table()
    builder.event(b.WRITE_ROWS, b"", checksum=b"\0\0\0\1")
    outputs = []
    with pytest.raises(BinlogError, match="checksum") as caught:
        outputs.extend(Reading().decoder.feed(builder.block()))
    assert caught.value.file == "binlog.000001"
    assert caught.value.offset > 4


def test_an_unknown_event_ends_the_run_unless_it_may_be_ignored() -> None:
    builder = BinlogBuilder()
    builder.event(200, b"???", flags=b.FLAG_IGNORABLE)
    reading = Reading()
    assert reading.feed(builder) == []
    builder.event(200, b"???")
    with pytest.raises(EventUnknown, match=r"type 200 .*mysqlbinlog"):
        reading.feed(builder)


def test_rows_that_do_not_end_with_their_event_clear_the_table(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"), body_tail=b"\x00\x01")
    builder.commit()
    reading = Reading(mariadb=mariadb)
    (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]
    assert reading.decoder.counts.invalidations == 1
    assert reading.problems[0].scope == "product:*"


def test_a_value_that_cannot_be_read_deletes_its_key_and_no_other() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"), (2, b"\xff\xfe"), (3, "c"))
    builder.commit()
    reading = Reading()
    (committed,) = reading.feed(builder)
    assert operations(committed) == [json_set(1, "a"), Delete("product:2"), json_set(3, "c")]
    assert [problem.scope for problem in reading.problems] == ["product:2"]


def test_a_lane_with_a_typo_deletes_the_keys_of_its_rows(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    reading = Reading(mariadb=mariadb, columns=["id", "nmae"])
    builder.transaction(("write", [(1, "a"), (2, "b")]))
    builder.transaction(("update", [(1, "a"), (3, "c")]), ("delete", [(2, "b")]))
    written, changed = reading.feed(builder)
    assert operations(written) == [Delete("product:1"), Delete("product:2")]
    assert operations(changed) == [Delete(f"product:{number}") for number in (1, 3, 2)]
    assert [problem.scope for problem in reading.problems] == ["product:{id}"] * 3
    assert "did you mean" in reading.problems[0].reason


def clears_of(outputs: list[Any]) -> list[tuple[str, ...]]:
    return [tuple(output.operations[0].clears()) for output in outputs]


def test_a_key_that_cannot_be_made_clears_once_until_it_may_have_been_made() -> None:
    builder = BinlogBuilder()
    reading = Reading(key="product:{name}")

    def change(*columns: str, number: int = 100) -> None:
        builder.begin()
        builder.table(number, columns=[(name, "text") for name in columns])
        builder.rows("write", ["x"] * len(columns), table_id=number)
        builder.commit()

    for _ in range(3):
        change("id")
    assert clears_of(reading.feed(builder)) == [("product:",), (), ()]
    # What never took effect has cleared nothing.
    builder.begin()
    builder.table(columns=[("id", "text")])
    builder.describe()
    change("id")
    change("id")
    assert clears_of(reading.feed(builder)) == [("product:",), ()]
    # The table got the column, without a word of that, which clears by itself, and lost it again.
    change("id", "name", number=101)
    change("id", number=102)
    change("id", number=102)
    assert clears_of(reading.feed(builder)) == [("product:",), ("product:",), ()]
    # A statement forgets all that is known.
    builder.gtid()
    builder.query("ALTER TABLE product ADD COLUMN size INT")
    change("id", number=102)
    assert clears_of(reading.feed(builder)) == [("product:",), ("product:",)]


def test_a_clear_within_a_prepared_transaction_does_not_count() -> None:
    builder = BinlogBuilder()
    reading = Reading(key="product:{nope}")
    builder.gtid()
    builder.query("XA START X'61',X'',1")
    builder.table()
    builder.rows("write", (1, "a"))
    builder.query("XA END X'61',X'',1")
    builder.event(b.XA_PREPARE, struct.pack("<BIII", 0, 1, 1, 0) + b"a")
    builder.gtid()
    builder.query("XA ROLLBACK X'61',X'',1")
    builder.transaction(("write", [(1, "a")]))
    assert clears_of(reading.feed(builder)) == [(), (), ("product:",)]


def test_an_event_above_the_limit_clears_its_table() -> None:
    builder = BinlogBuilder()
    reading = Reading()
    builder.begin()
    builder.table()
    assert reading.feed(builder) == []
    builder.rows("write", (1, "a"))
    (event,) = builder.take()
    assert list(reading.decoder.feed(make_block([event], oversized_bytes=1 << 31))) == []
    builder.commit()
    (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]


def test_a_large_transaction_comes_out_in_parts(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.begin()
    builder.table()
    for number in range(10):
        builder.rows("write", (number, "x" * 100))
    builder.commit()
    outputs = Reading(mariadb=mariadb, transaction_bytes_max=1000).feed(builder)
    *parts, last = outputs
    assert len(parts) > 1
    assert all(isinstance(part, Overflow) for part in parts)
    assert isinstance(last, Committed)
    keys = [write.key for output in outputs for write in output.operations[0].writes()]
    assert keys == [f"product:{number}" for number in range(10)]


def test_parts_of_a_transaction_that_never_ends_are_void() -> None:
    builder = BinlogBuilder()
    reading = Reading(transaction_bytes_max=10)
    builder.begin()
    builder.table()
    builder.rows("write", (1, "a"))
    builder.describe()
    outputs = reading.feed(builder)
    assert [type(output) for output in outputs] == [Overflow, Discarded]


def test_minimal_metadata_asks_for_the_schema_and_clears_without_it() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table(names=False)
    builder.rows("write", (1, "a"))
    builder.commit()
    reading = Reading()
    outputs = []
    for output in reading.decoder.feed(builder.block()):
        if isinstance(output, SchemaWanted):
            reading.decoder.provide_schema(output.table, None)
        else:
            outputs.append(output)
    (committed,) = outputs
    assert operations(committed) == [Clear("product:")]
    assert "information_schema" in reading.problems[0].reason


def test_rows_outside_of_a_transaction_are_refused() -> None:
    builder = BinlogBuilder()
    builder.table()
    builder.rows("write", (1, "a"))
    with pytest.raises(BinlogError, match="outside of a transaction"):
        Reading().feed(builder)


def test_tagged_gtids_are_read() -> None:
    builder = BinlogBuilder()
    uuid = b"".join(_varlen(byte) for byte in SOURCE_UUID.bytes)
    tag = b"red"
    fields = [
        (0, _varlen(1)),
        (1, uuid),
        (2, _varlen(300 << 1)),
        (3, _varlen(len(tag)) + tag),
        (4, _varlen(0)),
        (5, _varlen(2)),
        (6, _varlen(1_700_000_000_123_456)),
    ]
    body = _varlen(1) + _varlen(90) + _varlen(12)
    body += b"".join(_varlen(number) + value for number, value in fields)
    builder.event(b.GTID_TAGGED, body)
    builder.query("BEGIN")
    builder.commit()
    (committed,) = Reading().feed(builder)
    assert str(committed.position.gtids) == f"{SOURCE_UUID}:red:300"
    assert committed.committed_at == 1_700_000_000.123456


def _varlen(value: int) -> bytes:
    for extra in range(8):
        if value < 1 << 7 * (extra + 1):
            number = value << (extra + 1) | (1 << extra) - 1
            return number.to_bytes(extra + 1, "little")
    return b"\xff" + struct.pack("<Q", value)


def test_an_incident_clears_everything() -> None:
    builder = BinlogBuilder()
    builder.event(b.INCIDENT, struct.pack("<HB", 1, 4) + b"lost")
    reading = Reading()
    (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]
    assert "incident" in reading.problems[0].reason


def test_load_data_in_statement_format_clears_what_it_may_have_loaded(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    builder.begin()
    builder.event(b.BEGIN_LOAD_QUERY, struct.pack("<I", 1) + b"1,a\n")
    builder.event(b.APPEND_BLOCK, struct.pack("<I", 1) + b"2,b\n")
    name = b"shop"
    query = struct.pack("<IIBHH", 1, 0, len(name), 0, 0) + bytes(13) + name + b"\0"
    builder.event(
        b.EXECUTE_LOAD_QUERY, query + b"LOAD DATA INFILE '/tmp/x' INTO TABLE `product` (`id`)"
    )
    builder.commit()
    (committed,) = Reading(mariadb=mariadb).feed(builder)
    assert operations(committed) == [Clear("product:")]


@pytest.mark.parametrize("kind", [b.HEARTBEAT, b.HEARTBEAT_V2])
def test_a_heartbeat_moves_what_was_read_and_never_the_position(mariadb: bool, kind: int) -> None:
    reading = Reading(mariadb=mariadb)
    events = BinlogBuilder(mariadb=mariadb)
    events.begin()
    events.commit()
    [committed] = reading.feed(events)
    end = reading.decoder.read_up_to
    assert end == Position(None, "binlog.000001", committed.position.offset)

    def beat(offset: int, file: str = "binlog.000001") -> None:
        events = BinlogBuilder(mariadb=mariadb)
        name = file.encode()
        body = name
        if kind == b.HEARTBEAT_V2:
            wide = b"\xfe" + struct.pack("<Q", offset)
            body = bytes([1, len(name)]) + name + bytes([2, len(wide)]) + wide + b"\0"
        events.event(kind, body, timestamp=0, next_position=offset % 2**32)
        block = events.block()
        assert not list(reading.decoder.feed(Block(block.data, block.spans[-1:])))

    beat(end.offset)
    assert reading.decoder.at_end
    # It left out what lies between: that is no end, and no position.
    beat(end.offset + 1000)
    assert not reading.decoder.at_end
    assert reading.decoder.read_up_to.offset == end.offset + 1000
    beat(end.offset + 1000)
    assert reading.decoder.at_end
    # What cannot be is not believed.
    beat(end.offset)
    beat(4, "binlog.000002")
    assert reading.decoder.read_up_to == Position(None, "binlog.000001", end.offset + 1000)
    events = BinlogBuilder(mariadb=mariadb)
    events.begin()
    events.event(b.XID, struct.pack("<Q", 8), next_position=end.offset + 1400)
    block = events.block()
    [after] = reading.decoder.feed(Block(block.data, block.spans[-1:]))
    assert not reading.decoder.at_end
    assert after.position.offset == end.offset + 1400
    assert committed.position.offset == end.offset


def _prepared(builder: BinlogBuilder, *, one_phase: bool = False) -> None:
    """End an XA transaction, as both servers do at XA PREPARE and MySQL at ONE PHASE too."""
    builder.query("XA END X'61',X'',1")
    builder.event(b.XA_PREPARE, struct.pack("<BiII", one_phase, 1, 1, 0) + b"a")


def _xa_begin(builder: BinlogBuilder, *, can_be_undone: bool = True) -> None:
    builder.gtid(can_be_undone=can_be_undone)
    if not builder.mariadb:
        builder.query("XA START X'61',X'',1")
    builder.table()


def _outcome(builder: BinlogBuilder, what: str) -> None:
    builder.gtid(standalone=True)
    builder.query(f"XA {what} X'61',X'',1")


def test_an_xa_transaction_keeps_what_was_rolled_back_of_it(mariadb: bool) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    _xa_begin(builder)
    builder.query("SAVEPOINT `x`")
    builder.rows("write", (1, "never committed"))
    builder.query("ROLLBACK TO `x`")
    _prepared(builder)
    builder.transaction(("write", [(2, "b")]))
    _outcome(builder, "COMMIT")
    builder.transaction(("write", [(3, "c")]))
    prepared, between, decided, behind = Reading(mariadb=mariadb).feed(builder)
    assert (operations(prepared), prepared.invalidated) == ([], False)
    assert (operations(between), between.invalidated) == ([json_set(2, "b")], False)
    assert (operations(decided), decided.invalidated) == ([Delete("product:1")], True)
    assert (operations(behind), behind.invalidated) == ([json_set(3, "c")], False)


def test_a_rolled_back_part_counts_at_a_commit_in_one_phase() -> None:
    builder = BinlogBuilder()
    _xa_begin(builder)
    builder.rows("write", (1, "never committed"))
    builder.query("ROLLBACK TO `x`")
    _prepared(builder, one_phase=True)
    (committed,) = Reading().feed(builder)
    assert (operations(committed), committed.invalidated) == ([Delete("product:1")], True)


def test_a_rolled_back_xa_transaction_leaves_nothing_where_the_server_says_so(
    mariadb: bool,
) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    _xa_begin(builder)
    builder.rows("update", (1, "a"), (1, "b"))
    _prepared(builder)
    _outcome(builder, "ROLLBACK")
    prepared, decided = Reading(mariadb=mariadb).feed(builder)
    assert operations(prepared) == operations(decided) == []
    assert decided.position.resume is None


@pytest.mark.parametrize("what", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("statement", [False, True])
def test_what_cannot_be_undone_of_an_xa_transaction_counts_before_its_outcome(
    mariadb: bool, what: str, statement: bool
) -> None:
    """Changes of an engine without transactions are there before XA PREPARE, and stay."""
    builder = BinlogBuilder(mariadb=mariadb)
    _xa_begin(builder, can_be_undone=False)
    if statement:
        builder.query("UPDATE product SET name = 'x'")
    else:
        builder.rows("update", (1, "a"), (1, "b"))
        builder.rows("delete", (2, "a"))
    _prepared(builder)
    _outcome(builder, what)
    prepared, decided = Reading(mariadb=mariadb).feed(builder)
    gone = [Clear("product:")] if statement else [Delete("product:1"), Delete("product:2")]
    assert operations(prepared) == gone
    stays = what == "COMMIT" and not statement
    assert operations(decided) == ([json_set(1, "b"), Delete("product:2")] if stays else gone)
    assert decided.position.resume is None


def test_what_others_wrote_since_an_xa_transaction_was_prepared_is_not_overwritten(
    mariadb: bool,
) -> None:
    """Its row was not locked, so it is of an engine without transactions, and the older one."""
    builder = BinlogBuilder(mariadb=mariadb)
    _xa_begin(builder)
    builder.rows("write", (1, "a"), (2, "a"))
    _prepared(builder)
    builder.transaction(("update", [(1, "a"), (1, "newer")]))
    _outcome(builder, "COMMIT")
    _, newer, decided = Reading(mariadb=mariadb).feed(builder)
    assert operations(newer) == [json_set(1, "newer")]
    assert operations(decided) == [Delete("product:1"), json_set(2, "a")]


@pytest.mark.parametrize("what", ["COMMIT", "ROLLBACK"])
def test_an_xa_transaction_that_was_handed_on_in_parts_clears_at_its_outcome(
    mariadb: bool, what: str
) -> None:
    builder = BinlogBuilder(mariadb=mariadb)
    _xa_begin(builder)
    for number in range(3):
        builder.rows("write", (number, "x" * 600))
    builder.query("ROLLBACK TO `x`")
    _prepared(builder)
    _outcome(builder, what)
    builder.transaction(("write", [(9, "after")]))
    reading = Reading(mariadb=mariadb, transaction_bytes_max=1000)
    *parts, discarded, prepared, decided, behind = reading.feed(builder)
    assert parts
    assert isinstance(discarded, Discarded)
    assert operations(prepared) == []
    assert operations(decided) == ([Clear("product:")] if what == "COMMIT" else [])
    assert (operations(behind), behind.invalidated) == ([json_set(9, "after")], False)


def test_an_xid_that_is_prepared_anew_begins_where_it_stands_now() -> None:
    builder = BinlogBuilder()
    for _ in range(2):
        _xa_begin(builder)
        builder.rows("write", (1, "a"))
        _prepared(builder)
    first, second = Reading().feed(builder)
    assert first.position.resume.offset < first.position.offset
    assert second.position.resume.offset == first.position.offset
