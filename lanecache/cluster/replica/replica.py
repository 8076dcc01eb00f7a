"""What one node holds, and how it changes: by its own writes, by entries, by the states of others.

A core: no connection, no timer; the clock is handed in. What always holds, in plain words:

I1. What is held of a key has the greatest order that was seen of it. If nothing is held, it was
    forgotten: a tombstone or a floor is not below that order. So nothing older ever comes in.
    ("Seen" includes what came inside a state, and writes of an ingest whose turn was over.)
I2. An entry is applied in one call, whole; so is a state that is joined. No reader sees a part of
    either beside what was there before, and none sees the order of a key go down. A key may be
    missing at any time.
I3. Orders decide, not the order of arrival. So replicas that have seen the same entries agree on
    every key that both hold (by I1 each holds the greatest one).
I4. A reader sees the writes of a source in the source's order, across turns too (``sources``).
I5. Whatever is refused has changed nothing.

Eviction, expiry, letting go of tombstones and room that a state does not find are all *forgetting*:
local, silent, and safe at any time by I1.

Source of the idea: last-writer-wins registers over a hybrid clock, as in Cassandra; floors stand in
for the tombstones that Cassandra must not forget.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.replica.clock import HybridClock
from lanecache.cluster.replica.entry import (
    NOTHING,
    Fill,
    Heartbeat,
    Mark,
    Opening,
    Operation,
    decode_entry,
    encode_entry,
    is_above_base,
)
from lanecache.cluster.replica.explaining import Explanation, explain
from lanecache.cluster.replica.registers import Registers, ReplicaCounters
from lanecache.cluster.replica.source_ages import SourceAges
from lanecache.cluster.replica.sources import (
    Opened,
    Sources,
    SourceState,
    are_turns,
    base_of,
    epoch_of,
    first_opening,
    first_state,
    is_live,
)
from lanecache.cluster.replica.state import Staged, chunks_of
from lanecache.cluster.replica.state_join import join
from lanecache.cluster.store.item import Order, Stamp
from lanecache.errors import CacheValueError, SinkConflict

if TYPE_CHECKING:
    from lanecache.cluster.replica.tombstones import Tombstone, Tombstones
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.store.store import Store

__all__ = [
    "NOTHING",
    "Explanation",
    "HybridClock",
    "Opened",
    "Outcome",
    "Replica",
    "ReplicaCounters",
]

_EXPIRED_MAX = 2_000  # items that one sweep lets go of
_SWEPT_MAX = 10_000  # tombstones that one sweep looks at
_STABLE_S = 5.0  # a tombstone that all have is kept so long nevertheless
_RETIRED_TOLD_MAX = 1_024  # origins that have left the digest and are told of nevertheless
_TAGS_SWEPT_S = 10.0  # letting go of a tag looks at every item: not more often than that


class Outcome(enum.Enum):
    """What became of an entry. All but ``APPLIED`` have changed nothing."""

    APPLIED = "applied"
    WAITS = "waits"  # for the entry that its source goes on from: see ``waits_for``
    REFUSED_CLOCK = "refused_clock"  # its clock is too far ahead
    GARBAGE = "garbage"  # it is none, or not the next one


class Replica:
    """The data of one node.

    Args:
        settings: limits.
        make_store: makes the store: called with ``forgotten`` and ``is_current``.
        origin: the id of this node's own log: 63 random bits, not 0.
        clock: orders its writes.
        wall: gives seconds since 1970, for ages that are only shown.
        touched: told after each step what it was made of, whether or not anything changed; None:
            of a whole state.

    Attributes:
        digest: for each origin, up to which entry everything was applied.
        retired: as the digest, for origins that have left it, in this order (owned by whoever
            retires them).
        sources: how far each source of ingest has come.
        ages: how old what is held of each source may be.
    """

    def __init__(
        self,
        settings: Settings,
        make_store: Callable[..., Store],
        *,
        origin: int,
        clock: HybridClock,
        wall: Callable[[], float] = time.time,
        touched: Callable[[Sequence[Operation] | None], None] | None = None,
    ) -> None:
        self.origin = origin
        self.clock = clock
        self.digest: dict[int, int] = {origin: 0}
        self.retired: dict[int, int] = {}
        self.sources = Sources()
        self.ages = SourceAges()
        self.registers = Registers(settings, make_store)
        self.store = self.registers.store
        self.touched = touched
        self.settings = settings
        self.wall = wall
        self._waiting: dict[int, tuple[int, int]] = {}
        self._tags_swept_at = float("-inf")

    @property
    def tombstones(self) -> Tombstones:
        """What is remembered of deletions."""
        return self.registers.tombstones

    @property
    def counters(self) -> ReplicaCounters:
        """What has happened."""
        return self.registers.counters

    def applied(self) -> dict[int, int]:
        """Say up to where each origin was applied, those that were retired last too.

        Others need these as well: who was away when one ended, and who comes to an entry that
        waits for one of its, would never hear of it otherwise.
        """
        last = list(itertools.islice(reversed(self.retired.items()), _RETIRED_TOLD_MAX))
        return {**dict(reversed(last)), **self.digest}

    # Writing.

    def write(
        self, operations: Sequence[Operation], now: float, *, mark: Mark | None = None
    ) -> bytes:
        """Make the next entry of this node's own log, and apply it here.

        Whoever calls has checked keys, values, TTLs and tags; a key is written at most once, and
        clears come first. A fill that would not beat its base, or has one that no clock is near,
        is left out.

        Args:
            operations: what becomes visible together.
            now: by the monotonic clock, in seconds.
            mark: of which source it is.

        Returns:
            Its bytes, for the others; its number is ``digest[origin]``.

        Raises:
            CacheValueError: it is larger than ``entry_bytes_max``; nothing was changed.
            SinkConflict: the mark's epoch is over: another ingest has taken the source over, or
                this one again. Nothing was changed.
        """
        state = None
        if mark is not None:
            state = self.sources.states.get(mark.source)
            if state is None or state.epoch != mark.epoch or mark.epoch[1] != self.origin:
                raise _overtaken(mark.source)
        operations = self._with_fills(operations, now)
        seq = self.digest[self.origin] + 1
        clock = self.clock.tick(now)
        payload = encode_entry(seq, clock, operations, mark)
        if len(payload) > self.settings.entry_bytes_max:
            raise _too_large(operations, len(payload), self.settings.entry_bytes_max)
        self._apply((clock, self.origin), seq, operations, mark, state, 0, now)
        return payload

    def open_source(self, name: str, now: float) -> Opened:
        """Take a source over: an ingest in this process writes it from now on.

        Raises:
            ValueError: there are too many sources already; nothing was changed.
        """
        if not self.sources.has_room_for(name):
            raise ValueError(f"the cluster has too many sources to take in {name!r}")
        clock, seq = self.clock.tick(now), self.digest[self.origin] + 1
        state = self.sources.states.get(name)
        if state is None:
            opening = first_opening(name, clock, self.origin)
        else:
            opening = state.opening(clock, self.origin)
        payload = encode_entry(seq, clock, (), opening)
        order = (clock, self.origin)
        self.sources.states[name] = (
            first_state(opening, order, seq) if state is None else state.opened(opening, order, seq)
        )
        self.digest[self.origin] = seq
        self.counters.entries_applied += 1
        return Opened(payload, order, opening.checkpoint)

    def _with_fills(self, operations: Sequence[Operation], now: float) -> Sequence[Operation]:
        """Leave out the fills that are overtaken already, and say whose value the others are of."""
        if not any(isinstance(operation, Fill) for operation in operations):
            return operations
        kept: list[Operation] = []
        for operation in operations:
            if isinstance(operation, Fill):
                # The base may be one that only the node that gave the lease had seen.
                if not is_above_base(operation) or not self.clock.observe(operation.base[0], now):
                    self.counters.fills_overtaken += 1
                    continue
                source = self._source_of(operation)
                operation = msgspec.structs.replace(operation, source=source)
            kept.append(operation)
        return kept

    def _source_of(self, fill: Fill) -> str:
        held = self.store.find(fill.key) or self.tombstones.keys.records.get(fill.key)
        if held is None or held.order != tuple(fill.base) or held.stamp is None:
            return ""
        return held.stamp.source

    # Receiving.

    def receive(self, origin: int, payload: bytes, age_ms: int, now: float) -> Outcome:
        """Apply the next entry of another origin.

        Args:
            origin: whose log it is of.
            payload: the entry; at most ``entry_bytes_max`` long, or whatever the caller allows.
            age_ms: how long ago it was made, 0 or more.
            now: by the monotonic clock, in seconds.
        """
        try:
            entry = decode_entry(payload)
        except ValueError:
            self.counters.entries_garbage += 1
            return Outcome.GARBAGE
        if entry.seq != self.digest.get(origin, 0) + 1 or origin == self.origin:
            self.counters.entries_garbage += 1
            return Outcome.GARBAGE
        if not self.clock.observe(entry.clock, now):
            self.counters.clocks_refused += 1
            return Outcome.REFUSED_CLOCK
        mark, order = entry.mark, (entry.clock, origin)
        state = None
        if mark is not None:
            state = self.sources.states.get(mark.source)
            if isinstance(mark, Mark):
                if state is None or mark.epoch > state.epoch or mark.epoch[1] != origin:
                    self.counters.entries_garbage += 1
                    return Outcome.GARBAGE
            else:
                if not self._is_opening(mark, order):
                    self.counters.entries_garbage += 1
                    return Outcome.GARBAGE
                if self._waits(origin, mark):
                    return Outcome.WAITS
        self._apply(order, entry.seq, entry.operations, mark, state, age_ms, now)
        return Outcome.APPLIED

    def waits_for(self, origin: int) -> tuple[int, int] | None:
        """Say up to where which other origin has to be applied before that one can go on."""
        return self._waiting.get(origin)

    def _is_opening(self, mark: Opening, order: Order) -> bool:
        turn = mark.turns[-1]
        return (
            (turn.clock, turn.origin) == order
            and are_turns(mark.turns)
            and self.sources.has_room_for(mark.source)
        )

    def _waits(self, origin: int, mark: Opening) -> bool:
        base = mark.base_origin
        if base in (0, origin, self.origin):
            applied = True
        else:
            applied = self.digest.get(base, self.retired.get(base, 0)) >= mark.base_seq
            applied = applied or self._has_come_to_base(mark)
        if applied:
            self._waiting.pop(origin, None)
        else:
            self._waiting[origin] = (base, mark.base_seq)
        return not applied

    def _has_come_to_base(self, mark: Opening) -> bool:
        """Say whether what this node has of a source includes the base of an opening.

        That may be so though the base's log is not known here: it was retired before this node
        took a state from those who had applied it.
        """
        state = self.sources.states.get(mark.source)
        if state is None or len(mark.turns) < 2:
            return False
        # The entries of one turn are in one log, so they come in their order.
        return state.epoch == epoch_of(mark.turns[-2]) and state.order >= base_of(mark.turns[-1])

    # Applying.

    def _apply(
        self,
        order: Order,
        seq: int,
        operations: Sequence[Operation],
        mark: Mark | Opening | None,
        state: SourceState | None,
        age_ms: int,
        now: float,
    ) -> None:
        """Apply an entry whole, of which everything was checked."""
        self.digest[order[1]] = seq
        registers = self.registers
        registers.counters.entries_applied += 1
        at = (order[0] >> 16) / 1000
        if mark is None:
            stamp = Stamp(seq, "", "", 0, at)
            warm = order[1] == self.origin
            registers.apply(operations, order, stamp, age_ms, now, warm=warm)
        elif isinstance(mark, Opening):
            stamp = Stamp(seq, mark.source, "", 0, at)
            if state is None:
                self.sources.states[mark.source] = first_state(mark, order, seq)
            elif order > state.epoch:
                self._take_over(state, state.opened(mark, order, seq), now)
            registers.counters.void += registers.apply_void(operations, order, stamp, now)
        else:
            assert state is not None
            stamp = Stamp(seq, mark.source, mark.file, mark.offset, at)
            if mark.epoch != state.epoch:
                registers.counters.void += registers.apply_void(operations, order, stamp, now)
            else:
                state = self.sources.states[mark.source] = state.moved(mark, order, seq)
                if mark.heartbeat is not None:
                    self._hear(mark.source, mark.heartbeat, age_ms, now)
                if state.shown:
                    veiled = registers.apply_void(operations, order, stamp, now)
                    registers.counters.veiled += veiled
                else:
                    registers.apply(operations, order, stamp, age_ms, now, warm=False)
        if self.sources.states and mark is None:
            self._void_fills(operations, order, now)
        if self.touched is not None:
            self.touched(operations)

    def _hear(self, source: str, beat: Heartbeat, age_ms: int, now: float) -> None:
        if not beat.over:
            self.ages.heard(source, beat, age_ms / 1000, now)
            return
        self.ages.forget(source)
        for key, item in self.store.all_items():
            if item.stamp is not None and item.stamp.source == source:
                self.counters.void += 1
                self.registers.bury(key, item, now)

    def _take_over(self, before: SourceState, after: SourceState, now: float) -> None:
        """Give a source's turn to a later ingest: what it does not rest on is void."""
        self.sources.states[after.name] = after
        last = after.turns[-1]
        if before.order == (last.base_clock, last.base_origin):
            return
        self.void_source(after, now)

    def void_source(self, state: SourceState, now: float) -> None:
        """Turn what is held of a source and does not count any more into tombstones."""
        name, turns = state.name, state.turns
        for key, item in self.store.all_items():
            stamp = item.stamp
            if stamp is not None and stamp.source == name and not is_live(turns, item.order):
                self.counters.void += 1
                self.registers.bury(key, item, now)

    def _void_fills(self, operations: Sequence[Operation], order: Order, now: float) -> None:
        """Take back fills that were made from what does not count any more."""
        for operation in operations:
            if isinstance(operation, Fill) and operation.source:
                made = operation.order(order[1])
                if self.sources.is_void(operation.source, made):
                    held = self.store.find(operation.key)
                    if held is not None and held.order == made:
                        self.counters.void += 1
                        self.registers.bury(operation.key, held, now)

    # Forgetting.

    def sweep(
        self, now: float, is_stable: Callable[[int, int], bool], is_calm: bool, *, next_at: float
    ) -> None:
        """Let go of what has expired, and of tombstones that are not needed any more.

        Args:
            now: by the monotonic clock.
            is_stable: whether every live member has applied ``(origin, seq)``.
            is_calm: whether nobody is suspected, or dead within the grace.
            next_at: the next sweep comes by then.
        """
        self.store.expire(now, _EXPIRED_MAX, next_at=next_at)
        tombstones = self.tombstones
        if not len(tombstones):
            return
        grace_s = self.settings.tombstone_grace_s
        known: dict[tuple[int, int], bool] = {}

        def droppable(tombstone: Tombstone) -> bool:
            age_s = now - tombstone.at
            if age_s >= grace_s:
                return True
            if not is_calm or age_s < _STABLE_S:
                return False
            entry = (tombstone.origin, tombstone.stamp.seq)
            stable = known.get(entry)
            if stable is None:
                stable = known[entry] = is_stable(*entry)
            return stable

        tombstones.keys.sweep(droppable, _SWEPT_MAX)
        tombstones.prefixes.sweep(droppable)
        if tombstones.tags.records and now - self._tags_swept_at >= _TAGS_SWEPT_S:
            self._tags_swept_at = now
            self.registers.drop_tags(tombstones.tags.due(droppable))

    # States.

    def snapshot(self, now: float) -> Iterator[bytes]:
        """Give all that is held as it is now, in chunks; recency is not touched.

        It is one moment: what changes while the chunks are taken is not in it. (What was evicted
        meanwhile stays in memory until then.)
        """
        return chunks_of(self, now)

    def begin_state(self, asked_at: float | None = None) -> Staged:
        """Begin to take a peer's state; nothing changes here before ``merge``.

        Args:
            asked_at: when the peer was asked, by the monotonic clock: its state is not older.
        """
        return Staged(self.settings, self.store.overhead_bytes, asked_at)

    def merge(self, staged: Staged, now: float) -> None:
        """Join a peer's whole state to what is held here, in one step.

        Raises:
            ValueError: the state lacks something, or its clock is too far ahead; nothing was
                changed.
        """
        join(self, staged, now)
        self.counters.states_merged += 1
        self._waiting.clear()
        if self.touched is not None:
            self.touched(None)

    # Asking.

    def base_of(self, key: str, tags: Sequence[str] = ()) -> Order:
        """Give what a fill of a key that begins now is made from: the greatest order known of it.

        Args:
            key: which.
            tags: those that the filled value will have: what was invalidated before does not hit
                it. (Tags of what is held count in any case.)
        """
        registers = self.registers
        base = registers.order_of(key)
        held = self.store.find(key)
        if tags or (held is not None and held.tags):
            records = self.tombstones.tags
            base = max(base, records.of(tags))
            if tags:
                base = max(base, records.floor)
            if held is not None:
                base = max(base, records.of(held.tags))
        return base

    def is_outdated(self, key: str, order: Order, tags: Sequence[str] = ()) -> bool:
        """Say whether a value of that order would not be held here, or not any more."""
        if tags and self.tombstones.tags.covers(order, tags):
            return True
        return self.registers.order_of(key) > order

    def explain(self, key: str, now: float) -> Explanation | None:
        """Say why a key holds what it holds; None when nothing is held."""
        return explain(self.registers, key, now, self.wall())


def _overtaken(source: str) -> SinkConflict:
    return SinkConflict(
        f"another lanecache process has taken over the source {source!r} in the cluster: stop one"
        " of the two, or give them different source names",
        sink="cluster",
    )


def _too_large(operations: Sequence[Operation], size: int, most: int) -> CacheValueError:
    return CacheValueError(
        f"What is to become visible in one step takes {size:,} bytes and entry_bytes_max is"
        f" {most:,}: write it in several steps, or raise entry_bytes_max on all nodes.",
        key=getattr(operations[0], "key", "") if operations else "",
        limit="entry_bytes_max",
    )
