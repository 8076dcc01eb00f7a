"""Rows to read again: those whose values stand in neither of their images. No I/O here.

With ``binlog_row_image`` MINIMAL or NOBLOB an update may lack columns that a lane's value needs.
The transaction deletes the key, which is always right; and the row is noted, so that it can be read
by its primary key on another connection, and its value be stored a little later.

When is what was read right? Let D be the transaction that was noted.

- The dump shows D before the engine does, so that a read may still give the row as it was before
  D. Hence the row must have just the values that D's images hold. All that D changed of it stands
  in them; so where they agree, the row is what D left, whichever of the two was read.
- What the read could see beside that was in the binlog before it could be seen, and the binlog's
  end is read after the row. So once the stream has passed that end, and nothing since D has
  touched the key, the row is still what D left, and what was read is its value *there*.

For that all changes of the row in D must be known: beside inserts (before which there was no such
row), D's only rows of the table are updates in part that keep the primary key. Anything else, and
whatever is not certain, leaves the key deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from lanecache.operation import Delete, OperationSet, Position, Set

if TYPE_CHECKING:
    from lanecache.ingest.mapped_table import MappedTable

ROWS_MAX: Final = 1000
BYTES_MAX: Final = 16 * 1024 * 1024  # of the images that are kept to compare
TRIES_MAX: Final = 20

Value = bytes | None
"""A column's RAW form."""


class PartialRow(msgspec.Struct, eq=False):
    """A row that was written in part, and the keys that were deleted for it, by audience.

    ``image`` has the columns that the images hold, in their RAW form, by index.
    """

    table: MappedTable
    primary_key: tuple[Value, ...]
    image: dict[int, Value]
    keys: tuple[frozenset[str], ...]
    tries: int = 0


class PartialRows:
    """The rows of the transaction under way that are to be read again."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, tuple[Value, ...]], PartialRow] = {}
        self._refused: set[tuple[str, str]] = set()
        self._bytes = 0

    def refuse(self, name: tuple[str, str]) -> None:
        """Note nothing of a table in this transaction: not all of its changes can be followed."""
        self._refused.add(name)

    def note(
        self,
        table: MappedTable,
        primary_key: tuple[Value, ...],
        image: dict[int, Value],
        keys: Sequence[frozenset[str]],
    ) -> None:
        """Note one change of a row; later images are laid over earlier ones."""
        name = (table.schema, table.table)
        known = self._rows.get((*name, primary_key))
        self._bytes += sum(len(value) for value in image.values() if value is not None)
        if (known is None and len(self._rows) >= ROWS_MAX) or self._bytes > BYTES_MAX:
            self.refuse(name)
        elif name in self._refused:
            pass
        elif known is None:
            self._rows[*name, primary_key] = PartialRow(table, primary_key, image, tuple(keys))
        elif known.table is not table:
            self.refuse(name)
        else:
            known.image |= image
            known.keys = tuple(a | b for a, b in zip(known.keys, keys, strict=True))

    def discard(self) -> None:
        """Forget the transaction's rows: it is void, undecided, or too large to follow."""
        if self._rows or self._refused:
            self._rows, self._refused, self._bytes = {}, set(), 0

    def take(self, operations: Sequence[OperationSet]) -> list[PartialRow]:
        """Give the rows whose keys are still just deleted at the transaction's end."""
        if not self._rows:
            if self._refused:
                self._refused.clear()
            return []
        rows, refused = self._rows, self._refused
        self._rows, self._refused, self._bytes = {}, set(), 0
        taken = []
        for row in rows.values():
            if (row.table.schema, row.table.table) in refused:
                continue
            row.keys = tuple(
                frozenset(key for key in keys if _is_deleted(key, effect))
                for keys, effect in zip(row.keys, operations, strict=True)
            )
            if any(row.keys):
                taken.append(row)
        return taken


def _is_deleted(key: str, operations: OperationSet) -> bool:
    """Tell whether a transaction did nothing but delete the key."""
    return isinstance(operations.by_key.get(key), Delete) and not key.startswith(
        tuple(operations.prefixes)
    )


class Found(msgspec.Struct, eq=False):
    """What was read of a row: the writes by audience, right at ``position`` (file and offset)."""

    row: PartialRow
    writes: tuple[tuple[Set, ...], ...]
    position: Position


class Rereads:
    """The rows of one connection that are to be read or were read, until their time has come."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._wanted: dict[int, PartialRow] = {}
        self._pending: dict[int, PartialRow] = {}
        self._by_key: dict[tuple[int, str], PartialRow] = {}
        self._found: dict[int, Found] = {}
        self._bytes = 0
        self._up_to = Position(None)

    def __len__(self) -> int:
        return len(self._pending)

    def committed(
        self,
        operations: Sequence[OperationSet],
        rows: Sequence[PartialRow] = (),
        *,
        spilled: bool = False,
    ) -> None:
        """Take what a transaction did, and the rows that it noted itself."""
        if self._pending:
            if spilled:
                self.discard()
            for audience, effect in enumerate(operations):
                self._touched(audience, effect)
        # Of two rows with one key the later stands: which one that is, is not for us to say.
        owners = Counter(place for row in rows for place in _places(row))
        for row in rows:
            if all(owners[place] == 1 for place in _places(row)):
                self._add(row)

    def read_up_to(self, position: Position) -> None:
        """Take note that every transaction up to this file and offset was taken."""
        self._up_to = position

    def discard(self) -> None:
        """Forget everything; the keys stay deleted."""
        self._wanted.clear()
        self._pending.clear()
        self._by_key.clear()
        self._found.clear()
        self._bytes = 0

    def batch(self, rows_max: int) -> list[PartialRow]:
        """Give rows of one table to read now."""
        first = next(iter(self._wanted.values()), None)
        if first is None:
            return []
        same = (row for row in self._wanted.values() if row.table is first.table)
        rows = list(islice(same, rows_max))
        for row in rows:
            del self._wanted[id(row)]
        return rows

    def found(self, row: PartialRow, writes: Sequence[Sequence[Set]], position: Position) -> None:
        """Take what was read of a row, with the end of the binlog that was read after it."""
        if id(row) not in self._pending:
            return
        allowed = tuple(
            tuple(write for write in each if write.key in keys)
            for each, keys in zip(writes, row.keys, strict=True)
        )
        if not position.file or not any(allowed):
            self.drop(row)
            return
        place = Position(None, position.file, position.offset)
        self._found[id(row)] = Found(row, allowed, place)

    def try_again(self, row: PartialRow) -> None:
        """Read a row once more: it is not (or no longer) what its transaction left."""
        row.tries += 1
        if row.tries >= TRIES_MAX:
            self.drop(row)
        elif id(row) in self._pending:
            self._wanted[id(row)] = row

    def drop(self, row: PartialRow) -> None:
        """Leave a row's keys deleted."""
        if self._pending.pop(id(row), None) is None:
            return
        self._bytes -= _size_bytes(row)
        self._wanted.pop(id(row), None)
        self._found.pop(id(row), None)
        for place in _places(row):
            del self._by_key[place]

    def settled(self) -> list[Found]:
        """Give, once, what is known to be right where the stream stands."""
        settled = [each for each in self._found.values() if self._up_to.covers(each.position)]
        for each in settled:
            self.drop(each.row)
        return settled

    def _add(self, row: PartialRow) -> None:
        size = _size_bytes(row)
        if len(self._pending) >= self._rows_max or self._bytes + size > BYTES_MAX:
            return
        self._bytes += size
        self._pending[id(row)] = row
        self._wanted[id(row)] = row
        # Who had the key before was dropped: a transaction touches the keys of the rows it notes.
        self._by_key.update(dict.fromkeys(_places(row), row))

    def _touched(self, audience: int, effect: OperationSet) -> None:
        for key in effect.by_key:
            row = self._by_key.get((audience, key))
            if row is not None:
                self.drop(row)
        if effect.prefixes:
            prefixes = tuple(effect.prefixes)
            touched = [
                row
                for (place, key), row in self._by_key.items()
                if place == audience and key.startswith(prefixes)
            ]
            for row in touched:
                self.drop(row)


def _places(row: PartialRow) -> Iterator[tuple[int, str]]:
    """Walk a row's keys, each with its audience."""
    for audience, keys in enumerate(row.keys):
        for key in keys:
            yield audience, key


def _size_bytes(row: PartialRow) -> int:
    # The image is not changed any more once the row is here.
    return sum(len(value) for value in row.image.values() if value is not None)
