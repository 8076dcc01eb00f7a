"""What is fuzzed of the cluster: whatever a network or an operator may hand to it.

Behind the encryption no fuzzer gets by itself. So there are two targets for a stream, one for bytes
as they come, and one for records that somebody seals who holds the secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import cluster_node
from cluster_golden import (
    KEYRING,
    PACKETS,
    ROTATING,
    SETTINGS,
    STREAMS,
    A,
    B,
    client,
    golden_files,
    golden_stream,
    server,
)

from lanecache.cluster.wire.keyring import parse_secrets
from lanecache.cluster.wire.messages import decode_packet, decode_stream, encode, encode_packet
from lanecache.cluster.wire.packet_codec import PacketCodec
from lanecache.cluster.wire.refusal import Refused
from lanecache.cluster.wire.stream_codec import RecordKind, StreamCodec
from lanecache.errors import ConfigError

SENDERS_MAX = 4
RECEIVER = 0x0123_4567  # opens the golden packets: none of them is its own
_RECORD_HEADER_BYTES = 2  # kind, length of the content


def open_packets(data: bytes) -> None:
    """Open packets that follow on each other, each behind two bytes of length."""
    codec = PacketCodec(ROTATING, RECEIVER, senders_max=SENDERS_MAX)
    at = 0
    while at + 2 <= len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        with suppress(Refused):
            opened = codec.open(data[at + 2 : end])
            assert opened.sender
            assert len(opened.body) < end - at
            with suppress(ValueError):
                decode_packet(opened.body)
        at = end
    assert len(codec._senders) <= SENDERS_MAX


def open_packet_of_a_member(data: bytes) -> None:
    """Open a packet whose body is anything, sealed by one who may."""
    sender = PacketCodec(KEYRING, A, senders_max=1)
    packet = sender.seal(data[: sender.body_bytes_max], B)
    opened = PacketCodec(KEYRING, B, senders_max=1).open(packet)
    read_messages(opened.body)


def read_messages(data: bytes) -> None:
    """Read a packet's messages and a stream's; what is read can be spelled and read again."""
    with suppress(ValueError):
        messages = decode_packet(data)
        assert decode_packet(encode_packet([encode(each) for each in messages])) == messages
    with suppress(ValueError):
        message = decode_stream(data)
        assert encode(decode_stream(encode(message))) == encode(message)


def receive_stream(data: bytes) -> None:
    """Be a client or a server, fed by pieces; the first byte says which, and how long they are."""
    choice = data[0] if data else 0
    codec = server(ROTATING) if choice & 1 else client(KEYRING)
    step = 1 + (choice >> 1)
    codec.send(b"waiting")
    with suppress(Refused):
        for at in range(1, len(data), step):
            _receive(codec, data[at : at + step])
        codec.closed()
    codec.to_send()


def receive_records(data: bytes) -> None:
    """Take records that a member seals: of any kind and content, in any order."""
    other, own = client(), server()
    own.receive(other.to_send())
    other.receive(own.to_send())
    _receive(own, other.to_send())
    key = other._sealing
    assert key is not None
    at = 0
    with suppress(Refused):
        while at + _RECORD_HEADER_BYTES <= len(data):
            kind, length = data[at], data[at + 1]
            at += _RECORD_HEADER_BYTES
            content = data[at : at + length]
            at += length
            _receive(own, key.seal(kind % 5, content))  # type: ignore[arg-type]
            if kind % 5 == RecordKind.REKEY:
                key.move_on()
        own.closed()


def _receive(codec: StreamCodec, data: bytes) -> None:
    for message in codec.receive(data):
        assert len(message) <= SETTINGS.message_bytes_max
        with suppress(ValueError):
            decode_stream(message)
    assert len(codec._received) <= SETTINGS.record_bytes_max + len(data)
    assert len(codec._content) <= SETTINGS.message_bytes_max + SETTINGS.record_bytes_max


def read_secrets(data: bytes) -> None:
    """Read a file of secrets."""
    with suppress(ConfigError):
        secrets = parse_secrets(data, "a file", path="field")
        assert 1 <= len(secrets) <= 2
        assert all(len(secret) == 32 for secret in secrets)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "cluster_packets": open_packets,
    "cluster_packet_bodies": open_packet_of_a_member,
    "cluster_messages": read_messages,
    "cluster_streams": receive_stream,
    "cluster_records": receive_records,
    "cluster_secrets": read_secrets,
    "cluster_node": cluster_node.talk_to_node,
}


# Seeds.


def _golden(folder: str) -> Iterator[bytes]:
    yield from (data for path, data in golden_files() if path.parent.name == folder)


def _packets() -> Iterator[bytes]:
    packets = [len(data).to_bytes(2, "big") + data for data in _golden("packets")]
    yield from packets
    yield b"".join(packets)
    yield packets[0] * 3
    many = [PacketCodec(KEYRING, process, senders_max=1) for process in range(1, SENDERS_MAX + 3)]
    sealed = [codec.seal(b"\x90", 0) for codec in many]
    yield b"".join(len(data).to_bytes(2, "big") + data for data in sealed)


def _bodies() -> Iterator[bytes]:
    for _, _, _, messages in PACKETS.values():
        yield encode_packet([encode(message) for message in messages])


def _messages() -> Iterator[bytes]:
    yield from _golden("messages")
    yield from _bodies()


def _streams() -> Iterator[bytes]:
    for name in STREAMS:
        there, back = golden_stream(name)
        for step in (0, 60, 127):
            yield bytes([step << 1 | 1]) + there
            yield bytes([step << 1]) + back


def _records() -> Iterator[bytes]:
    for message in _golden("messages"):
        content = len(message).to_bytes(4, "big") + message
        pieces = [content[first : first + 250] for first in range(0, len(content), 250)]
        records = b"".join(bytes([RecordKind.DATA, len(each)]) + each for each in pieces)
        yield records + bytes([RecordKind.END, 0])
    yield bytes([RecordKind.DATA, 7]) + b"\0\0\0\5abc" + bytes([RecordKind.DATA, 2]) + b"de"
    yield bytes([RecordKind.REKEY, 0]) * 3 + bytes([RecordKind.DATA, 4, 0, 0, 0, 0])
    yield (
        bytes([RecordKind.DATA, 4, 0, 0, 16, 0]) + (bytes([RecordKind.DATA, 250]) + bytes(250)) * 9
    )


def _secrets() -> Iterator[bytes]:
    line = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    other = b"ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=\n"
    yield from (line, line[:-1], b"# new\r\n" + other + b"\n# old\n" + line, other + line + line)
    yield from (b"", b"passphrase\n", line[:-9] + b"=\n", bytes(range(32)))


SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "cluster_packets": _packets,
    "cluster_packet_bodies": _bodies,
    "cluster_messages": _messages,
    "cluster_streams": _streams,
    "cluster_records": _records,
    "cluster_secrets": _secrets,
    "cluster_node": cluster_node.seeds,
}
