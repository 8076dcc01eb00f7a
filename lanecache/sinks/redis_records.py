"""Positions in a Redis Cluster: what each slot and each node has applied. A core.

In every slot there may be one hash, whose key has a tag that puts it there. Its field ``slot`` is
the checkpoint of the last write to that slot, in the same ``EXEC``. Its field ``node``, in two
slots of each primary, is the checkpoint up to which all of that node's slots have been written;
``nodes`` lists those slots, and ``begun`` how far a transaction that is written in many pieces may
have come. The optional fields ``sum`` and ``chain`` show that the record belongs to the slot's data
(``redis_sums``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from lanecache.operation import Checkpoint, Position
from lanecache.sinks.redis_commands import Piece, pack_command
from lanecache.sinks.redis_slots import record_key

SLOT, NODE, NODES, BEGUN = "slot", "node", "nodes", "begun"
SUM, CHAIN = "sum", "chain"


class Record(NamedTuple):
    """What one slot holds of a source."""

    slot: Checkpoint | None
    node: Checkpoint | None
    nodes: tuple[int, ...]
    begun: Checkpoint | None
    total: int | None = None
    chain: int = 0

    @property
    def intact(self) -> bool:
        """Whether what was written last was written on the data that it stands beside."""
        return self.total is None or self.total < 0 or self.total == self.chain


class Standing(NamedTuple):
    """Where a cluster stands as a whole.

    ``checkpoint`` is applied everywhere; ``None`` where a node has lost its position, or there is
    none. ``ahead`` are the slots that have gone beyond it, and ``horizon`` is the furthest that any
    has come: between the two, values of different times may stand beside each other.
    """

    checkpoint: Checkpoint | None
    ahead: Mapping[int, Position]
    horizon: Checkpoint | None
    stale: tuple[int, ...]  # slots whose node record is not in use any more


def read_command(slot: int, source: str) -> Piece:
    """Ask for a slot's record."""
    names = (SLOT, NODE, NODES, BEGUN, SUM, CHAIN)
    return Piece(pack_command(("HMGET", record_key(slot, source), *names)), 1)


def parse_record(fields: Sequence[Any]) -> Record | None:
    """Read what ``read_command`` brought.

    Raises:
        ValueError: it is not a record that this version understands.
    """
    slot, node, nodes, begun, total, chain = fields
    if slot is None and node is None and total is None:
        return None
    return Record(
        Checkpoint.decode(slot) if slot is not None else None,
        Checkpoint.decode(node) if node is not None else None,
        tuple(msgspec.json.decode(nodes, type=list[int])) if nodes is not None else (),
        Checkpoint.decode(begun) if begun is not None else None,
        int(total) if total is not None else None,
        int(chain) if chain is not None else 0,
    )


def slot_command(slot: int, checkpoint: Checkpoint) -> Piece:
    """Store that a slot has been written up to a checkpoint."""
    short = msgspec.structs.replace(checkpoint, lanes={})
    key = record_key(slot, checkpoint.source)
    return Piece(pack_command(("HSET", key, SLOT, short.encode())), 1)


def node_command(slot: int, checkpoint: Checkpoint, nodes: Sequence[int]) -> Piece:
    """Store that a node has been written up to a checkpoint, in one of its slots."""
    key = record_key(slot, checkpoint.source)
    fields = (NODE, checkpoint.encode(), NODES, msgspec.json.encode(nodes))
    return Piece(pack_command(("HSET", key, *fields)), 1)


def begun_command(slot: int, checkpoint: Checkpoint) -> Piece:
    """Store that values up to a checkpoint may be seen before its node stands there."""
    key = record_key(slot, checkpoint.source)
    short = msgspec.structs.replace(checkpoint, lanes={})
    return Piece(pack_command(("HSET", key, BEGUN, short.encode())), 1)


def forget_node_command(slot: int, source: str) -> Piece:
    """Take away a node's position from a slot that does not speak for it any more."""
    return Piece(pack_command(("HDEL", record_key(slot, source), NODE, NODES, BEGUN)), 1)


def newest(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Give the one that has come furthest."""
    found = checkpoints[0]
    for each in checkpoints[1:]:
        if each.position.covers(found.position) and (
            each.position != found.position or each.version > found.version
        ):
            found = each
    return found


def stand(records: Mapping[int, Record]) -> Standing:
    """Tell from all records where the cluster stands."""
    nodes = {slot: record for slot, record in records.items() if record.node is not None}
    if not nodes:
        return Standing(None, {}, None, ())
    furthest = newest([record.node for record in nodes.values() if record.node is not None])
    listed = next(record.nodes for record in nodes.values() if record.node is furthest)
    stale = tuple(slot for slot in nodes if slot not in listed)
    least = furthest
    for slot in listed:
        record = nodes.get(slot)
        if record is None or record.node is None:
            return Standing(None, {}, None, stale)  # a node came back without its data
        if not record.node.position.covers(least.position):
            if not least.position.covers(record.node.position):
                return Standing(None, {}, None, stale)
            least = record.node
    # A mark that is older than its nodes' position is behind it, whatever its numbers say: the
    # source has begun anew since, in another history.
    later = least.version
    begun = [record.begun for record in records.values() if record.begun is not None]
    marks = [mark for mark in begun if mark.version > later]
    ahead = {
        slot: record.slot.position
        for slot, record in records.items()
        if record.slot is not None
        and record.slot.version > later
        and not least.position.covers(record.slot.position)
    }
    marks += [record.slot for slot, record in records.items() if slot in ahead and record.slot]
    beyond = [mark for mark in marks if not least.position.covers(mark.position)]
    horizon = newest(beyond) if beyond else None
    return Standing(least, ahead, horizon, stale)
