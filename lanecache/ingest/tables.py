"""The tables of a stream: table ids to mapped tables.

A table map is recognised by its bytes, so that its decoder is compiled once however often the
server gives the table a new id. Tables without a lane are remembered as such, and their rows are
never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.cascades import Cascades
from lanecache.ingest.completion import with_schema, with_unproven_schema
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.looks import Looks
from lanecache.ingest.mapped_table import MappedTable
from lanecache.ingest.table import TableMap, parse_table_map, same_shape

if TYPE_CHECKING:
    from lanecache.ingest.cascades import LinkChanges, Links
    from lanecache.ingest.schema import SchemaReading
    from lanecache.operation import Position
    from lanecache.row import TableMapping
    from lanecache.table_names import Names, TableName

_TABLE_ID_BYTES = 6
_TABLE_MAP_FRONT_BYTES = 8  # table id and flags
_ANNOUNCED_MAX = 4096


class NamedTable(msgspec.Struct, frozen=True):
    """A table's name."""

    schema: str
    table: str


class Place(msgspec.Struct, frozen=True):
    """Where a table map stands: behind ``position``, written at ``timestamp`` by ``server_id``.

    ``own`` tells whether the server that is read wrote it by itself, so that its clock is the one
    that a schema's ``changed_at`` comes from.
    """

    position: Position
    timestamp: int
    own: bool

    def after(self, schema: SchemaReading) -> bool:
        """Tell whether the schema certainly held at this place (if no DDL is met in between)."""
        if self.own and schema.changed_at is not None and schema.changed_at < self.timestamp:
            return True
        return self.position.covers(schema.position)


class Kept(msgspec.Struct, eq=False):
    """What is known of tables beyond one connection: their links, and their last shapes."""

    cascades: Cascades = msgspec.field(default_factory=Cascades)
    shapes: dict[TableName, tuple[bytes, TableMap]] = msgspec.field(default_factory=dict)


class Tables:
    """What is known of the stream's tables at this point of it."""

    def __init__(
        self,
        mapping: TableMapping,
        names: Names,
        kept: Kept | None = None,
        clock: Callable[[], float] | None = None,
        *,
        value_bytes_max: int = EVENT_BYTES_MAX,
    ) -> None:
        """Begin at a place of the stream.

        Args:
            mapping: the lanes.
            names: how the server compares names.
            kept: goes on from what an earlier connection knew.
            clock: seconds, by which a schema that does not fit is asked for again.
            value_bytes_max: what a compressed value may unpack to.
        """
        self._mapping = mapping
        self._folded = names.folded
        self._key = names.key
        self._value_bytes_max = value_bytes_max
        kept = kept if kept is not None else Kept()
        self._cascades = kept.cascades
        self._cascades.begin()
        self._shapes = kept.shapes  # as the last table map had them
        self.announced: set[bytes] = set()
        """Bodies of TABLE_MAP events that say what is known: ``announce`` can be left out."""
        self._by_id: dict[bytes, MappedTable | None] = {}
        self._by_map: dict[bytes, MappedTable] = {}
        self._unproven: dict[bytes, MappedTable] = {}
        self._schemas: dict[TableName, SchemaReading | None] = {}
        self._misfits: set[bytes] = set()  # of ``_by_map``: to be judged by another schema
        self._looks = Looks(clock)
        self.reshaped: MappedTable | None = None
        """A table whose shape changed though no statement said so; for the caller to take."""

    def get(self, table_id: bytes) -> MappedTable | None:
        """Give the table of a rows event's id, or ``None`` if no lane wants it.

        Raises:
            BinlogError: no table map came for this id: a change would go unread.
        """
        try:
            return self._by_id[table_id]
        except KeyError:
            number = int.from_bytes(table_id, "little")
            raise BinlogError(f"rows of table id {number}, which no table map announced") from None

    def forget_ids(self) -> None:
        """Forget the ids, which mean nothing beyond a binlog file; shapes stay."""
        self._by_id.clear()
        self.announced.clear()

    def announce(
        self, body: bytes, *, mariadb: bool, place: Place, asked: bool = False
    ) -> NamedTable | None:
        """Take a TABLE_MAP body. Gives a name where today's schema has to be provided first.

        ``place`` says where the event stands: a schema that was read later holds for it only when
        that is proven. ``asked``: it was provided just now, and is not asked for once more.

        Raises:
            BinlogError: the bytes are no table map.
        """
        table_id = body[:_TABLE_ID_BYTES]
        front = body[_TABLE_MAP_FRONT_BYTES:]
        known = self._by_map.get(front)
        if known is not None:
            self._compare(known, front, mariadb=mariadb)
            if front not in self._misfits:
                self._announced(table_id, known, body)
                return None
            name = NamedTable(known.schema, known.table)
            key = self._key((name.schema, name.table))
            if key in self._schemas:
                if not asked and self._looks.due(key):
                    self._forget_schema(key)
                    return name
                self._passing(table_id, known)
                return None
        name = _name(front)
        watched = self._cascades.watches((name.schema, name.table))
        if not watched and not self._mapping.wants(name.schema, name.table):
            self._announced(table_id, None, body)
            return None
        table_map = parse_table_map(front, mariadb=mariadb)
        reason = ""
        fits = proven = True
        asks = not table_map.complete or table_map.undecided
        key = self._key((name.schema, name.table))
        if asks:
            if key not in self._schemas:
                return name
            schema = self._schemas[key]
            completed = (
                with_schema(
                    table_map,
                    schema.columns,
                    mariadb=mariadb,
                    row_hashes_max=schema.row_hashes_max,
                )
                if schema is not None
                else f"the columns of {name.schema}.{name.table} cannot be read from"
                " information_schema"
            )
            if isinstance(completed, str):
                fits = False
                reason = completed
            elif schema is not None and not place.after(schema):
                # Not for certain now does not mean never: the next table map is judged anew.
                proven = False
                reason = (
                    f"the columns of {name.schema}.{name.table} may have been others then;"
                    " SET GLOBAL binlog_row_metadata = 'FULL' puts them into the binlog"
                )
                table_map = with_unproven_schema(table_map, completed)
            else:
                table_map = completed
            if table_map.complete:
                # What is undecided concerns single columns, and makes these unreadable.
                reason = ""
        table = self._unproven.get(front) if not proven else None
        if table is None:
            table = MappedTable(
                table_map,
                self._mapping,
                reason,
                self._cascades if watched else None,
                folded=self._folded,
                value_bytes_max=self._value_bytes_max,
            )
        self._compare(table, front, mariadb=mariadb)
        # A lane's column that is not there may have its name by a DDL that is not in the binlog.
        fits = fits and not (asks and table.problems)
        if not fits and not asked and self._looks.due(key):
            self._forget_schema(key)
            return name
        if not proven:
            self._unproven[front] = table
            self._passing(table_id, table)
            return None
        self._by_map[front] = table
        if fits:
            self._misfits.discard(front)
            self._looks.forget(key)
            self._announced(table_id, table, body)
        else:
            self._misfits.add(front)
            self._passing(table_id, table)
        return None

    def _compare(self, table: MappedTable, front: bytes, *, mariadb: bool) -> None:
        """See whether a table's shape is still that of its last table map.

        A DDL with ``sql_log_bin = 0`` changes what SELECT gives of every row, without a word.
        """
        key = self._key((table.schema, table.table))
        last = self._shapes.get(key)
        if last is not None and last[0] == front:
            return
        # What another shape has stored is not swept yet.
        table.sweep_again()
        table_map = parse_table_map(front, mariadb=mariadb)
        self._shapes[key] = (front, table_map)
        if last is not None and not same_shape(last[1], table_map):
            self.reshaped = table

    def _passing(self, table_id: bytes, table: MappedTable) -> None:
        """Take note of what an id stands for, to be judged anew at its next table map."""
        if self._by_id.get(table_id) is not table:
            self._by_id[table_id] = table
            self.announced.clear()

    def sweep_again(self) -> None:
        """Take nothing for cleared: what was read last may come to nothing."""
        for table in self._by_id.values():
            if table is not None:
                table.sweep_again()

    def _announced(self, table_id: bytes, table: MappedTable | None, body: bytes) -> None:
        """Take note of what an id stands for from here on."""
        if table_id in self._by_id or len(self.announced) >= _ANNOUNCED_MAX:
            # Another body of this id may be among them, which is not true any more.
            self.announced.clear()
        self._by_id[table_id] = table
        self.announced.add(body)

    def provide(self, name: NamedTable, schema: SchemaReading | None) -> None:
        """Take what ``information_schema`` says of a table, or ``None`` if it says nothing."""
        key = self._key((name.schema, name.table))
        self._schemas[key] = schema
        self._looks.looked(key)

    def learn_links(self, links: Links, at: Position) -> list[TableName]:
        """Take the links between tables that the catalogue has, with the stream behind ``at``.

        Gives the tables that a link which was not known may have changed until here.
        """
        learnt, missed = self._cascades.learn(links, at)
        if learnt:
            self._forget_shapes()
        return missed

    def follow(
        self, changes: LinkChanges, tables: Iterable[TableName], at: Position
    ) -> tuple[bool, list[TableName]]:
        """Take what a statement behind ``at`` does to links; ``tables`` are those that it changes.

        Gives whether the catalogue has to be read again; and further tables that the statement may
        change, or that a link which it ends may have changed.
        """
        merged = self.merged_with(table for table in tables if table not in changes.dropped)
        learnt, missed = self._cascades.follow(changes, at)
        if learnt:
            self._forget_shapes()
        if changes.redefined:
            self.forget_schemas(changes.redefined)
        wanted = learnt or changes.doubtful or bool(changes.weakened)
        return wanted, sorted({*merged, *missed})

    def may_compute(self, table: TableName) -> bool:
        """Tell whether the table may have a column that is computed as a row is written."""
        return self._cascades.may_compute(table)

    def merged_with(self, tables: Iterable[TableName]) -> list[TableName]:
        """Give the tables that share rows with one of these, by a MERGE table."""
        return [other for table in tables for other in self._cascades.merged_with(table)]

    def forget_schemas(self, names: Iterable[tuple[str, str]] | None = None) -> None:
        """Forget what was provided for these tables (all, without an argument): DDL came."""
        wanted = None if names is None else {self._key(name) for name in names}
        self.announced.clear()
        self._unproven.clear()
        if wanted is None:
            self._shapes.clear()
        else:
            for key in wanted:
                self._shapes.pop(key, None)
        for key in list(self._schemas):
            if wanted is None or key in wanted:
                self._looks.forget(key)
                self._forget_schema(key)

    def _forget_schema(self, key: TableName) -> None:
        del self._schemas[key]
        self.announced.clear()
        for front, table in list(self._by_map.items()):
            if self._key((table.schema, table.table)) == key:
                del self._by_map[front]
                self._misfits.discard(front)
        for front, table in list(self._unproven.items()):
            if self._key((table.schema, table.table)) == key:
                del self._unproven[front]

    def _forget_shapes(self) -> None:
        """Forget which tables are watched, and for which of their columns."""
        self.announced.clear()
        self._by_map.clear()
        self._unproven.clear()
        self._misfits.clear()


def _name(front: bytes) -> NamedTable:
    try:
        schema_stop = 1 + front[0]
        table_start = schema_stop + 2
        table_stop = table_start + front[schema_stop + 1]
        return NamedTable(
            schema=front[1:schema_stop].decode("utf-8"),
            table=front[table_start:table_stop].decode("utf-8"),
        )
    except (IndexError, UnicodeDecodeError) as error:
        raise BinlogError(f"a table map without names: {error}") from error
