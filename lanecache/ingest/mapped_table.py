"""A table that lanes want, in one shape: its rows events become operations.

What cannot be read clears what it may have changed (law 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from lanecache.errors import BinlogError, SchemaUnknown
from lanecache.ingest.row_decoders import RowDecoders
from lanecache.ingest.rows import NOT_IN_IMAGE, READ_ERRORS, RowKind, TableCode, read_rows
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
    from lanecache.ingest.cascades import Cascades
    from lanecache.ingest.reread import PartialRows
    from lanecache.ingest.table import TableMap

MapRows = Callable[[Sequence[Image], Sequence[OperationSet]], Sequence[Problem] | None]


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
        self._decoders = RowDecoders(self._columns)
        self.cascades = cascades
        self._referenced: tuple[ColumnUse, ...] | None = ()
        self._referenced_decoders = RowDecoders(self._columns)
        if not reason:
            try:
                self._code = TableCode(table_map)
            except SchemaUnknown as error:
                self.reason = str(error)
            else:
                self._bound = mapping.bind(self._code.shape)
                self._referenced = self._find_referenced(self._code)
        self._whole_decoders = RowDecoders(self._columns)
        self._row_end: tuple[ColumnUse, ...] = ()
        if table_map.row_end is not None:
            self._row_end = (ColumnUse(table_map.row_end, ColumnForm.TEXT),)
        self._name = (self.schema, self.table)
        self._changes: dict[RowKind, MapRows] = {}  # what maps the rows of each kind of event
        bound = self._bound
        if bound is not None:
            self._changes = {
                RowKind.WRITE: bound.write,
                RowKind.UPDATE: bound.update,
                RowKind.PARTIAL_UPDATE: bound.update,
                RowKind.DELETE: bound.delete,
            }
        # Whether nothing is special about the table.
        self._usual = bound is not None and not bound.problems and not self._row_end

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
        if unpack is None and self._usual:
            # Nearly always the event begins like one before it, and all of it can be read.
            decoder, rows_start = self._decoders.find(kind, data, start)
            if decoder is not None and decoder.decode is not None:
                try:
                    images = decoder.decode(data, rows_start, end)
                except READ_ERRORS:
                    pass
                else:
                    if partial is not None and kind is not RowKind.WRITE:
                        partial.refuse(self._name)
                    problems = self._changes[kind](images, into) or ()
                    return len(images) >> kind.has_both_images, problems
        return self._apply(kind, data, start, end, into, unpack, partial)

    def _apply(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        into: Sequence[OperationSet],
        unpack: Callable[[bytes], bytes] | None,
        partial: PartialRows | None,
    ) -> tuple[int, Sequence[Problem]]:
        """Do the same for any event."""
        code, bound = self._code, self._bound
        event = (data, start, end)
        if code is None or bound is None:
            return 0, self.clear(self.reason, into)
        try:
            plans = (*bound.before, *self._row_end), (*bound.after, *self._row_end)
            images, careful = _read(self._decoders, code, *plans, kind, event, unpack)
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
                partial.refuse(self._name)
        if self._row_end:
            problems: Sequence[Problem] = self._map_current(bound, kind, images, into)
        elif careful:
            problems = _map_carefully(bound, kind, images, into)
        else:
            problems = self._changes[kind](images, into) or ()
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
            partial.refuse(self._name)
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
                partial.refuse(self._name)
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
        try:
            return _read(self._whole_decoders, code, key, raw, kind, event, unpack)[0]
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
        cascades, name = self.cascades, self._name
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
            for prefix in self._mapping.clear_table(*child, into, folded=cascades.folded)
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
        event = (data, start, end)
        try:
            images, careful = _read(
                self._referenced_decoders, code, uses, uses, kind, event, unpack
            )
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


def _read(
    decoders: RowDecoders,
    code: TableCode,
    before_plan: Sequence[ColumnUse],
    after_plan: Sequence[ColumnUse],
    kind: RowKind,
    event: tuple[bytes, int, int],
    unpack: Callable[[bytes], bytes] | None,
) -> tuple[list[Image], bool]:
    """Read an event's rows: their images, and whether they had to be read carefully.

    Raises:
        BinlogError: they cannot be read.
    """
    data, start, end = event
    decoder, start = decoders.get(code, before_plan, after_plan, kind, data, start)
    if unpack is not None:
        data = unpack(data[start:end])
        start, end = 0, len(data)
    return read_rows(decoder, data, start, end)


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
