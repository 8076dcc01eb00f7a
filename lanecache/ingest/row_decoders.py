"""The compiled row decoders of a table, by what stands before the rows of an event."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from lanecache.errors import BinlogError
from lanecache.ingest.rows import (
    PieceDecoder,
    RowDecoder,
    RowKind,
    TableCode,
    compile_pieces,
    compile_rows,
)
from lanecache.ingest.table import packed_int

if TYPE_CHECKING:
    from lanecache.row import ColumnUse

_Decoder = TypeVar("_Decoder")

_PACKED_2: Final = 0xFB  # from here on a packed integer is a byte with its length, and two bytes
_FRONTS_MAX: Final = 256  # of a table and kind of event: bitmaps differ with what statements name


class _Decoders(Generic[_Decoder]):
    """The compiled decoders of a table for one pair of plans, by what stands before the rows.

    That is the column count and one bitmap or two of the columns that the images hold. Its bytes
    are known as a whole once they have been read: most events of a table begin alike.
    """

    # ``compile_rows``, or what compiles another kind of decoder from the same.
    _make: Callable[
        [TableCode, RowKind, Sequence[ColumnUse], Sequence[ColumnUse], int, int], _Decoder
    ]

    def __init__(self, columns: int) -> None:
        self._columns = columns
        count_bytes = 1 if columns < _PACKED_2 else 3
        bitmap_bytes = (columns + 7) // 8
        self._front_bytes = {
            kind: count_bytes + bitmap_bytes * (1 + kind.has_both_images) for kind in RowKind
        }
        self._by_front: dict[RowKind, dict[bytes, _Decoder]] = {kind: {} for kind in RowKind}

    def find(self, kind: RowKind, data: bytes, pos: int) -> tuple[_Decoder | None, int]:
        """Give the decoder for what begins at ``pos``, and where its rows begin, if it is there."""
        stop = pos + self._front_bytes[kind]
        decoder = self._by_front[kind].get(data[pos:stop])
        return decoder, pos if decoder is None else stop

    def get(
        self,
        code: TableCode,
        before_plan: Sequence[ColumnUse],
        after_plan: Sequence[ColumnUse],
        kind: RowKind,
        data: bytes,
        pos: int,
    ) -> tuple[_Decoder, int]:
        """Find it, or compile it."""
        decoder, start = self.find(kind, data, pos)
        if decoder is not None:
            return decoder, start
        return self.compile(code, before_plan, after_plan, kind, data, pos)

    def compile(
        self,
        code: TableCode,
        before_plan: Sequence[ColumnUse],
        after_plan: Sequence[ColumnUse],
        kind: RowKind,
        data: bytes,
        pos: int,
    ) -> tuple[_Decoder, int]:
        """Compile it.

        Raises:
            BinlogError: what begins at ``pos`` is not of this table.
        """
        begin = pos
        try:
            columns, pos = packed_int(data, pos)
        except (IndexError, ValueError) as error:
            raise BinlogError(f"rows without a column count: {error}") from error
        if columns != self._columns:
            raise BinlogError(f"rows of {columns} columns where {self._columns} are mapped")
        width = (columns + 7) // 8
        mask = (1 << columns) - 1
        before = after = int.from_bytes(data[pos : pos + width], "little") & mask
        pos += width
        if kind.has_both_images:
            after = int.from_bytes(data[pos : pos + width], "little") & mask
            pos += width
        decoder = self._make(code, kind, before_plan, after_plan, before, after)
        known = self._by_front[kind]
        if pos - begin == self._front_bytes[kind]:
            if len(known) >= _FRONTS_MAX:
                del known[next(iter(known))]
            known[data[begin:pos]] = decoder
        return decoder, pos


class RowDecoders(_Decoders[RowDecoder]):
    """Decoders of all the rows of an event (see ``_Decoders``)."""

    _make = staticmethod(compile_rows)


class PieceDecoders(_Decoders[PieceDecoder]):
    """Decoders of some rows of an event at a time (see ``_Decoders``)."""

    _make = staticmethod(compile_pieces)
