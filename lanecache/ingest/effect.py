"""What the transaction under way has done so far, in one piece.

A transaction leaves the decoder by several roads: it commits, is handed on in parts, or is held as
a prepared XA transaction until its outcome is known. All that has to be known of it at its end goes
along as one object, so that no road can lose a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.operation import OperationSet

if TYPE_CHECKING:
    from lanecache.ingest.reread import PartialRow, PartialRows


class Effect(msgspec.Struct, eq=False):
    """The net effect of a transaction on the caches, up to here.

    ``operations`` has one set for each audience. ``overflowed`` says that parts of them were handed
    on already; ``rolled_back`` that something of the transaction never was, or was undone, so that
    only deletions are right. ``partial`` has the rows that are to be read again, where there is a
    server to ask.
    """

    operations: list[OperationSet]
    partial: PartialRows | None = None
    overflowed: bool = False
    rolled_back: bool = False

    def __bool__(self) -> bool:
        """Whether there is anything of a transaction in it."""
        if self.overflowed or self.rolled_back:
            return True
        # Asked at the begin of each transaction: without a call for each set.
        for operations in self.operations:  # noqa: SIM110
            if operations.by_key or operations.prefixes:
                return True
        return False

    @property
    def size_bytes(self) -> int:
        """What it takes in memory, without what was handed on."""
        return sum(operations.size_bytes for operations in self.operations)

    def absorb(self, later: Effect) -> None:
        """Add what was done after it."""
        for total, operations in zip(self.operations, later.operations, strict=True):
            total.extend(operations)
        self.overflowed = self.overflowed or later.overflowed
        self.rolled_back = self.rolled_back or later.rolled_back

    def deletions(self) -> list[OperationSet]:
        """Give what forgets all that the operations touch, and leave these as they are."""
        copies = []
        for operations in self.operations:
            copy = OperationSet()
            copy.extend(operations)
            copy.invalidate()
            copies.append(copy)
        return copies

    def discard_partial(self) -> None:
        """Read no row again: not all of its changes can be followed."""
        if self.partial is not None:
            self.partial.discard()

    def settle(self) -> Sequence[PartialRow]:
        """Make the operations final, at the transaction's end; give the rows to read again."""
        if self.rolled_back:
            for operations in self.operations:
                operations.invalidate()
        if self.partial is None:
            return ()
        if self.rolled_back or self.overflowed:
            self.partial.discard()
        return self.partial.take(self.operations)
