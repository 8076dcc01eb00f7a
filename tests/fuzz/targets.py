"""What is fuzzed: each target takes any bytes, and may raise nothing.

A target lets through only the errors that the functions it calls are documented to raise; all else
is a fault. Seeds come from the captured files in ``tests/data``. What belongs to the cluster is in
``cluster_targets``, and for its data in ``cluster_state_targets``.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import cluster_state_targets
import cluster_targets
from captured import captures

from lanecache.config import LaneConfig
from lanecache.errors import BinlogError, SourceError
from lanecache.gtid import MariadbGtidSet, MysqlGtidSet, parse_gtid_set
from lanecache.ingest import binlog as b
from lanecache.ingest.compressed import payload_blocks, unpack_mariadb
from lanecache.ingest.decoder import Decoder
from lanecache.ingest.file_stream import WholeEvents
from lanecache.ingest.framing import Block, EventFramer
from lanecache.ingest.json_binary import json_document_text
from lanecache.ingest.json_diff import apply_json_diff
from lanecache.ingest.statements import classify
from lanecache.ingest.xa import parse_xa_prepare
from lanecache.lanes.mapping import Lanes
from lanecache.operation import Position

EVENT_BYTES_MAX = 1 << 20

_LANES = [
    LaneConfig(table="*.*", key="row:{@schema}:{@table}:{id}"),
    LaneConfig(table="shop.*", key="all:{@table}:{id}", value="none"),
]
_RECORD = struct.Struct("<BBH")  # kind, flags, length of the body


def _decoder(flavor: str = "") -> Decoder:
    return Decoder(
        Lanes(_LANES, ["main"]),
        Position(parse_gtid_set("", flavor) if flavor else None, "binlog.000001", 4),
        transaction_bytes_max=1 << 20,
        event_bytes_max=EVENT_BYTES_MAX,
        report=lambda problem, where: None,
    )


def _decode(decoder: Decoder, block: Block) -> None:
    for output in decoder.feed(block):
        for operations in getattr(output, "operations", ()):
            assert operations.size_bytes >= 0
            list(operations.writes())


def decode_events(data: bytes) -> None:
    """Walk events that are given as records, so that sizes and checksums are always right."""
    mariadb = bool(data[:1] and data[0] & 1)
    types = 171 if mariadb else 42
    body = struct.pack("<H50sIB", 4, b"10.11.0-MariaDB" if mariadb else b"9.7.0", 0, 19)
    events = [_event(b.FORMAT_DESCRIPTION, 0, body + bytes(types) + b"\0" + bytes(4))]
    pos = 1
    while pos + _RECORD.size <= len(data):
        kind, flags, length = _RECORD.unpack_from(data, pos)
        pos += _RECORD.size
        events.append(_event(kind, flags, data[pos : pos + length]))
        pos += length
    decoder = _decoder("mariadb" if mariadb else "mysql")
    with suppress(BinlogError):
        for event in events:
            _decode(decoder, Block(event, [(0, len(event))]))


def _event(kind: int, flags: int, body: bytes) -> bytes:
    size = b.HEADER_BYTES + len(body)
    return struct.pack("<IBIIIH", 1, kind, 1, size, size, flags) + body


def decode_file(data: bytes) -> None:
    """Cut bytes into events as those of a file, and walk them."""
    file = io.BytesIO(data)
    events = WholeEvents(file, 0, event_bytes_max=1 << 16)
    decoder = _decoder()
    with suppress(BinlogError):
        while (piece := events.read()) is not None:
            assert events.offset > piece.offset
            _decode(decoder, piece.block)


def frame_packets(data: bytes) -> None:
    """Frame bytes as those of a connection, in pieces of a length that the first byte says."""
    framer = EventFramer(event_bytes_max=1 << 16, buffer_bytes=4096)
    step = 1 + (data[0] if data else 0)
    pos = 1
    with suppress(SourceError):
        while pos < len(data) and not framer.ended:
            room = framer.free()
            part = data[pos : pos + min(step, len(room))]
            room[: len(part)] = part
            framer.received(len(part))
            pos += len(part)
            while framer.ready and not framer.ended:
                block = framer.take()
                if block is None:
                    break
                for start, end in block.spans:
                    assert 0 <= start < end <= len(block.data)


def decode_json(data: bytes) -> None:
    """Read a binary JSON document."""
    with suppress(ValueError):
        assert isinstance(json_document_text(data), str)


def decode_json_diff(data: bytes) -> None:
    """Apply a list of differences to a document; the first two bytes are the document's length."""
    length = int.from_bytes(data[:2], "little")
    with suppress(ValueError):
        assert isinstance(apply_json_diff(data[2 : 2 + length], data[2 + length :]), str)


def unpack(data: bytes) -> None:
    """Unpack a transaction payload, and the same bytes as a compressed event."""
    with suppress(BinlogError):
        for block in payload_blocks(data, event_bytes_max=EVENT_BYTES_MAX):
            assert len(block.data) <= 4 * EVENT_BYTES_MAX
    with suppress(BinlogError):
        assert len(unpack_mariadb(data, bytes_max=EVENT_BYTES_MAX)) <= EVENT_BYTES_MAX


def decode_gtids(data: bytes) -> None:
    """Read GTID sets and events in all their forms; a set that is read prints and reads back."""
    with suppress(ValueError):
        decoded = MysqlGtidSet.decode(data)
        assert MysqlGtidSet.parse(str(decoded)) == decoded
    text = data.decode("utf-8", "replace")
    for kind in (MysqlGtidSet, MariadbGtidSet):
        with suppress(ValueError):
            gtids = kind.parse(text)
            assert kind.parse(str(gtids)) == gtids
    for parse in (
        lambda: b.parse_gtid(data, anonymous=False),
        lambda: b.parse_tagged_gtid(data),
        lambda: b.parse_mariadb_gtid(data, 1),
        lambda: parse_xa_prepare(data),
    ):
        with suppress(BinlogError):
            parse()


def read_statements(data: bytes) -> None:
    """Classify a statement: whatever it says, there is a kind for it."""
    classify(data, "shop")


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    "events": decode_events,
    "file": decode_file,
    "framing": frame_packets,
    "json": decode_json,
    "json_diff": decode_json_diff,
    "unpack": unpack,
    "gtids": decode_gtids,
    "statements": read_statements,
    **cluster_targets.TARGETS,
    **cluster_state_targets.TARGETS,
}


# Seeds.


def seeds(name: str) -> list[bytes]:
    """Give the seeds of a target, in a certain order, each once."""
    return list(dict.fromkeys(_SEEDS[name]()))


def _files() -> Iterator[tuple[bool, bytes]]:
    for capture in captures():
        for path in capture.files:
            yield capture.name.startswith("mariadb"), path.read_bytes()


def _captured_events() -> Iterator[tuple[bool, list[tuple[int, int, bytes]]]]:
    """Give the events of each file: kind, flags, body."""
    for mariadb, data in _files():
        found = []
        at = 4
        while at < len(data):
            _, kind, _, size, _, flags = b.unpack_header(data, at)
            found.append((kind, flags & 0xFF, data[at + b.HEADER_BYTES : at + size - 4]))
            at += size
        yield mariadb, found


def _records() -> Iterator[bytes]:
    starts = {b.GTID, b.GTID_TAGGED, b.MARIADB_GTID}
    for mariadb, events in _captured_events():
        transaction = bytearray()
        for kind, flags, body in events:
            if kind == b.FORMAT_DESCRIPTION or len(body) > 0xFFFF:
                continue
            if kind in starts and transaction:
                yield bytes([mariadb]) + bytes(transaction)
                transaction.clear()
            transaction += _RECORD.pack(kind, flags, len(body)) + body
        yield bytes([mariadb]) + bytes(transaction)


def _packets() -> Iterator[bytes]:
    for _, data in _files():
        packets = bytearray([len(data) % 251])
        at, number = 4, 1
        while at < len(data):
            size = int.from_bytes(data[at + 9 : at + 13], "little")
            packets += (size + 1).to_bytes(3, "little") + bytes([number & 0xFF, 0])
            packets += data[at : at + size]
            number += 1
            at += size
        yield bytes(packets)


def _of_kinds(*kinds: int) -> Iterator[bytes]:
    for _, events in _captured_events():
        yield from (body for kind, _, body in events if kind in kinds)


def _documents() -> Iterator[bytes]:
    """Find the documents in the rows: behind four bytes of length, with a known type."""
    for body in _of_kinds(b.WRITE_ROWS, b.UPDATE_ROWS, b.PARTIAL_UPDATE_ROWS):
        for at in range(len(body) - 5):
            length = int.from_bytes(body[at : at + 4], "little")
            document = body[at + 4 : at + 4 + length]
            if len(document) == length > 1 and document[0] <= 15:
                with suppress(ValueError):
                    json_document_text(document)
                    yield document


def _diffs() -> Iterator[bytes]:
    documents = sorted(set(_documents()), key=lambda document: (len(document), document))
    for document in documents:
        if len(document) > 2000:
            continue
        value = bytes([len(document)]) + document if len(document) < 251 else b"\x03\x04\x00\x00"
        for diff in (
            b"\x00\x01$" + value,
            b"\x01\x03$.a" + value,
            b"\x02\x04$[0]",
            b'\x00\x08$."b"[1]' + value + b"\x02\x03$.b",
        ):
            yield struct.pack("<H", len(document)) + document + diff


def _packed() -> Iterator[bytes]:
    yield from _of_kinds(b.TRANSACTION_PAYLOAD)
    for body in _of_kinds(*range(b.MARIADB_QUERY_COMPRESSED, b.MARIADB_DELETE_ROWS_COMPRESSED + 1)):
        for at in range(len(body) - 3):
            if body[at] & 0xF8 == 0x80:
                with suppress(BinlogError):
                    unpack_mariadb(body[at:], bytes_max=EVENT_BYTES_MAX)
                    yield body[at:]


def _gtids() -> Iterator[bytes]:
    yield from _of_kinds(b.GTID, b.GTID_TAGGED, b.MARIADB_GTID, b.PREVIOUS_GTIDS, b.XA_PREPARE)
    yield b"0-1-100,1-2-5"
    for capture in captures():
        yield from (line["gtids"].encode() for line in capture.operations())


def _statements() -> Iterator[bytes]:
    for body in _of_kinds(b.QUERY):
        yield b.parse_query(body).sql


_SEEDS: dict[str, Callable[[], Iterator[Any]]] = {
    "events": _records,
    "file": lambda: (data[4:] for _, data in _files()),
    "framing": _packets,
    "json": _documents,
    "json_diff": _diffs,
    "unpack": _packed,
    "gtids": _gtids,
    "statements": _statements,
    **cluster_targets.SEEDS,
    **cluster_state_targets.SEEDS,
}
