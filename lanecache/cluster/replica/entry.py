"""An entry of a node's log: what becomes visible in one step, and how it is spelled in bytes.

An entry is a MessagePack array ``[seq, clock, operations, mark]``; its origin is known from where
it came. All its operations have the order ``(clock, origin)``, but a fill: its order is that of
what it was made from, with its fence and the origin behind it, so that it beats exactly that, and
loses to every newer write. A key is written at most once in an entry. The clears come first: a
clear does not reach what its own entry sets.

The bytes are made once; every peer, the ring and repairs have the same. What comes from the network
is read with a bound on everything: the fields' types here, ``OPERATIONS_MAX``, and sizes that have
to add up to no more than there are bytes, so that no few bytes stand for much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from lanecache.cluster.replica.clock import CLOCK_MAX
from lanecache.cluster.replica.floors import NOTHING
from lanecache.cluster.store.absent import ABSENT
from lanecache.cluster.store.item import Order
from lanecache.cluster.store.values import TAGS_MAX, check_decoded

__all__ = [
    "NOTHING",
    "Clear",
    "Entry",
    "EntryRefused",
    "Fill",
    "Heartbeat",
    "InvalidateTag",
    "Mark",
    "Opening",
    "Operation",
    "Order",
    "Put",
    "Remove",
    "Turn",
    "decode_entry",
    "encode_entry",
    "is_above_base",
]

ORIGIN_MAX = 2**63 - 1
KEY_CHARACTERS_MAX = 65_536
TAG_CHARACTERS_MAX = 65_536
OPERATIONS_MAX = 1_000_000
TTL_MS_MAX = 2**52
SOURCE_CHARACTERS_MAX = 1024
CHECKPOINT_BYTES_MAX = 4 * 1024 * 1024
TURNS_MAX = 64

Clock = Annotated[int, Meta(ge=0, le=CLOCK_MAX)]
Origin = Annotated[int, Meta(ge=0, le=ORIGIN_MAX)]
Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Key = Annotated[str, Meta(min_length=1, max_length=KEY_CHARACTERS_MAX)]
Prefix = Annotated[str, Meta(max_length=KEY_CHARACTERS_MAX)]
Tag = Annotated[str, Meta(max_length=TAG_CHARACTERS_MAX)]
Tags = Annotated[tuple[Tag, ...], Meta(max_length=TAGS_MAX)]
Milliseconds = Annotated[int, Meta(ge=0, le=TTL_MS_MAX)]
# (clock, origin), and for what a fill has made its fence and filler behind them.
AnyOrder = Annotated[tuple[Count, ...], Meta(min_length=2, max_length=4)]
SourceName = Annotated[str, Meta(max_length=SOURCE_CHARACTERS_MAX)]
CheckpointBytes = Annotated[bytes, Meta(max_length=CHECKPOINT_BYTES_MAX)]


class EntryRefused(ValueError):
    """Bytes are no entry, or none that could follow; nothing of them was applied."""


class Put(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag=1):
    """Store a value.

    Attributes:
        key: where.
        value: what; of the types that ``values`` lists.
        size: of the encoded value, in bytes.
        ttl_ms: how long it lives from the making of the entry; None: for ever.
        tags: by which it can be invalidated.
    """

    key: Key
    value: Any
    size: Count
    ttl_ms: Milliseconds | None = None
    tags: Tags = ()


class Fill(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag=2):
    """Store what a filler has made.

    Attributes:
        key: where.
        value: what; None when ``absent``.
        size: of the encoded value, in bytes.
        base: the order of what the key had when the fill began (``Replica.base_of``).
        fence: greater than that of ``base``, if it has one.
        ttl_ms: how long it lives from the making of the entry; None: for ever.
        tags: by which it can be invalidated.
        stale_ms: how much longer it is kept for fills.
        took_ms: how long the filler took.
        absent: whether it is the knowledge that there is nothing: kept for fills only, ``ttl_ms``
            long.
        source: whose value it was made from; filled in by ``Replica.write``.
    """

    key: Key
    value: Any
    size: Count
    base: AnyOrder
    fence: Count
    ttl_ms: Milliseconds | None = None
    tags: Tags = ()
    stale_ms: Milliseconds = 0
    took_ms: Milliseconds = 0
    absent: bool = False
    source: SourceName = ""

    def order(self, filler: int) -> Order:
        """Give the order of what the log of ``filler`` has filled."""
        return (self.base[0], self.base[1], self.fence, filler)

    @property
    def held_value(self) -> Any:
        """What a store holds for it."""
        return ABSENT if self.absent else self.value


class Remove(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Forget a key."""

    key: Key


class Clear(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Forget every key that begins with ``prefix``, and what was written to one before."""

    prefix: Prefix


class InvalidateTag(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Forget every value that has a tag, and what was written with it before."""

    tag: Tag


Operation: TypeAlias = Put | Fill | Remove | Clear | InvalidateTag


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Says that the process which reads a source is at work, and how true its log is.

    Attributes:
        age_ms: everything that the source had committed so long before the entry was made stands in
            this log, up to the entry; None: since it was opened, the log has not come to the end of
            the source yet.
        over: the source is given up: nobody reads it any more, and what is held of it is forgotten.
    """

    age_ms: Milliseconds | None = None
    over: bool = False


class Mark(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag=1):
    """Says that an entry is of a source, in an epoch that the entry's origin has opened.

    Attributes:
        source: its name.
        epoch: the order of the opening entry (``Opened.epoch``).
        checkpoint: ``Checkpoint.encode()`` of what the source has come to with this entry; None:
            still what it was (all but the last entry of a transaction in two phases).
        file: the binlog file, for ``explain``.
        offset: behind the transaction, in bytes.
        towards: of an entry without ``checkpoint``: the one that its transaction leads to. Readers
            may see parts of that from now on.
        heartbeat: of an entry without operations that is made now and then, whether or not the
            source has changed. (lanecache 0.1.0 passes over it, and takes the entry for empty.)
    """

    source: SourceName
    epoch: tuple[Clock, Origin]
    checkpoint: CheckpointBytes | None = None
    file: Annotated[str, Meta(max_length=1024)] = ""
    offset: Count = 0
    towards: CheckpointBytes | None = None
    heartbeat: Heartbeat | None = None


class Turn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One ingest's turn at a source: its epoch, and the order up to which it took over.

    The base is ``(0, 0)`` when it began with nothing.
    """

    clock: Clock
    origin: Origin
    base_clock: Clock
    base_origin: Origin


class Opening(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Says that the entry's origin takes a source over from now on.

    Attributes:
        source: its name.
        turns: all turns up to this one (the latest ones), oldest first.
        base_origin: in whose log the entry is that this turn follows on; 0: on none.
        base_seq: which one.
        checkpoint: what the source has come to with it; None: nothing is known.
    """

    source: SourceName
    turns: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=TURNS_MAX)]
    base_origin: Origin
    base_seq: Seq
    checkpoint: CheckpointBytes | None


class Entry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What becomes visible in one step."""

    seq: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    clock: Annotated[int, Meta(ge=1, le=CLOCK_MAX)]
    operations: Annotated[list[Operation], Meta(max_length=OPERATIONS_MAX)]
    mark: Mark | Opening | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


def encode_entry(
    seq: int, clock: int, operations: Sequence[Operation], mark: Mark | Opening | None
) -> bytes:
    """Spell an entry."""
    if mark is None:
        return _encode((seq, clock, operations))
    return _encode((seq, clock, operations, mark))


def decode_entry(payload: bytes) -> Entry:
    """Read an entry; whoever calls has bounded the length of ``payload``.

    Raises:
        EntryRefused: it is none; nothing of it may be used.
    """
    try:
        entry = _decode(payload)
        _check(entry, len(payload))
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise EntryRefused(f"not an entry: {error}") from None
    return entry


def _check(entry: Entry, room: int) -> None:
    """Check what the types do not say, in one loop: it is on the way of all that arrives."""
    for operation in entry.operations:
        kind = type(operation)
        if kind is Put:
            room -= check_decoded(operation.value, operation.size)  # type: ignore[union-attr]
        elif isinstance(operation, Fill):
            room -= check_decoded(operation.value, operation.size)
            if operation.base[0] > entry.clock or not is_above_base(operation):
                raise EntryRefused("a fill whose base its maker cannot have, or does not beat")
    if room < 0:
        raise EntryRefused("an entry whose values have not the sizes that it says")


def is_above_base(fill: Fill) -> bool:
    """Say whether a fill beats what it was made from: its fence is above that of its base."""
    base = fill.base
    return len(base) == 2 or (len(base) == 4 and base[2] < fill.fence)
