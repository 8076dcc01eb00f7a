"""What the nodes of a cluster say to each other, and how it is spelled in bytes.

Each message is a MessagePack array: its tag, then its fields in order. A field may be added at the
end with a default, which older nodes pass over (msgspec reads arrays that way); anything else needs
another wire version (``packet_codec``, ``stream_codec``). What a message may hold is bounded by the
fields' types here and by the size of what it came in, before anything of it is made.

``process`` is always a process id: 63 random bits that one start of a node chose for itself.
``incarnation`` is raised by the process itself only. The words are those of the SWIM paper.
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from lanecache.address import HOST_BYTES_MAX, PORT_MAX
from lanecache.config import METADATA_BYTES_MAX

PROCESS_MAX = 2**63 - 1  # msgspec bounds no longer ones
INCARNATION_MAX = 2**53
MEMBERS_MAX = 65_536  # in one push/pull: some ten bytes of it make some hundreds of objects
MESSAGES_MAX = 1024  # in what stands for a packet

ProcessId = Annotated[int, Meta(ge=1, le=PROCESS_MAX)]
Incarnation = Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
Sequence = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # of a probe; chosen by who asks
# Nothing that a log or a terminal would act on, and that no resolver takes.
_HOST_PATTERN = r"\A[^\x00-\x20\x7f-\xa0]+\Z"
Host = Annotated[str, Meta(min_length=1, max_length=HOST_BYTES_MAX, pattern=_HOST_PATTERN)]
Port = Annotated[int, Meta(ge=1, le=PORT_MAX)]
Metadata = Annotated[bytes, Meta(max_length=METADATA_BYTES_MAX)]
KeyTag = Annotated[bytes, Meta(min_length=4, max_length=4)]
WireVersion = Annotated[int, Meta(ge=0, le=255)]


class MemberState(enum.IntEnum):
    """What is held of a member. Of one incarnation, the greater state is the later one."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class _Message(msgspec.Struct, frozen=True, array_like=True):
    """A message; each kind has a tag of its own."""


class Alive(_Message, frozen=True, tag=1):
    """A process says of itself where and what it is; others pass it on."""

    process: ProcessId
    incarnation: Incarnation
    host: Host
    port: Port
    metadata: Metadata
    version_min: WireVersion
    version_max: WireVersion
    keys: Annotated[tuple[KeyTag, ...], Meta(max_length=2)]  # that it accepts, the used one first


class Suspect(_Message, frozen=True, tag=2):
    """``by`` has not heard from ``process``, which may refute it."""

    process: ProcessId
    incarnation: Incarnation
    by: ProcessId


class Dead(_Message, frozen=True, tag=3):
    """``process`` is dead as far as ``by`` knows."""

    process: ProcessId
    incarnation: Incarnation
    by: ProcessId


class Left(_Message, frozen=True, tag=4):
    """``process`` has left on purpose and will not come back under this id."""

    process: ProcessId
    incarnation: Incarnation


class Ping(_Message, frozen=True, tag=5):
    """Asks whether the process that this packet is meant for is there."""

    sequence: Sequence


class Ack(_Message, frozen=True, tag=6):
    """The process is there; also passed on by who probed on somebody's behalf."""

    sequence: Sequence


class PingRequest(_Message, frozen=True, tag=7):
    """Asks to probe ``process`` at that address, and to pass the ack on, or to send a nack."""

    sequence: Sequence
    process: ProcessId
    host: Host
    port: Port


class Nack(_Message, frozen=True, tag=8):
    """The one that was to be probed has not answered (in time for who asked)."""

    sequence: Sequence


# What a packet holds. ``Alive``, ``Suspect``, ``Dead`` and ``Left`` are gossip: passed on by all.
PacketMessage: TypeAlias = Alive | Suspect | Dead | Left | Ping | Ack | PingRequest | Nack


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """A member as a push/pull tells of it."""

    alive: Alive
    state: MemberState
    # How long it has been dead or away: without it, the dead would be handed on for ever.
    gone_s: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Packet(_Message, frozen=True, tag=32):
    """What would be a packet, over a stream: a TCP probe, and everything with ``udp = false``."""

    to: Annotated[int, Meta(ge=0, le=PROCESS_MAX)]
    messages: Annotated[list[PacketMessage], Meta(max_length=MESSAGES_MAX)]


class Digest(_Message, frozen=True, tag=33):
    """Opens a push/pull: how many members the sender holds, and a hash of them with their states.

    Answered by a ``Digest`` when it is the same, which ends it, and by ``Members`` otherwise.
    """

    members: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    hash: Annotated[bytes, Meta(min_length=16, max_length=16)]
    joining: bool = False


class Members(_Message, frozen=True, tag=34):
    """All members that the sender holds; the other side answers with its own, once."""

    records: Annotated[list[MemberRecord], Meta(max_length=MEMBERS_MAX)]
    answer: bool


class StatusRequest(_Message, frozen=True, tag=48):
    """Asks a node what it knows (``lanecache status``)."""


class StatusReply(_Message, frozen=True, tag=49):
    """A node's answer: a MessagePack map, described in ``status``."""

    status: msgspec.Raw


StreamMessage: TypeAlias = Packet | Digest | Members | StatusRequest | StatusReply

Decoded = TypeVar("Decoded")

_encoder = msgspec.msgpack.Encoder()
_packet_decoder = msgspec.msgpack.Decoder(list[PacketMessage])
_stream_decoder: msgspec.msgpack.Decoder[StreamMessage] = msgspec.msgpack.Decoder(StreamMessage)


def encode(message: PacketMessage | StreamMessage) -> bytes:
    """Spell one message."""
    return _encoder.encode(message)


def encode_packet(encoded: list[bytes]) -> bytes:
    """Put messages that are spelled already together as the body of a packet."""
    count = len(encoded)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return head + b"".join(encoded)


def decode_packet(body: bytes) -> list[PacketMessage]:
    """Read the body of a packet.

    Raises:
        ValueError: it is none; nothing of it may be used.
    """
    return _decode(_packet_decoder, body)


def decode_stream(message: bytes) -> StreamMessage:
    """Read one message of a stream.

    Raises:
        ValueError: it is none; nothing of it may be used.
    """
    return _decode(_stream_decoder, message)


def _decode(decoder: msgspec.msgpack.Decoder[Decoded], data: bytes) -> Decoded:
    try:
        return decoder.decode(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
