"""What a store holds for a key, and what it counts for it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

Order = tuple[int, ...]

TAG_OVERHEAD_BYTES = 64  # its object and its place in the item's tuple


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """Where an entry came from; one object for all items of the entry. For ``explain``.

    Attributes:
        seq: its number in its origin's log.
        source: the name of the source that it was read from, or empty.
        file: the binlog file, or empty.
        offset: the position in that file, behind the transaction.
        at: when its origin made it, in seconds since 1970 by that process's clock: only shown.
    """

    seq: int
    source: str = ""
    file: str = ""
    offset: int = 0
    at: float = 0.0


class _Handed(msgspec.Struct, gc=False, eq=False):
    value: Any


class _Watched(_Handed, kw_only=True, gc=False, eq=False):
    until: float = math.inf
    uses: int = 0


class Item(_Watched, gc=False, eq=False):
    """A value with what decides about it. Two items are equal only when they are one.

    The garbage collector does not see items (100,000 of them would be walked again and again); it
    need not, as nothing that a value may hold can lead back to its item. What every hit reads comes
    first in memory, beside the object's head (so the bases): that saves a miss of the processor's
    cache.

    Attributes:
        value: the object that is handed out.
        order: its place in the order of writes of its key.
        deadline: when it expires, in seconds of the monotonic clock; None: never. Finite.
        kept_until: until when it is kept, not handed out, for fills after it expired; None: it goes
            with its deadline. Not before that.
        size_bytes: of the encoded value.
        stamp: where it came from.
        tags: by which it can be invalidated.
        took_s: how long the fill took that made the value; 0: it was no fill, or that is unknown.
        charge_bytes: the store's own: what it counts for.
        until: the store's own: before then ``get`` hands it out without a closer look.
        uses: the store's own: how often it was hit of late, up to a few (``s3fifo``).
    """

    order: Order
    deadline: float | None = None
    size_bytes: int = 0
    stamp: Stamp | None = None
    tags: tuple[str, ...] = ()
    kept_until: float | None = None
    took_s: float = 0.0
    charge_bytes: int = 0


def charge_of(key: str, size_bytes: int, tags: tuple[str, ...], overhead_bytes: int) -> int:
    """Give what an item counts for against ``bytes_max``, in bytes.

    It is the key in UTF-8, the encoded value, and the store's measured overhead. What the value's
    objects take in memory may be more than its encoding (a dict of small integers) or less.
    """
    key_bytes = len(key) if key.isascii() else len(key.encode())
    charge = key_bytes + size_bytes + overhead_bytes
    for tag in tags:
        charge += TAG_OVERHEAD_BYTES + len(tag.encode())
    return charge
