"""Short exchanges over streams: push/pull, pings over TCP, status, and packets without UDP.

Every exchange has an end in time: opening, handshake and exchange take ``stream_timeout_s`` at
most, and a stream that is kept for packets is closed when it was idle for ``stream_idle_s``.

An exchange, as who opened it sees it::

    Digest →            its own live members, counted and hashed
            ← Digest    the same: that was all
            ← Members   otherwise: all that the other side holds, the dead too
    Members →           what this side holds otherwise or beside it
    end →  ← end
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from lanecache.cluster.streams import Done, Purpose, Stream, Streams
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.data_messages import DATA_TAGS, tag_of
from lanecache.cluster.wire.messages import Digest, Members, Packet, StatusReply, StatusRequest
from lanecache.cluster.wire.refusal import Refusal, Refused

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.membership.swim import Swim
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timers

_MEMBERS_HEAD_BYTES = 8
_QUEUED_MAX = 256  # packets that wait for one stream to open
_BACKLOG_BYTES_MAX = 1024 * 1024  # of packets that one stream could not take yet


class Exchanges:
    """What is said on streams about members: part of the rules of ``Swim``."""

    def __init__(
        self,
        settings: Settings,
        streams: Streams,
        swim: Swim,
        *,
        process: int,
        timers: Timers,
        counters: Counters,
        status: Callable[[], bytes],
        link: Callable[[Stream, bytes, float], None],
    ) -> None:
        """Begin without a stream.

        Args:
            settings: bounds.
            streams: all of the node's.
            swim: what is said goes to it.
            process: this node's id.
            timers: for the time.
            counters: shared with the node.
            status: spells what ``lanecache status`` is told.
            link: takes an accepted stream that turns out to be a link, and its first message.
        """
        self._settings = settings
        self._streams = streams
        self._swim = swim
        self._process = process
        self._timers = timers
        self._counters = counters
        self._status = status
        self._link = link
        self._routes: dict[int, Stream] = {}  # process -> the stream for its packets
        streams.accepting = self

    def __len__(self) -> int:
        """Count the streams that are no links."""
        return sum(s.purpose is not Purpose.DATA for s in self._streams.table.values())

    # Opened by this node.

    def exchange(self, address: Address, expected: int, done: Done | None, now: float) -> None:
        """Exchange member lists with whoever is at that address (``expected`` if not 0)."""
        stream = self._streams.open(Purpose.EXCHANGE, address, expected, self, now)
        stream.done = done
        members = self._swim.members
        # Alone, this node has nothing to tell its cluster of what it is about to hear.
        stream.joining = not members.live
        count, digest = self._swim.rumours.digest()
        self._say(stream, Digest(count, digest, stream.joining))

    def ping(self, process: int, address: Address, ping: bytes, until_s: float, now: float) -> None:
        """Send a ping over a stream of its own."""
        stream = self._streams.open(Purpose.PING, address, process, self, now, limit_s=until_s)
        stream.codec.send(_packet(process, [ping]))

    def send_packet(self, to: int, address: Address, parts: list[bytes], now: float) -> None:
        """Send what would be a packet, over a stream that is kept open."""
        stream = self._routes.get(to)
        if stream is None:
            stream = self._streams.open(Purpose.PACKETS, address, to, self, now)
            self._routes[to] = stream
        self._packet_on(stream, to, parts)

    def answer_packet(self, number: int, to: int, parts: list[bytes]) -> None:
        """Send a packet on the stream on which another one came, if it is still there."""
        stream = self._streams.table.get(number)
        if stream is None or stream.ending:
            self._counters.packets_dropped += 1
        else:
            self._packet_on(stream, to, parts)

    def _packet_on(self, stream: Stream, to: int, parts: list[bytes]) -> None:
        waits = not stream.codec.established
        if (waits and stream.queued >= _QUEUED_MAX) or stream.backlog_bytes > _BACKLOG_BYTES_MAX:
            self._counters.packets_dropped += 1
            return
        stream.queued += waits
        stream.used_at = self._timers.now
        stream.codec.send(_packet(to, parts))
        self._streams.flush(stream)

    # What the streams say.

    def established(self, stream: Stream, now: float) -> None:
        """Hear that the other side has proved that it is one of the cluster."""
        peer = stream.codec.peer or 0
        if stream.expected != peer and self._routes.get(stream.expected) is stream:
            del self._routes[stream.expected]
        if stream.purpose is Purpose.PACKETS:
            self._streams.limit(stream, self._settings.stream_idle_s, now)

    def run_out(self, stream: Stream, now: float) -> None:
        """Hear that the time limit of an established stream has come."""
        if stream.purpose is not Purpose.PACKETS:
            self._streams.close(stream, "no answer in time", abort=True)
            return
        idle_at = stream.used_at + self._settings.stream_idle_s
        if idle_at > now:
            self._streams.limit(stream, idle_at - now, now)
        else:
            self._streams.finish(stream, "idle")

    def backlog(self, stream: Stream) -> None:
        """Hear that ``backlog_bytes`` has changed: it is looked at when there is a packet."""

    def closed(self, stream: Stream, reason: str, refusal: Refusal | None) -> None:
        """Hear that the stream is over."""
        for process in (stream.expected, stream.codec.peer or 0):
            if self._routes.get(process) is stream:
                del self._routes[process]
        done, stream.done = stream.done, None
        if done is not None:
            self._counters.exchanges_failed += 1
            done(reason, refusal)
        elif stream.purpose is Purpose.EXCHANGE and not stream.ending:
            self._counters.exchanges_failed += 1

    def take(self, stream: Stream, message: bytes, now: float) -> None:
        """Take a message: part of ``streams.User``."""
        if tag_of(message) in DATA_TAGS and stream.purpose is Purpose.ACCEPTED:
            self._link(stream, message, now)
            return
        try:
            said = messages.decode_stream(message)
        except (ValueError, msgspec.MsgspecError):
            raise Refused(Refusal.GARBAGE, "a message that is none of lanecache's") from None
        if stream.ending and stream.purpose is Purpose.ACCEPTED:
            raise Refused(Refusal.GARBAGE, "a message after the one that was answered last")
        stream.used_at = now
        peer = stream.codec.peer or 0
        if isinstance(said, StatusRequest) and stream.purpose is Purpose.ACCEPTED:
            self._say(stream, StatusReply(msgspec.Raw(self._status())))
            self._streams.end(stream)
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

    def _take_packet(self, stream: Stream, packet: Packet, peer: int, now: float) -> None:
        if len(packet.messages) > self._settings.packet_messages_max:
            raise Refused(Refusal.OVERSIZED, f"a packet of {len(packet.messages)} messages")
        if not self._settings.udp:
            self._routes.setdefault(peer, stream)
            if stream.purpose is Purpose.ACCEPTED:
                stream.purpose = Purpose.PACKETS
                self._streams.limit(stream, self._settings.stream_idle_s, now)
        if packet.to not in (0, self._process):
            self._swim.stray(packet.messages, peer, stream.number, now)
            return
        self._swim.receive(packet.messages, peer, stream.number, now, over_stream=True)
        if stream.purpose is Purpose.PING and stream.number in self._streams.table:
            self._streams.end(stream)

    def _take_digest(self, stream: Stream, said: Digest, now: float) -> None:
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

    def _take_members(self, stream: Stream, said: Members, peer: int, now: float) -> None:
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

    def _succeed(self, stream: Stream) -> None:
        done, stream.done = stream.done, None
        self._streams.end(stream)
        if done is not None:
            done(None, None)

    def _say(self, stream: Stream, message: messages.StreamMessage) -> None:
        stream.codec.send(messages.encode(message))


def _packet(to: int, parts: list[bytes]) -> bytes:
    """Spell a ``Packet`` of messages that are spelled already."""
    return b"\x93\x20" + msgspec.msgpack.encode(to) + messages.encode_packet(parts)
