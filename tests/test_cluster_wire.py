"""What goes over the wire in version 1: the golden files, and the bounds of the messages."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import pytest
from cluster_golden import (
    DATA_MESSAGES,
    FOLDER,
    PACKET_MESSAGES,
    PACKETS,
    STREAM_MESSAGES,
    STREAMS,
    A,
    B,
    client,
    golden_files,
    server,
)

from lanecache.cluster.wire.data_messages import DATA_TAGS, decode_data, encode_data, tag_of
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import (
    MEMBERS_MAX,
    MESSAGES_MAX,
    Ack,
    Alive,
    MemberRecord,
    Members,
    MemberState,
    Packet,
    PingRequest,
    decode_packet,
    decode_stream,
    encode,
    encode_packet,
)
from lanecache.cluster.wire.packet_codec import Opened, PacketCodec
from lanecache.cluster.wire.refusal import Refused

FILES = dict(golden_files())


# The golden files.


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_this_version_writes_is_what_it_has_always_written(path: Path) -> None:
    assert path.read_bytes() == FILES[path]


def test_every_golden_file_is_known() -> None:
    assert {path for path in FOLDER.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize("name", PACKET_MESSAGES)
def test_golden_packet_messages_are_read(name: str) -> None:
    data = (FOLDER / "messages" / f"{name}.msgpack").read_bytes()
    assert decode_packet(encode_packet([data])) == [PACKET_MESSAGES[name]]
    with pytest.raises(ValueError, match="Invalid value"):
        decode_stream(data)


@pytest.mark.parametrize("name", STREAM_MESSAGES)
def test_golden_stream_messages_are_read(name: str) -> None:
    data = (FOLDER / "messages" / f"{name}.msgpack").read_bytes()
    assert decode_stream(data) == STREAM_MESSAGES[name]
    with pytest.raises(ValueError, match="Invalid value"):
        decode_packet(encode_packet([data]))


@pytest.mark.parametrize("name", DATA_MESSAGES)
def test_golden_messages_of_links_are_read(name: str) -> None:
    data = (FOLDER / "messages" / f"{name}.msgpack").read_bytes()
    assert decode_data(data) == DATA_MESSAGES[name]
    assert tag_of(data) in DATA_TAGS
    with pytest.raises(ValueError, match=r"Invalid value [67]"):
        decode_stream(data)


@pytest.mark.parametrize("name", DATA_MESSAGES)
def test_messages_of_links_with_a_field_more_are_read_and_with_one_less_are_not(name: str) -> None:
    fields = msgspec.msgpack.decode(encode_data(DATA_MESSAGES[name]))
    assert decode_data(msgspec.msgpack.encode([*fields, {"more": 1}])) == DATA_MESSAGES[name]
    with pytest.raises(ValueError, match=r"length|Invalid value|tag"):
        decode_data(msgspec.msgpack.encode(fields[:-1]))


@pytest.mark.parametrize("name", PACKETS)
def test_golden_packets_are_opened(name: str) -> None:
    keyring, sender, to, messages = PACKETS[name]
    data = (FOLDER / "packets" / f"{name}.packet").read_bytes()
    opened = PacketCodec(keyring, B, senders_max=1).open(data)
    assert opened == Opened(sender, to, opened.body)
    assert decode_packet(opened.body) == messages


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("name", STREAMS)
def test_golden_streams_are_followed(name: str, size: int) -> None:
    client_keys, server_keys, process, asked, answered = STREAMS[name]
    there, back = (
        (FOLDER / "streams" / f"{name}.{side}").read_bytes() for side in ("client", "server")
    )
    one, other = client(client_keys, process), server(server_keys)
    heard = [
        [
            message
            for at in range(0, len(data), size)
            for message in side.receive(data[at : at + size])
        ]
        for side, data in ((other, there), (one, back))
    ]
    assert heard == [asked, answered]
    assert (one.peer, other.peer) == (B, process)
    assert one.ended
    assert other.ended


@pytest.mark.parametrize("name", PACKETS)
def test_golden_packets_are_of_no_other_cluster(name: str) -> None:
    data = (FOLDER / "packets" / f"{name}.packet").read_bytes()
    with pytest.raises(Refused, match="other_cluster"):
        PacketCodec(Keyring.of("stage", []), B, senders_max=1).open(data)


# Bounds of the messages.


def refused(message: object) -> bool:
    data = msgspec.msgpack.encode(message)
    try:
        decode_packet(encode_packet([data]))
    except ValueError:
        return True
    return False


def alive(**changes: object) -> Alive:
    fields: dict[str, object] = {
        "process": A,
        "incarnation": 0,
        "host": "10.0.0.5",
        "port": 7946,
        "metadata": b"",
        "version_min": 1,
        "version_max": 1,
        "keys": (b"abcd",),
    }
    return Alive(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"process": 0},
        {"process": -1},
        {"process": 2**63},
        {"incarnation": 2**53 + 1},
        {"incarnation": -1},
        {"incarnation": 1.0},
        {"host": ""},
        {"host": "x" * 256},
        {"host": "a\n"},
        {"host": "\x1b[2Ja"},
        {"host": "a b"},
        {"host": "a\0b"},
        {"host": b"a"},
        {"port": 0},
        {"port": 65_536},
        {"metadata": bytes(513)},
        {"version_max": 256},
        {"keys": (b"abc",)},
        {"keys": (b"abcd",) * 3},
        {"keys": None},
    ],
    ids=str,
)
def test_a_field_beyond_its_bounds_is_refused(changes: dict[str, object]) -> None:
    assert refused(alive(**changes))
    assert not refused(alive(host="fe80::1%eth0"))


def test_a_later_version_may_add_fields() -> None:
    fields = msgspec.msgpack.decode(encode(Ack(7)))
    assert decode_packet(msgspec.msgpack.encode([[*fields, "new", {"more": [1]}]])) == [Ack(7)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90trailing",
        b"\x91\xc0",
        b"\x91\x92\x06",
        b"\x91\x91\x06",
        b"\x91\x92\x63\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff\x92\x06\x01",
        b"\x91\xdd\xff\xff\xff\xff\x06\x01",
        b"\x91\x93\x06\x01" + b"\x91" * 100_000,
        b"\x91\x93\x06\x01" + b"\x81\xc0" * 100_000,
        b"\x91\x99\x01\x01\x00\xdb\xff\xff\xff\xffa",
        b"\x91\x99\x01\x01\x00\xa1a\x01\xc6\xff\xff\xff\xff",
    ],
)
def test_a_body_that_is_none_is_refused_before_room_is_made_for_it(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"truncated|trailing|nested|Expected|Invalid"):
            decode_packet(data)
        with pytest.raises(ValueError, match=r"truncated|trailing|nested|Expected|Invalid"):
            decode_stream(b"\x93\x20\x01" + data)
        with pytest.raises(ValueError, match=r"truncated|trailing|nested|Expected|Invalid"):
            decode_stream(b"\x92\x31" + b"\xdd\xff\xff\xff\xff" + data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_stream_brings_no_more_members_or_messages_than_may_be() -> None:
    record = MemberRecord(alive(), MemberState.ALIVE)
    whole = decode_stream(encode(Members([record] * MEMBERS_MAX, False)))
    assert isinstance(whole, Members)
    assert len(whole.records) == MEMBERS_MAX
    with pytest.raises(ValueError, match="length <= 65536"):
        decode_stream(encode(Members([record] * (MEMBERS_MAX + 1), False)))
    assert decode_stream(encode(Packet(0, [Ack(1)] * MESSAGES_MAX)))
    with pytest.raises(ValueError, match="length <= 1024"):
        decode_stream(encode(Packet(0, [Ack(1)] * (MESSAGES_MAX + 1))))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300])
def test_a_packet_of_any_number_of_messages_is_read_back(count: int) -> None:
    messages = [PingRequest(number, B, "a", 1) for number in range(count)]
    assert decode_packet(encode_packet([encode(each) for each in messages])) == messages
