"""The short ways of the decoder: what is nearly always so, and what happens when it is not."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

import lanecache
from lanecache.config import LaneConfig
from lanecache.errors import BinlogError
from lanecache.gtid import parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest import table as t
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.outputs import Committed
from lanecache.ingest.row_decoders import RowDecoders
from lanecache.ingest.rows import RowKind, TableCode, compile_rows
from lanecache.ingest.table import ColumnType, TableMap
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Delete, Position, Set
from lanecache.row import ColumnForm, ColumnUse
from lanecache.testing.binlog import BinlogBuilder

TYPES = [
    ColumnType(t.TINY, False, unsigned=True),
    ColumnType(t.LONG, False, unsigned=False),
    ColumnType(t.LONGLONG, False, unsigned=True),
    ColumnType(t.VARCHAR, False, length=100, charset="utf8mb4"),
    ColumnType(t.VARCHAR, False, length=400, charset="utf8mb4"),
    ColumnType(t.BLOB, False, length=4, charset="utf8mb4"),
]


def table_of(*columns: ColumnType) -> TableMap:
    named = [msgspec.structs.replace(each, name=f"c{n}") for n, each in enumerate(columns)]
    return TableMap(schema="shop", table="any", columns=tuple(named))


def packed(column: ColumnType, value: Any) -> bytes:
    if column.type == t.TINY:
        return struct.pack("<B", value)
    if column.type == t.LONG:
        return struct.pack("<i", value)
    if column.type == t.LONGLONG:
        return struct.pack("<Q", value)
    data: bytes = value.encode()
    width = column.length if column.type == t.BLOB else 1 if column.length < 256 else 2
    return len(data).to_bytes(width, "little") + data


def row_bytes(columns: Sequence[ColumnType], row: Sequence[Any]) -> bytes:
    nulls = sum(1 << nth for nth, value in enumerate(row) if value is None)
    width = (len(columns) + 7) // 8
    nulls |= -1 << len(columns) & (1 << 8 * width) - 1
    values = (packed(c, v) for c, v in zip(columns, row, strict=True) if v is not None)
    return nulls.to_bytes(width, "little") + b"".join(values)


def some_value(draw: random.Random, column: ColumnType) -> Any:
    if column.nullable and draw.random() < 0.3:
        return None
    if column.type in (t.TINY, t.LONG, t.LONGLONG):
        return draw.randrange(256)
    return draw.choice(["", "a", "größe", "x" * 90])


@pytest.mark.parametrize("seed", range(60))
def test_any_shape_and_plan_is_read_alike_the_fast_and_the_careful_way(seed: int) -> None:
    draw = random.Random(seed)
    columns = []
    for _ in range(draw.randrange(1, 20)):
        nullable = draw.random() < 0.4
        columns.append(msgspec.structs.replace(draw.choice(TYPES), nullable=nullable))
    count = len(columns)
    plan = [
        ColumnUse(index, ColumnForm.TEXT)
        for index in draw.sample(range(count), draw.randrange(1, count + 1))
    ]
    rows = [[some_value(draw, column) for column in columns] for _ in range(20)]
    data = b"front" + b"".join(row_bytes(columns, row) for row in rows) + b"behind"
    everything = (1 << count) - 1
    decoder = compile_rows(
        TableCode(table_of(*columns)), RowKind.WRITE, (), plan, everything, everything
    )
    assert decoder.decode is not None
    images = decoder.decode(data, 5, len(data) - 6)
    assert images == [tuple(row[use.index] for use in plan) for row in rows]
    assert decoder.decode_carefully(data, 5, len(data) - 6) == images
    if len(row_bytes(columns, rows[-1])) > 1:  # else one byte less is just one row less
        with pytest.raises((ValueError, IndexError, struct.error)):
            decoder.decode(data, 5, len(data) - 7)


def test_a_null_where_none_can_be_is_left_to_the_careful_way() -> None:
    columns = (TYPES[1], ColumnType(t.LONG, True, unsigned=False))
    plan = (ColumnUse(0, ColumnForm.TEXT), ColumnUse(1, ColumnForm.TEXT))
    decoder = compile_rows(TableCode(table_of(*columns)), RowKind.WRITE, (), plan, 3, 3)
    assert decoder.decode is not None
    data = row_bytes(columns, (1, None)) + row_bytes(columns, (None, 2))
    with pytest.raises(ValueError, match="cannot be NULL"):
        decoder.decode(data, 0, len(data))
    assert decoder.decode_carefully(data, 0, len(data)) == [(1, None), (None, 2)]


def test_row_decoders_are_found_by_what_stands_before_the_rows() -> None:
    code = TableCode(table_of(*TYPES))
    plan = (ColumnUse(0, ColumnForm.TEXT),)
    decoders = RowDecoders(len(TYPES))
    front = bytes([6, 0xFF])
    assert decoders.find(RowKind.WRITE, b"xy" + front, 2) == (None, 2)
    made, rows_start = decoders.get(code, (), plan, RowKind.WRITE, b"xy" + front, 2)
    assert rows_start == 4
    assert decoders.find(RowKind.WRITE, front + b"rest", 0) == (made, 2)
    assert decoders.find(RowKind.DELETE, front, 0) == (None, 0)
    assert decoders.find(RowKind.WRITE, bytes([6, 0xFE]), 0) == (None, 0)
    with pytest.raises(BinlogError, match="rows of 7 columns where 6 are mapped"):
        decoders.get(code, (), plan, RowKind.WRITE, bytes([7, 0xFF]), 0)
    with pytest.raises(BinlogError, match="column count"):
        decoders.get(code, (), plan, RowKind.WRITE, b"", 0)


def committed(builder: BinlogBuilder) -> list[list[Set | Delete]]:
    lanes = Lanes(
        [
            LaneConfig(table=f"shop.{table}", key=f"{table}:{{id}}", value="json")
            for table in ("product", "order")
        ],
        ["main"],
    )
    position = Position(parse_gtid_set("", "mysql"), "binlog.000001", 4)
    decoder = Decoder(
        lanes, position, transaction_bytes_max=1 << 26, report=lambda problem, where: None
    )
    outputs = decoder.feed(builder.block())
    return [list(each.operations[0].writes()) for each in outputs if isinstance(each, Committed)]


def test_an_id_that_comes_to_mean_another_table_and_back_means_what_was_said_last() -> None:
    builder = BinlogBuilder()
    builder.begin()
    for table in ("product", "order", "product", "product", "order", "nobodys", "order"):
        builder.table(table=table)
        builder.rows("write", (1, table))
    builder.commit()
    (writes,) = committed(builder)
    assert writes == [
        Set("product:1", b'{"id":1,"name":"product"}'),
        Set("order:1", b'{"id":1,"name":"order"}'),
    ]


def test_a_known_table_map_is_void_behind_a_new_head() -> None:
    builder = BinlogBuilder()
    builder.transaction(("write", [(1, "a")]))
    builder.describe()
    builder.begin()
    builder.rows("write", (2, "b"))
    with pytest.raises(BinlogError, match="which no table map announced"):
        committed(builder)


@pytest.mark.parametrize("schema", ["", "shop", "x\0BEGIN"])
def test_only_a_begin_is_taken_for_one(schema: str) -> None:
    def body(sql: str, status: bytes = b"") -> bytes:
        front = struct.pack("<IIBHH", 1, 0, len(schema), 0, len(status))
        return front + status + schema.encode() + b"\0" + sql.encode()

    assert b.is_begin(body("BEGIN"))
    assert b.is_begin(body("BEGIN", bytes(40)))
    for sql in ("COMMIT", "BEGIN ", "BEGIN\0BEGIN", "SELECT '\0BEGIN", ""):
        assert not b.is_begin(body(sql))
    for cut in range(len(body("BEGIN"))):
        assert not b.is_begin(body("BEGIN")[:cut])


def test_every_public_name_is_there() -> None:
    for name in lanecache.__all__:
        assert getattr(lanecache, name) is not None
        assert name in dir(lanecache)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = lanecache.nonsense
