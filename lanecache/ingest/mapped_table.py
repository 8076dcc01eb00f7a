"""A table that lanes want, in one shape: its rows events become operations.

What cannot be read clears what it may have changed (law 1).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial as bind
from typing import TYPE_CHECKING

from lanecache.errors import BinlogError, SchemaUnknown
from lanecache.ingest.framing import EVENT_BYTES_MAX
from lanecache.ingest.row_decoders import PieceDecoders, RowDecoders
from lanecache.ingest.row_pieces import Piece, RowsEvent, next_piece, open_rows, same_images
from lanecache.ingest.rows import (
    NOT_IN_IMAGE,
    READ_ERRORS,
    RowKind,
    TableCode,
    read_rows,
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
    from lanecache.ingest.cascades import Cascades
    from lanecache.ingest.reread import PartialRows
    from lanecache.ingest.table import TableMap

MapRows = Callable[[Sequence[Image], Sequence[OperationSet]], Sequence[Problem] | None]


class _Pieces:
    """The decoders of a table for the rows of large and compressed events, by what is read."""

    def __init__(self, columns: int) -> None:
        self.mapped = PieceDecoders(columns)
        self.referenced = PieceDecoders(columns)
        self.whole = PieceDecoders(columns)


class MappedTable:
    """A table that lanes want, in one shape; ``reason`` says why its rows cannot be read, if so."""

    def __init__(
        self,
        table_map: TableMap,
        mapping: TableMapping,
        reason: str = "",
        cascades: Cascades | None = None,
        *,
        folded: bool = False,
        value_bytes_max: int = EVENT_BYTES_MAX,
    ) -> None:
        """Make ready what maps the rows.

        Args:
            table_map: the shape.
            mapping: the lanes.
            reason: why its rows cannot be read, if so.
            cascades: what a change of it reaches, where it may reach others.
            folded: whether the names of those may have another spelling than in their rows.
            value_bytes_max: what a compressed value may unpack to.
        """
        self._folded = folded
        self.schema = table_map.schema
        self.table = table_map.table
        self.reason = reason
        self._mapping = mapping
        self._code: TableCode | None = None
        self._bound: BoundTable | None = None
        self._columns = len(table_map.columns)
        self._decoders = RowDecoders(self._columns)
        self._piece_decoders = _Pieces(self._columns)
        self.cascades = cascades
        self._referenced: tuple[ColumnUse, ...] | None = ()
        self._referenced_decoders = RowDecoders(self._columns)
        if not reason:
            try:
                self._code = TableCode(table_map, value_bytes_max=value_bytes_max)
            except SchemaUnknown as error:
                self.reason = str(error)
            else:
                self._bound = mapping.bind(self._code.shape)
                self._referenced = self._find_referenced(self._code)
        self._whole_decoders = RowDecoders(self._columns)
        self._row_end: tuple[ColumnUse, ...] = ()
        self._doubted: dict[int, str | None] = {}  # places in an image, and what is NULL there
        if table_map.row_end is not None:
            self._row_end = (ColumnUse(table_map.row_end, ColumnForm.TEXT),)
            if self._bound is not None:
                self._doubted = {
                    place: "null" if use.form is ColumnForm.JSON else None
                    for place, use in enumerate(self._bound.after)
                    if table_map.columns[use.index].virtual
                }
        self._may_be_versioned = table_map.may_be_versioned or table_map.row_end is not None
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
        """What keeps lanes from working on this shape; each forgets its keys at every change."""
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
        partial: PartialRows | None = None,
    ) -> tuple[int, Sequence[Problem]]:
        """Map the rows of an event (``data[start:end]``, from the column count on).

        Gives the number of rows and what had to be invalidated. Rows that cannot be read at all
        clear the table's keys. ``partial`` takes the rows that can be read again, where there is a
        server to ask. For large and compressed events there is ``apply_in_pieces``.
        """
        if self._usual:
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
        return self._apply(kind, data, start, end, into, partial)

    def _apply(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        into: Sequence[OperationSet],
        partial: PartialRows | None,
    ) -> tuple[int, Sequence[Problem]]:
        """Do the same for any event."""
        code, bound = self._code, self._bound
        event = (data, start, end)
        if code is None or bound is None:
            return 0, self.clear(self.reason, into)
        try:
            images, careful = _read(self._decoders, code, *self._plans(bound), kind, event)
        except BinlogError as error:
            return 0, self.clear(str(error), into)
        rows = len(images) >> 1 if kind.has_both_images else len(images)

        def whole() -> list[Image] | None:
            return self._read_whole(code, kind, event)

        problems = self._map(bound, code, kind, images, whole if careful else None, into, partial)
        if bound.problems:
            # The lanes that cannot work on this shape have forgotten what they had to.
            problems = [*bound.problems, *problems]
            bound.swept = True
        return rows, problems

    def apply_in_pieces(
        self,
        event: RowsEvent,
        into: Callable[[], Sequence[OperationSet]],
        partial: PartialRows | None = None,
    ) -> Iterator[tuple[int, Sequence[Problem]]]:
        """Map the rows of an event as ``apply`` does, a piece at a time.

        Gives after each piece how many rows it had, and what had to be invalidated. ``into`` tells
        where the next piece goes.
        """
        code, bound = self._code, self._bound
        if code is None or bound is None:
            yield 0, self.clear(self.reason, into())
            return
        kind, pieces = event.kind, self._piece_decoders
        standing: Sequence[Problem] = bound.problems
        try:
            decoder, rows = open_rows(pieces.mapped, code, *self._plans(bound), event)
            while (piece := next_piece(decoder, rows)) is not None:
                whole = bind(self._piece_whole, code, event, piece) if piece.careful else None
                problems = self._map(bound, code, kind, piece.images, whole, into(), partial)
                if standing:
                    problems, standing = [*standing, *problems], ()
                    bound.swept = True
                yield len(piece.images) >> kind.has_both_images, problems
        except BinlogError as error:
            # It clears what the pieces before it brought, too.
            yield 0, self.clear(str(error), into())

    def _plans(self, bound: BoundTable) -> tuple[Sequence[ColumnUse], Sequence[ColumnUse]]:
        return (*bound.before, *self._row_end), (*bound.after, *self._row_end)

    def _map(
        self,
        bound: BoundTable,
        code: TableCode,
        kind: RowKind,
        images: Sequence[Image],
        whole: Callable[[], list[Image] | None] | None,
        into: Sequence[OperationSet],
        partial: PartialRows | None,
    ) -> Sequence[Problem]:
        """Map images; ``whole`` reads all of them that is there, if they were read carefully."""
        if partial is not None:
            if whole is not None and kind in (RowKind.WRITE, RowKind.UPDATE) and not self._row_end:
                return self._map_partly(bound, code, kind, images, whole(), into, partial)
            if kind is not RowKind.WRITE:
                partial.refuse(self._name)
        if self._row_end:
            return self._map_current(bound, kind, images, into)
        if whole is not None:
            return _map_carefully(bound, kind, images, into)
        return self._changes[kind](images, into) or ()

    def sweep_again(self) -> None:
        """Take nothing for cleared: what did it may come to nothing, or the table was another."""
        if self._bound is not None:
            self._bound.swept = False

    def _map_partly(
        self,
        bound: BoundTable,
        code: TableCode,
        kind: RowKind,
        images: Sequence[Image],
        whole: Sequence[Image] | None,
        into: Sequence[OperationSet],
        partial: PartialRows,
    ) -> list[Problem]:
        """Map rows whose images may lack columns, and note the rows to be read again.

        ``whole`` are the images again, with all that they hold: before, the primary key; after,
        every column. ``None`` where they cannot be read so.
        """
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
            held = {
                index: value
                for index, value in enumerate(after)
                if value is not NOT_IN_IMAGE and not code.shape.columns[index].hidden
            }
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
        self, code: TableCode, kind: RowKind, event: tuple[bytes, int, int]
    ) -> list[Image] | None:
        """Read all that the images of an event hold (see ``_map_partly``)."""
        plans = _whole_plans(code)
        if plans is None:
            return None
        try:
            return _read(self._whole_decoders, code, *plans, kind, event)[0]
        except BinlogError:
            return None

    def _piece_whole(self, code: TableCode, event: RowsEvent, piece: Piece) -> list[Image] | None:
        """Read all that the images of a piece hold."""
        plans = _whole_plans(code)
        if plans is None:
            return None
        decoder, _ = self._piece_decoders.whole.get(
            code, *plans, event.kind, event.data, event.start
        )
        return same_images(decoder, piece)

    def _map_current(
        self,
        bound: BoundTable,
        kind: RowKind,
        images: Sequence[Image],
        into: Sequence[OperationSet],
    ) -> list[Problem]:
        """Map the rows of a system-versioned table, those of the past left out.

        MariaDB deletes a row by an update that ends its life, and writes the past of a changed row
        as one more row. With ``binlog_row_image = MINIMAL`` it writes new rows whole, but the
        VIRTUAL columns as NULL whatever they are (seen of 10.11.19 and 11.8.9); nothing else in the
        event tells that.
        """
        problems: list[Problem] = []
        if kind is RowKind.WRITE and self._doubted:
            images = [self._doubt(image) for image in images]
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

    def _doubt(self, image: Image) -> Image:
        """Take no NULL of a VIRTUAL column for what the column is."""
        doubted = self._doubted
        return tuple(
            _PERHAPS_NULL if place in doubted and value == doubted[place] else value
            for place, value in enumerate(image)
        )

    def cascade(
        self,
        kind: RowKind,
        data: bytes,
        start: int,
        end: int,
        into: Sequence[OperationSet],
    ) -> Sequence[Problem]:
        """Clear the tables that foreign keys may have changed along with the rows of an event.

        To be called before ``apply``: what the statement itself writes comes after its cascades.
        """
        cascades, name = self.cascades, self._name
        if cascades is None:
            return ()
        problems: list[Problem] = []
        merged = cascades.merged_with(name)
        if merged:
            problems += self._clear_merged(merged, into)
        if kind is RowKind.WRITE:
            return problems
        reached: set[tuple[str, str]] = set()
        if kind is RowKind.DELETE:
            reached.update(cascades.reached_by_delete(name))
        else:
            changes, deletes = self._references_change(kind, data, start, end)
            if changes:
                reached.update(cascades.reached_by_update(name))
            if deletes:
                reached.update(cascades.reached_by_delete(name))
        return problems + self._clear_children(reached, into)

    def cascade_in_pieces(
        self, event: RowsEvent, into: Callable[[], Sequence[OperationSet]]
    ) -> Iterator[Sequence[Problem]]:
        """Do as ``cascade`` for a large or compressed event; gives after each piece it looks at."""
        cascades, kind, name = self.cascades, event.kind, self._name
        if cascades is None:
            return
        merged = cascades.merged_with(name)
        if merged:
            yield self._clear_merged(merged, into())
        if kind is RowKind.WRITE:
            return
        changes, deletes = False, True
        if kind is not RowKind.DELETE:
            changes, deletes = yield from self._references_change_in_pieces(event)
        reached: set[tuple[str, str]] = set()
        if changes:
            reached.update(cascades.reached_by_update(name))
        if deletes:
            reached.update(cascades.reached_by_delete(name))
        if reached:
            yield self._clear_children(reached, into())

    def _clear_merged(
        self, merged: Sequence[tuple[str, str]], into: Sequence[OperationSet]
    ) -> list[Problem]:
        reason = f"{self.schema}.{self.table} shares rows with it, by a MERGE table"
        return self._clear_others(merged, reason, into)

    def _clear_children(
        self, reached: Iterable[tuple[str, str]], into: Sequence[OperationSet]
    ) -> list[Problem]:
        reason = f"a foreign key may have changed it along with {self.schema}.{self.table}"
        return self._clear_others(sorted(reached), reason, into)

    def _clear_others(
        self, tables: Sequence[tuple[str, str]], reason: str, into: Sequence[OperationSet]
    ) -> list[Problem]:
        return [
            Problem(lane=".".join(table), scope=f"{prefix}*", reason=reason)
            for table in tables
            for prefix in self._mapping.clear_table(*table, into, folded=self._folded)
        ]

    def _find_referenced(self, code: TableCode) -> tuple[ColumnUse, ...] | None:
        """Find the columns whose change cascades; ``None`` where one is not there."""
        if self.cascades is None:
            return ()
        wanted = self.cascades.columns((self.schema, self.table))
        found = tuple(
            ColumnUse(index, ColumnForm.RAW)
            for index, column in enumerate(code.shape.columns)
            if column.name.lower() in wanted
        )
        return found if len(found) == len(wanted) else None

    def _references_change(
        self, kind: RowKind, data: bytes, start: int, end: int
    ) -> tuple[bool, bool]:
        """Tell what an update may be for children: a change of what they refer to, or a deletion.

        A row of a system-versioned table is deleted by an update that ends its life.
        """
        known, plan = self._reference_plan()
        if self._code is None or not plan:
            return known
        try:
            images, careful = _read(
                self._referenced_decoders, self._code, plan, plan, kind, (data, start, end)
            )
        except BinlogError:
            return True, bool(self._row_end)
        return _either(known, self._judge_references(images, careful=careful))

    def _references_change_in_pieces(
        self, event: RowsEvent
    ) -> Generator[Sequence[Problem], None, tuple[bool, bool]]:
        """Tell the same of a large or compressed event; gives after each piece it looks at."""
        known, plan = self._reference_plan()
        if self._code is None or not plan:
            return known
        most = True, bool(self._row_end)
        try:
            decoder, rows = open_rows(
                self._piece_decoders.referenced, self._code, plan, plan, event
            )
            while known != most and (piece := next_piece(decoder, rows)) is not None:
                judged = self._judge_references(piece.images, careful=piece.careful)
                known = _either(known, judged)
                yield ()
        except BinlogError:
            return most
        return known

    def _reference_plan(self) -> tuple[tuple[bool, bool], tuple[ColumnUse, ...]]:
        """Say what is certain of each update, and which columns tell the rest."""
        if self._code is None:
            return (True, self._may_be_versioned), ()
        if self._referenced is None:
            return (True, False), self._row_end
        return (False, False), (*self._referenced, *self._row_end)

    def _judge_references(self, images: Sequence[Image], *, careful: bool) -> tuple[bool, bool]:
        ends = bool(self._row_end)
        if careful and any(isinstance(value, Unreadable) for image in images for value in image):
            return True, ends
        count = len(self._referenced or ())
        changes = any(
            before[:count] != after[:count]
            for before, after in zip(images[::2], images[1::2], strict=True)
        )
        return changes, ends and any(after[-1] not in _NEVER for after in images[1::2])

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
) -> tuple[list[Image], bool]:
    """Read an event's rows: their images, and whether they had to be read carefully.

    Raises:
        BinlogError: they cannot be read.
    """
    data, start, end = event
    decoder, start = decoders.get(code, before_plan, after_plan, kind, data, start)
    return read_rows(decoder, data, start, end)


def _whole_plans(code: TableCode) -> tuple[Sequence[ColumnUse], Sequence[ColumnUse]] | None:
    """Plan to read all that images hold: before, the primary key; after, every column."""
    if not code.shape.primary_key or any(column.unreadable for column in code.columns):
        return None
    raw = [ColumnUse(index, ColumnForm.RAW) for index in range(len(code.columns))]
    return [raw[index] for index in code.shape.primary_key], raw


def _either(one: tuple[bool, bool], other: tuple[bool, bool]) -> tuple[bool, bool]:
    return one[0] or other[0], one[1] or other[1]


_PERHAPS_NULL = Unreadable("MariaDB may have left a VIRTUAL column out")


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
