"""Compressed events of both servers, unpacked piece by piece.

MySQL wraps a whole transaction into one TRANSACTION_PAYLOAD event
(``libs/mysql/binlog/event/codecs/binary.cpp``); MariaDB compresses the bodies of single QUERY and
rows events (``sql/log_event.cc``, ``binlog_buf_uncompress``).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO

import zstandard

from lanecache.errors import BinlogError
from lanecache.ingest.binlog import HEADER_BYTES
from lanecache.ingest.framing import OVERSIZED_KEPT_BYTES, Block
from lanecache.ingest.table import packed_int

_END_MARK, _PAYLOAD_SIZE, _COMPRESSION_TYPE, _UNCOMPRESSED_SIZE = 0, 1, 2, 3
_ZSTD, _NONE = 0, 255

_PIECE_BYTES = 1 << 20
_SIZE_AT = 9  # of an event's size in its header

_MARIADB_ALGORITHM_MASK, _MARIADB_LENGTH_MASK = 0x70, 0x07


def payload_blocks(body: bytes, *, event_bytes_max: int) -> Iterator[Block]:
    """Give the events inside a TRANSACTION_PAYLOAD body, unpacked as they are asked for.

    They have no checksums and no positions of their own. An event above ``event_bytes_max`` comes
    cut to its front, as it would from the network.

    Raises:
        BinlogError: the body is damaged, or its compression is not known.
    """
    pos = 0
    compression = _ZSTD
    try:
        while body[pos] != _END_MARK:
            kind = body[pos]
            length, pos = packed_int(body, pos + 1)
            if kind == _COMPRESSION_TYPE:
                compression, _ = packed_int(body, pos)
            pos += length
    except (IndexError, ValueError) as error:
        raise BinlogError(f"a transaction payload cannot be read: {error}") from error
    payload = BytesIO(body[pos + 1 :])
    if compression == _NONE:
        yield from _cut(payload, event_bytes_max)
    elif compression == _ZSTD:
        try:
            yield from _cut(
                zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True),
                event_bytes_max,
            )
        except zstandard.ZstdError as error:
            raise BinlogError(f"a transaction payload cannot be unpacked: {error}") from error
    else:
        raise BinlogError(f"a transaction payload has compression type {compression}")


_Stream = BytesIO | zstandard.ZstdDecompressionReader


def _cut(stream: _Stream, event_bytes_max: int) -> Iterator[Block]:
    """Cut a stream of events into blocks of about ``_PIECE_BYTES``."""
    held = _fill(stream, b"", HEADER_BYTES)
    while held:
        spans: list[tuple[int, int]] = []
        at = 0
        size = HEADER_BYTES
        while len(held) - at >= HEADER_BYTES:
            size = int.from_bytes(held[at + _SIZE_AT : at + _SIZE_AT + 4], "little")
            if size < HEADER_BYTES:
                raise BinlogError(f"an event of {size} bytes inside a transaction payload")
            if size > event_bytes_max or at + size > len(held):
                break
            spans.append((at, at + size))
            at += size
            size = HEADER_BYTES
        if spans:
            yield Block(held[:at], spans)
            held = held[at:]
        if size > event_bytes_max:
            yield Block(held[:OVERSIZED_KEPT_BYTES], [(0, OVERSIZED_KEPT_BYTES)], size)
            held = _fill(stream, _skip(stream, held, size), HEADER_BYTES)
        else:
            held = _fill(stream, held, size)
            if held and len(held) < size:
                raise BinlogError("the last event inside a transaction payload is cut off")


def _fill(stream: _Stream, held: bytes, wanted: int) -> bytes:
    """Read on until ``wanted`` bytes are held, or the stream ends."""
    parts = [held]
    left = wanted - len(held)
    while left > 0 and (part := stream.read(max(left, _PIECE_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _skip(stream: _Stream, held: bytes, size: int) -> bytes:
    """Step over ``size`` bytes, of which some are held; give what is held behind them."""
    left = size - len(held)
    while left > 0:
        part = stream.read(min(left, _PIECE_BYTES))
        if not part:
            raise BinlogError("the last event inside a transaction payload is cut off")
        left -= len(part)
    return held[size:]


def unpack_mariadb(data: bytes, *, bytes_max: int) -> bytes:
    """Unpack the compressed part of a MariaDB event.

    One byte (three bits of algorithm, three of the length's length), the unpacked length, big
    endian, then the data; algorithm 0 is zlib.

    Raises:
        BinlogError: it is damaged, of another algorithm, or longer than ``bytes_max``.
    """
    if not data:
        raise BinlogError("a compressed event has no data")
    if data[0] & _MARIADB_ALGORITHM_MASK:
        raise BinlogError(f"a compressed event has the unknown algorithm {data[0] >> 4 & 7}")
    width = data[0] & _MARIADB_LENGTH_MASK
    length = int.from_bytes(data[1 : 1 + width], "big")
    if length > bytes_max:
        raise BinlogError(f"a compressed event unpacks to {length} bytes, above {bytes_max}")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data[1 + width :], length + 1)
    except zlib.error as error:
        raise BinlogError(f"a compressed event cannot be unpacked: {error}") from error
    if len(unpacked) != length:
        raise BinlogError(f"a compressed event unpacks to {len(unpacked)} bytes, not {length}")
    return unpacked
