"""Framing of a dump: whole, byte by byte, split over packets, oversized, and garbage."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanecache.errors import (
    HistoryReplaced,
    PositionPurged,
    SourceClash,
    SourceError,
    SourceUnavailable,
)
from lanecache.ingest.framing import OVERSIZED_KEPT_BYTES, PACKET_PAYLOAD_MAX, EventFramer
from lanecache.ingest.protocol import BinlogProtocol

BUFFER_BYTES = 4096


def event(body_size: int, filler: int = 7) -> bytes:
    return struct.pack("<IBIIIH", 1, 30, 1, 19 + body_size, 0, 0) + bytes((filler,)) * body_size


def packets(payloads: list[bytes], sequence: int = 1) -> bytes:
    """Frame payloads as a server does, large ones over several packets."""
    parts = []
    for payload in payloads:
        position = 0
        while True:
            piece = payload[position : position + PACKET_PAYLOAD_MAX]
            parts.append(len(piece).to_bytes(3, "little") + bytes((sequence & 0xFF,)) + piece)
            sequence += 1
            position += PACKET_PAYLOAD_MAX
            if len(piece) < PACKET_PAYLOAD_MAX:
                break
    return b"".join(parts)


def dump(events: list[bytes], *, end: bytes = b"", sequence: int = 1) -> bytes:
    return packets([b"\0" + each for each in events] + ([end] if end else []), sequence)


EOF = b"\xfe\0\0\2\0"


def error_packet(code: int, message: str) -> bytes:
    return b"\xff" + struct.pack("<H", code) + b"#HY000" + message.encode()


def feed(framer: EventFramer, data: bytes, step: int) -> list[tuple[bytes, int]]:
    """Feed at most ``step`` bytes at a time; give the events with their true size if oversized."""
    found = []
    position = 0
    while position < len(data):
        room = framer.free()
        count = min(step, len(room), len(data) - position)
        assert count, "the framer has no room though everything was taken"
        room[:count] = data[position : position + count]
        framer.received(count)
        position += count
        while framer.ready and (block := framer.take()) is not None:
            found += [(block.data[a:b], block.oversized_bytes) for a, b in block.spans]
    return found


def framer(**arguments: Any) -> EventFramer:
    return EventFramer(**{"buffer_bytes": BUFFER_BYTES, "where": "db:3306", **arguments})


@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 100, 4050, 4070, 4090, 5000, 20000]), max_size=12),
    step=st.sampled_from([1, 2, 3, 17, 18, 500, 4096]),
    first=st.sampled_from([1, 250, 255, 0]),
)
def test_events_come_out_as_they_went_in(sizes: list[int], step: int, first: int) -> None:
    events = [event(size, index) for index, size in enumerate(sizes)]
    used = framer(first_sequence=first)
    data = dump(events, end=EOF, sequence=first)
    assert feed(used, data, step) == [(each, 0) for each in events]
    assert used.ended
    assert used.take() is None


def test_many_events_that_arrived_together_are_one_block() -> None:
    events = [event(10, index) for index in range(60)]
    used = framer()
    data = dump(events)
    used.free()[: len(data)] = data
    used.received(len(data))
    block = used.take()
    assert block is not None
    assert [block.data[a:b] for a, b in block.spans] == events
    assert used.take() is None
    assert not used.ready


@pytest.mark.parametrize(
    "size",
    [
        PACKET_PAYLOAD_MAX - 2,  # the 0x00 before the event counts too: one short of full
        PACKET_PAYLOAD_MAX - 1,  # full, so an empty packet follows
        PACKET_PAYLOAD_MAX,
        2 * PACKET_PAYLOAD_MAX - 1,  # two full ones and an empty one
        2 * PACKET_PAYLOAD_MAX + 5,
    ],
)
def test_an_event_split_over_packets_is_joined(size: int) -> None:
    large = event(size - 19)
    events = [event(3), large, event(4)]
    assert feed(framer(), dump(events, end=EOF), 100_000) == [(each, 0) for each in events]


def test_an_event_split_over_packets_is_joined_where_the_buffer_could_hold_it() -> None:
    events = [event(PACKET_PAYLOAD_MAX - 1 - 19), event(4)]
    used = framer(buffer_bytes=PACKET_PAYLOAD_MAX + 1000)
    assert feed(used, dump(events), 2**24) == [(each, 0) for each in events]


def test_an_oversized_event_keeps_its_beginning_and_its_true_size() -> None:
    large = event(PACKET_PAYLOAD_MAX + 1000)
    events = [event(3), large, event(4)]
    found = feed(framer(event_bytes_max=100_000), dump(events, end=EOF), 100_000)
    assert found == [
        (events[0], 0),
        (large[:OVERSIZED_KEPT_BYTES], len(large)),
        (events[2], 0),
    ]


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (1236, "Could not find first log file name in binary log index file", PositionPurged),
        (1236, "Error: connecting slave requested to start from GTID 0-1-9, which is not in the "
         "master's binlog", HistoryReplaced),
        (1236, "A slave with the same server_uuid/server_id as this slave has connected to the "
         "master; the first event 'x' at 4", SourceClash),
        (1227, "Access denied; you need (at least one of) the REPLICATION SLAVE privilege(s) for "
         "this operation", SourceError),
        (4052, "A slave with the same server_uuid/server_id is already connected; the first event "
         "'x' at 4", SourceClash),
        (1045, "Access denied for user 'u'@'h'", SourceError),
        (1053, "Server shutdown in progress", SourceUnavailable),
        (1236, "Binary log is not open", SourceError),
    ],
)  # fmt: skip
def test_an_error_packet_becomes_the_error_that_fits(
    code: int, message: str, kind: type[SourceError]
) -> None:
    used = framer()
    data = dump([event(3)], end=error_packet(code, message))
    with pytest.raises(SourceError) as caught:
        feed(used, data, 5)
    assert type(caught.value) is kind
    assert "db:3306" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(kind):
        used.take()


def test_a_lacking_privilege_comes_with_the_grant() -> None:
    with pytest.raises(SourceError, match="GRANT REPLICATION SLAVE"):
        feed(framer(), packets([error_packet(1227, "Access denied")]), 4096)


def test_an_error_of_a_stopping_server_may_have_any_sequence_number() -> None:
    data = dump([event(3)]) + packets([error_packet(1053, "Server shutdown in progress")], 0)
    with pytest.raises(SourceUnavailable, match="shutdown"):
        feed(framer(), data, 4096)


GARBAGE = {
    "a wrong sequence number": dump([event(3)], sequence=2),
    "a payload that is neither event nor error nor end": packets([b"\x01" + event(3)]),
    "an event whose size is not the packet's": packets([b"\0" + event(30)[:-1]]),
    "an event shorter than its header": packets([b"\0" + b"x" * 10]),
    "an empty packet": packets([b""]) + dump([event(3)], sequence=2),
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a split event whose next packet has a wrong number": (
        packets([b"\0" + event(PACKET_PAYLOAD_MAX)])[: PACKET_PAYLOAD_MAX + 4]
        + packets([b"x" * 20], 5)
    ),
    "a split event that ends early": (
        packets([b"\0" + event(PACKET_PAYLOAD_MAX)])[: PACKET_PAYLOAD_MAX + 4]
        + packets([b"x" * 7], 2)
    ),
}


@pytest.mark.parametrize("step", [1, 3, 4096])
@pytest.mark.parametrize("what", [name for name in GARBAGE if "split" not in name])
def test_garbage_is_an_error_that_connecting_again_cures(what: str, step: int) -> None:
    used = framer()
    with pytest.raises(SourceUnavailable, match="no binlog dump"):
        feed(used, GARBAGE[what], step)
    with pytest.raises(SourceUnavailable, match="no binlog dump"):
        used.take()


@pytest.mark.parametrize("what", [name for name in GARBAGE if "split" in name])
def test_garbage_within_a_split_event_is_found(what: str) -> None:
    with pytest.raises(SourceUnavailable, match="split event"):
        feed(framer(), GARBAGE[what], 4096)


def test_what_came_before_garbage_is_given_first() -> None:
    events = [event(3), event(4)]
    used = framer()
    data = dump(events) + b"garbage!garbage!"
    used.free()[: len(data)] = data
    used.received(len(data))
    block = used.take()
    assert block is not None
    assert [block.data[a:b] for a, b in block.spans] == events
    with pytest.raises(SourceUnavailable):
        used.take()


@given(st.binary(max_size=300), st.sampled_from([1, 7, 4096]))
def test_random_bytes_never_do_anything_but_fail_or_wait(data: bytes, step: int) -> None:
    used = framer()
    try:
        feed(used, data, step)
    except SourceError:
        with pytest.raises(SourceError):
            used.take()


class FakeTransport(asyncio.Transport):
    """Keeps the state of reading, and delivers as a selector's transport does."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


def deliver(transport: FakeTransport, protocol: BinlogProtocol, data: bytes) -> int:
    """Hand over what the transport may; give how much that was."""
    position = 0
    while transport.reading and position < len(data):
        room = protocol.get_buffer(-1)
        count = min(len(room), len(data) - position)
        room[:count] = data[position : position + count]
        protocol.buffer_updated(count)
        position += count
    return position


async def test_a_reader_waits_for_the_first_whole_event() -> None:
    transport = FakeTransport()
    protocol = BinlogProtocol(transport)
    data = dump([event(3)])
    reader = asyncio.create_task(protocol.read())
    for index in range(len(data) - 1):
        deliver(transport, protocol, data[index : index + 1])
        await asyncio.sleep(0)
    assert not reader.done()
    deliver(transport, protocol, data[-1:])
    block = await reader
    assert block is not None
    assert block.data[slice(*block.spans[0])] == event(3)


async def test_a_slow_reader_stops_the_socket_from_being_read() -> None:
    transport = FakeTransport()
    protocol = BinlogProtocol(transport, buffer_bytes=1000)
    events = [event(30, index) for index in range(200)]
    data = dump(events, end=EOF)
    sent = deliver(transport, protocol, data)
    assert sent == 1000
    assert not transport.reading
    found = []
    while (block := await protocol.read()) is not None:
        found += [block.data[a:b] for a, b in block.spans]
        assert transport.reading
        sent += deliver(transport, protocol, data[sent:])
    assert found == events


async def test_what_arrived_before_the_connection_was_lost_is_given_first() -> None:
    transport = FakeTransport()
    protocol = BinlogProtocol(transport, where="db:3306")
    deliver(transport, protocol, dump([event(3), event(4)])[:-1])
    protocol.connection_lost(ConnectionResetError("reset by peer"))
    block = await protocol.read()
    assert block is not None
    assert len(block.spans) == 1
    with pytest.raises(SourceUnavailable, match="db:3306 was lost: reset by peer"):
        await protocol.read()


async def test_a_reader_that_waits_learns_of_a_lost_connection() -> None:
    protocol = BinlogProtocol(FakeTransport())
    reader = asyncio.create_task(protocol.read())
    await asyncio.sleep(0)
    protocol.eof_received()
    with pytest.raises(SourceUnavailable, match="closed"):
        await reader


class Clock:
    """The event loop's time, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)

    async def advance(self, seconds: float) -> None:
        """Let everything that is ready run, move on, and let run what that made ready."""
        for _ in range(3):
            await asyncio.sleep(0)
        self.now += seconds
        for _ in range(3):
            await asyncio.sleep(0)


async def test_silence_beyond_the_deadline_is_a_lost_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    protocol = BinlogProtocol(FakeTransport(), deadline_s=15)
    await clock.advance(1000)  # nobody waits
    reader = asyncio.create_task(protocol.read())
    await clock.advance(14)
    assert not reader.done()
    await clock.advance(2)
    with pytest.raises(SourceUnavailable, match=r"silent for 16\.0 s"):
        await reader


async def test_a_trickle_of_bytes_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    transport = FakeTransport()
    protocol = BinlogProtocol(transport, deadline_s=15)
    data = dump([event(3)])
    reader = asyncio.create_task(protocol.read())
    for index in range(len(data) - 1):
        await clock.advance(10)
        deliver(transport, protocol, data[index : index + 1])
    await clock.advance(14)
    assert not reader.done()
    await clock.advance(2)
    with pytest.raises(SourceUnavailable, match="silent"):
        await reader


async def test_a_cancelled_reader_loses_nothing() -> None:
    transport = FakeTransport()
    protocol = BinlogProtocol(transport, deadline_s=10)
    reader = asyncio.create_task(protocol.read())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    deliver(transport, protocol, dump([event(3)]))
    block = await protocol.read()
    assert block is not None
    assert block.data[slice(*block.spans[0])] == event(3)
