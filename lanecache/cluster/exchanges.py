"""The streams of one node: push/pull, pings over TCP, status, and packets where UDP is not used.

Every stream has an end in time: opening, handshake and exchange take ``stream_timeout_s`` at most,
and one that is kept for packets is closed when it was idle for ``stream_idle_s``. How many there
may be is bounded; the one that was used least recently gives way.

An exchange, as who opened it sees it::

    Digest →            its own live members, counted and hashed
            ← Digest    the same: that was all
            ← Members   otherwise: all that the other side holds, the dead too
    Members →           what this side holds otherwise or beside it
    end →  ← end
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from lanecache.cluster import messages
from lanecache.cluster.actions import Action, CloseStream, OpenStream, SendStream
from lanecache.cluster.messages import Digest, Members, Packet, StatusReply, StatusRequest
from lanecache.cluster.refusal import Refusal, Refused
from lanecache.cluster.stream_codec import StreamCodec

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.keyring import Keyring
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.swim import Swim
    from lanecache.cluster.timers import Timer, Timers

_MEMBERS_HEAD_BYTES = 8
_QUEUED_MAX = 256  # packets that wait for one stream to open
_BACKLOG_BYTES_MAX = 1024 * 1024  # of packets that one stream could not take yet

Done = Callable[[str | None, Refusal | None], None]
"""Called once with why an exchange failed (None: it did not), and the kind if it was refused."""


class Purpose(enum.Enum):
    """What a stream was opened for."""

    EXCHANGE = "exchange"
    PING = "ping"
    LINK = "link"
    ACCEPTED = "accepted"  # by this node: the other side says what for


class Host(Protocol):
    """What the streams need of the node."""

    def refused(self, where: str, source: Address, refusal: Refused) -> None:
        """Count and report something that is not to be used."""

    def status_bytes(self) -> bytes:
        """Spell what ``lanecache status`` is told."""


class _Stream:
    """One stream, from its opening to its end."""

    __slots__ = (
        "address",
        "backlog_bytes",
        "codec",
        "done",
        "ending",
        "expected",
        "joining",
        "number",
        "opened",
        "purpose",
        "queued",
        "timer",
        "used_at",
    )

    def __init__(
        self, number: int, purpose: Purpose, address: Address, codec: StreamCodec, now: float
    ) -> None:
        self.number = number
        self.purpose = purpose
        self.address = address
        self.codec = codec
        self.expected = 0  # the process that should be there; 0: whoever is
        self.opened = purpose is Purpose.ACCEPTED
        self.ending = False  # this side has sent all that it will
        self.joining = False
        self.queued = 0
        self.backlog_bytes = 0
        self.used_at = now
        self.timer: Timer | None = None
        self.done: Done | None = None


class Exchanges:
    """All streams of one node."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        swim: Swim,
        *,
        process: int,
        entropy: Callable[[int], bytes],
        timers: Timers,
        counters: Counters,
        act: Callable[[Action], None],
        host: Host,
    ) -> None:
        """Begin without a stream."""
        self._settings = settings
        self._keyring = keyring
        self._swim = swim
        self._process = process
        self._entropy = entropy
        self._timers = timers
        self._counters = counters
        self._act = act
        self._host = host
        self._streams: dict[int, _Stream] = {}
        self._links: dict[int, int] = {}  # process -> the stream for its packets
        self._last = 0

    def __len__(self) -> int:
        """Count the streams."""
        return len(self._streams)

    def set_keyring(self, keyring: Keyring) -> None:
        """Change the keys; streams whose key is not accepted any more end."""
        self._keyring = keyring
        for stream in list(self._streams.values()):
            if stream.codec.key_tag not in keyring.tags:
                self._close(stream, "its key is not accepted any more", abort=True)

    # Opened by this node.

    def exchange(self, address: Address, expected: int, done: Done | None, now: float) -> None:
        """Exchange member lists with whoever is at that address (``expected`` if not 0)."""
        stream = self._open(Purpose.EXCHANGE, address, expected, now)
        stream.done = done
        members = self._swim.members
        # Alone, this node has nothing to tell its cluster of what it is about to hear.
        stream.joining = not members.live
        count, digest = self._swim.rumours.digest()
        self._say(stream, Digest(count, digest, stream.joining))

    def ping(self, process: int, address: Address, ping: bytes, until_s: float, now: float) -> None:
        """Send a ping over a stream of its own."""
        stream = self._open(Purpose.PING, address, process, now, limit_s=until_s)
        stream.codec.send(_packet(process, [ping]))

    def send_packet(self, to: int, address: Address, parts: list[bytes], now: float) -> None:
        """Send what would be a packet, over a stream that is kept open."""
        stream = self._streams.get(self._links.get(to, 0))
        if stream is None:
            stream = self._open(Purpose.LINK, address, to, now)
            self._links[to] = stream.number
        self._packet_on(stream, to, parts)

    def answer_packet(self, number: int, to: int, parts: list[bytes]) -> None:
        """Send a packet on the stream on which another one came, if it is still there."""
        stream = self._streams.get(number)
        if stream is None or stream.ending:
            self._counters.packets_dropped += 1
        else:
            self._packet_on(stream, to, parts)

    def _packet_on(self, stream: _Stream, to: int, parts: list[bytes]) -> None:
        waits = not stream.codec.established
        if (waits and stream.queued >= _QUEUED_MAX) or stream.backlog_bytes > _BACKLOG_BYTES_MAX:
            self._counters.packets_dropped += 1
            return
        stream.queued += waits
        stream.used_at = self._timers.now
        stream.codec.send(_packet(to, parts))
        self._flush(stream)

    def _open(
        self,
        purpose: Purpose,
        address: Address,
        expected: int,
        now: float,
        *,
        limit_s: float | None = None,
    ) -> _Stream:
        self._make_room(accepted=False)
        self._last += 1
        codec = StreamCodec.client(self._keyring, self._process, self._entropy, self._settings)
        stream = self._streams[self._last] = _Stream(self._last, purpose, address, codec, now)
        stream.expected = expected
        self._limit(stream, limit_s or self._settings.stream_timeout_s, now)
        self._counters.streams_opened += 1
        self._act(OpenStream(stream.number, address))
        return stream

    # What the host says of streams.

    def accepted(self, number: int, source: Address, now: float) -> None:
        """Hear of a stream that another node has opened."""
        self._make_room(accepted=True)
        codec = StreamCodec.server(self._keyring, self._process, self._entropy, self._settings)
        stream = self._streams[number] = _Stream(number, Purpose.ACCEPTED, source, codec, now)
        self._counters.streams_accepted += 1
        self._limit(stream, self._settings.stream_timeout_s, now)

    def opened(self, number: int) -> None:
        """Hear that a stream is open."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.opened = True
            self._flush(stream)

    def received(self, number: int, data: bytes, now: float) -> None:
        """Take what came on a stream."""
        stream = self._streams.get(number)
        if stream is None:
            return
        self._counters.streams_received_bytes += len(data)
        was_established = stream.codec.established
        try:
            found = stream.codec.receive(data)
            if not was_established and stream.codec.established:
                self._established(stream, now)
            for message in found:
                if number not in self._streams:
                    return
                self._take(stream, message, now)
        except Refused as refused:
            self._refuse(stream, refused)
            return
        if number not in self._streams:
            return
        if stream.codec.ended:
            if not stream.ending:
                stream.ending = True
                stream.codec.end()
            self._flush(stream)
            self._close(stream, "the other side ended it")
        else:
            self._flush(stream)

    def closed(self, number: int, reason: str) -> None:
        """Hear that a stream is over: it failed to open, was reset, or the peer closed it."""
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.opened:
            try:
                stream.codec.closed()
            except Refused as refused:
                # One that was closed with all said on this side is no fault; the others are
                # counted only, since every lossy network cuts some.
                if not stream.ending:
                    self._counters.refuse(f"stream_{refused.reason.value}")
        self._forget(stream, reason)

    def backlog(self, number: int, backlog_bytes: int) -> None:
        """Hear how much of a stream the host could not write yet."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.backlog_bytes = backlog_bytes

    def stop(self) -> None:
        """Close all streams."""
        for stream in list(self._streams.values()):
            if stream.codec.established and not stream.ending:
                stream.ending = True
                stream.codec.end()
                self._flush(stream)
            self._close(stream, "this node has left")

    # What is said on them.

    def _take(self, stream: _Stream, message: bytes, now: float) -> None:
        try:
            said = messages.decode_stream(message)
        except (ValueError, msgspec.MsgspecError):
            raise Refused(Refusal.GARBAGE, "a message that is none of lanecache's") from None
        if stream.ending and stream.purpose is Purpose.ACCEPTED:
            raise Refused(Refusal.GARBAGE, "a message after the one that was answered last")
        stream.used_at = now
        peer = stream.codec.peer or 0
        if isinstance(said, StatusRequest) and stream.purpose is Purpose.ACCEPTED:
            status = msgspec.Raw(self._host.status_bytes())
            self._say(stream, StatusReply(status))
            self._end(stream)
        elif not peer:
            raise Refused(Refusal.GARBAGE, "a message that only a member may send")
        elif isinstance(said, Packet):
            self._take_packet(stream, said, peer, now)
        elif isinstance(said, Digest):
            self._take_digest(stream, said, now)
        elif isinstance(said, Members):
            self._take_members(stream, said, peer, now)
        else:
            raise Refused(Refusal.GARBAGE, "a message that has no place on this stream")

    def _take_packet(self, stream: _Stream, packet: Packet, peer: int, now: float) -> None:
        if len(packet.messages) > self._settings.packet_messages_max:
            raise Refused(Refusal.OVERSIZED, f"a packet of {len(packet.messages)} messages")
        if not self._settings.udp:
            self._links.setdefault(peer, stream.number)
            if stream.purpose is Purpose.ACCEPTED:
                stream.purpose = Purpose.LINK
                self._limit(stream, self._settings.stream_idle_s, now)
        if packet.to not in (0, self._process):
            self._swim.stray(packet.messages, peer, stream.number, now)
            return
        self._swim.receive(packet.messages, peer, stream.number, now, over_stream=True)
        if stream.purpose is Purpose.PING and stream.number in self._streams:
            self._end(stream)

    def _take_digest(self, stream: _Stream, said: Digest, now: float) -> None:
        count, digest = self._swim.rumours.digest()
        is_same = (said.members, said.hash) == (count, digest)
        if stream.purpose is Purpose.EXCHANGE:
            self._counters.exchanges_equal += 1
            self._swim.exchanged(now, equal=True)
            self._succeed(stream)
        elif stream.purpose is not Purpose.ACCEPTED:
            raise Refused(Refusal.GARBAGE, "a digest on a stream for packets")
        elif is_same:
            self._say(stream, Digest(count, digest))
        else:
            stream.codec.send(self._members(self._swim.records(now), answer=False))

    def _take_members(self, stream: _Stream, said: Members, peer: int, now: float) -> None:
        if len(said.records) > 2 * self._settings.members_max:
            raise Refused(Refusal.OVERSIZED, f"a list of {len(said.records)} members")
        if stream.purpose is Purpose.EXCHANGE and not said.answer:
            # Spelled before it is merged: the other side knows what it has said itself.
            answer = self._members(self._swim.records(now, said.records), answer=True)
            self._swim.merge(said.records, peer, now, spread=not stream.joining)
            if stream.joining:
                self._swim.introduce()
            self._swim.exchanged(now, equal=False)
            stream.codec.send(answer)
            self._counters.exchanges += 1
            self._succeed(stream)
        elif stream.purpose is Purpose.ACCEPTED and said.answer:
            self._swim.merge(said.records, peer, now)
        else:
            raise Refused(Refusal.GARBAGE, "a list of members out of turn")

    def _members(self, records: list[bytes], *, answer: bool) -> bytes:
        """Spell a ``Members`` of records that are spelled already, of as many as may be sent."""
        room_bytes = self._settings.message_bytes_max - _MEMBERS_HEAD_BYTES
        while sum(map(len, records)) > room_bytes:
            records = records[: len(records) // 2]  # the rest comes with gossip and other lists
        count = b"\xdd" + len(records).to_bytes(4, "big")
        return b"\x93\x22" + count + b"".join(records) + (b"\xc3" if answer else b"\xc2")

    def _succeed(self, stream: _Stream) -> None:
        done, stream.done = stream.done, None
        self._end(stream)
        if done is not None:
            done(None, None)

    def _established(self, stream: _Stream, now: float) -> None:
        """See who is there."""
        peer = stream.codec.peer or 0
        stream.queued = 0
        if stream.expected and peer and peer != stream.expected:
            self._counters.wrong_recipient += 1
            self._swim.rumours.replaced(stream.expected, peer, now)
            if self._links.get(stream.expected) == stream.number:
                del self._links[stream.expected]
        if stream.purpose is Purpose.LINK:
            self._limit(stream, self._settings.stream_idle_s, now)

    def _say(self, stream: _Stream, message: messages.StreamMessage) -> None:
        stream.codec.send(messages.encode(message))

    def _end(self, stream: _Stream) -> None:
        """Say that this side is done; the stream is closed when the other one is."""
        if not stream.ending:
            stream.ending = True
            stream.codec.end()

    # Bounds, and the end.

    def _limit(self, stream: _Stream, limit_s: float, now: float) -> None:
        self._timers.cancel(stream.timer)
        stream.timer = self._timers.set(now + limit_s, partial(self._run_out, stream))

    def _run_out(self, stream: _Stream, now: float) -> None:
        if stream.purpose is Purpose.LINK and stream.codec.established:
            idle_at = stream.used_at + self._settings.stream_idle_s
            if idle_at > now:
                self._limit(stream, idle_at - now, now)
                return
            self._end(stream)
            self._flush(stream)
            self._close(stream, "idle")
            return
        if stream.purpose is Purpose.ACCEPTED and not stream.codec.established:
            detail = "a stream that was not opened in time"
            self._host.refused("stream", stream.address, Refused(Refusal.TRUNCATED, detail))
        self._close(stream, "no answer in time", abort=True)

    def _make_room(self, *, accepted: bool) -> None:
        """Close what was used least recently where one more would be too many.

        Accepted streams that have proved nothing are bounded by themselves, so that strangers
        push out each other only.
        """
        mine = [s for s in self._streams.values() if (s.number < 0) is accepted]
        if accepted:
            pending = [s for s in mine if not s.codec.established]
            if len(pending) >= self._settings.streams_pending_max:
                self._counters.refuse("stream_pending")
                self._close(pending[0], "too many are not open yet", abort=True)
                return
        if len(mine) >= self._settings.streams_max:
            oldest = min(mine, key=lambda stream: stream.used_at)
            self._counters.refuse("stream_too_many")
            self._close(oldest, "too many streams", abort=True)

    def _flush(self, stream: _Stream) -> None:
        if stream.opened:
            data = stream.codec.to_send()
            if data:
                self._counters.streams_sent_bytes += len(data)
                self._act(SendStream(stream.number, data))

    def _refuse(self, stream: _Stream, refused: Refused) -> None:
        self._host.refused("stream", stream.address, refused)
        self._flush(stream)  # the hello, in which the other side finds out why
        self._act(CloseStream(stream.number, abort=False))
        self._forget(stream, refused.detail, refused.reason)

    def _close(self, stream: _Stream, reason: str, *, abort: bool = False) -> None:
        self._act(CloseStream(stream.number, abort))
        self._forget(stream, reason)

    def _forget(self, stream: _Stream, reason: str, refusal: Refusal | None = None) -> None:
        self._timers.cancel(stream.timer)
        del self._streams[stream.number]
        for process in (stream.expected, stream.codec.peer or 0):
            if self._links.get(process) == stream.number:
                del self._links[process]
        done, stream.done = stream.done, None
        if done is not None:
            self._counters.exchanges_failed += 1
            done(reason, refusal)
        elif stream.purpose is Purpose.EXCHANGE and not stream.ending:
            self._counters.exchanges_failed += 1


def _packet(to: int, parts: list[bytes]) -> bytes:
    """Spell a ``Packet`` of messages that are spelled already."""
    return b"\x93\x20" + msgspec.msgpack.encode(to) + messages.encode_packet(parts)
