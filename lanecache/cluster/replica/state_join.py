"""Joins a staged state to what a node holds; the rules stand in ``state``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lanecache.cluster.replica.floors import Floors
from lanecache.cluster.replica.source_ages import SourceAge
from lanecache.cluster.replica.sources import SourceState, is_live
from lanecache.cluster.replica.state_chunks import SourceRow, TombstoneRow
from lanecache.cluster.replica.tombstones import PREFIXES_MAX, PrefixTombstones
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.item import Item

if TYPE_CHECKING:
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.replica.state import Staged


def join(replica: Replica, staged: Staged, now: float) -> None:
    """Join a staged state to a replica, in one step.

    Raises:
        ValueError: the state is not complete, or its clock is too far ahead; nothing was changed.
    """
    if staged.end is None:
        raise ValueError("a state without its end")
    if not replica.clock.observe(staged.clock, now):
        raise ValueError("a state of a clock that is too far ahead")
    _join_sources(replica, staged, now)
    # By what this node knew before: joining deletions can make it drop some of its own.
    lost = _lost_here(replica, staged)
    _forget_what_the_peer_forgot(replica, staged)
    for key in lost:
        del staged.items[key]
    # What is held keeps its place in the store: it is replaced before deletions take it out. These
    # then make room for what is new.
    find = replica.store.find
    held = {key for key in staged.items if find(key) is not None}
    _join_items(replica, staged, held.__contains__, now)
    _join_deletions(replica, staged, now)
    _join_items(replica, staged, lambda key: key not in held, now)
    replica.registers.floors.join(staged.floors.buckets())
    replica.registers.tombstones.tags.rise(staged.tags_floor)
    digest, retired = replica.digest, replica.retired
    for origin, seq in staged.digest.items():
        if seq > digest.get(origin, retired.get(origin, 0)):
            digest[origin] = seq
    replica.counters.state_items_dropped += staged.dropped


def _join_sources(replica: Replica, staged: Staged, now: float) -> None:
    states = replica.sources.states
    waited_s = _waited_s(staged, now)
    changed: list[SourceState] = []
    judged: dict[str, SourceState] = {}
    for name, row in staged.sources.items():
        theirs = _source_state(row)
        mine = states.get(name)
        if mine is None:
            if replica.sources.has_room_for(name):
                states[name] = theirs
                _join_age(replica, row, now - waited_s)
            continue
        joined = states[name] = mine.joined(theirs)
        # What the peer keeps to itself (``shown``) is what makes its age true: a node that is
        # further on in the turn, and shows it, must not go by that.
        if joined.epoch == theirs.epoch and (joined is not mine or not theirs.shown):
            _join_age(replica, row, now - waited_s)
        if joined.epoch != mine.epoch:
            changed.append(joined)
            if row.age is None:
                replica.ages.forget(name)  # given up meanwhile, or nobody vouches for it any more
        if joined.epoch != theirs.epoch or joined.shown:
            judged[name] = joined
    for state in changed:
        replica.void_source(state, now)
    if not judged:
        return
    # Void by the turns that count, or older than what this node has shown: tombstones.
    find = replica.store.find
    for key, (item, stamp) in list(staged.items.items()):
        judge = judged.get(stamp.source)
        if judge is None:
            continue
        held = find(key)
        if held is not None and held.order == item.order:
            continue
        if judge.shown or not is_live(judge.turns, item.order):
            del staged.items[key]
            staged.keys[key] = (TombstoneRow(key, item.order, 0, 0), stamp)


def _waited_s(staged: Staged, now: float) -> float:
    """Say how long ago the moment of a state is at the most."""
    assert staged.end is not None
    if staged.asked_at is not None:
        return max(0.0, now - staged.asked_at)
    return staged.end.elapsed_ms / 1000


def _join_age(replica: Replica, row: SourceRow, at: float) -> None:
    """Take over how old a peer's data of a source was at that moment."""
    age = row.age
    if age is not None:
        as_of, heard_at = at - age.as_of_ms / 1000, at - age.heard_ms / 1000
        replica.ages.join(row.name, SourceAge(as_of, heard_at, age.vouched))


def _source_state(row: SourceRow) -> SourceState:
    return SourceState(
        name=row.name,
        turns=row.turns,
        order=row.order,
        origin=row.origin,
        seq=row.seq,
        checkpoint=row.checkpoint,
        file=row.file,
        offset=row.offset,
        shown=row.shown,
        towards=row.towards,
    )


def _lost_here(replica: Replica, staged: Staged) -> list[str]:
    """List what this node has, or may have, seen something later of, or its deletion."""
    registers = replica.registers
    floors, tombstones = registers.floors, registers.tombstones
    find, buried, prefixes = replica.store.find, tombstones.keys.records, tombstones.prefixes
    highest = max(floors.maximum, prefixes.maximum)
    lost = []
    for key, (row, _) in staged.items.items():
        order = row.order
        held = find(key)
        if held is not None:
            if held.order >= order:
                lost.append(key)
        elif key in buried or order <= highest:
            tombstone = buried.get(key)
            if (
                order <= floors.of(key)
                or order < prefixes.of(key)
                or (tombstone is not None and order <= tombstone.order)
            ):
                lost.append(key)
    return lost


def _forget_what_the_peer_forgot(replica: Replica, staged: Staged) -> None:
    """Forget what the peer has, or may have, seen something later of, or its deletion."""
    floors, maximum, items = staged.floors, staged.floors.maximum, staged.items
    tags_floor = staged.tags_floor
    registers = replica.registers
    for key, item in replica.store.all_items():
        order = item.order
        theirs = items.get(key)
        if theirs is None:
            if (order <= maximum and order <= floors.of(key)) or (
                item.tags and order <= tags_floor
            ):
                registers.forget(key, order)
        elif item.tags and theirs[0].order < order <= tags_floor:
            # It holds the greatest that it has seen, so it has not seen this one, and could not
            # let go of it when it dropped the tag.
            registers.forget(key, order)


def _join_deletions(replica: Replica, staged: Staged, now: float) -> None:
    registers = replica.registers
    tombstones, store = registers.tombstones, registers.store
    theirs = PrefixTombstones(Floors(), PREFIXES_MAX)
    for name, (row, stamp) in staged.prefixes.items():
        theirs.add(name, row.order, stamp, now - row.age_ms / 1000)
    if theirs.records:
        for key, item in store.all_items():
            if item.order < theirs.maximum and item.order < theirs.of(key):
                store.remove(key)
    for name, record in theirs.records.items():
        tombstones.prefixes.add(name, record.order, record.stamp, record.at)
    for name, (row, stamp) in staged.tags.items():
        if tombstones.tags.add(name, row.order, stamp, now - row.age_ms / 1000):
            registers.drop_tags(tombstones.tags.due(lambda _: False))
    for name, (row, stamp) in staged.keys.items():
        registers.remove(name, row.order, stamp, now - row.age_ms / 1000)
    tombstones.bound()


def _join_items(
    replica: Replica, staged: Staged, chosen: Callable[[str], bool], now: float
) -> None:
    """Put in what wins, the hottest first, so that new ones end in the sender's order."""
    registers = replica.registers
    store, counters = registers.store, registers.counters
    find, put, put_cold = store.find, store.put, store.put_cold
    buried, tags = registers.tombstones.keys.records, registers.tombstones.tags
    value_bytes_max = replica.settings.value_bytes_max
    assert staged.end is not None
    since_s = staged.end.elapsed_ms / 1000
    for key, (row, stamp) in reversed(staged.items.items()):
        if not chosen(key):
            continue
        order = row.order
        held = find(key)
        if held is not None:
            if held.order >= order:
                continue
        elif buried:
            buried.pop(key, None)
        deadline = None if row.left_ms is None else now + row.left_ms / 1000 - since_s
        kept_until = None if row.kept_ms is None else now + row.kept_ms / 1000 - since_s
        ends = deadline if kept_until is None else kept_until
        if (ends is not None and ends <= now) or row.size > value_bytes_max:
            counters.expired_on_arrival += row.size <= value_bytes_max
            counters.oversized += row.size > value_bytes_max
            registers.forget(key, order)
            continue
        if row.tags and tags.covers(order, row.tags):
            registers.forget(key, order)
            continue
        item = Item(
            ABSENT if row.absent else row.value,
            order,
            deadline,
            row.size,
            stamp,
            row.tags,
            kept_until=kept_until,
            took_s=row.took_ms / 1000,
        )
        if held is None:
            put_cold(key, item)
        else:
            put(key, item, warm=False)
