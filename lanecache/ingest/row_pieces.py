"""The rows of a large or compressed event, decoded a piece at a time.

What an event takes in memory, and how long it keeps the event loop, must not hang on how many rows
somebody has put into how few bytes: a row of NULLs is a single byte, and MariaDB packs eight
million of them into less than eight kilobytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.compressed import MariadbUnpacker

if TYPE_CHECKING:
    from lanecache.ingest.row_decoders import PieceDecoders
    from lanecache.ingest.rows import PieceDecoder, RowKind, TableCode
    from lanecache.row import ColumnUse, Image

PIECE_BYTES = 32 * 1024
"""A piece holds the rows that begin in so many bytes: no more rows than that."""

PIECE_ROWS = 2048
"""So many rows are aimed at, by how long the last ones were."""


class RowsEvent(msgspec.Struct, frozen=True):
    """A rows event: ``data[start:end]``, from the column count on.

    ``packed`` says that MariaDB has compressed it behind its bitmaps; it may unpack to
    ``bytes_max``.
    """

    kind: RowKind
    data: bytes
    start: int
    end: int
    packed: bool
    bytes_max: int


class RowBytes(Protocol):
    """The rows part of an event, as far as it is there: ``data[position:end]``."""

    data: bytes
    position: int
    end: int
    piece_bytes: int  # of the next piece

    def more(self) -> bool:
        """Have more behind ``end``, in a ``data`` of its own; false where nothing is left.

        Raises:
            BinlogError: what comes next cannot be unpacked.
        """
        ...


class PlainRows:
    """Rows that are all there."""

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self.data = data
        self.position = start
        self.end = end
        self.piece_bytes = PIECE_ROWS

    def more(self) -> bool:
        return False


class PackedRows:
    """Rows that MariaDB has compressed, unpacked as they are asked for.

    Memory is a piece, or one row where that is larger.
    """

    def __init__(self, unpacker: MariadbUnpacker) -> None:
        self.data = b""
        self.position = 0
        self.end = 0
        self.piece_bytes = PIECE_ROWS
        self._unpacker = unpacker

    def more(self) -> bool:
        left = self.data[self.position : self.end]
        # As much again as is held: a long row is tried only a few times before it is whole.
        unpacked = self._unpacker.read(max(PIECE_BYTES, len(left)))
        if not unpacked:
            return False
        self.data = left + unpacked
        self.position = 0
        self.end = len(self.data)
        return True


class Piece:
    """Rows of one piece: their images, and where they lie, so that others can read them too."""

    __slots__ = ("careful", "data", "end", "images", "limit", "start")

    def __init__(self, rows: RowBytes, limit: int, images: list[Image], *, careful: bool) -> None:
        self.data = rows.data
        self.start = rows.position
        self.limit = limit
        self.end = rows.end
        self.images = images
        self.careful = careful


def open_rows(
    decoders: PieceDecoders,
    code: TableCode,
    before_plan: Sequence[ColumnUse],
    after_plan: Sequence[ColumnUse],
    event: RowsEvent,
) -> tuple[PieceDecoder, RowBytes]:
    """Find what decodes the rows of an event, and give it with the rows.

    Raises:
        BinlogError: they are not of this table, or cannot be unpacked.
    """
    data = event.data
    decoder, start = decoders.get(code, before_plan, after_plan, event.kind, data, event.start)
    if not event.packed:
        return decoder, PlainRows(data, start, event.end)
    unpacker = MariadbUnpacker(data, start, event.end, bytes_max=event.bytes_max)
    return decoder, PackedRows(unpacker)


def next_piece(decoder: PieceDecoder, rows: RowBytes) -> Piece | None:
    """Decode the next rows; ``None`` where there are no more.

    Raises:
        BinlogError: they cannot be read; nothing of what follows can be trusted.
    """
    while rows.position < rows.end or rows.more():
        limit = min(rows.position + rows.piece_bytes, rows.end)
        failure: Exception | None = None
        for decode in (decoder.decode, decoder.decode_carefully):
            if decode is None:
                continue
            images, position, failure = decode(rows.data, rows.position, limit, rows.end)
            if images:
                # A row that could not be read comes first the next time.
                careful = decode is decoder.decode_carefully
                piece = Piece(rows, position, images, careful=careful)
                wanted = (position - rows.position) * PIECE_ROWS // len(images)
                rows.piece_bytes = max(1, min(wanted, PIECE_BYTES))
                rows.position = position
                return piece
        # Stepped over only: what has been read of a long value is not made anything of.
        grown = False
        while not _has_row(decoder, rows) and rows.more():
            grown = True
        if not grown or not _has_row(decoder, rows):
            raise BinlogError(f"rows cannot be read: {failure}") from failure
    return None


def _has_row(decoder: PieceDecoder, rows: RowBytes) -> bool:
    """Tell whether the next row is there to its end."""
    _, _, failure = decoder.step_over(rows.data, rows.position, rows.position + 1, rows.end)
    return failure is None


def same_images(decoder: PieceDecoder, piece: Piece) -> list[Image] | None:
    """Decode the rows of a piece by another decoder; ``None`` where it cannot read them all."""
    for decode in (decoder.decode, decoder.decode_carefully):
        if decode is not None:
            images, position, _ = decode(piece.data, piece.start, piece.limit, piece.end)
            if position == piece.limit:
                return images
    return None
