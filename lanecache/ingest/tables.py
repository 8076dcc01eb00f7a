"""The tables of a stream: table ids to mapped tables, and their compiled decoders.

A table map is recognised by its bytes, so that its decoder is compiled once however often the
server gives the table a new id. Tables without a lane are remembered as such, and their rows are
never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.errors import BinlogError, SchemaUnknown
from lanecache.ingest.cascades import Cascades, ForeignKey
from lanecache.ingest.completion import with_schema, with_unproven_schema
from lanecache.ingest.rows import (
    NOT_IN_IMAGE,
    RowDecoder,
    RowKind,
    TableCode,
    compile_rows,
    read_rows,
)
from lanecache.ingest.table import (
    TableMap,
    packed_int,
    parse_table_map,
)
from lanecache.operation import Delete, OperationSet
from lanecache.row import (
    BoundTable,
    ColumnForm,
    ColumnUse,
    Image,
    Problem,
    TableMapping,
    Unreadable,
)

if TYPE_CHECKING:
    from lanecache.ingest.reread import PartialRows
    from lanecache.ingest.schema import SchemaReading
    from lanecache.operation import Position

_TABLE_ID_BYTES = 6
_TABLE_MAP_FRONT_BYTES = 8  # table id and flags
_ANNOUNCED_MAX = 4096
_PACKED_2 = 0xFB  # from here on a packed integer is a byte with its length, and two bytes
_FRONTS_MAX = 256  # of a table and kind of event: bitmaps differ where statements name columns


class MappedTable:
    """A table that lanes want, in one shape; ``reason`` says why its rows cannot be read, if so."""

    def __init__(
        self,
        table_map: TableMap,
        mapping: TableMapping,
        reason: str = "",
        cascades: Cascades | None = None,
    ) -> None:
        self.schema = table_map.schema
        self.table = table_map.table
        self.reason = reason
        self._mapping = mapping
        self._code: TableCode | None = None
        self._bound: BoundTable | None = None
        self._columns = len(table_map.columns)
        self._decoders = _Decoders(self._columns)
        self.cascades = cascades
        self._referenced: tuple[ColumnUse, ...] | None = ()
        self._referenced_decoders = _Decoders(self._columns)
        if not reason:
            try:
                self._code = TableCode(table_map)
            except SchemaUnknown as error:
                self.reason = str(error)
            else:
                self._bound = mapping.bind(self._code.shape)
                self._referenced = self._find_referenced(self._code)
        self._whole_decoders = _Decoders(self._columns)
        self._row_end: tuple[ColumnUse, ...] = ()
        if table_map.row_end is not None:
            self._row_end = (ColumnUse(table_map.row_end, ColumnForm.TEXT),)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What keeps lanes from working on this shape; each clears its prefix at every change."""
        return self._bound.problems if self._bound is not None else ()

    @property
    def code(self) -> TableCode | None:
        """How the columns are read; ``None`` where no row can be."""
        return self._code

    @property
    def bound(self) -> BoundTable | None:
        """The lanes over this shape; ``None`` where no row can be read."""
        return self._bound

    def apply(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        into: Sequence[OperationSet],
        unpack: Callable[[bytes], bytes] | None = None,
        partial: PartialRows | None = None,
    ) -> tuple[int, Sequence[Problem]]:
        """Map the rows of an event (``data[start:end]``, from the column count on).

        Gives the number of rows and what had to be invalidated. Rows that cannot be read at all
        clear the table's keys. ``unpack`` is for rows that are compressed behind their bitmaps.
        ``partial`` takes the rows that can be read again, where there is a server to ask.
        """
        code, bound = self._code, self._bound
        event = (data, start, end)
        if code is None or bound is None:
            return 0, self.clear(self.reason, into)
        try:
            decoder, start = self._decoders.find(kind, data, start)
            if decoder is None:
                plans = (*bound.before, *self._row_end), (*bound.after, *self._row_end)
                decoder, start = self._decoders.compile(code, *plans, kind, data, start)
            if unpack is not None:
                data = unpack(data[start:end])
                start, end = 0, len(data)
            images, careful = read_rows(decoder, data, start, end)
        except BinlogError as error:
            return 0, self.clear(str(error), into)
        rows = len(images) >> 1 if kind.has_both_images else len(images)
        if partial is not None:
            if careful and kind in (RowKind.WRITE, RowKind.UPDATE) and not self._row_end:
                return rows, [
                    *bound.problems,
                    *self._map_partly(bound, code, kind, images, event, unpack, into, partial),
                ]
            if kind is not RowKind.WRITE:
                partial.refuse((self.schema, self.table))
        if self._row_end:
            problems: Sequence[Problem] = self._map_current(bound, kind, images, into)
        elif careful:
            problems = _map_carefully(bound, kind, images, into)
        elif kind.has_both_images:
            problems = bound.update(images, into) or ()
        else:
            change = bound.write if kind is RowKind.WRITE else bound.delete
            problems = change(images, into) or ()
        if bound.problems:
            # The lanes that cannot work on this shape have cleared their prefixes.
            problems = [*bound.problems, *problems]
        return rows, problems

    def _map_partly(
        self,
        bound: BoundTable,
        code: TableCode,
        kind: RowKind,
        images: Sequence[Image],
        event: tuple[bytes, int, int],
        unpack: Callable[[bytes], bytes] | None,
        into: Sequence[OperationSet],
        partial: PartialRows,
    ) -> list[Problem]:
        """Map rows whose images may lack columns, and note the rows to be read again."""
        whole = self._read_whole(code, kind, event, unpack)
        if whole is None:
            partial.refuse((self.schema, self.table))
            return _map_carefully(bound, kind, images, into)
        problems: list[Problem] = []
        for (old, new), (before, after) in zip(
            _changes(kind, images), _changes(kind, whole), strict=True
        ):
            effects = [OperationSet() for _ in into]
            problems += bound.change_carefully(old, new, effects)
            for effect, total in zip(effects, into, strict=True):
                total.extend(effect)
            assert after is not None
            primary_key = tuple(after[index] for index in code.shape.primary_key)
            held = {index: value for index, value in enumerate(after) if value is not NOT_IN_IMAGE}
            if (
                before not in (None, primary_key)
                or None in primary_key
                or any(isinstance(value, Unreadable) for value in (*primary_key, *held.values()))
            ):
                partial.refuse((self.schema, self.table))
                continue
            keys = [
                frozenset(write.key for write in effect.writes() if isinstance(write, Delete))
                for effect in effects
            ]
            partial.note(self, primary_key, held, keys)
        return problems

    def _read_whole(
        self,
        code: TableCode,
        kind: RowKind,
        event: tuple[bytes, int, int],
        unpack: Callable[[bytes], bytes] | None,
    ) -> list[Image] | None:
        """Read all that the images hold: before, the primary key; after, every column."""
        if not code.shape.primary_key or any(column.unreadable for column in code.columns):
            return None
        raw = [ColumnUse(index, ColumnForm.RAW) for index in range(len(code.columns))]
        key = [raw[index] for index in code.shape.primary_key]
        data, start, end = event
        try:
            decoder, start = self._whole_decoders.get(code, key, raw, kind, data, start)
            if unpack is not None:
                data = unpack(data[start:end])
                start, end = 0, len(data)
            return read_rows(decoder, data, start, end)[0]
        except BinlogError:
            return None

    def _map_current(
        self,
        bound: BoundTable,
        kind: RowKind,
        images: Sequence[Image],
        into: Sequence[OperationSet],
    ) -> list[Problem]:
        """Map the rows of a system-versioned table, those of the past left out.

        MariaDB deletes a row by an update that ends its life, and writes the past of a changed row
        as one more row.
        """
        problems: list[Problem] = []
        for before, after in _changes(kind, images):
            now_before = before if before is not None and before[-1] in _NEVER else None
            now_after = after if after is not None and after[-1] in _NEVER else None
            if any(isinstance(row[-1], Unreadable) for row in (before, after) if row is not None):
                reason = "a row of the past cannot be told from one of now"
                return problems + self.clear(reason, into)
            if now_before is not None or now_after is not None:
                problems += bound.change_carefully(
                    None if now_before is None else now_before[:-1],
                    None if now_after is None else now_after[:-1],
                    into,
                )
        return problems

    def cascade(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        into: Sequence[OperationSet],
        *,
        unpack: Callable[[bytes], bytes] | None = None,
    ) -> Sequence[Problem]:
        """Clear the tables that foreign keys may have changed along with the rows of an event.

        To be called before ``apply``: what the statement itself writes comes after its cascades.
        """
        cascades, name = self.cascades, (self.schema, self.table)
        if cascades is None or kind is RowKind.WRITE:
            return ()
        if kind is RowKind.DELETE:
            reached = cascades.reached_by_delete(name)
        elif self._references_change(kind, data, start, end, unpack):
            reached = cascades.reached_by_update(name)
        else:
            return ()
        reason = f"a foreign key may have changed it along with {self.schema}.{self.table}"
        return [
            Problem(lane=".".join(child), scope=f"{prefix}*", reason=reason)
            for child in reached
            for prefix in self._mapping.clear_table(*child, into)
        ]

    def _find_referenced(self, code: TableCode) -> tuple[ColumnUse, ...] | None:
        """Find the columns whose change cascades; ``None`` where one is not there."""
        if self.cascades is None:
            return ()
        wanted = {column.lower() for column in self.cascades.columns((self.schema, self.table))}
        found = tuple(
            ColumnUse(index, ColumnForm.RAW)
            for index, column in enumerate(code.shape.columns)
            if column.name.lower() in wanted
        )
        return found if len(found) == len(wanted) else None

    def _references_change(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        unpack: Callable[[bytes], bytes] | None,
    ) -> bool:
        """Tell whether an update may have changed a column that children refer to."""
        uses, code = self._referenced, self._code
        if uses is None or code is None:
            return True
        if not uses:
            return False
        try:
            decoder, start = self._referenced_decoders.get(code, uses, uses, kind, data, start)
            if unpack is not None:
                data = unpack(data[start:end])
                start, end = 0, len(data)
            images, careful = read_rows(decoder, data, start, end)
        except BinlogError:
            return True
        if careful and any(isinstance(value, Unreadable) for image in images for value in image):
            return True
        return images[::2] != images[1::2]

    def clear(self, reason: str, into: Sequence[OperationSet]) -> list[Problem]:
        """Clear the keys of every lane of this table, and say why."""
        prefixes = self._mapping.clear_table(self.schema, self.table, into)
        where = f"{self.schema}.{self.table}"
        return [Problem(lane=where, scope=f"{prefix}*", reason=reason) for prefix in prefixes]


class _Decoders:
    """The compiled decoders of a table for one pair of plans, by what stands before the rows.

    That is the column count and one bitmap or two of the columns that the images hold. Its bytes
    are known as a whole once they have been read: most events of a table begin alike.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        count_bytes = 1 if columns < _PACKED_2 else 3
        bitmap_bytes = (columns + 7) // 8
        self._front_bytes = {
            kind: count_bytes + bitmap_bytes * (1 + kind.has_both_images) for kind in RowKind
        }
        self._by_front: dict[RowKind, dict[bytes, RowDecoder]] = {kind: {} for kind in RowKind}

    def find(self, kind: RowKind, data: bytes, pos: int) -> tuple[RowDecoder | None, int]:
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
    ) -> tuple[RowDecoder, int]:
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
    ) -> tuple[RowDecoder, int]:
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
        decoder = compile_rows(code, kind, before_plan, after_plan, before, after)
        known = self._by_front[kind]
        if pos - begin == self._front_bytes[kind]:
            if len(known) >= _FRONTS_MAX:
                del known[next(iter(known))]
            known[data[begin:pos]] = decoder
        return decoder, pos


def _map_carefully(
    bound: BoundTable, kind: RowKind, images: Sequence[Image], into: Sequence[OperationSet]
) -> list[Problem]:
    problems: list[Problem] = []
    for before, after in _changes(kind, images):
        problems += bound.change_carefully(before, after, into)
    return problems


# The end of what has no end in a system-versioned table: the greatest TIMESTAMP(6), which MariaDB
# 11.5 moved.
_NEVER = frozenset({"2038-01-19 03:14:07.999999", "2106-02-07 06:28:15.999999"})


def _changes(kind: RowKind, images: Sequence[Image]) -> Iterator[tuple[Image | None, Image | None]]:
    if kind.has_both_images:
        yield from zip(images[::2], images[1::2], strict=True)
        return
    for image in images:
        yield (None, image) if kind is RowKind.WRITE else (image, None)


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

    def __init__(self, mapping: TableMapping) -> None:
        self._mapping = mapping
        self._cascades = Cascades()
        self.announced: set[bytes] = set()
        """Bodies of TABLE_MAP events that say what is known: ``announce`` can be left out."""
        self._by_id: dict[bytes, MappedTable | None] = {}
        self._by_map: dict[bytes, MappedTable] = {}
        self._unproven: dict[bytes, MappedTable] = {}
        self._schemas: dict[NamedTable, SchemaReading | None] = {}

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
            if name not in self._schemas:
                return name
            schema = self._schemas[name]
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
        self._schemas[name] = schema

    def learn_foreign_keys(self, keys: Iterable[ForeignKey]) -> None:
        """Take the foreign keys whose cascades the binlog does not hold."""
        if self._cascades.learn(keys):
            self.announced.clear()
            self._by_map.clear()
            self._unproven.clear()

    def forget_schemas(self, names: Iterable[tuple[str, str]] | None = None) -> None:
        """Forget what was provided for these tables (all, without an argument): DDL came."""
        wanted = None if names is None else {NamedTable(*name) for name in names}
        self.announced.clear()
        self._unproven.clear()
        for name in list(self._schemas):
            if wanted is None or name in wanted:
                del self._schemas[name]
                for front, table in list(self._by_map.items()):
                    if (table.schema, table.table) == (name.schema, name.table):
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
