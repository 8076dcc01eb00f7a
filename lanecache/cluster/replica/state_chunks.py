"""The parts that a state is sent in, and how they are spelled in bytes (``state``)."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from lanecache.cluster.replica.entry import (
    TURNS_MAX,
    AnyOrder,
    CheckpointBytes,
    Clock,
    Count,
    Key,
    Milliseconds,
    Origin,
    Prefix,
    Seq,
    SourceName,
    Tags,
    Turn,
)
from lanecache.cluster.replica.floors import BUCKETS
from lanecache.cluster.replica.sources import SHOWN_MAX
from lanecache.cluster.store.values import check_decoded

ROWS_MAX = 4096  # of a chunk

_Signed = Annotated[int, Meta(ge=-(2**52), le=2**52)]
_Rows = Meta(max_length=ROWS_MAX)


class StampRow(msgspec.Struct, frozen=True, array_like=True):
    """A stamp, which the rows of a chunk name by its place."""

    seq: Seq
    source: SourceName
    file: Annotated[str, Meta(max_length=1024)]
    offset: Count
    at: float


_Stamps = Annotated[list[StampRow], _Rows]


class ItemRow(msgspec.Struct, frozen=True, array_like=True):
    """An item. What is left of its times is in milliseconds, as of the moment of the state."""

    key: Key
    value: Any
    size: Count
    order: AnyOrder
    stamp: Count
    left_ms: _Signed | None
    tags: Tags
    kept_ms: _Signed | None
    took_ms: Milliseconds
    absent: bool


class TombstoneRow(msgspec.Struct, frozen=True, array_like=True):
    """A tombstone of a key, a prefix or a tag."""

    name: Prefix
    order: AnyOrder
    stamp: Count
    age_ms: Milliseconds


class AgeRow(msgspec.Struct, frozen=True, array_like=True):
    """How old what is held of a source may be, as of the moment of the state (``source_ages``)."""

    as_of_ms: Milliseconds
    heard_ms: Milliseconds
    vouched: bool


class SourceRow(msgspec.Struct, frozen=True, array_like=True):
    """A source. lanecache 0.1.0 knows no ``age``."""

    name: SourceName
    turns: Annotated[tuple[Turn, ...], Meta(min_length=1, max_length=TURNS_MAX)]
    order: tuple[Clock, Origin]
    origin: Origin
    seq: Seq
    checkpoint: CheckpointBytes | None
    file: Annotated[str, Meta(max_length=1024)]
    offset: Count
    shown: Annotated[tuple[CheckpointBytes, ...], Meta(max_length=SHOWN_MAX)]
    towards: CheckpointBytes | None = None
    age: AgeRow | None = None


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A part of a state; each kind has a tag of its own."""


class Digests(_Chunk, frozen=True, tag=1):
    """Up to where origins were applied."""

    applied: Annotated[list[tuple[Origin, Seq]], _Rows]


class SourceChunk(_Chunk, frozen=True, tag=2):
    """One source."""

    source: SourceRow


class Items(_Chunk, frozen=True, tag=3):
    """Items, the colder first."""

    stamps: _Stamps
    rows: Annotated[list[ItemRow], _Rows]


class KeysBuried(_Chunk, frozen=True, tag=4):
    """Tombstones of keys, the older first."""

    stamps: _Stamps
    rows: Annotated[list[TombstoneRow], _Rows]


class PrefixesBuried(_Chunk, frozen=True, tag=5):
    """Tombstones of prefixes."""

    stamps: _Stamps
    rows: Annotated[list[TombstoneRow], _Rows]


class TagsBuried(_Chunk, frozen=True, tag=6):
    """Tombstones of tags."""

    stamps: _Stamps
    rows: Annotated[list[TombstoneRow], _Rows]


class End(_Chunk, frozen=True, tag=7):
    """Ends a state.

    Attributes:
        floors: all of them.
        tags_floor: the floor of what has tags.
        clock: what the sender's clock showed at the moment of the state.
        items: how many items came before.
        tombstones: how many tombstones did.
        origins: how many origins did.
        sources: how many sources did.
        elapsed_ms: how long ago the moment of the state is.
    """

    floors: Annotated[list[AnyOrder], Meta(min_length=BUCKETS, max_length=BUCKETS)]
    tags_floor: AnyOrder
    clock: Clock
    items: Count
    tombstones: Count
    origins: Count
    sources: Count
    elapsed_ms: Milliseconds


Chunk: TypeAlias = Digests | SourceChunk | Items | KeysBuried | PrefixesBuried | TagsBuried | End

encode_chunk = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode


def decode_chunk(data: bytes) -> Chunk:
    """Read a chunk; whoever calls has bounded the length of ``data``.

    Raises:
        ValueError: it is none; nothing of it may be used.
    """
    try:
        chunk: Chunk = _decode(data)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"not a part of a state: {error}") from None
    if isinstance(chunk, Items):
        room = len(data)
        for row in chunk.rows:
            room -= check_decoded(row.value, row.size)
        if room < 0:
            raise ValueError("a part of a state whose values have not the sizes that it says")
    if isinstance(chunk, Items | KeysBuried | PrefixesBuried | TagsBuried):
        count = len(chunk.stamps)
        if any(row.stamp >= count or len(row.order) == 3 for row in chunk.rows):
            raise ValueError("a part of a state with an order or a stamp that is none")
    return chunk
