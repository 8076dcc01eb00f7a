"""What the decoder gives as it walks the events, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.operation import NO_LINEAGE, Lineage

if TYPE_CHECKING:
    from lanecache.ingest.reread import PartialRow
    from lanecache.ingest.tables import NamedTable
    from lanecache.operation import OperationSet, Position


class Committed(msgspec.Struct, frozen=True, gc=False):
    """A transaction is whole: its net effect for each audience, and where the source stands now.

    ``invalidated`` says that it was rolled back (in whole or to a savepoint) although it is in the
    binlog, so that what was handed on as ``Overflow`` has to be applied as deletions only.
    ``partial`` has the rows that are to be read again (see ``reread``). ``lineage`` tells the
    history that the position is of.
    """

    operations: Sequence[OperationSet]
    position: Position
    committed_at: float
    invalidated: bool = False
    partial: Sequence[PartialRow] = ()
    lineage: Lineage = NO_LINEAGE


class Overflow(msgspec.Struct, frozen=True):
    """A part of a transaction that is too large for memory; more and ``Committed`` follow."""

    operations: Sequence[OperationSet]


class Discarded(msgspec.Struct, frozen=True):
    """The transaction under way is void: what was handed on of it must not be applied."""


class ForeignKeysWanted(msgspec.Struct, frozen=True):
    """``learn_foreign_keys`` has to be called before the walk goes on: a table was changed."""


class CatalogueWanted(msgspec.Struct, frozen=True):
    """``provide_catalogue`` has to be called before the walk goes on: a statement writes."""


class SchemaWanted(msgspec.Struct, frozen=True):
    """``provide_schema`` has to be called for this table before the walk goes on."""

    table: NamedTable


class Pause(msgspec.Struct, frozen=True):
    """The walk is a long one: here others may be let have their turn."""


PAUSE = Pause()

Output = (
    Committed | Overflow | Discarded | SchemaWanted | ForeignKeysWanted | CatalogueWanted | Pause
)


class DecoderCounts(msgspec.Struct):
    """What went through, and when the source last said something (its own clock, seconds)."""

    events: int = 0
    bytes: int = 0
    rows: int = 0
    transactions: int = 0
    skipped_events: int = 0
    invalidations: int = 0
    reread_rows: int = 0
    last_timestamp: int = 0
