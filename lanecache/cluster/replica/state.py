"""A whole state on its way from one node to another, and how it is joined.

The sender takes one moment of all that it knows (items, tombstones, floors, digest, sources) and
spells it in chunks: the coldest items first, the floors last. The receiver stages them, within its
own bounds: of items for which it has no room the coldest are passed over, and count as forgotten.
Only when the state is complete is it joined, in one step:

- of each key the greater order wins, as between any two writes;
- what is held here and not there, and not above the peer's floor, is forgotten: the peer may have
  seen what is later;
- what is held there and not here, and not above this node's floor, is not taken, for the same
  reason;
- of a source the later turn counts, and what is void by its turns is, here and there, a tombstone;
- digests, floors and deletions become the greater ones.

It is a join: it does not matter who takes whose state first, and two nodes that take each other's
end with the same (as far as there is room). A state that was cut off is dropped whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from lanecache.cluster.replica.floors import NOTHING, Floors
from lanecache.cluster.replica.sources import SOURCES_MAX, SourceState, are_turns
from lanecache.cluster.replica.state_chunks import (
    ROWS_MAX,
    AgeRow,
    Digests,
    End,
    ItemRow,
    Items,
    KeysBuried,
    PrefixesBuried,
    SourceChunk,
    SourceRow,
    StampRow,
    TagsBuried,
    TombstoneRow,
    decode_chunk,
    encode_chunk,
)
from lanecache.cluster.replica.tombstones import PREFIXES_MAX, Tombstone
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.item import Item, Order, Stamp, charge_of

if TYPE_CHECKING:
    from lanecache.cluster.replica.replica import Replica
    from lanecache.cluster.replica.source_ages import SourceAge
    from lanecache.cluster.settings import Settings

CHUNK_BYTES = 128 * 1024  # about; a large value takes more
ORIGINS_MAX = 65_536
_ROW_BYTES = 64  # what a row takes beside its key and value, about

# Giving.


def chunks_of(replica: Replica, now: float) -> Iterator[bytes]:
    """Take one moment of a replica, and give it in chunks."""
    registers = replica.registers
    tombstones = registers.tombstones
    contents = replica.store.all_items()
    keys = list(tombstones.keys.records.items())
    prefixes = list(tombstones.prefixes.records.items())
    tags = list(tombstones.tags.records.items())
    digest = list(replica.applied().items())
    sources = list(replica.sources.states.values())
    ages = {source.name: replica.ages.of(source.name) for source in sources}
    floors = Floors()
    floors.join(registers.floors.buckets())
    tags_floor = tombstones.tags.floor
    clock = replica.clock.reading(now)
    taken_at = replica.wall()

    def spell() -> Iterator[bytes]:
        for at in range(0, len(digest), ROWS_MAX):
            yield encode_chunk(Digests(digest[at : at + ROWS_MAX]))
        for source in sources:
            yield encode_chunk(SourceChunk(_source_row(source, ages.get(source.name), now)))
        for kind, records in ((KeysBuried, keys), (PrefixesBuried, prefixes), (TagsBuried, tags)):
            yield from _spell_tombstones(kind, records, now)
        count = 0
        for rows in _item_chunks(contents, now, floors):
            count += len(rows.rows)
            yield encode_chunk(rows)
        elapsed_ms = max(0, int((replica.wall() - taken_at) * 1000))
        buried = len(keys) + len(prefixes) + len(tags)
        counts = (count, buried, len(digest), len(sources))
        yield encode_chunk(End(floors.buckets(), tags_floor, clock, *counts, elapsed_ms))

    return spell()


def _item_chunks(contents: list[tuple[str, Item]], now: float, floors: Floors) -> Iterator[Items]:
    stamps, rows, size = _Numbering(), [], 0
    contents.reverse()
    while contents:
        key, item = contents.pop()  # let go of here: it may have been evicted since
        ends = item.deadline if item.kept_until is None else item.kept_until
        if ends is not None and ends <= now:
            floors.rise(key, item.order)
            continue
        rows.append(
            ItemRow(
                key,
                None if item.value is ABSENT else item.value,
                item.size_bytes,
                item.order,
                stamps.number(item.stamp),
                _ms(item.deadline, now),
                item.tags,
                _ms(item.kept_until, now),
                round(item.took_s * 1000),
                item.value is ABSENT,
            )
        )
        size += len(key) + item.size_bytes + _ROW_BYTES
        if size >= CHUNK_BYTES or len(rows) == ROWS_MAX:
            yield Items(stamps.rows, rows)
            stamps, rows, size = _Numbering(), [], 0
    if rows:
        yield Items(stamps.rows, rows)


def _spell_tombstones(
    kind: type[KeysBuried | PrefixesBuried | TagsBuried],
    records: list[tuple[str, Tombstone]],
    now: float,
) -> Iterator[bytes]:
    walk = iter(records)
    while part := list(islice(walk, 1024)):
        stamps = _Numbering()
        rows = [
            TombstoneRow(
                name,
                record.order,
                stamps.number(record.stamp),
                max(0, int((now - record.at) * 1000)),
            )
            for name, record in part
        ]
        yield encode_chunk(kind(stamps.rows, rows))


def _source_row(state: SourceState, age: SourceAge | None, now: float) -> SourceRow:
    return SourceRow(
        state.name,
        state.turns,
        (state.order[0], state.order[1]),
        state.origin,
        state.seq,
        state.checkpoint,
        state.file,
        state.offset,
        state.shown,
        state.towards,
        None if age is None else _age_row(age, now),
    )


def _age_row(age: SourceAge, now: float) -> AgeRow:
    as_of_ms = max(0, math.ceil((now - age.as_of) * 1000))
    return AgeRow(as_of_ms, max(0, math.ceil((now - age.heard_at) * 1000)), age.vouched)


def _ms(at: float | None, now: float) -> int | None:
    return None if at is None else int((at - now) * 1000)


class _Numbering:
    """The stamps of a chunk."""

    __slots__ = ("_last", "_numbers", "rows")

    def __init__(self) -> None:
        self.rows: list[StampRow] = []
        self._numbers: dict[int, int] = {}
        self._last: list[Stamp] = []  # keeps them alive while their ids count

    def number(self, stamp: Stamp | None) -> int:
        if stamp is None:
            stamp = _NO_STAMP
        number = self._numbers.get(id(stamp))
        if number is None:
            number = self._numbers[id(stamp)] = len(self.rows)
            self._last.append(stamp)
            self.rows.append(StampRow(stamp.seq, stamp.source, stamp.file, stamp.offset, stamp.at))
        return number


_NO_STAMP = Stamp(0)


# Taking.


class Staged:
    """A peer's state as far as it has come.

    Args:
        settings: this node's limits, which hold for what is staged too.
        overhead_bytes: of the store, for each item.
        asked_at: when the peer was asked for it, if that is known.
    """

    def __init__(
        self, settings: Settings, overhead_bytes: int, asked_at: float | None = None
    ) -> None:
        self.asked_at = asked_at
        self.digest: dict[int, int] = {}
        self.sources: dict[str, SourceRow] = {}
        self.items: dict[str, tuple[ItemRow, Stamp]] = {}
        self.keys: dict[str, tuple[TombstoneRow, Stamp]] = {}
        self.prefixes: dict[str, tuple[TombstoneRow, Stamp]] = {}
        self.tags: dict[str, tuple[TombstoneRow, Stamp]] = {}
        self.floors = Floors()
        self.tags_floor: Order = NOTHING
        self.clock = 0
        self.dropped = 0
        self.end: End | None = None
        self._settings = settings
        self._overhead_bytes = overhead_bytes
        self._bytes = 0
        self._items = 0
        self._tombstones = 0

    def take(self, data: bytes) -> None:
        """Stage the next chunk.

        Raises:
            ValueError: it is none, or more than there may be; the whole state is to be dropped.
        """
        if self.end is not None:
            raise ValueError("a part of a state behind its end")
        chunk = decode_chunk(data)
        match chunk:
            case Items():
                self._take_items(chunk)
            case KeysBuried():
                self._take_tombstones(chunk, self.keys)
                while len(self.keys) > self._settings.tombstones_max:
                    name = next(iter(self.keys))
                    self.floors.rise(name, self.keys.pop(name)[0].order)
            case PrefixesBuried():
                self._take_tombstones(chunk, self.prefixes)
                while len(self.prefixes) > PREFIXES_MAX:
                    self.floors.rise_all(self.prefixes.pop(next(iter(self.prefixes)))[0].order)
            case TagsBuried():
                self._take_tombstones(chunk, self.tags)
                while len(self.tags) > self._settings.tombstones_max:
                    row, _ = self.tags.pop(next(iter(self.tags)))
                    self.tags_floor = max(self.tags_floor, row.order)
            case Digests():
                self.digest.update(chunk.applied)
                if len(self.digest) > ORIGINS_MAX:
                    raise ValueError("a state of too many origins")
            case SourceChunk():
                self._take_source(chunk.source)
            case End():
                self._finish(chunk)

    def _take_items(self, chunk: Items) -> None:
        stamps = _stamps(chunk.stamps)
        settings, overhead = self._settings, self._overhead_bytes
        items = self.items
        for row in chunk.rows:
            key = row.key
            if key in items:
                raise ValueError("a state that has a key twice")
            items[key] = (row, stamps[row.stamp])
            self._bytes += charge_of(key, row.size, row.tags, overhead)
            if row.order[0] > self.clock:
                self.clock = row.order[0]
        self._items += len(chunk.rows)
        while items and (
            self._bytes > settings.bytes_max or len(items) > settings.keys_max
        ):  # the coldest
            key = next(iter(items))
            row, _ = items.pop(key)
            self._bytes -= charge_of(key, row.size, row.tags, overhead)
            self.floors.rise(key, row.order)
            self.dropped += 1

    def _take_tombstones(
        self,
        chunk: KeysBuried | PrefixesBuried | TagsBuried,
        into: dict[str, tuple[TombstoneRow, Stamp]],
    ) -> None:
        stamps = _stamps(chunk.stamps)
        for row in chunk.rows:
            into[row.name] = (row, stamps[row.stamp])
            self.clock = max(self.clock, row.order[0])
        self._tombstones += len(chunk.rows)

    def _take_source(self, row: SourceRow) -> None:
        self.sources[row.name] = row
        if len(self.sources) > SOURCES_MAX:
            raise ValueError("a state of too many sources")
        last = row.turns[-1]
        if not are_turns(row.turns) or row.order < (last.clock, last.origin):
            raise ValueError("a source whose turns do not follow on each other")
        self.clock = max(self.clock, row.order[0])

    def _finish(self, end: End) -> None:
        counts = (self._items, self._tombstones, len(self.digest), len(self.sources))
        if counts != (end.items, end.tombstones, end.origins, end.sources):
            raise ValueError("a state in which something is missing")
        self.floors.join(end.floors)
        self.tags_floor = max(self.tags_floor, end.tags_floor)
        self.clock = max(self.clock, end.clock, self.floors.maximum[0], self.tags_floor[0])
        self.end = end


def _stamps(rows: Iterable[StampRow]) -> list[Stamp]:
    return [Stamp(row.seq, row.source, row.file, row.offset, row.at) for row in rows]
