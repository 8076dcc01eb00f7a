"""Records of a stream: their bounds and keys, and what happens to who tampers with them."""

from __future__ import annotations

import random
import struct

import pytest
from cluster_golden import SETTINGS
from cluster_pairs import (
    HEADER_BYTES,
    WIDE,
    client,
    connect,
    connected,
    fed_to_the_end,
    flipped,
    kinds,
    records,
    refusal,
    server,
)
from hypothesis import given
from hypothesis import strategies as st

from lanecache.cluster.settings import Settings
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_codec import RecordKind, StreamCodec

# Bounds.


def test_a_message_beyond_its_bound_is_not_queued() -> None:
    one, other = connected()
    with pytest.raises(ValueError, match="at most 4096 bytes, not 4097"):
        one.send(bytes(4097))
    one.send(bytes(4096))
    assert other.receive(one.to_send()) == [bytes(4096)]


def test_a_message_beyond_the_bound_of_the_receiver_is_refused_by_its_length() -> None:
    one, other = client(settings=WIDE), server()
    connect(one, other)
    one.send(bytes(4097))
    data = one.to_send()
    assert len(data) > SETTINGS.record_bytes_max
    assert refusal(other, data[:HEADER_BYTES]) is Refusal.OVERSIZED, "of its record, at once"
    narrow = Settings(record_bytes_max=150)
    one, other = client(settings=narrow), server()
    connect(one, other)
    one.send(bytes(4097))
    assert refusal(other, records(one.to_send())[0]) is Refusal.OVERSIZED


@pytest.mark.parametrize("kind", [RecordKind.DATA, RecordKind.REKEY, RecordKind.END])
def test_a_record_of_a_length_that_cannot_be_is_refused_by_its_header(kind: RecordKind) -> None:
    lengths = {0: Refusal.GARBAGE, 15: Refusal.GARBAGE, 2**32 - 1: Refusal.OVERSIZED}
    lengths |= {16: Refusal.GARBAGE, 146: Refusal.OVERSIZED}
    if kind is not RecordKind.DATA:
        lengths = dict.fromkeys((0, 15, 17, 2**32 - 1), Refusal.GARBAGE)
    for length, reason in lengths.items():
        _, other = connected()
        assert refusal(other, struct.pack(">BI", kind, length)) is reason, length


@pytest.mark.parametrize("kind", [RecordKind.PROOF, 4, 255])
def test_a_record_of_a_kind_that_cannot_be_is_refused(kind: int) -> None:
    _, other = connected()
    assert refusal(other, struct.pack(">BI", kind, 16)) is Refusal.GARBAGE


# Keys are changed on the way.


def test_keys_change_after_so_many_records() -> None:
    one, other = connected(Settings(rekey_records=4))
    seen = []
    for number in range(12):
        one.send(b"%d" % number)
        data = one.to_send()
        seen += kinds(data)
        assert other.receive(data) == [b"%d" % number]
    # The first key has sealed the proof as well.
    first = [RecordKind.DATA] * 3 + [RecordKind.REKEY]
    later = [RecordKind.DATA] * 4 + [RecordKind.REKEY]
    assert seen == first + later * 2 + [RecordKind.DATA]


def test_keys_change_after_so_many_bytes() -> None:
    one, other = connected(Settings(rekey_bytes=1000))
    seen = []
    for _ in range(4):
        one.send(bytes(496))
        data = one.to_send()
        seen += kinds(data)
        assert other.receive(data) == [bytes(496)]
    assert seen == [RecordKind.DATA] * 2 + [RecordKind.REKEY] + [RecordKind.DATA] * 2


def test_the_receiver_follows_whatever_its_own_limits_are() -> None:
    one, other = client(settings=Settings(rekey_records=1)), server(settings=WIDE)
    connect(one, other)
    for number in range(5):
        one.send(b"%d" % number)
        other.send(b"%d" % number)
        there, back = one.to_send(), other.to_send()
        assert kinds(there) == [RecordKind.REKEY, RecordKind.DATA]
        assert kinds(back) == [RecordKind.DATA]
        assert other.receive(there) == one.receive(back) == [b"%d" % number]


def test_a_record_under_the_key_before_is_refused() -> None:
    one, other = connected(Settings(rekey_records=2))
    one.send(b"under the first key")
    old = one.to_send()
    one.send(b"under the second key")
    new = one.to_send()
    assert kinds(new)[0] is RecordKind.REKEY
    other.receive(old)
    other.receive(new)
    assert refusal(other, old) is Refusal.FORGED


def test_a_key_that_has_gone_is_not_kept() -> None:
    one, _ = connected(Settings(rekey_records=2))
    assert one._sealing is not None
    first = one._sealing._key
    one.send(b"a")
    one.to_send()
    one.send(b"b")
    one.to_send()
    assert one._sealing._key != first


# Records that were tampered with.


def sealed_records() -> tuple[StreamCodec, list[bytes]]:
    """Give a receiver, and records for it: messages, split ones, changes of key, and the end."""
    one, other = connected()
    data = b""
    for message in (b"one", b"two", bytes(300), b"four"):
        one.send(message)
        data += one.to_send()
    one.end()
    data += one.to_send()
    found = records(data)
    assert {record[0] for record in found} == {1, 2, 3}
    return other, found


COUNT = len(sealed_records()[1])


def test_the_records_as_they_are_come_through() -> None:
    other, found = sealed_records()
    assert other.receive(b"".join(found)) == [b"one", b"two", bytes(300), b"four"]
    assert other.ended
    other.closed()


@pytest.mark.parametrize("size", [1, 10**6])
@pytest.mark.parametrize("number", range(COUNT))
def test_a_record_that_was_left_out_moved_or_repeated_is_refused(number: int, size: int) -> None:
    _, found = sealed_records()
    without = found[:number] + found[number + 1 :]
    twice = found[: number + 1] + found[number:]
    moved = [*without, found[number]]
    for tampered in (without, twice, moved):
        if tampered == found:
            continue
        other, _ = sealed_records()
        with pytest.raises(Refused) as caught:
            fed_to_the_end(other, b"".join(tampered), size)
        if caught.value.reason is Refusal.TRUNCATED:
            assert tampered == found[:-1], "the end is what is left out"
        else:
            assert caught.value.reason in (Refusal.FORGED, Refusal.GARBAGE)


def test_any_single_bit_that_is_turned_is_refused() -> None:
    _, found = sealed_records()
    data = b"".join(found)
    for bit in range(len(data) * 8):
        _, other = connected()
        with pytest.raises(Refused):
            fed_to_the_end(other, flipped(data, bit), len(data))


def test_every_cut_is_told_from_an_end() -> None:
    _, found = sealed_records()
    data = b"".join(found)
    for size in range(len(data)):
        _, other = connected()
        heard = other.receive(data[:size])
        assert heard == [b"one", b"two", bytes(300), b"four"][: len(heard)]
        assert not other.ended
        with pytest.raises(Refused) as caught:
            other.closed()
        assert caught.value.reason is Refusal.TRUNCATED
        other.closed()
    with pytest.raises(Refused, match="before it was opened"):
        server().closed()


@given(seed=st.integers(0, 2**32))
def test_random_damage_raises_nothing_but_a_refusal(seed: int) -> None:
    source = random.Random(seed)
    other, found = sealed_records()
    data = bytearray(b"".join(found))
    start = source.randrange(len(data))
    data[start : start + source.randrange(40)] = source.randbytes(source.randrange(40))
    if bytes(data) == b"".join(found):
        return
    with pytest.raises(Refused):
        fed_to_the_end(other, bytes(data), source.randint(1, 200))
