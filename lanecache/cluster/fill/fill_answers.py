"""What comes of wanting a key's value: the value, a lease to make it, or that another makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from lanecache.cluster.store.item import Order


class Held(msgspec.Struct, eq=False):
    """A lease that this process has: the right to make a key's value.

    Attributes:
        key: of which.
        fence: greater than that of every lease of the key before.
        base: what the owner knew of the key when it granted the lease.
        floor: what a value has to be above for the owner to hold it.
        until: when it is over, in lived seconds.
        touched: whether the key was written to since, even if that was an older write that lost.
        owners: whom to tell what became of it: who granted it, and who was the owner after that.
    """

    key: str
    fence: int
    base: Order
    floor: Order
    until: float
    owners: tuple[int, ...]
    touched: bool = False


class Arrived(msgspec.Struct, frozen=True):
    """The value is held here now (or the known absence of one)."""

    key: str


class Answered(msgspec.Struct, frozen=True):
    """The owner has given a value that is not held here."""

    key: str
    value: object
    absent: bool


class Refused(msgspec.Struct, frozen=True):
    """The filler of another process has failed."""

    key: str
    text: str


class Leased(msgspec.Struct, frozen=True):
    """The value may be made here: give the lease back with ``finish``."""

    key: str
    lease: Held


class Waiting(msgspec.Struct, frozen=True):
    """Another process makes the value; more follows."""

    key: str


class Elsewhere(msgspec.Struct, frozen=True):
    """The value is being refreshed, or was, by another process; nothing follows."""

    key: str
    until: float  # lived seconds: it is of no use to ask again before


Answer: TypeAlias = Arrived | Answered | Refused | Leased | Waiting | Elsewhere
