"""What linked nodes say to each other about data (tags 64 to 79); 80 to 95 belong to the fills.

They follow the rules of ``messages``: arrays that begin with their tag, fields added at the end
only. How links use them stands in ``links``.

``origin`` is the id of one log: 63 random bits, drawn anew with each start of a process. ``seq``
counts the entries of a log from 1. A digest gives for each origin up to which seq everything has
been applied.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from lanecache.cluster.wire.messages import PROCESS_MAX

DATA_TAGS = range(64, 80)
FILL_TAGS = range(80, 96)
ORIGINS_MAX = 65_536  # in one digest
ENTRIES_MAX = 1024  # in one message: applying them is one call, which must not take long
AGE_MS_MAX = 2**53

Origin = Annotated[int, Meta(ge=1, le=PROCESS_MAX)]
Seq = Annotated[int, Meta(ge=0, le=PROCESS_MAX)]
FirstSeq = Annotated[int, Meta(ge=1, le=PROCESS_MAX)]
ClockReading = Annotated[int, Meta(ge=0, le=PROCESS_MAX)]  # of the hybrid clock
Applied = Annotated[list[tuple[Origin, Seq]], Meta(max_length=ORIGINS_MAX)]
Age = Annotated[int, Meta(ge=0, le=AGE_MS_MAX)]
COUNT_MAX = 2**32 - 1
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message; each kind has a tag of its own."""


class LinkHello(_Message, frozen=True, tag=64):
    """Opens a link; the first message each way.

    ``fresh``: the sender has nothing yet and is about to take a state. So nothing old is sent to
    it unasked, only what is written from now on.
    """

    origin: Origin  # of the sender's own log
    clock: ClockReading
    digest: Applied
    ready: bool
    fresh: bool
    held: Count  # how many values it holds: with a small store, fewer than others


class Entries(_Message, frozen=True, tag=65):
    """Entries of one origin, one after the other from ``first`` on."""

    origin: Origin
    first: FirstSeq
    # How long ago each was made: the time to live inside is what was left then.
    ages_ms: Annotated[list[Age], Meta(max_length=ENTRIES_MAX)]
    payloads: Annotated[list[bytes], Meta(max_length=ENTRIES_MAX)]


class Have(_Message, frozen=True, tag=66):
    """Up to where the sender has applied what: only what is new since it last said so.

    Sent without anything new too, so that a link on which nothing comes is known to be cut.
    """

    digest: Applied
    ready: bool


class Want(_Message, frozen=True, tag=67):
    """Asks for the entries of an origin from ``first`` on, and for all that follow them."""

    origin: Origin
    first: FirstSeq


class Enough(_Message, frozen=True, tag=68):
    """The sender gets the entries of this origin from somebody else; not to be sent any more."""

    origin: Origin


class Gone(_Message, frozen=True, tag=69):
    """The entries of an origin before ``first`` are not held any more; none of it will come."""

    origin: Origin
    first: FirstSeq


class StateRequest(_Message, frozen=True, tag=70):
    """Asks for all that the other side holds."""


class StateRefused(_Message, frozen=True, tag=71):
    """The other side gives its state to others just now: ask somebody else, or again later."""


class StateChunk(_Message, frozen=True, tag=72):
    """A part of a state; ``number`` counts them from 1."""

    number: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    data: bytes


class StateEnd(_Message, frozen=True, tag=73):
    """The state is whole: so many chunks were all of it."""

    chunks: Count


class ClockRefused(_Message, frozen=True, tag=74):
    """The sender takes nothing from the other side: its clock is too far ahead. Ends the link."""

    ahead_ms: Age


DataMessage: TypeAlias = (
    LinkHello
    | Entries
    | Have
    | Want
    | Enough
    | Gone
    | StateRequest
    | StateRefused
    | StateChunk
    | StateEnd
    | ClockRefused
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[DataMessage] = msgspec.msgpack.Decoder(DataMessage)
encode_data = _encoder.encode


def decode_data(message: bytes) -> DataMessage:
    """Read one message of a link.

    Raises:
        ValueError: it is none; nothing of it may be used.
    """
    try:
        return _decoder.decode(message)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def tag_of(message: bytes) -> int:
    """Give the tag of a message; -1 when it is none."""
    if len(message) >= 2 and 0x91 <= message[0] <= 0x9F and message[1] < 0x80:
        return message[1]
    return -1
