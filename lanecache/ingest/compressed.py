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

_PIECE_BYTES = 128 * 1024
_PACKED_BYTES = 16 * 1024
_WINDOW_BYTES_MAX = 128 * 1024 * 1024  # what zstd's highest levels take, and no more
_SIZE_AT = 9  # of an event's size in its header

_MARIADB_ALGORITHM_MASK, _MARIADB_LENGTH_MASK = 0x70, 0x07


def payload_blocks(body: bytes, *, event_bytes_max: int) -> Iterator[Block]:
    """Give the events inside a TRANSACTION_PAYLOAD body, unpacked as they are asked for.

    Memory is a block, or one event where that is larger, whatever the body says of its size.

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
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        try:
            yield from _cut(
                unpacker.stream_reader(payload, read_across_frames=True), event_bytes_max
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
    """Read on until ``wanted`` bytes are held, or the stream ends.

    Piece by piece, since a reader makes room at once for what it is asked for.
    """
    parts = [held]
    left = wanted - len(held)
    while left > 0 and (part := stream.read(_PIECE_BYTES)):
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


class MariadbUnpacker:
    """The compressed part of a MariaDB event, unpacked as it is asked for.

    One byte (three bits of algorithm, three of the length's length), the unpacked length, big
    endian, then the data; algorithm 0 is zlib. What the length says is never made room for: it is
    only what must come out.
    """

    def __init__(self, data: bytes, start: int, end: int, *, bytes_max: int) -> None:
        """Begin with ``data[start:end]``.

        Raises:
            BinlogError: it is of another algorithm, or says that it is longer than ``bytes_max``.
        """
        if start >= end:
            raise BinlogError("a compressed event has no data")
        front = data[start]
        if front & _MARIADB_ALGORITHM_MASK:
            raise BinlogError(f"a compressed event has the unknown algorithm {front >> 4 & 7}")
        begin = start + 1 + (front & _MARIADB_LENGTH_MASK)
        self.length = int.from_bytes(data[start + 1 : begin], "big")
        """What it unpacks to, in bytes, as it says."""
        if self.length > bytes_max:
            raise BinlogError(
                f"a compressed event unpacks to {self.length} bytes, above {bytes_max}"
                " (limits.event_bytes_max)"
            )
        self._left = self.length
        self._packed = data
        self._at = begin
        self._end = end
        self._unpacker = zlib.decompressobj()

    def read(self, wanted: int) -> bytes:
        """Give the next bytes, ``wanted`` where there are as many; nothing at the end.

        Raises:
            BinlogError: it is damaged, or unpacks to another length than it says.
        """
        unpacked = bytearray()
        while len(unpacked) < wanted and not self._unpacker.eof:
            # In small steps: zlib copies what it has not looked at yet.
            packed = self._unpacker.unconsumed_tail
            if not packed:
                packed = self._packed[self._at : min(self._at + _PACKED_BYTES, self._end)]
                self._at += len(packed)
            room = min(wanted - len(unpacked), self._left + 1)
            try:
                part = self._unpacker.decompress(packed, room)
            except zlib.error as error:
                raise BinlogError(f"a compressed event cannot be unpacked: {error}") from error
            if not part and not packed:
                break
            self._left -= len(part)
            if self._left < 0:
                raise BinlogError(f"a compressed event unpacks to more than {self.length} bytes")
            unpacked += part
        if self._left and len(unpacked) < wanted:
            raise BinlogError(
                f"a compressed event unpacks to {self.length - self._left} bytes, not {self.length}"
            )
        return bytes(unpacked)


def unpack_mariadb(data: bytes, *, bytes_max: int) -> bytes:
    """Unpack the compressed part of a MariaDB event (see ``MariadbUnpacker``).

    Raises:
        BinlogError: it is damaged, of another algorithm, or longer than ``bytes_max``.
    """
    unpacker = MariadbUnpacker(data, 0, len(data), bytes_max=bytes_max)
    # One byte more: there must not be any.
    return unpacker.read(unpacker.length + 1)
