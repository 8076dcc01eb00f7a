"""Few bytes that unpack to much, and large events: within the limits at every step."""

from __future__ import annotations

import json
import random
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import zstandard
from captured import Capture, captures, tailed
from test_decoder import Reading, json_set, operations

import lanecache
from lanecache.errors import BinlogError
from lanecache.ingest import binlog as b
from lanecache.ingest import decoder as decoder_module
from lanecache.ingest import row_pieces
from lanecache.ingest.cascades import ForeignKey, Links
from lanecache.ingest.compressed import MariadbUnpacker, payload_blocks
from lanecache.ingest.framing import EVENT_BYTES_MAX, OVERSIZED_KEPT_BYTES
from lanecache.ingest.outputs import Committed, Overflow, Pause
from lanecache.ingest.row_pieces import PIECE_ROWS
from lanecache.ingest.values import unpack_column
from lanecache.operation import Clear, Delete, OperationSet, Set
from lanecache.servers import MariaDb
from lanecache.testing.binlog import BinlogBuilder, make_block, pack_mariadb
from lanecache.testing.memory import TargetInMemory
from lanecache.testing.plugin import NewServer

MIB = 1 << 20
MAX = 1 * MIB  # transaction_bytes_max below
ROWS = 200_000

Image = tuple[int | str | bytes | None, ...]


@pytest.fixture(params=["plain", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return str(request.param) == "packed"


@contextmanager
def little_memory(bytes_max: int) -> Iterator[None]:
    """Fail if more than so many bytes were ever allocated at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < bytes_max, f"{peak / MIB:.0f} MiB"


class Walk:
    """What a decoder gave, with what it held and how far it had come at each step."""

    def __init__(self, reading: Reading, builder: BinlogBuilder) -> None:
        self.effect = OperationSet()
        self.parts = 0
        self.pauses = 0
        self.rows_at_once = self.held_bytes = 0
        last = reading.decoder.counts.rows
        for output in reading.decoder.feed(builder.block()):
            rows = reading.decoder.counts.rows
            self.rows_at_once = max(self.rows_at_once, rows - last)
            last = rows
            if isinstance(output, Pause):
                self.pauses += 1
            if isinstance(output, Overflow | Committed):
                self.parts += isinstance(output, Overflow)
                self.held_bytes = max(self.held_bytes, output.operations[0].size_bytes)
                self.effect.extend(output.operations[0])


def packed_event(
    builder: BinlogBuilder, rows: bytes, *, width: int = 1, length: int | None = None
) -> None:
    """Add a compressed WRITE event of the default table with these rows."""
    bitmap = b"\xff" * ((width + 7) // 8)
    body = struct.pack("<IHH", 100, 0, 1) + bytes([width]) + bitmap + pack_mariadb(rows, length)
    builder.event(b.MARIADB_WRITE_ROWS_COMPRESSED_V1, body)


# Few bytes, much work.


def test_many_rows_in_a_few_bytes_take_little_memory_and_let_others_run() -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table(columns=[("id", "int")])
    packed_event(builder, b"\xff" * ROWS)
    builder.commit()
    reading = Reading(mariadb=True, transaction_bytes_max=MAX)
    with little_memory(16 * MIB):
        walk = Walk(reading, builder)
    assert reading.decoder.counts.rows == ROWS
    assert walk.rows_at_once <= PIECE_ROWS
    assert walk.pauses >= ROWS // PIECE_ROWS
    assert walk.parts > 20
    assert walk.held_bytes < MAX + PIECE_ROWS * 250
    assert list(walk.effect.by_key) == ["product:%NULL"]


def test_many_keys_of_one_event_are_handed_on_in_mid_event(packed: bool) -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    builder.rows("write", *((number, "x") for number in range(50_000)), packed=packed)
    builder.commit()
    walk = Walk(Reading(mariadb=True, transaction_bytes_max=MAX), builder)
    assert walk.parts >= 8
    assert walk.held_bytes < MAX + 2 * PIECE_ROWS * 250
    assert list(walk.effect.writes()) == [json_set(number, "x") for number in range(50_000)]


def test_a_payload_is_walked_block_by_block() -> None:
    inner = BinlogBuilder(checksummed=False)
    inner.take()
    inner.query("BEGIN")
    inner.table(1, table="nobodys")
    inner.table(100)
    inner.rows("write", (1, "a"))
    front = b"".join(inner.take())
    inner.rows("write", *((number, "x" * 100) for number in range(70)), table_id=1)
    (skipped,) = inner.take()
    inner.commit()
    end = b"".join(inner.take())
    times = 64 * MIB // len(skipped)
    packer = zstandard.ZstdCompressor().compressobj()
    pieces = [packer.compress(each) for each in (front, *[skipped] * times, end)]
    payload = b"".join([*pieces, packer.flush()])
    assert len(payload) < 50_000
    builder = BinlogBuilder()
    builder.gtid()
    builder.event(b.TRANSACTION_PAYLOAD, b"\x00" + payload)
    reading = Reading()
    with little_memory(8 * MIB):
        walk = Walk(reading, builder)
    assert list(walk.effect.writes()) == [json_set(1, "a")]
    assert walk.pauses >= 64 * 4
    assert reading.decoder.counts.skipped_events == times


def test_an_event_inside_a_payload_is_not_made_room_for_before_it_is_there() -> None:
    header = struct.pack("<IBIIIH", 0, b.WRITE_ROWS, 1, EVENT_BYTES_MAX, 0, 0)
    body = b"\x00" + zstandard.compress(header + b"x" * 1000)
    with little_memory(8 * MIB), pytest.raises(BinlogError, match="is cut off"):
        list(payload_blocks(body, event_bytes_max=EVENT_BYTES_MAX))


def test_a_payload_with_a_larger_window_than_any_server_takes_is_refused() -> None:
    # A frame with a window of 2 GiB (RFC 8878, 3.1.1.1.2), and nothing in it.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\0\0"
    with little_memory(8 * MIB), pytest.raises(BinlogError, match="cannot be unpacked"):
        list(payload_blocks(b"\x00" + frame, event_bytes_max=EVENT_BYTES_MAX))


def test_many_rows_in_events_of_the_usual_size_let_others_run() -> None:
    builder = BinlogBuilder()
    builder.begin()
    builder.table(columns=[("id", "int")])
    for _ in range(10):
        builder.rows("write", *[(None,)] * 3000)
    builder.commit()
    walk = Walk(Reading(), builder)
    assert walk.pauses >= 4
    assert walk.rows_at_once < 8192


async def test_the_event_loop_runs_on_while_a_large_event_is_read(tmp_path: Path) -> None:
    """By the rows that were read from one of its turns to the next, through the whole engine."""
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    builder.rows("write", *[(number, None) for number in range(ROWS)], packed=True)
    builder.commit()
    config = {
        "source": {"url": builder.save(tmp_path), "name": "shop"},
        "sinks": {"main": {"url": "memory:"}},
        "lanes": [{"table": "shop.product", "key": "product:{id}"}],
        "limits": {"transaction_bytes_max": MAX, "spill_directory": str(tmp_path)},
    }
    async with lanecache.start(config) as service, anyio.create_task_group() as group:
        first = last = service.statistics().source.rows
        at_once = 0

        async def look() -> None:
            nonlocal at_once, last
            while True:
                rows = service.statistics().source.rows
                at_once, last = max(at_once, rows - last), rows
                await anyio.lowlevel.checkpoint()

        group.start_soon(look)
        with anyio.fail_after(60):
            await service.wait()
        group.cancel_scope.cancel()
    assert first < last == ROWS
    assert at_once <= 2 * PIECE_ROWS


# What the sizes say.


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (EVENT_BYTES_MAX + 1, "limits.event_bytes_max"),
        (1 << 55, "limits.event_bytes_max"),
        (3 * 9 + 1, "unpacks to 27 bytes, not 28"),
        (3 * 9 - 1, "unpacks to more than 26 bytes"),
        (0, "unpacks to more than 0 bytes"),
    ],
)
def test_a_length_that_is_not_true_clears_the_table(length: int, reason: str) -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    row = b"\xfc" + struct.pack("<iH", 1, 2) + b"ab"
    packed_event(builder, row * 3, width=2, length=length)
    builder.commit()
    reading = Reading(mariadb=True)
    with little_memory(8 * MIB):
        (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]
    assert reason in reading.problems[0].reason


def test_what_is_behind_pieces_that_were_handed_on_clears_them_too() -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    rows = b"".join(b"\xfc" + struct.pack("<iH", n, 1) + b"x" for n in range(40_000))
    packed_event(builder, rows, width=2, length=len(rows) + 1)
    builder.commit()
    walk = Walk(Reading(mariadb=True, transaction_bytes_max=MAX), builder)
    assert walk.parts > 4
    assert (list(walk.effect.clears()), list(walk.effect.writes())) == (["product:"], [])


def test_the_unpacker_gives_as_much_as_it_is_asked_for() -> None:
    data = random.Random(1).randbytes(100_000)
    packed = b"front" + pack_mariadb(data) + b"behind"
    for step in (1 << 20, 40_000, 777):
        unpacker = MariadbUnpacker(packed, 5, len(packed) - 6, bytes_max=len(data))
        pieces = []
        while piece := unpacker.read(step):
            pieces.append(piece)
        assert b"".join(pieces) == data
        assert {len(piece) for piece in pieces[:-1]} <= {step}


def test_a_compressed_value_above_the_limit_is_not_unpacked() -> None:
    import zlib

    value = bytes([0x83]) + (MIB).to_bytes(3, "big") + zlib.compress(bytes(MIB))
    assert unpack_column(value, MIB) == bytes(MIB)
    with pytest.raises(ValueError, match=r"above 1048575 \(limits.event_bytes_max\)"):
        unpack_column(value, MIB - 1)
    with pytest.raises(ValueError, match=r"limits.event_bytes_max"):
        unpack_column(bytes([0x87]) + b"\x7f" + bytes(6) + zlib.compress(b""))


# The same as at once.


def random_rows(seed: int) -> tuple[str, list[Image]]:
    dice = random.Random(seed)
    kind = dice.choice(["write", "update", "delete"])

    def row() -> Image:
        name = dice.choice([None, "", "a", "å" * dice.randrange(30), "x" * dice.randrange(100)])
        broken = dice.random() < 0.02
        return (dice.choice([None, *range(-3, 30)]), b"\xff\xfe" if broken else name)

    return kind, [row() for _ in range(2 * dice.randrange(1, 60))]


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 1000])
@pytest.mark.parametrize("seed", range(12))
def test_pieces_give_what_the_whole_gives(
    seed: int, piece_bytes: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, images = random_rows(seed)

    def walked(*, packed: bool) -> tuple[OperationSet, list[str], int]:
        builder = BinlogBuilder(mariadb=True)
        builder.begin()
        builder.table()
        builder.rows(kind, *images, packed=packed)
        builder.commit()
        reading = Reading(mariadb=True)
        walk = Walk(reading, builder)
        return walk.effect, [p.scope for p in reading.problems], reading.decoder.counts.rows

    effect, scopes, rows = walked(packed=False)
    monkeypatch.setattr(row_pieces, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(row_pieces, "PIECE_ROWS", max(1, piece_bytes // 10))
    monkeypatch.setattr(decoder_module, "PIECE_BYTES", 0)
    pieces, piece_scopes, piece_rows = walked(packed=packed)
    assert pieces.by_key == effect.by_key
    assert (pieces.prefixes, pieces.size_bytes) == (effect.prefixes, effect.size_bytes)
    assert (piece_scopes, piece_rows) == (scopes, rows)


@pytest.mark.parametrize("capture", captures(), ids=lambda capture: capture.name)
async def test_what_the_servers_wrote_reads_the_same_in_pieces(
    capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "PIECE_BYTES", 0)
    monkeypatch.setattr(row_pieces, "PIECE_BYTES", 16)
    monkeypatch.setattr(row_pieces, "PIECE_ROWS", 1)
    assert await tailed(capture.url) == capture.operations()


def test_rows_longer_than_a_piece_are_whole(packed: bool) -> None:
    texts = ["a" * 60_000, "b", "c" * 65_000, "d" * 33_000]
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    builder.rows("write", *enumerate(texts), packed=packed)
    builder.commit()
    walk = Walk(Reading(mariadb=True), builder)
    assert list(walk.effect.writes()) == [json_set(n, text) for n, text in enumerate(texts)]


@pytest.mark.parametrize("tail", [b"\xfc", b"\xfc\x01", b"\xfc\0\0\0\0\xff\xff", bytes(5)])
def test_rows_that_do_not_end_with_their_event_clear_the_table(tail: bytes, packed: bool) -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    images = [(number, "x" * 50) for number in range(2000)]
    builder.rows("write", *images, body_tail=tail, packed=packed)
    builder.commit()
    reading = Reading(mariadb=True)
    walk = Walk(reading, builder)
    assert (list(walk.effect.clears()), list(walk.effect.writes())) == (["product:"], [])
    assert "rows cannot be read" in reading.problems[0].reason


def test_a_value_that_cannot_be_read_costs_its_own_key_alone(packed: bool) -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    images: list[Image] = [(number, "x" * 40) for number in range(3000)]
    images[1234] = (1234, b"\xff")
    builder.rows("write", *images, packed=packed)
    builder.commit()
    reading = Reading(mariadb=True)
    walk = Walk(reading, builder)
    assert walk.effect.by_key["product:1234"] == Delete("product:1234")
    assert sum(isinstance(write, Set) for write in walk.effect.writes()) == 2999
    assert [problem.scope for problem in reading.problems] == ["product:1234"]


def test_problems_of_a_large_event_are_told_piece_by_piece() -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table()
    builder.rows("write", *[(1, b"\xff")] * 20_000, packed=True)
    builder.commit()
    reading = Reading(mariadb=True)
    told: list[int] = []
    for _ in reading.decoder.feed(builder.block()):
        told.append(len(reading.problems))
        reading.problems.clear()
    assert sum(told) == 20_000
    assert max(told) < 2 * PIECE_ROWS


@pytest.mark.parametrize("changed", [None, 0, 4999])
def test_cascades_of_a_large_update_are_found_piece_by_piece(
    changed: int | None, packed: bool
) -> None:
    reading = Reading(mariadb=True)
    key = ForeignKey(("shop", "product"), ("shop", "maker"), "id", True, True)
    reading.decoder.learn_links(Links((key,)))
    images: list[Image] = []
    for number in range(5000):
        images += [(number, "a" * 9), (-1 if number == changed else number, "b" * 9)]
    builder = BinlogBuilder(mariadb=True)
    builder.begin()
    builder.table(table="maker")
    builder.rows("update", *images, packed=packed)
    builder.commit()
    walk = Walk(reading, builder)
    assert list(walk.effect.clears()) == ([] if changed is None else ["product:"])
    assert walk.pauses >= 2 if changed != 0 else walk.pauses >= 1


def test_rows_in_part_are_noted_to_be_read_again_in_pieces_too(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ``binlog_row_image = MINIMAL``: before the key, after what changed."""
    front = struct.pack("<IHH", 100, 0, 1) + bytes([3, 0b001, 0b100])
    rows = b"".join(
        b"\xfe" + struct.pack("<i", n) + b"\xfe" + struct.pack("<i", 7) for n in range(99)
    )

    def committed(*, packed: bool) -> Committed:
        builder = BinlogBuilder(mariadb=True)
        builder.begin()
        builder.table(columns=[("id", "int"), ("name", "text"), ("n", "int")])
        if packed:
            kind, body = b.MARIADB_UPDATE_ROWS_COMPRESSED_V1, front + pack_mariadb(rows)
        else:
            kind, body = b.UPDATE_ROWS_V1, front + rows
        builder.event(kind, body)
        builder.commit()
        reading = Reading(mariadb=True, reread=True)
        return next(o for o in reading.feed(builder) if isinstance(o, Committed))

    at_once = committed(packed=False)
    assert len(at_once.partial) == 99
    monkeypatch.setattr(row_pieces, "PIECE_ROWS", 3)
    monkeypatch.setattr(decoder_module, "PIECE_BYTES", 0)
    in_pieces = committed(packed=packed)
    assert in_pieces.operations[0].by_key == at_once.operations[0].by_key
    assert [(row.primary_key, row.image, row.keys) for row in in_pieces.partial] == [
        (row.primary_key, row.image, row.keys) for row in at_once.partial
    ]


# Events above the limit.


def oversized(kind: int, body: bytes, reading: Reading, **header: Any) -> list[Any]:
    builder = BinlogBuilder()
    builder.take()
    builder.event(kind, body + bytes(OVERSIZED_KEPT_BYTES), **header)
    (event,) = builder.take()
    outputs = reading.decoder.feed(make_block([event], oversized_bytes=1 << 31))
    return [output for output in outputs if isinstance(output, Committed | Overflow)]


def begun(reading: Reading, *calls: str) -> BinlogBuilder:
    builder = BinlogBuilder()
    for call in calls:
        getattr(builder, call)()
    assert reading.feed(builder) == []
    return builder


def test_a_compressed_transaction_above_the_limit_clears_the_lanes_and_ends() -> None:
    reading = Reading()
    begun(reading, "gtid")
    (committed,) = oversized(b.TRANSACTION_PAYLOAD, b"", reading)
    assert operations(committed) == [Clear("product:")]
    assert str(committed.position.gtids).endswith(":1")
    assert "limits.event_bytes_max" in reading.problems[0].reason


def test_a_statement_above_the_limit_clears_the_lanes() -> None:
    body = struct.pack("<IIBHH", 1, 0, 4, 0, 0) + b"shop\0"
    reading = Reading()
    begun(reading, "gtid")
    (committed,) = oversized(b.QUERY, body, reading)
    assert operations(committed) == [Clear("product:")]
    # Within a transaction, its end is still to come.
    reading = Reading()
    builder = begun(reading, "begin")
    assert oversized(b.QUERY, body, reading) == []
    builder.commit()
    (committed,) = reading.feed(builder)
    assert operations(committed) == [Clear("product:")]


def test_a_compressed_statement_above_the_limit_clears_the_lanes() -> None:
    builder = BinlogBuilder(mariadb=True)
    builder.gtid(standalone=True)
    sql = pack_mariadb(b"x", EVENT_BYTES_MAX + 1)
    body = struct.pack("<IIBHH", 1, 0, 4, 0, 0) + b"shop\0" + sql
    builder.event(b.MARIADB_QUERY_COMPRESSED, body)
    (committed,) = Reading(mariadb=True).feed(builder)
    assert operations(committed) == [Clear("product:")]


def test_what_only_tells_of_a_statement_may_be_of_any_size() -> None:
    reading = Reading()
    builder = begun(reading, "begin")
    assert oversized(b.ROWS_QUERY, b"\x01INSERT", reading) == []
    builder.commit()
    (committed,) = reading.feed(builder)
    assert operations(committed) == []


def test_an_event_above_the_limit_that_nothing_stands_for_ends_the_reading() -> None:
    reading = Reading()
    begun(reading, "begin")
    with pytest.raises(BinlogError, match=r"raise limits\.event_bytes_max"):
        oversized(b.TABLE_MAP, bytes(8), reading)


@pytest.mark.servers
async def test_what_mariadb_packs_into_large_events_is_what_its_table_has(
    new_server: NewServer, memory_sink: TargetInMemory
) -> None:
    options = {
        "log_bin_compress": True,
        "log_bin_compress_min_len": 10,
        "binlog_row_event_max_size": 8 * MIB,
    }
    mariadb = await new_server(MariaDb, options=options)
    await mariadb.execute(
        "CREATE DATABASE s",
        "CREATE TABLE s.t (id INT PRIMARY KEY, n INT, s VARCHAR(20), b LONGTEXT)",
    )
    config = {
        "source": {"url": mariadb.url(), "name": "shop"},
        "sinks": {"main": {"url": memory_sink.url}},
        "lanes": [{"table": "s.t", "key": "t:{id}", "columns": ["id", "n", "s"]}],
        "limits": {"transaction_bytes_max": MAX},
    }
    async with lanecache.start(config) as service:
        await mariadb.execute(
            "INSERT INTO s.t SELECT seq, NULL, seq, REPEAT('x', seq % 7) FROM s.seq_1_to_20000",
            "UPDATE s.t SET n = id * 2, b = REPEAT('y', 100000) WHERE id % 100 = 1",
            "DELETE FROM s.t WHERE id % 3 = 0",
            "UPDATE s.t SET id = id + 100000 WHERE id % 10 = 7",
        )
        token = await mariadb.scalar("SELECT @@GLOBAL.gtid_binlog_pos")
        await service.wait_for(token, sink="main", timeout_s=60)
    wanted = {
        f"t:{number}": {"id": number, "n": n, "s": text}
        for number, n, text in await mariadb.query("SELECT id, n, s FROM s.t")
    }
    assert {key: json.loads(value) for key, value in memory_sink.snapshot().items()} == wanted
