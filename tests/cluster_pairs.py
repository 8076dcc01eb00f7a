"""Two ends of a stream in memory, and what may be done to the bytes between them."""

from __future__ import annotations

import pytest
from cluster_golden import KEYRING, SETTINGS, A, B, constant

from lanecache.cluster.settings import Settings
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_codec import RECORD_OVERHEAD_BYTES, RecordKind, StreamCodec

PROOF_BYTES = RECORD_OVERHEAD_BYTES
HEADER_BYTES = 5
WIDE = Settings()


def client(
    keyring: Keyring = KEYRING,
    process: int = A,
    settings: Settings = SETTINGS,
    versions: tuple[int, int] = (1, 1),
    random_byte: int = 0xC1,
) -> StreamCodec:
    entropy = constant(random_byte)
    return StreamCodec.client(keyring, process, entropy, settings, versions=versions)


def server(
    keyring: Keyring = KEYRING,
    process: int = B,
    settings: Settings = SETTINGS,
    versions: tuple[int, int] = (1, 1),
    random_byte: int = 0x5E,
) -> StreamCodec:
    entropy = constant(random_byte)
    return StreamCodec.server(keyring, process, entropy, settings, versions=versions)


def connect(one: StreamCodec, other: StreamCodec) -> None:
    """Carry bytes both ways until both are silent."""
    while True:
        there = one.to_send()
        assert other.receive(there) == []
        back = other.to_send()
        assert one.receive(back) == []
        if not there and not back:
            return


def connected(settings: Settings = SETTINGS) -> tuple[StreamCodec, StreamCodec]:
    one, other = client(settings=settings), server(settings=settings)
    connect(one, other)
    assert one.established
    assert other.established
    return one, other


def refusal(codec: StreamCodec, data: bytes) -> Refusal:
    with pytest.raises(Refused) as caught:
        codec.receive(data)
    assert caught.value.detail.isprintable()
    return caught.value.reason


def records(data: bytes) -> list[bytes]:
    """Cut sealed bytes into records."""
    found, at = [], 0
    while at < len(data):
        end = at + HEADER_BYTES + int.from_bytes(data[at + 1 : at + HEADER_BYTES], "big")
        found.append(data[at:end])
        at = end
    return found


def kinds(data: bytes) -> list[RecordKind]:
    return [RecordKind(record[0]) for record in records(data)]


def fed(codec: StreamCodec, data: bytes, sizes: list[int]) -> list[bytes]:
    """Feed pieces of these sizes, over and over."""
    messages: list[bytes] = []
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        messages += codec.receive(data[at : at + size])
        at += size
        number += 1
    return messages


def fed_to_the_end(codec: StreamCodec, data: bytes, size: int) -> None:
    """Feed pieces of one size, then close the transport."""
    fed(codec, data, [size])
    codec.closed()


def flipped(data: bytes, bit: int) -> bytes:
    found = bytearray(data)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)
