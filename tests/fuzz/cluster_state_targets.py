"""What a member may send of data: entries and the chunks of a state.

Whatever the bytes say, they are taken or refused as documented, nothing is applied half, and what
they make is bounded by their length and by the node's limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from cluster_replicas import Time, World, fill, make_replica, mark_at, put

from lanecache.cluster.replica.entry import (
    Clear,
    EntryRefused,
    InvalidateTag,
    Remove,
    decode_entry,
    encode_entry,
)
from lanecache.cluster.replica.replica import Outcome, Replica
from lanecache.cluster.settings import Settings

LIMITS = Settings(keys_max=20, bytes_max=100_000, tombstones_max=8)
ORIGIN = 7
NOW = 100.0


def receive_entries(data: bytes) -> None:
    """Receive entries of one log, each behind two bytes of length."""
    replica = make_replica(1, Time(), LIMITS)
    for payload in _split(data):
        _receive(replica, payload)


def receive_numbered_entries(data: bytes) -> None:
    """The same, with the number and a clock put right where bytes are an entry at all."""
    replica = make_replica(1, Time(), LIMITS)
    for payload in _split(data):
        with suppress(EntryRefused):
            entry = decode_entry(payload)
            seq = replica.digest.get(ORIGIN, 0) + 1
            clock = replica.clock.physical(NOW) + seq
            _receive(replica, encode_entry(seq, clock, entry.operations, entry.mark))


def take_state(data: bytes) -> None:
    """Take the chunks of a state, each behind three bytes of length, and join it."""
    replica = make_replica(1, Time(), LIMITS)
    replica.write([put("own", 1), Remove("k3")], NOW)
    before = _known(replica)
    staged = replica.begin_state()
    try:
        at = 0
        while at + 3 <= len(data):
            end = at + 3 + int.from_bytes(data[at : at + 3], "big")
            staged.take(data[at + 3 : end])
            assert len(staged.items) <= LIMITS.keys_max
            at = end
        replica.merge(staged, NOW)
    except ValueError:
        assert _known(replica) == before
    _check(replica)


def _split(data: bytes) -> Iterator[bytes]:
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        yield data[at + 2 : end]
        at = end


def _receive(replica: Replica, payload: bytes) -> None:
    before = _known(replica)
    outcome = replica.receive(ORIGIN, payload, 0, NOW)
    if outcome is not Outcome.APPLIED:
        assert _known(replica) == before
    _check(replica)


def _known(replica: Replica) -> tuple[object, ...]:
    contents = [(key, item.order) for key, item in replica.store.all_items()]
    return (contents, dict(replica.digest), dict(replica.sources.states), len(replica.tombstones))


def _check(replica: Replica) -> None:
    assert replica.store.entries <= LIMITS.keys_max
    assert replica.store.bytes <= LIMITS.bytes_max
    assert len(replica.tombstones) <= LIMITS.tombstones_max
    for key, _ in replica.store.all_items():
        assert key not in replica.tombstones.keys.records
        replica.explain(key, NOW)
    list(replica.snapshot(NOW))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "cluster_entries": receive_entries,
    "cluster_numbered_entries": receive_numbered_entries,
    "cluster_states": take_state,
}


# Seeds.


def _world() -> World:
    world = World(1)
    (one,) = world.replicas
    one.origin, one.digest = ORIGIN, {ORIGIN: 0}
    world.logs[ORIGIN], world.writes[ORIGIN] = [], []
    epoch, _ = world.open_source(one)
    world.write(one, put("a", {"x": [1, b"y", None]}), put("b", "text", 5000, ("red",)))
    world.write(one, Clear("p:"), put("p:1", 1.5), Remove("b"), InvalidateTag("red"))
    world.write(one, put("row", b"value"), mark=mark_at(epoch, 4))
    world.write(one, fill("row", "filled", one.base_of("row"), 3, ttl_ms=100, stale_ms=100))
    world.open_source(one)
    return world


def _entries() -> Iterator[bytes]:
    payloads = [payload for payload, _ in _world().logs[ORIGIN]]
    spelled = [len(payload).to_bytes(2, "big") + payload for payload in payloads]
    yield from spelled
    yield b"".join(spelled)
    yield b"".join(reversed(spelled))


def _states() -> Iterator[bytes]:
    for count in (0, 1, 3, 40, 400):
        world = _world()
        (one,) = world.replicas
        for number in range(count):
            world.write(one, put(f"k{number}", "x" * number))
        chunks = list(one.snapshot(NOW))
        spelled = [len(chunk).to_bytes(3, "big") + chunk for chunk in chunks]
        yield b"".join(spelled)
        yield b"".join(spelled[:-1])


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "cluster_entries": _entries,
    "cluster_numbered_entries": _entries,
    "cluster_states": _states,
}
