"""The events of binlog files as a stream of blocks, in the form in which a dump brings them.

Like a server's dump thread, it opens each file with an artificial ROTATE that names it, and puts
another one behind events that it leaves out, so that the decoder's place is always right.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import anyio
import anyio.to_thread
import msgspec

from lanecache.errors import BinlogError, SourceError
from lanecache.gtid import Gtid, GtidSet, MariadbGtid, MariadbGtidSet, MysqlGtidSet
from lanecache.ingest import binlog as b
from lanecache.ingest.framing import OVERSIZED_KEPT_BYTES, Block

if TYPE_CHECKING:
    from lanecache.operation import Position

logger = logging.getLogger("lanecache.ingest")

PIECE_BYTES = 1 << 20

_BEGIN = 4  # behind the magic number
_SIZE_AT = 9  # of an event's size in its header
_KIND_AT = 4
_TRANSACTION_STARTS = frozenset({b.GTID, b.ANONYMOUS_GTID, b.GTID_TAGGED, b.MARIADB_GTID})
# They say how to read on, or hold something that no GTID covers.
_NEVER_SKIPPED = frozenset({b.FORMAT_DESCRIPTION, b.ROTATE, b.INCIDENT})


class StartPlace(msgspec.Struct, frozen=True):
    """A file to read, and what was executed before it, where it says so."""

    path: Path
    before: GtidSet | None


class Skip(msgspec.Struct, frozen=True):
    """What to leave out: transactions that ``covered`` has, or the first file's front."""

    covered: GtidSet | None = None
    before_offset: int = 0


class Piece(msgspec.Struct, frozen=True):
    """A block of whole events, and the offset of its first byte in the file."""

    block: Block
    offset: int


class WholeEvents:
    """Cut a file into blocks of whole events, about ``PIECE_BYTES`` at a time.

    Memory is one piece, or one event where that is larger; of events above ``event_bytes_max`` only
    the front is read. A file that ends within an event ends before it, and ``cut_off`` is set.
    """

    def __init__(self, file: BinaryIO, offset: int, *, event_bytes_max: int) -> None:
        """Begin at ``offset``, which is where an event begins and where ``file`` stands."""
        self.offset = offset
        self.cut_off = False
        self._file = file
        self._held = b""
        self._event_bytes_max = event_bytes_max

    def read(self) -> Piece | None:
        """Give the next events, or ``None`` at the end.

        Raises:
            BinlogError: an event's size is impossible.
            OSError: the file cannot be read.
        """
        data = self._held + self._file.read(max(PIECE_BYTES - len(self._held), 1))
        spans: list[tuple[int, int]] = []
        at, end = 0, len(data)
        size = b.HEADER_BYTES
        while end - at >= b.HEADER_BYTES:
            size = int.from_bytes(data[at + _SIZE_AT : at + _SIZE_AT + 4], "little")
            if size < b.HEADER_BYTES:
                raise BinlogError(
                    f"the bytes at offset {self.offset + at} are no event: it would have"
                    f" {size} bytes",
                    offset=self.offset + at,
                )
            if at + size > end or size > self._event_bytes_max:
                break
            spans.append((at, at + size))
            at += size
        if spans:
            self._held = data[at:]
            return self._piece(Block(data if at == end else data[:at], spans), at)
        if end < b.HEADER_BYTES:
            self._held = data
            self.cut_off = bool(data)
            return None
        return self._large(data, size)

    def _large(self, data: bytes, size: int) -> Piece | None:
        """Read an event on that does not fit a piece."""
        left = size - len(data)
        here = self._file.tell()
        there = self._file.seek(0, 2) - here
        self._file.seek(here)
        if left > there:
            self._held = data
            self.cut_off = True
            return None
        if size > self._event_bytes_max:
            self._held = data[size:]
            if left > 0:
                self._file.seek(left, 1)
            front = data[: min(size, OVERSIZED_KEPT_BYTES)]
            return self._piece(Block(front, [(0, len(front))], size), size)
        self._held = b""
        return self._piece(Block(data + self._file.read(left), [(0, size)]), size)

    def _piece(self, block: Block, taken: int) -> Piece:
        piece = Piece(block, self.offset)
        self.offset += taken
        return piece


class FileStream:
    """The events of several files, one after the other. Has what the engine asks of a dump."""

    def __init__(
        self,
        places: Sequence[StartPlace],
        skip: Skip,
        reached: Callable[[], Position | None],
        *,
        event_bytes_max: int,
    ) -> None:
        """Begin with the first of ``places``; see ``BinlogFiles.open``."""
        self.received_at = anyio.current_time()
        self.received_bytes = 0
        self.cut_off_at = ""
        """Where the last file ends within an event, or empty."""
        self._places = deque(places)
        self._event_bytes_max = event_bytes_max
        self._reached = reached
        self._covered = skip.covered
        self._before_offset = skip.before_offset
        self._skipping = False
        self._gap = False
        self._checksummed = False
        self._place: StartPlace | None = None
        self._file: BinaryIO | None = None
        self._events: WholeEvents | None = None
        self._blocks: deque[Block] = deque()
        self._rotated_to = ""

    async def read(self) -> Block | None:
        """Give the next block of events, or ``None`` at the end of the last file.

        Raises:
            BinlogError: a file holds something else than events.
            SourceError: a file cannot be read, or one is missing before the next.
        """
        while not self._blocks:
            if self._events is None:
                if not self._places:
                    return None
                self._open(self._places.popleft())
                continue
            try:
                piece = await anyio.to_thread.run_sync(self._events.read)
            except OSError as error:
                raise SourceError(f"{self._path} cannot be read: {error.strerror}") from error
            except BinlogError as error:
                raise BinlogError(
                    f"{self._path} is damaged: {error}", file=self._path.name, offset=error.offset
                ) from error
            self.received_at = anyio.current_time()
            if piece is None:
                self._end_file(self._events)
                continue
            self.received_bytes += len(piece.block.data)
            self._pass_on(piece)
        return self._blocks.popleft()

    def tell_end(self, position: Position | None, *, within_transaction: bool) -> None:
        """Warn in the log where the last file lacks the end of its last transaction."""
        if self.cut_off_at:
            what = f"is cut off within the event at offset {self.cut_off_at.rpartition(':')[2]}"
        elif within_transaction:
            what = "ends within a transaction"
        else:
            return
        logger.warning(
            "source: %s %s: everything up to the last whole transaction was read, to %s; copy the"
            " file again if it was not cut off by a crash of its server",
            self._path,
            what,
            position,
        )

    def close(self) -> None:
        """Close the file that is open. Idempotent."""
        file, self._file, self._events = self._file, None, None
        if file is not None:
            file.close()

    @property
    def _path(self) -> Path:
        assert self._place is not None
        return self._place.path

    def _open(self, place: StartPlace) -> None:
        if self._place is not None:
            self._require_next(self._place, place)
            self._before_offset = 0
            self.cut_off_at = ""
            before, covered = place.before, self._covered
            if covered is not None and before is not None and before.contains(covered):
                # Nothing of what is covered lies behind this file's beginning.
                self._covered = None
        self._place = place
        try:
            self._file = place.path.open("rb")
            self._file.seek(_BEGIN)
        except OSError as error:
            raise SourceError(f"{place.path} cannot be read: {error.strerror}") from error
        self._events = WholeEvents(self._file, _BEGIN, event_bytes_max=self._event_bytes_max)
        self._skipping = bool(self._before_offset)
        self._gap = False
        self._rotated_to = ""
        self._blocks.append(self._rotate(_BEGIN))

    def _end_file(self, events: WholeEvents) -> None:
        if self._before_offset > events.offset:
            raise SourceError(
                f"{self._path} has no offset {self._before_offset}, from where to go on: its last"
                f" whole event ends at {events.offset}; was the file replaced by another one?"
            )
        if events.cut_off:
            self.cut_off_at = f"{self._path}:{events.offset}"
        self.close()

    def _require_next(self, last: StartPlace, place: StartPlace) -> None:
        """Make sure that nothing is missing between two files."""
        reached = self._reached()
        if reached is not None and reached.gtids is not None and place.before is not None:
            if reached.gtids.contains(place.before):
                if self.cut_off_at:
                    logger.warning(
                        "source: %s is cut off there, in a transaction that never was committed:"
                        " going on with the next file",
                        self.cut_off_at,
                    )
                return
            raise SourceError(
                f"between {last.path} and {place.path} transactions are missing: the latter comes"
                f" after {place.before}, but the files before it end at {reached}; add the missing"
                " file to source.url, or copy the one that is cut off again"
            )
        if self.cut_off_at:
            raise BinlogError(
                f"{last.path} is cut off at offset {self.cut_off_at.rpartition(':')[2]}, and other"
                " files follow it: copy it again",
                file=last.path.name,
            )
        stem, _, number = last.path.name.rpartition(".")
        follows = (
            self._rotated_to == place.path.name
            or not number.isdigit()
            or (
                place.path.name.rpartition(".")[2].isdigit()
                and int(place.path.name.rpartition(".")[2]) == int(number) + 1
            )
        )
        if not follows:
            raise SourceError(
                f"between {last.path} and {place.path} a file is missing: add {stem}."
                f"{int(number) + 1:0{len(number)}d} to source.url"
            )

    def _pass_on(self, piece: Piece) -> None:
        """Put the piece's events behind the blocks to give, without those to skip."""
        block = piece.block
        data = block.data
        kept: list[tuple[int, int]] = []
        for span in block.spans:
            start, end = span
            kind = data[start + _KIND_AT]
            if kind == b.FORMAT_DESCRIPTION:
                body = data[start + b.HEADER_BYTES : end]
                self._checksummed = b.parse_format_description(body).checksummed
            elif kind == b.ROTATE:
                self._rotated_to = self._name_in_rotate(data[start:end])
            if self._skips(kind, piece.offset + start, data[start:end]):
                self._gap = True
                continue
            if self._gap and kind not in _NEVER_SKIPPED:
                self._give(data, kept, block.oversized_bytes)
                kept = []
                self._blocks.append(self._rotate(piece.offset + start))
                self._gap = False
            kept.append(span)
        self._give(data, kept, block.oversized_bytes)

    def _give(self, data: bytes, spans: list[tuple[int, int]], oversized_bytes: int) -> None:
        if spans:
            self._blocks.append(Block(data, spans, oversized_bytes))

    def _skips(self, kind: int, offset: int, event: bytes) -> bool:
        if self._before_offset:
            if offset < self._before_offset:
                return kind not in _NEVER_SKIPPED
            if offset > self._before_offset:
                raise SourceError(
                    f"no event begins at offset {self._before_offset} of {self._path}, from where"
                    " to go on: was the file replaced by another one?"
                )
            self._before_offset = 0
            self._skipping = False
        if self._covered is None:
            return False
        if kind in _TRANSACTION_STARTS:
            server_id = int.from_bytes(event[5:9], "little")
            gtid = transaction_gtid(kind, event, server_id, checksummed=self._checksummed)
            self._skipping = gtid is not None and covers(self._covered, gtid)
        return self._skipping and kind not in _NEVER_SKIPPED

    def _rotate(self, offset: int) -> Block:
        """Make the artificial ROTATE that says where the next event lies."""
        name = self._path.name.encode()
        size = b.HEADER_BYTES + 8 + len(name) + (b.CHECKSUM_BYTES if self._checksummed else 0)
        event = struct.pack("<IBIIIH", 0, b.ROTATE, 0, size, 0, b.FLAG_ARTIFICIAL)
        event += struct.pack("<Q", offset) + name
        if self._checksummed:
            event += struct.pack("<I", zlib.crc32(event))
        return Block(event, [(0, len(event))])

    def _name_in_rotate(self, event: bytes) -> str:
        stop = len(event) - (b.CHECKSUM_BYTES if self._checksummed else 0)
        return event[b.HEADER_BYTES + 8 : stop].decode("utf-8", "replace")


def transaction_gtid(kind: int, event: bytes, server_id: int, *, checksummed: bool) -> Gtid | None:
    """Read the GTID of an event that opens a transaction; ``None`` for an anonymous one.

    Raises:
        BinlogError: the event is damaged.
    """
    return _parse_start(kind, event, server_id, checksummed=checksummed).gtid


def transaction_start(event: bytes, *, checksummed: bool) -> b.TransactionStart | None:
    """Read an event that opens a transaction; any other one gives ``None``.

    Raises:
        BinlogError: the event is damaged.
    """
    kind = event[_KIND_AT]
    if kind not in _TRANSACTION_STARTS:
        return None
    server_id = int.from_bytes(event[5:9], "little")
    return _parse_start(kind, event, server_id, checksummed=checksummed)


def _parse_start(
    kind: int, event: bytes, server_id: int, *, checksummed: bool
) -> b.TransactionStart:
    body = event[b.HEADER_BYTES : len(event) - (b.CHECKSUM_BYTES if checksummed else 0)]
    if kind == b.MARIADB_GTID:
        return b.parse_mariadb_gtid(body, server_id)
    if kind == b.GTID_TAGGED:
        return b.parse_tagged_gtid(body)
    return b.parse_gtid(body, anonymous=kind == b.ANONYMOUS_GTID)


def covers(gtids: GtidSet, gtid: Gtid) -> bool:
    """Tell whether a transaction is in a set."""
    if isinstance(gtid, MariadbGtid):
        return gtids.contains(MariadbGtidSet([gtid]))
    return gtids.contains(
        MysqlGtidSet({(gtid.source_uuid, gtid.tag): [(gtid.number, gtid.number + 1)]})
    )
