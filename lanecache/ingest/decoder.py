"""The sans-IO core of ingest: blocks of binlog events in, source transactions out.

A transaction opens with a GTID event or a BEGIN and closes with an XID, a COMMIT or a ROLLBACK; a
statement outside of one (DDL) is a transaction of its own. Only these ends are positions. Row
changes are mapped as they come, so that what is held of a transaction is its net effect on the
caches, and never more than ``transaction_bytes_max`` of it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import BinlogError, EventUnknown
from lanecache.ingest import binlog as b
from lanecache.ingest.compressed import payload_blocks, unpack_mariadb
from lanecache.ingest.effect import Effect
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.outputs import (
    PAUSE,
    CatalogueWanted,
    Committed,
    DecoderCounts,
    Discarded,
    ForeignKeysWanted,
    Output,
    Overflow,
    SchemaWanted,
)
from lanecache.ingest.reread import PartialRows
from lanecache.ingest.row_pieces import PIECE_BYTES, RowsEvent
from lanecache.ingest.rows import RowKind
from lanecache.ingest.sql_statement import Statement, StatementKind
from lanecache.ingest.tables import Kept, NamedTable, Place, Tables
from lanecache.ingest.xa import PreparedTransactions, XaPrepare, parse_xa_prepare
from lanecache.operation import NO_LINEAGE, Lineage, OperationSet, Position
from lanecache.row import Problem, TableMapping
from lanecache.table_names import Names

if TYPE_CHECKING:
    from lanecache.gtid import GtidSet
    from lanecache.ingest.cascades import Links
    from lanecache.ingest.catalogue import Catalogue
    from lanecache.ingest.mapped_table import MappedTable
    from lanecache.ingest.protocol import Block
    from lanecache.ingest.reach import Reach
    from lanecache.ingest.schema import SchemaReading
    from lanecache.ingest.sql_context import Context
    from lanecache.table_names import TableName

_ROWS = {
    b.PARTIAL_UPDATE_ROWS: RowKind.PARTIAL_UPDATE,
    b.MARIADB_WRITE_ROWS_COMPRESSED_V1: RowKind.WRITE,
    b.MARIADB_UPDATE_ROWS_COMPRESSED_V1: RowKind.UPDATE,
    b.MARIADB_DELETE_ROWS_COMPRESSED_V1: RowKind.DELETE,
    b.MARIADB_WRITE_ROWS_COMPRESSED: RowKind.WRITE,
    b.MARIADB_UPDATE_ROWS_COMPRESSED: RowKind.UPDATE,
    b.MARIADB_DELETE_ROWS_COMPRESSED: RowKind.DELETE,
    b.WRITE_ROWS_V1: RowKind.WRITE,
    b.UPDATE_ROWS_V1: RowKind.UPDATE,
    b.DELETE_ROWS_V1: RowKind.DELETE,
    b.WRITE_ROWS: RowKind.WRITE,
    b.UPDATE_ROWS: RowKind.UPDATE,
    b.DELETE_ROWS: RowKind.DELETE,
}
_ROWS_V2 = frozenset(
    {b.WRITE_ROWS, b.UPDATE_ROWS, b.DELETE_ROWS, b.PARTIAL_UPDATE_ROWS}
    | {b.MARIADB_WRITE_ROWS_COMPRESSED, b.MARIADB_UPDATE_ROWS_COMPRESSED}
    | {b.MARIADB_DELETE_ROWS_COMPRESSED}
)
_ROWS_COMPRESSED = frozenset(
    range(b.MARIADB_WRITE_ROWS_COMPRESSED_V1, b.MARIADB_DELETE_ROWS_COMPRESSED + 1)
)
# The names that each event meets, without the look into the module.
_TABLE_MAP, _XID, _QUERY, _FORMAT_DESCRIPTION = b.TABLE_MAP, b.XID, b.QUERY, b.FORMAT_DESCRIPTION
_FLAG_ARTIFICIAL, _WITHOUT_CHANGE = b.FLAG_ARTIFICIAL, b.WITHOUT_EFFECT
_ROWS_FRONT_BYTES = 8  # table id and flags
_HEAD = frozenset({b.FORMAT_DESCRIPTION, b.MARIADB_START_ENCRYPTION})
# The CRC-32 of any bytes that their own CRC-32 stands behind.
_CHECKSUM_RESIDUE = 0x2144DF1C
_GTIDS = frozenset({b.GTID, b.ANONYMOUS_GTID, b.GTID_TAGGED, b.MARIADB_GTID})
_STATEMENTS = frozenset({b.QUERY, b.MARIADB_QUERY_COMPRESSED, b.EXECUTE_LOAD_QUERY})
_HEARTBEATS = b.HEARTBEATS
_ROWS_BETWEEN_PAUSES = 4096  # in events of the usual size
_MEASURE_BYTES = 1 << 32  # next_position has 32 bits


class Decoder:
    """Turn a source's events into transactions, from one position on.

    One decoder serves one connection: a new connection begins with a new one (compiled tables can
    be handed on). After an error nothing of the transaction under way was handed on but its
    overflow; the position to begin again from is that of the last ``Committed``.
    """

    def __init__(
        self,
        mapping: TableMapping,
        position: Position,
        *,
        transaction_bytes_max: int,
        event_bytes_max: int = EVENT_BYTES_MAX,
        report: Callable[[Problem, str], None],
        server_id: int = 0,
        lineage: Lineage = NO_LINEAGE,
        counts: DecoderCounts | None = None,
        gtids: bool = False,
        reread: bool = False,
        lower_case_table_names: int | None = None,
        kept: Kept | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Begin behind ``position``.

        Args:
            mapping: the lanes.
            position: where the stream begins; its GTID set is extended by what is read.
            transaction_bytes_max: above this, a transaction is handed on in parts.
            event_bytes_max: an event that unpacks to more clears its table's keys.
            report: is called for each invalidation that law 1 asks for, with where it happened.
            server_id: the server that is read; 0 where it is not known.
            lineage: that server, and the last transaction before ``position``.
            counts: goes on from these.
            gtids: where positions have none, take MySQL's from the next file, which says them.
            reread: note the rows that can be read again, in ``Committed.partial``.
            lower_case_table_names: how the server compares names; ``None`` where it is not known.
            kept: goes on from what an earlier one knew of the tables.
            clock: seconds that never go back, by which a schema that does not fit is wanted again.
        """
        self.counts = counts if counts is not None else DecoderCounts()
        self.server_version = ""
        self._mapping = mapping
        self._report = report
        self._server_id = server_id
        self._transaction_bytes_max = transaction_bytes_max
        self._event_bytes_max = event_bytes_max
        names = Names.of(lower_case_table_names)
        self._folded = names.folded
        self._tables = Tables(mapping, names, kept, clock, value_bytes_max=event_bytes_max)
        self._reach: Reach | None = None  # made with the first statement
        self._catalogue: Catalogue | None = None  # that it is made with
        self._audiences = len(mapping.audiences)
        self._mariadb = False
        self._checksummed = False
        self._described = False
        self._file = position.file
        self._offset = position.offset
        self._gtids: GtidSet | None = position.gtids
        self._takes_gtids = gtids
        self._open = False
        self._start: b.TransactionStart | None = None
        self._effect = Effect(self._nothing(), PartialRows() if reread else None)
        self._prepared = PreparedTransactions()
        self._pause_at = self.counts.rows + _ROWS_BETWEEN_PAUSES
        # Where the last transaction ended, and so where the one under way begins.
        self._ends_at = msgspec.structs.replace(position, resume=None)
        self._server = lineage.server
        self._file_began_at = 0
        self._last_gtid = lineage.gtid
        self._last_us = lineage.committed_us
        self._start_us = 0
        self._xid = 0  # of the transaction that ends
        self._last_xid = lineage.xid
        self._at_end_of = -1  # the count of events when a heartbeat said that there are no more

    @property
    def at_end(self) -> bool:
        """Whether the source said, after the last event, that it has nothing more to send."""
        return self._at_end_of == self.counts.events

    @property
    def described(self) -> bool:
        """Whether the source has said what its events look like: the first that it says."""
        return self._described

    def lineage_at(self, position: Position) -> Lineage:
        """Tell the history of a position that was not read here, as far as the stream shows it."""
        began_at = self._file_began_at if position.file == self._file else 0
        return Lineage(self._server, began_at)

    @property
    def where(self) -> str:
        """Name the place in the binlog that was read last, for messages."""
        return f"{self._file}:{self._offset}"

    @property
    def within_transaction(self) -> bool:
        """Whether the transaction under way has not ended yet."""
        return self._open or self._start is not None

    @property
    def read_up_to(self) -> Position:
        """The file and offset up to which all was read; they may lie within a transaction.

        Also where the source left events out, or had none: heartbeats say so.
        """
        return Position(None, self._file, self._offset)

    def provide_schema(self, table: NamedTable, schema: SchemaReading | None) -> None:
        """Answer ``SchemaWanted``; ``None`` where the schema cannot be read."""
        self._tables.provide(table, schema)

    def learn_links(self, links: Links) -> list[TableName]:
        """Take the links between tables, at the start and as ``ForeignKeysWanted`` asks.

        Gives the tables that a link which was not known may have changed before: their keys have
        to be cleared where the last transaction ended.
        """
        return self._tables.learn_links(links, self._ends_at)

    def provide_catalogue(self, catalogue: Catalogue | None) -> None:
        """Take a reading of the catalogue, at the start and as ``CatalogueWanted`` asks.

        ``None`` where there is none: then a statement that changes rows may change any table.
        """
        self._catalogue = catalogue
        if self._reach is not None:
            self._reach.provide(catalogue)

    def feed(self, block: Block) -> Iterator[Output]:
        """Walk a block's events.

        Raises:
            EventUnknown: an event that could hold a change is of a type that is not known.
            BinlogError: an event is damaged (its checksum or its structure).
        """
        self.counts.bytes += len(block.data)
        yield from self._walk(block, inner=False)

    def _walk(self, block: Block, *, inner: bool) -> Iterator[Output]:
        """Walk a block; ``inner`` events have no checksum and no position of their own."""
        if block.oversized_bytes:
            yield from self._oversized(block, inner=inner)
            return
        # What follows is run for each event: the usual ones are told apart first.
        data = block.data
        unpack, crc32, view, counts = b.unpack_header, zlib.crc32, memoryview(data), self.counts
        announced, single = self._tables.announced, self._audiences == 1
        counts.events += len(block.spans)
        for start, end in block.spans:
            timestamp, kind, server_id, size, next_position, flags = unpack(data, start)
            stop = end
            if inner:
                pass
            elif self._checksummed:
                stop = end - 4
                # A file that is still written to has a flag in its head that is not in the sum.
                if crc32(view[start:end]) != _CHECKSUM_RESIDUE and kind != _FORMAT_DESCRIPTION:
                    raise self._damaged()
            elif not self._described and crc32(view[start:end]) == _CHECKSUM_RESIDUE:
                # The ROTATE that opens a dump comes before the event that says so.
                stop = end - 4
            if not flags & _FLAG_ARTIFICIAL and not inner and kind not in _HEARTBEATS:
                if self._offset < next_position:
                    self._offset = next_position
                elif next_position or kind not in _HEAD:
                    # A dump that begins in mid-file opens with the file's head, at no position.
                    self._advance(next_position, size)
            row_kind = _ROWS.get(kind)
            if row_kind is not None:
                if stop - start > PIECE_BYTES or kind in _ROWS_COMPRESSED:
                    yield from self._rows_in_pieces(row_kind, kind, data, start + 19, stop)
                else:
                    self._rows(row_kind, kind, data, start + 19, stop)
                held_bytes = self._effect.operations[0].size_bytes if single else self._held_bytes()
                if held_bytes > self._transaction_bytes_max:
                    yield self._hand_on_part()
                if counts.rows > self._pause_at:
                    self._pause_at = counts.rows + _ROWS_BETWEEN_PAUSES
                    yield PAUSE
                continue
            if kind in _WITHOUT_CHANGE:
                if kind in _HEARTBEATS:
                    beat = b.parse_heartbeat(kind, data[start + 19 : stop], next_position)
                    self._beat(beat, last=end == block.spans[-1][1])
                elif kind == b.PREVIOUS_GTIDS and self._gtids is None and self._takes_gtids:
                    self._gtids = b.parse_previous_gtids(data[start + 19 : stop])
                continue
            body = data[start + 19 : stop]
            if kind == _TABLE_MAP and body in announced:
                continue
            if timestamp and not flags & _FLAG_ARTIFICIAL and kind != _FORMAT_DESCRIPTION:
                # That of the format description is its file's age, wherever in it a dump begins.
                counts.last_timestamp = timestamp
            if kind == _XID:
                if self._mariadb:
                    self._xid = int.from_bytes(body, "little")
                yield self._commit(timestamp)
            elif kind in _GTIDS:
                if self._under_way():
                    yield from self._void()
                self._begin(kind, body, server_id, timestamp)
            elif kind == _QUERY:
                if b.is_begin(body):
                    self._open = True
                else:
                    yield from self._query(b.parse_query(body), timestamp)
            elif kind == _TABLE_MAP:
                place = Place(self._ends_at, timestamp, server_id == self._server_id)
                wanted = self._tables.announce(body, mariadb=self._mariadb, place=place)
                if wanted is not None:
                    yield SchemaWanted(wanted)
                    self._tables.announce(body, mariadb=self._mariadb, place=place, asked=True)
                if self._tables.reshaped is not None:
                    self._clear_reshaped(self._tables.reshaped)
            elif kind == b.ROTATE:
                yield from self._rotate(b.parse_rotate(body), artificial=flags & b.FLAG_ARTIFICIAL)
            elif kind == b.FORMAT_DESCRIPTION:
                body = data[start + 19 : end]
                self._file_began_at = timestamp
                yield from self._describe(body, artificial=not next_position)
            elif kind == b.TRANSACTION_PAYLOAD and not inner:
                yield from self._payload(body)
            elif kind == b.MARIADB_QUERY_COMPRESSED:
                query = b.parse_query(body)
                try:
                    sql = unpack_mariadb(query.sql, bytes_max=self._event_bytes_max)
                except BinlogError as error:
                    yield from self._unread_statement(str(error), timestamp)
                else:
                    yield from self._query(b.Query(query.schema, sql, query.status), timestamp)
            elif kind == b.XA_PREPARE:
                yield from self._prepare(parse_xa_prepare(body), timestamp)
            elif kind == b.INCIDENT:
                yield from self._incident(timestamp)
            elif kind == b.EXECUTE_LOAD_QUERY:
                yield from self._query(b.parse_execute_load_query(body), timestamp)
            elif not flags & b.FLAG_IGNORABLE:
                raise EventUnknown(
                    f"the event of type {kind} at {self.where} is not known to this version of"
                    " lanecache, and skipping it could lose a change; see it with:"
                    f" mysqlbinlog --verbose {self._file}",
                    file=self._file,
                    offset=self._offset,
                )

    def _payload(self, body: bytes) -> Iterator[Output]:
        """Walk the events of a compressed transaction, block by block."""
        blocks = payload_blocks(body, event_bytes_max=self._event_bytes_max)
        for number, block in enumerate(blocks):
            if number:
                yield PAUSE
            yield from self._walk(block, inner=True)

    def _damaged(self) -> BinlogError:
        return BinlogError(
            f"the checksum of the event at {self.where} does not match its bytes",
            file=self._file,
            offset=self._offset,
        )

    def _nothing(self) -> list[OperationSet]:
        if self._audiences == 1:
            return [OperationSet()]
        return [OperationSet() for _ in range(self._audiences)]

    def _held_bytes(self) -> int:
        if self._audiences == 1:
            return self._effect.operations[0].size_bytes
        return self._effect.size_bytes

    def _advance(self, next_position: int, size: int) -> None:
        """Move the offset to the event's end.

        MariaDB 11.4 and later write 0 for events that were in a transaction's cache, and the field
        wraps at 4 GiB; both are cured by what is known already.
        """
        if not next_position:
            self._offset += size
            return
        offset = self._offset & -_MEASURE_BYTES | next_position
        if offset < self._offset:
            offset += _MEASURE_BYTES
        self._offset = offset

    def _beat(self, beat: b.Heartbeat, *, last: bool) -> None:
        """Take from a heartbeat that the source has nothing for us before that place.

        Only what was read moves by it, never the position: no transaction ends there. Servers also
        send one amid events that they leave out; at the end, the next one says the same place.
        """
        if beat.file != self._file:
            return
        offset = beat.offset
        if offset < _MEASURE_BYTES:
            offset |= self._offset & -_MEASURE_BYTES
        if offset == self._offset:
            self._at_end_of = self.counts.events if last else -1
        elif offset > self._offset:
            self._offset = offset

    def _describe(self, body: bytes, *, artificial: bool) -> Iterator[Output]:
        # The checksum is behind the algorithm byte in this event, whatever the algorithm.
        description = b.parse_format_description(body)
        self._mariadb = description.mariadb
        self._checksummed = description.checksummed
        self._described = True
        self.server_version = description.server_version
        if not artificial:
            # A server starts a new file with it, also after a crash in mid-transaction.
            yield from self._void()
            self._tables.forget_ids()

    def _rotate(self, rotate: b.Rotate, *, artificial: int) -> Iterator[Output]:
        if not artificial or rotate.file != self._file:
            yield from self._void()
            self._tables.forget_ids()
        if rotate.file != self._file:
            self._file_began_at = 0
        self._file = rotate.file
        self._offset = rotate.offset
        if not artificial and self._gtids is None:
            # Without GTIDs the old file may be purged while nothing is written to the new one.
            yield self._commit(0)

    def _under_way(self) -> bool:
        """Whether anything of a transaction is there that has not ended."""
        return self._open or self._start is not None or bool(self._effect)

    def _begin(self, kind: int, body: bytes, server_id: int, timestamp: int) -> None:
        if kind == b.MARIADB_GTID:
            self._start = b.parse_mariadb_gtid(body, server_id)
            self._open = not self._start.standalone
            self._start_us = timestamp * 1_000_000
            return
        if kind == b.GTID_TAGGED:
            self._start = b.parse_tagged_gtid(body)
        else:
            self._start = b.parse_gtid(body, anonymous=kind == b.ANONYMOUS_GTID)
        self._start_us = self._start.original_us
        if kind == b.ANONYMOUS_GTID:
            # With gtid_mode = ON_PERMISSIVE and less; no set of GTIDs can say that it was read.
            self._gtids = None

    def _void(self) -> Iterator[Output]:
        """Drop a transaction that was never finished: the server crashed while it wrote it."""
        effect = self._take_effect()
        effect.discard_partial()
        self._tables.sweep_again()
        self._open = False
        self._start = None
        if effect.overflowed:
            yield Discarded()

    def _hand_on_part(self) -> Overflow:
        effect = self._effect
        self._prepared.touched(effect.operations)
        part = Overflow(effect.operations)
        effect.operations = self._nothing()
        effect.overflowed = True
        return part

    def _take_effect(self) -> Effect:
        """Give all that the transaction under way has done, and begin anew."""
        effect = self._effect
        # The rows to read again are emptied by whoever settles or drops them.
        self._effect = Effect(self._nothing(), effect.partial)
        return effect

    def _commit(self, timestamp: int, *, touches: bool = True) -> Committed:
        """End a transaction; it ``touches`` what prepared ones hold, unless it is part of one."""
        start = self._start
        committed_at = float(timestamp)
        if start is not None:
            committed_at = start.committed_at or committed_at
            if start.gtid is not None and self._gtids is not None:
                self._last_gtid, self._last_us = start.gtid, self._start_us
                self._last_xid, self._xid = self._xid, 0
                try:
                    self._gtids = self._gtids.add(start.gtid)
                except TypeError as error:
                    raise BinlogError(
                        f"a transaction of another kind of server ends at {self.where}: {error}",
                        file=self._file,
                        offset=self._offset,
                    ) from error
        effect = self._effect
        partial, resume = effect.partial, self._prepared.resume
        self._effect = Effect(self._nothing(), partial)
        if touches and resume is not None:
            self._prepared.touched(effect.operations)
        # Nearly always there is nothing to settle: that is told here, for the sake of speed.
        if effect.rolled_back or effect.overflowed:
            rows = effect.settle()
        else:
            rows = partial.take(effect.operations) if partial is not None else ()
        # Positional arguments here and below: this is run for each transaction.
        position = Position(self._gtids, self._file, self._offset, resume)
        lineage = Lineage(
            self._server, self._file_began_at, self._last_gtid, self._last_us, self._last_xid
        )
        committed = Committed(
            effect.operations, position, committed_at, effect.rolled_back, rows, lineage
        )
        self.counts.transactions += 1
        self._ends_at = position
        if resume is not None:
            self._ends_at = msgspec.structs.replace(position, resume=None)
        self._open = False
        self._start = None
        return committed

    def _rows(self, kind: RowKind, event: int, data: bytes, start: int, stop: int) -> None:
        """Map the rows of an event of the usual size."""
        table = self._tables.get(data[start : start + 6])
        if table is None:
            self.counts.skipped_events += 1
            return
        if not self._open:
            raise self._outside()
        start += _ROWS_FRONT_BYTES
        if event in _ROWS_V2:
            # The length of the extra data counts its own two bytes.
            start += data[start] | data[start + 1] << 8
        effect = self._effect
        if table.cascades is not None:
            for problem in table.cascade(kind, data, start, stop, effect.operations):
                self._invalidated(problem)
        rows, problems = table.apply(kind, data, start, stop, effect.operations, effect.partial)
        self.counts.rows += rows
        for problem in problems:
            self._invalidated(problem)

    def _rows_in_pieces(
        self, kind: RowKind, event: int, data: bytes, start: int, stop: int
    ) -> Iterator[Output]:
        """Map the rows of a large or compressed event, within the limits at every piece."""
        table = self._tables.get(data[start : start + 6])
        if table is None:
            self.counts.skipped_events += 1
            return
        if not self._open:
            raise self._outside()
        start += _ROWS_FRONT_BYTES
        if event in _ROWS_V2:
            start += data[start] | data[start + 1] << 8
        rows_event = RowsEvent(
            kind, data, start, stop, event in _ROWS_COMPRESSED, self._event_bytes_max
        )

        def into() -> list[OperationSet]:
            return self._effect.operations

        for problems in table.cascade_in_pieces(rows_event, into):
            for problem in problems:
                self._invalidated(problem)
            yield PAUSE
        pieces = table.apply_in_pieces(rows_event, into, self._effect.partial)
        for number, (rows, problems) in enumerate(pieces):
            if number:
                yield PAUSE
            self.counts.rows += rows
            for problem in problems:
                self._invalidated(problem)
            if self._held_bytes() > self._transaction_bytes_max:
                yield self._hand_on_part()

    def _outside(self) -> BinlogError:
        return BinlogError(
            f"rows outside of a transaction at {self.where}: the stream did not begin at a"
            " transaction's start; give a position that does, or a GTID set",
            file=self._file,
            offset=self._offset,
        )

    def _clear_reshaped(self, table: MappedTable) -> None:
        """Clear a table whose columns are others than before: what is cached has the old ones."""
        self._tables.reshaped = None
        reason = "its columns were changed by a statement that is not in the binlog"
        for problem in table.clear(reason, self._effect.operations):
            self._invalidated(problem)

    def _prepare(self, prepare: XaPrepare, timestamp: int) -> Iterator[Output]:
        """Hold an XA transaction until its outcome is known."""
        if prepare.one_phase:
            yield self._commit(timestamp)
            return
        effect = self._take_effect()
        # The outcome comes as a transaction of its own, behind others.
        effect.discard_partial()
        self._tables.sweep_again()
        held_bytes = effect.size_bytes + self._prepared.held_bytes
        if effect.overflowed or held_bytes > self._transaction_bytes_max:
            if effect.overflowed:
                yield Discarded()
            effect = Effect(self._nothing())
            reason = "a prepared XA transaction is above limits.transaction_bytes_max"
            for prefix in self._mapping.clear_all(effect.operations):
                self._invalidated(Problem(lane="", scope=f"{prefix}*", reason=reason))
        can_be_undone = self._start is not None and self._start.can_be_undone
        if not can_be_undone:
            # What an engine without transactions did of it is there already, and stays.
            self._effect.operations = effect.deletions()
            self._prepared.touched(self._effect.operations)
        self._prepared.hold(prepare.xid, effect, self._ends_at, can_be_undone=can_be_undone)
        yield self._commit(timestamp, touches=False)

    def _decide(self, kind: StatementKind, xid: str, timestamp: int) -> Committed:
        """Apply or drop what an XA transaction held, at XA COMMIT or XA ROLLBACK."""
        commits = kind is StatementKind.XA_COMMIT
        effect = self._effect
        held = self._prepared.commit(xid) if commits else self._prepared.roll_back(xid)
        effect.discard_partial()
        if held is not None:
            held.absorb(effect)
            held.partial = effect.partial
            self._effect = effect = held
        elif commits:
            reason = "an XA transaction was committed whose rows came before the start"
            for prefix in self._mapping.clear_all(effect.operations):
                self._invalidated(Problem(lane="", scope=f"{prefix}*", reason=reason))
        return self._commit(timestamp)

    def _incident(self, timestamp: int) -> Iterator[Output]:
        """Clear everything: the server says that its binlog lacks something from here on."""
        for prefix in self._mapping.clear_all(self._effect.operations):
            self._invalidated(
                Problem(
                    lane="",
                    scope=f"{prefix}*",
                    reason="the server reported an incident: its binlog is incomplete",
                )
            )
        if not self._open:
            yield self._commit(timestamp)

    def _invalidated(self, problem: Problem) -> None:
        self.counts.invalidations += 1
        self._report(problem, self.where)

    def _oversized(self, block: Block, *, inner: bool) -> Iterator[Output]:
        """Clear what an event that is too large to hold may change; only its front is there."""
        data = block.data
        start, _ = block.spans[0]
        timestamp, kind, _, size, next_position, _ = b.unpack_header(data, start)
        self.counts.events += 1
        if not inner:
            self._advance(next_position, size)
        if kind in _WITHOUT_CHANGE:
            return
        reason = f"an event of {block.oversized_bytes} bytes is above limits.event_bytes_max"
        if kind in _STATEMENTS:
            yield from self._unread_statement(reason, timestamp)
            return
        if kind == b.TRANSACTION_PAYLOAD:
            # All of a transaction but its GTID: after it the next one begins.
            self._clear_all(reason)
            yield self._commit(timestamp)
            return
        if kind not in _ROWS:
            raise BinlogError(
                f"the event of type {kind} at {self.where} has {block.oversized_bytes} bytes;"
                " raise limits.event_bytes_max above that",
                file=self._file,
                offset=self._offset,
            )
        body = start + b.HEADER_BYTES
        table: MappedTable | None = self._tables.get(data[body : body + 6])
        if table is None:
            self.counts.skipped_events += 1
            return
        for problem in table.clear(reason, self._effect.operations):
            self._invalidated(problem)

    def _unread_statement(self, reason: str, timestamp: int) -> Iterator[Output]:
        """Clear everything for a statement that cannot be read: what it does is not known."""
        yield ForeignKeysWanted()
        self._tables.forget_schemas()
        self._known_reach().forget()
        self._clear_all(reason)
        if not self._open:
            yield self._commit(timestamp)

    def _clear_all(self, reason: str) -> None:
        for prefix in self._mapping.clear_all(self._effect.operations):
            self._invalidated(Problem(lane="", scope=f"{prefix}*", reason=reason))

    def _query(self, query: b.Query, timestamp: int) -> Iterator[Output]:
        # Most streams have no statement but BEGIN, and start sooner without the parser.
        from lanecache.ingest.sql_context import parse_context
        from lanecache.ingest.statements import classify

        context = parse_context(query.status)
        statement = classify(query.sql, query.schema, context)
        kind = statement.kind
        if kind is StatementKind.BEGIN:
            self._open = True
        elif kind is StatementKind.COMMIT:
            yield self._commit(timestamp)
        elif kind is StatementKind.ROLLBACK:
            # What a non-transactional engine did of it stays done, the rest never was: only a
            # deletion is right for both.
            self._effect.rolled_back = True
            yield self._commit(timestamp)
        elif kind is StatementKind.ROLLBACK_TO:
            self._effect.rolled_back = True
        elif kind is StatementKind.XA_START:
            self._open = True
        elif kind in (StatementKind.XA_COMMIT, StatementKind.XA_ROLLBACK):
            yield self._decide(kind, statement.name, timestamp)
        elif kind in _WITHOUT_EFFECT:
            pass
        else:
            if self._follow_links(statement, query, context):
                yield ForeignKeysWanted()
            if kind is not StatementKind.DML:
                self._apply_statement(statement, query, context)
            if kind is not StatementKind.UNKNOWN and statement.may_touch_others:
                yield from self._write(statement, query, context)
            if not self._open:
                yield self._commit(timestamp)

    def _follow_links(self, statement: Statement, query: b.Query, context: Context) -> bool:
        """Take what a statement does to the links between tables; true: the catalogue is wanted."""
        from lanecache.ingest.sql_links import makes_inline_keys, read_link_changes

        inline = makes_inline_keys(self.server_version, mariadb=self._mariadb)
        changes = read_link_changes(query.sql, query.schema, context, inline_references=inline)
        wanted, missed = self._tables.follow(changes, statement.tables, self._ends_at)
        reason = "a foreign key or a MERGE table may have changed it before or with a statement"
        for table in missed:
            for prefix in self._mapping.clear_table(
                *table, self._effect.operations, folded=self._folded
            ):
                self._invalidated(Problem(".".join(table), f"{prefix}*", reason))
        return wanted or statement.kind in _CHANGES_LINKS

    def _known_reach(self) -> Reach:
        """Give what is known of statements' reach; its modules are loaded with the first one."""
        if self._reach is None:
            from lanecache.ingest.reach import Reach

            self._reach = Reach()
            if self._catalogue is not None:
                self._reach.provide(self._catalogue)
        return self._reach

    def _write(self, statement: Statement, query: b.Query, context: Context) -> Iterator[Output]:
        """Clear what a change of rows in statement format may reach."""
        reach = self._known_reach()
        if reach.wants_catalogue(statement, query.sql, context):
            yield CatalogueWanted()
        reached = reach.of(statement, query.sql, context, self._ends_at)
        reason = "a write in statement format cannot be read as rows"
        if reached is None:
            reason += ", nor be told which tables it reaches"
            cleared = self._mapping.clear_all(self._effect.operations)
        else:
            cleared = self._clear_tables({*reached, *self._tables.merged_with(reached)})
        for prefix in cleared:
            self._invalidated(Problem(lane="", scope=f"{prefix}*", reason=reason))

    def _clear_tables(self, tables: Iterable[tuple[str, str]]) -> list[str]:
        """Clear tables by the names that a statement has for them; give the prefixes."""
        into, folded = self._effect.operations, self._folded
        cleared = [
            prefix
            for table in sorted(tables)
            for prefix in self._mapping.clear_table(*table, into, folded=folded)
        ]
        return list(dict.fromkeys(cleared))

    def _apply_statement(self, statement: Statement, query: b.Query, context: Context) -> None:
        """Turn a statement into the clears that make what it may have changed a miss."""
        kind = statement.kind
        into = self._effect.operations
        if statement.objects or statement.renames or statement.foreign_keys:
            self._known_reach().learn(statement, query.sql, query.schema, context)
        if kind is StatementKind.HARMLESS:
            self._tables.forget_schemas(statement.tables)
            if statement.rewrites:
                self._clear_tables(filter(self._tables.may_compute, statement.tables))
        elif kind is StatementKind.TABLE_DDL:
            self._tables.forget_schemas(statement.tables)
            self._clear_tables(statement.tables)
        elif kind is StatementKind.SCHEMA_DDL:
            self._tables.forget_schemas()
            self._mapping.clear_schema(statement.schema, into, folded=self._folded)
        else:
            self._tables.forget_schemas()
            self._known_reach().forget()
            text = query.sql[:80].decode("utf-8", "replace")
            for prefix in self._mapping.clear_all(into):
                self._invalidated(
                    Problem(
                        lane="",
                        scope=f"{prefix}*",
                        reason=f"the effect of a statement is not known: {text}",
                    )
                )


# Behind these, the catalogue may have other links between tables.
_CHANGES_LINKS = frozenset(
    {StatementKind.TABLE_DDL, StatementKind.SCHEMA_DDL, StatementKind.UNKNOWN}
)
# Inside a transaction: what they mean is in other statements and events.
_WITHOUT_EFFECT = frozenset(
    {
        StatementKind.SAVEPOINT,
        StatementKind.RELEASE,
        StatementKind.XA_END,
        StatementKind.XA_PREPARE,
    }
)
