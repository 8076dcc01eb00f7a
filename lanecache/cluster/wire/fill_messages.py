"""What nodes say to each other about fills, and how it is spelled (tags 80 to 95 of a stream).

All of them are about one key and one *lease*: the right to make the key's value, which the key's
owner (``owners``) grants to one process at a time. They travel in runs, ``FillRun``, over the links
that carry entries; a field may be added at a message's end with a default, as in ``messages``.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta

from lanecache.cluster.store.values import check_decoded
from lanecache.cluster.wire.messages import PROCESS_MAX, ProcessId

LEASE_MS_MAX = 3_600_000
PARTS_MAX = 1024  # in one run
TEXT_MAX = 1000  # characters of an error's text

_INT64_MAX = 2**63 - 1
Key = Annotated[str, Meta(max_length=65_536)]
Number = Annotated[int, Meta(ge=0, le=_INT64_MAX)]
OrderField = Annotated[tuple[Number, ...], Meta(max_length=8)]
LeaseMs = Annotated[int, Meta(ge=0, le=LEASE_MS_MAX)]
TtlMs = Annotated[int, Meta(ge=0, le=2**53)]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
AnyProcess = Annotated[int, Meta(ge=0, le=PROCESS_MAX)]


class Outcome(enum.IntEnum):
    """What became of a fill, as its holder tells the owner."""

    STORED = 0  # the value is on its way to every node
    GONE = 1  # nothing was stored: overtaken by a write, not needed, or given up
    FAILED = 2  # the filler raised
    ABSENT = 3  # there is nothing, which is not kept: only those who wait are told


class _Part(msgspec.Struct, frozen=True, array_like=True):
    key: Key


class Ask(_Part, frozen=True, tag=81):
    """Asks the owner for the value, or for the lease to make it.

    ``ask`` comes back with the answer. ``beyond`` is the order that a value has to surpass to be an
    answer: that of what the asker holds or has turned down. ``holder`` (0: none), ``held_fence``
    and ``left_ms`` tell of a lease that an owner before this one has spoken of.
    """

    ask: Number
    lease_ms: LeaseMs
    beyond: OrderField = ()
    fence: Number = 0  # the greatest that the asker knows of
    holder: AnyProcess = 0
    held_fence: Number = 0
    left_ms: LeaseMs = 0


class Granted(_Part, frozen=True, tag=82):
    """The lease is the asker's for ``lease_ms``; ``base`` is what the owner knows of the key.

    What is not above ``floor``, the owner could not hold.
    """

    ask: Number
    fence: Number
    base: OrderField
    floor: OrderField
    lease_ms: LeaseMs


class Waits(_Part, frozen=True, tag=83):
    """Somebody else has the lease, for ``left_ms`` at most; ``Ended`` or ``Failed`` follows."""

    ask: Number
    holder: ProcessId
    fence: Number
    left_ms: LeaseMs


class Given(_Part, frozen=True, tag=84):
    """The owner holds a value, or knows that there is none (``absent``)."""

    ask: Number
    order: OrderField
    value: Any
    absent: bool = False
    tags: Annotated[tuple[Key, ...], Meta(max_length=1024)] = ()


class Failed(_Part, frozen=True, tag=85):
    """The filler failed, with that text."""

    ask: Number
    text: Text


class Ended(_Part, frozen=True, tag=86):
    """The lease that somebody waits for is over: look for the value, or ask again."""

    ask: Number
    fence: Number


class Done(_Part, frozen=True, tag=87):
    """The holder gives its lease back; ``error_ms`` is for how long its error shall be told."""

    fence: Number
    outcome: Outcome
    text: Text = ""
    error_ms: LeaseMs = 0


class Claim(_Part, frozen=True, tag=88):
    """The holder tells who is the owner now of a lease that the owner before has granted."""

    fence: Number
    base: OrderField
    left_ms: LeaseMs


class Reading(msgspec.Struct, frozen=True, array_like=True, tag=89):
    """A promise: what the sender writes after its entry ``seq`` has no lower clock than this."""

    origin: Number  # of the sender's log
    seq: Number
    clock: Number
    answer: bool = False  # whether the other side shall say the same of itself


Part: TypeAlias = Ask | Granted | Waits | Given | Failed | Ended | Done | Claim | Reading


class FillRun(msgspec.Struct, frozen=True, array_like=True, tag=80):
    """A run of them, in order."""

    parts: Annotated[list[Part], Meta(max_length=PARTS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FillRun)


def encode_part(part: Part) -> bytes:
    """Spell one of them."""
    return _encoder.encode(part)


def encode_run(encoded: list[bytes]) -> bytes:
    """Put up to ``PARTS_MAX`` that are spelled already together as one message."""
    return b"\x92\x50\xdc" + len(encoded).to_bytes(2, "big") + b"".join(encoded)


def decode_run(message: bytes) -> FillRun:
    """Read one message.

    Raises:
        ValueError: it is none; nothing of it may be used.
    """
    try:
        run = _decoder.decode(message)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    for part in run.parts:
        if isinstance(part, Given):
            check_decoded(part.value, len(message))
    return run
