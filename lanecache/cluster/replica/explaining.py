"""Why a key holds what it holds: for people. A core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.replica.clock import wall_s_of
from lanecache.cluster.store.item import Item, Order, Stamp

if TYPE_CHECKING:
    from lanecache.cluster.replica.registers import Registers


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node holds what it holds of a key.

    Attributes:
        key: which.
        origin: the log of the node that wrote it.
        order: its place in the order of writes of the key.
        seq: the entry's number in that log.
        written_at: when, in seconds since 1970 by the writer's clock.
        age_s: how long ago that is by this node's wall clock.
        size_bytes: of the encoded value.
        ttl_left_s: until it expires; None: it does not.
        tags: by which it can be invalidated.
        source: the source that it was read from; empty: an application wrote it.
        file: the binlog file, for one from a source.
        offset: the position behind its transaction there.
        is_fill: whether a filler made it.
        reason: why it is what is held: a sentence.
    """

    key: str
    origin: int
    order: Order
    seq: int
    written_at: float
    age_s: float
    size_bytes: int
    ttl_left_s: float | None
    tags: tuple[str, ...]
    source: str
    file: str
    offset: int
    is_fill: bool
    reason: str


def explain(registers: Registers, key: str, now: float, wall_s: float) -> Explanation | None:
    """Say why a key holds what it holds; None when nothing is held."""
    item = registers.store.peek(key)
    if item is None:
        return None
    stamp, order = item.stamp or Stamp(0), item.order
    # What a fill was made from tells its order; when it was made, its stamp.
    written_at = stamp.at or wall_s_of(order[0])
    return Explanation(
        key=key,
        origin=order[-1],
        order=order,
        seq=stamp.seq,
        written_at=written_at,
        age_s=max(0.0, wall_s - written_at),
        size_bytes=item.size_bytes,
        ttl_left_s=None if item.deadline is None else max(0.0, item.deadline - now),
        tags=item.tags,
        source=stamp.source,
        file=stamp.file,
        offset=stamp.offset,
        is_fill=len(order) > 2,
        reason=_reason(registers, key, item),
    )


def _reason(registers: Registers, key: str, item: Item) -> str:
    decision, winner, loser = registers.decisions.get(key, (None, None, None))
    if decision is None or winner != item.order or loser is None:
        if len(item.order) > 2:
            return "A filler made it, and nothing was written to the key since that began."
        return "It is the latest write of the key: this node has seen none that competes with it."
    if decision is decision.REPLACED:
        what = f"It came in place of a write by {loser[-1]:016x}"
    else:
        what = f"A write by {loser[-1]:016x} came in after it and lost"
    return f"{what}, which {_difference(winner, loser)}."


def _difference(winner: Order, loser: Order) -> str:
    if winner[:2] == loser[:2]:
        if len(loser) == 2:
            return "is what the filler has made it from"
        return "was filled from the same, under an earlier lease"
    behind_s = wall_s_of(winner[0]) - wall_s_of(loser[0])
    if behind_s > 0:
        return f"is {behind_s:.3f} s older by the clock of the cluster"
    return "is of the same millisecond and the lower in it, as all nodes count"
