"""How the simulator looks at the data of a node: the one place that knows where it is kept."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from lanecache.cluster.replica.clock import wall_s_of
from lanecache.cluster.replica.entry import (
    Clear,
    Heartbeat,
    InvalidateTag,
    Mark,
    Operation,
    Put,
    Remove,
)
from lanecache.cluster.replica.sources import position_of
from lanecache.cluster.settings import Settings
from lanecache.cluster.store.values import encode_value
from lanecache.operation import Checkpoint, Version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lanecache.cluster.node import Node
    from lanecache.cluster.source_steps import Step
    from lanecache.cluster.store.item import Item, Order
    from lanecache.cluster.store.store import Store
    from lanecache.testing.simulation.hosts import Host

MISSING = object()
_LIMITS = Settings()


def put(key: str, value: Any, ttl_s: float | None = None, tags: tuple[str, ...] = ()) -> Operation:
    """Make the operation of a ``set``."""
    ttl_ms = None if ttl_s is None else max(1, round(ttl_s * 1000))
    return Put(key, value, len(encode_value(value, _LIMITS, key)), ttl_ms, tags)


def remove(key: str) -> Operation:
    """Make the operation of a ``delete``."""
    return Remove(key)


def clear(prefix: str) -> Operation:
    """Make the operation of a ``clear``."""
    return Clear(prefix)


def invalidate(tag: str) -> Operation:
    """Make the operation of an ``invalidate_tag``."""
    return InvalidateTag(tag)


def mark(epoch: Order, source: str, step: Step, writer: str) -> Mark:
    """Say in an entry whose it is, and where the source stands behind it, as the sink does."""
    position = step.position
    assert position is not None
    checkpoint = None if step.last is None else Checkpoint.of(step.last, writer).encode()
    towards = None
    if checkpoint is None:
        towards = Checkpoint(source, position, Version(0, 0), writer).encode()
    pair = (epoch[0], epoch[1])
    return Mark(source, pair, checkpoint, position.file, position.offset, towards)


def heartbeat(epoch: Order, source: str, age_s: float | None) -> Mark:
    """Say in an entry how old what an ingest has written is."""
    age_ms = None if age_s is None else math.ceil(age_s * 1000)
    return Mark(source, (epoch[0], epoch[1]), heartbeat=Heartbeat(age_ms))


def age_s(host: Host, name: str) -> float | None:
    """Say how old a node believes what it holds of a source to be."""
    assert host.node is not None
    return host.node.replica.ages.age_s(name, host.clock.read())


def clock_off_s(host: Host) -> float:
    """Say how far the clock is off by which a running node orders its writes."""
    assert host.node is not None
    time_s = wall_s_of(host.node.replica.clock.physical(host.clock.read()))
    return time_s - (host.wall() - host.wall_offset_s)


def origin(node: Node) -> int:
    """Give the id of a node's own log."""
    return node.replica.origin


def settings(node: Node) -> Settings:
    """Give a node's settings."""
    return node.replica.settings


def steps(node: Node) -> int:
    """Count the entries and states that a node has taken in: each may have changed what shows."""
    counters = node.replica.counters
    return counters.entries_applied + counters.states_merged


def last_order(node: Node) -> Order:
    """Give the order of the entry that a node has just written."""
    return (node.replica.clock.last, node.replica.origin)


def digest(node: Node) -> dict[int, int]:
    """Give up to which entry each origin was applied; not to be changed."""
    return node.replica.digest


def seen(node: Node) -> dict[int, int]:
    """Give the same with the origins that were retired."""
    return {**node.data.origins.retired, **node.replica.digest}


def store(node: Node) -> Store:
    """Give what holds the items."""
    return node.replica.store


def held(node: Node) -> list[tuple[str, Item]]:
    """List what is held, over or not, without a trace in the store."""
    return node.replica.store.all_items()


def shows(node: Node, item: Item, now: float) -> bool:
    """Say whether ``get`` would give an item that is held."""
    if item.deadline is not None and item.deadline <= now:
        return False
    return not item.tags or node.replica.tombstones.tags.is_current(item)


def get(node: Node, key: str) -> Any:
    """Read a key as a service does; ``MISSING`` when it is not there."""
    return node.replica.store.get(key, MISSING)


def source(node: Node, name: str) -> tuple[Order, int]:
    """Give the epoch of a source, and the last transaction that a node's readers have seen.

    That may be one of an earlier turn, which the present one has not come to.
    """
    state = node.replica.sources.states.get(name)
    if state is None:
        return (), 0
    shown = [number_of(checkpoint) or 0 for checkpoint in state.shown]
    return state.epoch, max((number_of(state.checkpoint) or 0, *shown))


@lru_cache(4096)
def number_of(checkpoint: bytes | None) -> int | None:
    """Say up to which transaction a checkpoint goes."""
    position = position_of(checkpoint)
    return None if position is None else position.offset


def is_overtaken(node: Node, name: str, epoch: Order) -> bool:
    """Say whether another ingest has taken over."""
    state = node.replica.sources.states.get(name)
    return state is not None and state.epoch > epoch


def is_behind(node: Node, name: str) -> bool:
    """Say whether a node shows nothing new of a source, since its ingest is behind what it did."""
    state = node.replica.sources.states.get(name)
    return state is not None and bool(state.shown)


def ready(node: Node) -> bool:
    """Say whether a node has caught up with its peers."""
    return node.ready and node.caught_up


def not_ready_because(node: Node) -> str:
    """Say why it has not."""
    return node.not_ready_because() or "a peer has what it lacks"


def tombstones(node: Node) -> int:
    """Count what is remembered of deletions."""
    return len(node.replica.tombstones)


def ring_bytes(node: Node) -> int:
    """Say how much the recent entries take."""
    return node.data.ring.bytes


def links(node: Node) -> int:
    """Count the links."""
    return len(node.data.links.up)


def write(
    node: Node, operations: Sequence[Operation], now: float, of_source: Mark | None = None
) -> int:
    """Write an entry; gives its number."""
    return node.write(operations, now, mark=of_source)
