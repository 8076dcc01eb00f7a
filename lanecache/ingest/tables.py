"""The tables of a stream: table ids to mapped tables.

A table map is recognised by its bytes, so that its decoder is compiled once however often the
server gives the table a new id. Tables without a lane are remembered as such, and their rows are
never looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import BinlogError
from lanecache.ingest.cascades import Cascades, ForeignKey
from lanecache.ingest.completion import with_schema, with_unproven_schema
from lanecache.ingest.mapped_table import MappedTable
from lanecache.ingest.table import parse_table_map

if TYPE_CHECKING:
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


class Tables:
    """What is known of the stream's tables at this point of it."""

    def __init__(self, mapping: TableMapping, names: Names) -> None:
        self._mapping = mapping
        self._key = names.key
        self._cascades = Cascades(names)
        self.announced: set[bytes] = set()
        """Bodies of TABLE_MAP events that say what is known: ``announce`` can be left out."""
        self._by_id: dict[bytes, MappedTable | None] = {}
        self._by_map: dict[bytes, MappedTable] = {}
        self._unproven: dict[bytes, MappedTable] = {}
        self._schemas: dict[TableName, SchemaReading | None] = {}

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

    def announce(self, body: bytes, *, mariadb: bool, place: Place) -> NamedTable | None:
        """Take a TABLE_MAP body. Gives a name where today's schema has to be provided first.

        ``place`` says where the event stands: a schema that was read later holds for it only when
        that is proven.

        Raises:
            BinlogError: the bytes are no table map.
        """
        table_id = body[:_TABLE_ID_BYTES]
        front = body[_TABLE_MAP_FRONT_BYTES:]
        known = self._by_map.get(front)
        if known is not None:
            self._announced(table_id, known, body)
            return None
        name = _name(front)
        watched = self._cascades.watches((name.schema, name.table))
        if not watched and not self._mapping.wants(name.schema, name.table):
            self._announced(table_id, None, body)
            return None
        table_map = parse_table_map(front, mariadb=mariadb)
        reason = ""
        lasting = True  # not to be judged anew
        if not table_map.complete or table_map.undecided:
            key = self._key((name.schema, name.table))
            if key not in self._schemas:
                return name
            schema = self._schemas[key]
            completed = (
                with_schema(table_map, schema.columns)
                if schema is not None
                else f"the columns of {name.schema}.{name.table} cannot be read from"
                " information_schema"
            )
            if isinstance(completed, str):
                reason = completed
            elif schema is not None and not place.after(schema):
                # Not for certain now does not mean never: the next table map is judged anew.
                lasting = False
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
        table = self._unproven.get(front) if not lasting else None
        if table is None:
            table = MappedTable(
                table_map, self._mapping, reason, self._cascades if watched else None
            )
        if lasting:
            self._by_map[front] = table
            self._announced(table_id, table, body)
        else:
            self._unproven[front] = table
            self._by_id[table_id] = table
            self.announced.clear()
        return None

    def _announced(self, table_id: bytes, table: MappedTable | None, body: bytes) -> None:
        """Take note of what an id stands for from here on."""
        if table_id in self._by_id or len(self.announced) >= _ANNOUNCED_MAX:
            # Another body of this id may be among them, which is not true any more.
            self.announced.clear()
        self._by_id[table_id] = table
        self.announced.add(body)

    def provide(self, name: NamedTable, schema: SchemaReading | None) -> None:
        """Take what ``information_schema`` says of a table, or ``None`` if it says nothing."""
        self._schemas[self._key((name.schema, name.table))] = schema

    def learn_foreign_keys(self, keys: Iterable[ForeignKey]) -> None:
        """Take the foreign keys whose cascades the binlog does not hold."""
        if self._cascades.learn(keys):
            self.announced.clear()
            self._by_map.clear()
            self._unproven.clear()

    def forget_schemas(self, names: Iterable[tuple[str, str]] | None = None) -> None:
        """Forget what was provided for these tables (all, without an argument): DDL came."""
        wanted = None if names is None else {self._key(name) for name in names}
        self.announced.clear()
        self._unproven.clear()
        for name in list(self._schemas):
            if wanted is None or name in wanted:
                del self._schemas[name]
                for front, table in list(self._by_map.items()):
                    if self._key((table.schema, table.table)) == name:
                        del self._by_map[front]


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
