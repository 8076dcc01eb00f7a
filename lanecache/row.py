"""What ingest and the lanes agree on: a table's shape, and the forms in which a column is wanted.

Ingest decodes rows; the lanes turn row changes into operations. Neither imports the other: a lane
says which columns it wants and in which form, ingest compiles a decoder that gives just these, one
tuple a row image, and hands the tuples back to functions that the lanes compiled for that layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from lanecache.operation import OperationSet


class ColumnKind(Enum):
    """What a column holds, as far as mapping is concerned."""

    INTEGER = "integer"  # all integers, YEAR, BIT
    FLOAT = "float"  # FLOAT, DOUBLE
    DECIMAL = "decimal"
    TEXT = "text"  # CHAR, VARCHAR, TEXT, ENUM, INET, UUID: anything that reads as a string
    TIME = "time"  # DATE, TIME, DATETIME, TIMESTAMP
    BINARY = "binary"  # BINARY, VARBINARY, BLOB, GEOMETRY, VECTOR
    SET = "set"
    JSON = "json"  # MySQL's JSON (MariaDB's is TEXT)


class ColumnForm(Enum):
    """How a decoder gives a column's value. NULL is ``None`` in ``TEXT`` and ``RAW``."""

    JSON = "json"
    """A fragment of JSON text: a ``str``, or an ``int`` for ``%s``. NULL is ``"null"``."""

    TEXT = "text"
    """What stands in a key, before it is percent-encoded: an ``int`` for ``INTEGER``, else a
    ``str`` as the server prints it; ``BINARY`` in lower-case hexadecimal, ``SET`` with commas."""

    RAW = "raw"
    """``bytes``: a ``BINARY`` column's own, anything else its ``TEXT`` in UTF-8."""


class Column(msgspec.Struct, frozen=True):
    """A column as the lanes see it.

    ``hidden``: the server has it for itself, and neither ``SELECT *`` nor ``information_schema``
    shows it. A lane that names no columns leaves it out.
    """

    name: str
    kind: ColumnKind
    hidden: bool = False


class TableShape(msgspec.Struct, frozen=True):
    """A table's name and columns in table order, as one table map has them.

    ``primary_key`` holds column indexes, and is empty where it is not known.
    """

    schema: str
    table: str
    columns: tuple[Column, ...]
    primary_key: tuple[int, ...] = ()


class ColumnUse(msgspec.Struct, frozen=True):
    """One element of the tuple that a decoder gives for a row image."""

    index: int
    form: ColumnForm


class Unreadable(msgspec.Struct, frozen=True):
    """Stands in a careful decoder's tuple for a value that could not be read exactly (law 1)."""

    reason: str

    def __str__(self) -> str:
        raise ValueError(f"an unreadable value was used: {self.reason}")


Image = tuple[Any, ...]
"""A row image: one element for each ``ColumnUse`` of its plan, in that order."""


class Problem(msgspec.Struct, frozen=True):
    """Something that had to be turned into an invalidation: which lane, of what, and why."""

    lane: str
    scope: str  # the key, or the prefix with a * behind it
    reason: str


class BoundTable(Protocol):
    """The lanes of one table, compiled for one shape of it.

    ``into`` has one ``OperationSet`` for each audience (see ``TableMapping.audiences``). All
    functions add to it in row order, and count its ``size_bytes``. They give what had to become an
    invalidation, or ``None`` where no lane in Python is among the lanes.
    """

    before: tuple[ColumnUse, ...]
    after: tuple[ColumnUse, ...]
    """The plans: what is wanted of a before image (keys) and of an after image (keys, values)."""

    problems: tuple[Problem, ...]
    """Lanes that cannot work on this shape (a column they need is not there): their rows delete the
    keys that can be made, and clear the prefixes of those that cannot, which the functions below do
    by themselves."""

    swept: bool
    """Whether a transaction that took effect has cleared, since the table had another shape, what
    only a lane that cannot work stores below: it is left alone then. Whoever knows sets it."""

    def write(self, images: Sequence[Image], into: Sequence[OperationSet]) -> list[Problem] | None:
        """Map inserted rows: after images."""
        ...

    def delete(self, images: Sequence[Image], into: Sequence[OperationSet]) -> list[Problem] | None:
        """Map deleted rows: before images."""
        ...

    def update(self, images: Sequence[Image], into: Sequence[OperationSet]) -> list[Problem] | None:
        """Map updated rows: before and after images in turn."""
        ...

    def change_carefully(
        self, before: Image | None, after: Image | None, into: Sequence[OperationSet]
    ) -> list[Problem]:
        """Map one row change whose images may hold ``Unreadable``.

        A value that needs one becomes a ``Delete`` of its key; a key that needs one, a ``Clear`` of
        the lane's prefix. Each is reported.
        """
        ...

    def restore(self, image: Image, into: Sequence[OperationSet]) -> None:
        """Map a row as it stands, from an after image, by the lanes that are not in Python.

        What they would store of it is among the operations; the deletions there mean nothing.
        """
        ...


class TableMapping(Protocol):
    """All lanes of a configuration."""

    audiences: tuple[tuple[str, ...], ...]
    """The names of the sinks, grouped: all sinks of a group get the very same operations."""

    def wants(self, schema: str, table: str) -> bool:
        """Tell whether any lane matches the table."""
        ...

    def bind(self, shape: TableShape) -> BoundTable:
        """Compile the lanes of a table for one shape of it."""
        ...

    def clear_table(
        self, schema: str, table: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        """Add a ``Clear`` for every lane of the table; give the prefixes (none: no lane).

        ``folded``: the name is as a statement's writer spelled it, and the server does not tell
        lower from upper case.
        """
        ...

    def clear_schema(
        self, schema: str, into: Sequence[OperationSet], *, folded: bool = False
    ) -> list[str]:
        """Add a ``Clear`` for every lane that may match a table of the schema."""
        ...

    def clear_all(self, into: Sequence[OperationSet]) -> list[str]:
        """Add a ``Clear`` for every lane."""
        ...
