"""Hands what the source has committed to the outlets, in its order, each with what it has not got.

A transaction that is too large for memory comes in parts, which wait in files until its end. One
without operations moves the position only: that is offered now and then, not each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio

from lanecache.ingest.outlet import Outlet, Versions
from lanecache.ingest.spill import SpilledOperations
from lanecache.operation import Operations, OperationSet, Position, Transaction

if TYPE_CHECKING:
    from lanecache.ingest.history import Claim
    from lanecache.ingest.outputs import Committed
    from lanecache.operation import Lineage, Version

# How often a position that moved without any operation of ours is stored.
_POSITION_INTERVAL_S = 1.0


class Offering:
    """Makes transactions of what was committed, and offers them.

    Args:
        source: the source's name.
        audiences: for each list of operations of a commit, the outlets that it is for.
        outlets: by the sinks' names.
        lanes: for each sink, the prefixes of its lanes, and the signature of those below each.
        spill_directory: where parts wait; empty: where the system keeps such files.
    """

    def __init__(
        self,
        source: str,
        audiences: Sequence[Sequence[str]],
        outlets: Mapping[str, Outlet],
        lanes: Mapping[str, Mapping[str, str]],
        spill_directory: str,
    ) -> None:
        self._source = source
        self._audiences = audiences
        self._outlets = outlets
        self._lanes = lanes
        self._spill_directory = spill_directory
        self._versions = Versions()
        self._ahead: dict[str, Claim] = {}
        self._unstored: Committed | None = None
        self._unstored_since = 0.0
        self._spills: list[SpilledOperations] = []

    @property
    def spilling(self) -> bool:
        """Whether parts of a transaction wait for its end."""
        return bool(self._spills)

    def begin(self) -> None:
        """Begin anew: forget what was not offered."""
        self.drop_parts()
        self._unstored = None

    def stay_above(self, version: Version) -> None:
        """Give out no version at or below that one."""
        self._versions.stay_above(version)

    def skip_up_to(self, claims: Mapping[str, Claim]) -> None:
        """Offer to these outlets only what their positions do not cover."""
        self._ahead = dict(claims)

    def skip_all_up_to(self, claim: Claim) -> None:
        """Offer nothing that a position covers; an outlet that is further on keeps its own."""
        for name in self._outlets:
            self._ahead.setdefault(name, claim)

    def ahead(self) -> Mapping[str, Claim]:
        """Give what outlets hold beyond what is offered, by name."""
        return dict(self._ahead)

    def clear(
        self,
        name: str,
        prefixes: Iterable[str],
        position: Position,
        lineage: Lineage,
        *,
        anew: bool,
    ) -> None:
        """Offer a transaction that clears prefixes in one sink, and stands at ``position``.

        ``anew``: nothing that the sink holds of positions counts any more.
        """
        operations = OperationSet()
        for prefix in prefixes:
            operations.clear(prefix)
        self._outlets[name].offer(
            Transaction(
                self._source,
                position,
                self._versions.next(),
                time.time(),
                operations,
                self._lanes[name],
                lineage,
                anew,
            )
        )

    def begin_anew(self) -> None:
        """Forget what was not offered, and what outlets had ahead: all are to be cleared."""
        self.begin()
        self._ahead.clear()

    def add_part(self, parts: Sequence[OperationSet]) -> None:
        """Keep a part of a transaction, for each audience, until its end."""
        for _ in self.adding_part(parts):
            pass

    def adding_part(self, parts: Sequence[OperationSet]) -> Iterator[None]:
        """Keep a part as ``add_part`` does, and come back after each few thousand operations."""
        if not self._spills:
            self._spills = [SpilledOperations(self._spill_directory) for _ in parts]
        for spill, part in zip(self._spills, parts, strict=True):
            yield from spill.appending(part)

    def drop_parts(self) -> None:
        """Forget the parts: their transaction was rolled back, or is read again."""
        spills, self._spills = self._spills, []
        for spill in spills:
            spill.close()

    def commit(self, committed: Committed) -> None:
        """Offer a transaction, or note how far it has moved the position."""
        if self._spills:
            self.add_part(committed.operations)
            spills, self._spills = self._spills, []
            for spill in spills:
                spill.finish(invalidated=committed.invalidated)
            self.offer(committed, spills)
        elif any(committed.operations):
            self.offer(committed, committed.operations)
        else:
            if self._unstored is None:
                self._unstored_since = anyio.current_time()
            self._unstored = committed

    def offer(self, committed: Committed, operations: Sequence[Operations]) -> None:
        """Offer operations, a list for each audience, as one transaction."""
        self._unstored = None
        version = self._versions.next()
        for audience, effect in zip(self._audiences, operations, strict=True):
            transaction = Transaction(
                self._source,
                committed.position,
                version,
                committed.committed_at,
                effect,
                self._lanes[audience[0]],
                committed.lineage,
            )
            for name in audience:
                if self._ahead and name in self._ahead:
                    if self._ahead[name].position.covers(committed.position):
                        continue
                    del self._ahead[name]
                self._outlets[name].offer(transaction)

    def store_position(self) -> None:
        """Offer the position of transactions without operations, if there is one to offer."""
        committed, self._unstored = self._unstored, None
        if committed is not None:
            self.offer(committed, [OperationSet() for _ in self._audiences])

    async def keep_storing_positions(self) -> None:
        """Offer, now and then, a position that moved without an operation."""
        while True:
            await anyio.sleep(_POSITION_INTERVAL_S)
            if (
                self._unstored is not None
                and anyio.current_time() - self._unstored_since >= _POSITION_INTERVAL_S
            ):
                self.store_position()
