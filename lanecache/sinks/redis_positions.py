"""The positions of a Redis Cluster's nodes, as its sink reads and stores them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.redis_commands import Piece
from lanecache.sinks.redis_connection import STILL_S
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_records import (
    Record,
    begun_command,
    forget_node_command,
    node_command,
    parse_record,
    read_command,
)
from lanecache.sinks.redis_slots import SLOTS, record_key, witnesses_of

if TYPE_CHECKING:
    from lanecache.operation import Checkpoint
    from lanecache.sinks.redis_sums import Displaced, SlotSums

_STILL_ROUNDS_MAX = 20

REPLACED = (
    "the data of a node of the Redis Cluster was replaced under the connection: its position is not"
    " the one that was written last"
)


class NodePositions:
    """Stores, in two slots of each node, how far all of its slots have been applied.

    Args:
        nodes: the connections.
        sums: what the slots' records must hold.
        witnesses: the slots that hold the positions until now.
        begun: how far values may be seen already, if that is beyond the positions.
    """

    def __init__(
        self,
        nodes: RedisNodes,
        sums: SlotSums,
        witnesses: Sequence[int] = (),
        begun: Checkpoint | None = None,
    ) -> None:
        self.displaced: list[Displaced] = []
        """Records of nodes whose data was replaced, as they were there."""
        self._nodes = nodes
        self._sums = sums
        self._witnesses = tuple(witnesses)
        # Those to hold them, for a version of the owners.
        self._chosen: tuple[int, tuple[int, ...]] = (-1, ())
        self._begun = begun
        self._begun_in: set[int] = set()

    async def store(self, checkpoint: Checkpoint) -> None:
        """Move every node's position to ``checkpoint``.

        Raises:
            SinkUnavailable: a node was lost or refused for now.
        """
        nodes = self._nodes
        while True:
            version = nodes.version
            witnesses = self._choose()
            await self._write(
                {slot: node_command(slot, checkpoint, witnesses) for slot in witnesses}
            )
            stale = set(self._witnesses) - set(witnesses)
            await self._mark_begun(witnesses)
            # Only now, so that at any time one full list is there.
            await nodes.each(
                Request(slot, forget_node_command(slot, checkpoint.source)) for slot in stale
            )
            self._witnesses = witnesses
            if nodes.version == version:
                break
        if self._begun is not None and checkpoint.position.covers(self._begun.position):
            self._begun = None

    async def begin(self, checkpoint: Checkpoint) -> None:
        """Mark that from now on values up to ``checkpoint`` may be seen, in many pieces.

        Raises:
            SinkUnavailable: as ``store``.
        """
        self._begun, self._begun_in = checkpoint, set()
        # Where the nodes' records are now, not where they will be: those are read after a crash.
        await self._mark_begun(self._witnesses or self._choose())

    async def _mark_begun(self, witnesses: Sequence[int]) -> None:
        if self._begun is None or self._begun_in.issuperset(witnesses):
            return
        begun = self._begun
        await self._write({slot: begun_command(slot, begun) for slot in witnesses})
        self._begun_in = set(witnesses)

    async def mark(self) -> None:
        """Make the nodes' records differ from all before: keys are unlinked from here on.

        Raises:
            SinkUnavailable: as ``store``.
        """
        await self._write(dict.fromkeys(self._witnesses, Piece(b"", 0)))

    async def _write(self, commands: Mapping[int, Piece]) -> None:
        """Write records of nodes, which have to be what was written last."""
        answers = await self._nodes.each(
            Request(slot, self._sums.whole(slot, piece)) for slot, piece in commands.items()
        )
        for slot, replies in answers.items():
            found = self._sums.check(slot, replies[-1])
            if found is not None:
                self.displaced.append(found)
        if self.displaced:
            raise SinkUnavailable(REPLACED)

    def _choose(self) -> tuple[int, ...]:
        if self._chosen[0] != self._nodes.version:
            self._chosen = (self._nodes.version, witnesses_of(self._nodes.owners))
        return self._chosen[1]


async def read_records(
    nodes: RedisNodes, source: str, slots: Iterable[int], sink: str
) -> dict[int, Record]:
    """Read the records of a source in many slots; slots without one are left out.

    Raises:
        SinkError: something else lies there.
    """
    answers = await nodes.each(Request(slot, read_command(slot, source)) for slot in slots)
    records = {}
    for slot, (fields,) in answers.items():
        try:
            record = parse_record(fields)
        except ValueError as error:
            raise SinkError(
                f"the position in the Redis Cluster ({record_key(slot, source)}) cannot be read "
                f"({error}): delete that key to start anew",
                sink=sink,
            ) from None
        if record is not None:
            records[slot] = record
    return records


async def read_when_unchanged(
    nodes: RedisNodes, source: str, before: Mapping[int, Record], where: str, sink: str
) -> Mapping[int, Record]:
    """Read all records until they stand still; that an earlier writer is gone cannot be told else.

    Raises:
        SinkUnavailable: they keep changing.
        SinkError: as ``read_records``.
    """
    for _ in range(_STILL_ROUNDS_MAX):
        await asyncio.sleep(STILL_S)
        after = await read_records(nodes, source, range(SLOTS), sink)
        if after == before:
            return after
        before = after
    raise SinkUnavailable(
        f"the positions in the Redis Cluster at {where} keep changing: another lanecache writes"
        " them, stop one of them",
        sink=sink,
    )
