"""The golden messages, packets and streams of the cluster's wire, version 1.

``python tests/cluster_golden.py`` writes them to ``tests/data/cluster``, the same ones each time.
They are there so that a change of what goes over the wire is seen: what nodes of one version have
said to each other must be read by all later ones that speak that version, so files are added here,
and none is ever made anew for a version that was released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from lanecache.cluster.settings import Settings
from lanecache.cluster.wire.data_messages import (
    ClockRefused,
    DataMessage,
    Enough,
    Entries,
    Gone,
    Have,
    LinkHello,
    StateChunk,
    StateEnd,
    StateRefused,
    StateRequest,
    Want,
    encode_data,
)
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import (
    Ack,
    Alive,
    Dead,
    Digest,
    Left,
    MemberRecord,
    Members,
    MemberState,
    Nack,
    Packet,
    PacketMessage,
    Ping,
    PingRequest,
    StatusReply,
    StatusRequest,
    StreamMessage,
    Suspect,
    encode,
    encode_packet,
)
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.stream_codec import StreamCodec

FOLDER = Path(__file__).parent / "data" / "cluster"

NAME = "shop"
OLD = bytes(range(32))
NEW = bytes(range(32, 64))
KEYRING = Keyring.of(NAME, [OLD])
ROTATING = Keyring.of(NAME, [NEW, OLD])
OPEN = Keyring.of(NAME, [])

# Low limits, so that a stream shows how messages are split and keys are changed.
SETTINGS = Settings(record_bytes_max=150, message_bytes_max=4096, rekey_records=3, rekey_bytes=300)

A, B, C = 0x1111_2222_3333_4444, 0x5555_6666_7777_0001, 2**63 - 1

ALIVE = Alive(A, 3, "10.0.0.5", 7946, b"zone=a", 1, 1, KEYRING.tags)
ALIVE_6 = Alive(B, 0, "fd00::7", 65_535, b"", 1, 2, ROTATING.tags)

PACKET_MESSAGES: dict[str, PacketMessage] = {
    "alive": ALIVE,
    "alive_ipv6": ALIVE_6,
    "suspect": Suspect(A, 3, B),
    "dead": Dead(A, 2**53, C),
    "left": Left(B, 1),
    "ping": Ping(7),
    "ack": Ack(2**32 - 1),
    "ping_request": PingRequest(8, C, "node-3.shop.internal", 1),
    "nack": Nack(0),
}
STREAM_MESSAGES: dict[str, StreamMessage] = {
    "packet": Packet(B, [Ping(9), ALIVE]),
    "digest": Digest(2, bytes(range(16))),
    "digest_joining": Digest(0, bytes(16), joining=True),
    "members": Members(
        [
            MemberRecord(ALIVE, MemberState.SUSPECT, 0),
            MemberRecord(ALIVE_6, MemberState.LEFT, 86_399),
        ],
        answer=True,
    ),
    "status_request": StatusRequest(),
    "status_reply": StatusReply(msgspec.Raw(msgspec.msgpack.encode({"members": 2}))),
}
# The content of entries and of states is opaque to these.
DATA_MESSAGES: dict[str, DataMessage] = {
    "link_hello": LinkHello(A, 1_700_000_000_000 << 16 | 3, [(A, 7), (B, 2**40)], True, False, 9),
    "link_hello_fresh": LinkHello(C, 0, [(C, 0)], False, True, 9),
    "entries": Entries(B, 8, [0, 130, 70_000], [b"\x93\x08\x01\x90", b"", bytes(300)]),
    "have": Have([(A, 8), (C, 2**63 - 1)], True),
    "have_nothing_new": Have([], False),
    "want": Want(A, 9),
    "enough": Enough(C),
    "gone": Gone(B, 2**33),
    "state_request": StateRequest(),
    "state_refused": StateRefused(),
    "state_chunk": StateChunk(1, bytes(range(256))),
    "state_end": StateEnd(12),
    "clock_refused": ClockRefused(31_500),
}

# Each packet's keys, sender and recipient, and what it holds.
PACKETS: dict[str, tuple[Keyring, int, int, list[PacketMessage]]] = {
    "probe": (KEYRING, A, B, [PACKET_MESSAGES["ping"], ALIVE]),
    "gossip": (KEYRING, A, 0, list(PACKET_MESSAGES.values())),
    "many": (KEYRING, C, B, [Nack(number) for number in range(20)]),
    "empty": (KEYRING, A, B, []),
    "new_secret": (ROTATING, A, B, [PACKET_MESSAGES["ack"]]),
    "no_secret": (OPEN, A, B, [PACKET_MESSAGES["ack"]]),
}


def golden_packet(name: str) -> bytes:
    """Make a packet: the third one of its sender."""
    keyring, sender, to, messages = PACKETS[name]
    codec = PacketCodec(keyring, sender, senders_max=1)
    for _ in range(2):
        codec.seal(b"", 0)
    return codec.seal(encode_packet([encode(message) for message in messages]), to)


def constant(byte: int) -> Callable[[int], bytes]:
    """Stand in for a source of random bytes."""
    return lambda count: bytes([byte]) * count


def client(keyring: Keyring = KEYRING, process: int = A) -> StreamCodec:
    return StreamCodec.client(keyring, process, constant(0xC1), SETTINGS)


def server(keyring: Keyring = KEYRING, process: int = B) -> StreamCodec:
    return StreamCodec.server(keyring, process, constant(0x5E), SETTINGS)


# Each stream's keys on either side, the client's process, and what is said one way and the other.
# The client says one after the other, the server answers in one go.
_ALL = [encode(message) for message in STREAM_MESSAGES.values()]
STREAMS: dict[str, tuple[Keyring, Keyring, int, list[bytes], list[bytes]]] = {
    "exchange": (KEYRING, KEYRING, A, _ALL, _ALL[::-1]),
    "long": (KEYRING, KEYRING, A, [bytes(1000), b"", b"x" * 130], [b"y" * 4096]),
    "rotating": (ROTATING, KEYRING, A, [b"to the old one"], [b"from the old one"]),
    "observer": (KEYRING, ROTATING, 0, [_ALL[4]], [_ALL[5]]),
    "no_secret": (OPEN, OPEN, A, _ALL[:1], []),
}


def golden_stream(name: str) -> tuple[bytes, bytes]:
    """Make a stream: all that the client writes, and all that the server writes."""
    client_keys, server_keys, process, asked, answered = STREAMS[name]
    one, other = client(client_keys, process), server(server_keys)
    there, back = one.to_send(), b""
    other.receive(there)
    back += (reply := other.to_send())
    one.receive(reply)
    for message in asked:
        one.send(message)
        there += (piece := one.to_send())
        other.receive(piece)
    one.end()
    for message in answered:
        other.send(message)
    other.end()
    return there + one.to_send(), back + other.to_send()


def golden_files() -> Iterator[tuple[Path, bytes]]:
    """Give each file with what is in it."""
    for name, message in {**PACKET_MESSAGES, **STREAM_MESSAGES}.items():
        yield FOLDER / "messages" / f"{name}.msgpack", encode(message)
    for name, data_message in DATA_MESSAGES.items():
        yield FOLDER / "messages" / f"{name}.msgpack", encode_data(data_message)
    for name in PACKETS:
        yield FOLDER / "packets" / f"{name}.packet", golden_packet(name)
    for name in STREAMS:
        there, back = golden_stream(name)
        yield FOLDER / "streams" / f"{name}.client", there
        yield FOLDER / "streams" / f"{name}.server", back


if __name__ == "__main__":
    for path, data in golden_files():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
