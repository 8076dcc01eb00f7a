"""The streams of one node: opening, handshake, bounds and end, whatever is said on them.

Every stream has a *user*, which is told when it is open, gets its messages, and hears of its end.
One that another node has opened belongs to ``Exchanges`` until its first message says more.

Opening and handshake take ``stream_timeout_s`` at most. How many streams there may be is bounded,
links (``Purpose.DATA``) aside: those have a bound of their own. The one that was used least
recently gives way.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lanecache.cluster.actions import Action, CloseStream, OpenStream, SendStream
from lanecache.cluster.wire.refusal import Refusal, Refused
from lanecache.cluster.wire.stream_codec import StreamCodec

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.counters import Counters
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers
    from lanecache.cluster.wire.keyring import Keyring

Done = Callable[[str | None, Refusal | None], None]
"""Called once with why an exchange failed (None: it did not), and the kind if it was refused."""


class Purpose(enum.Enum):
    """What a stream was opened for."""

    EXCHANGE = "exchange"
    PING = "ping"
    PACKETS = "packets"
    DATA = "data"
    ACCEPTED = "accepted"  # by this node: the other side says what for


class User(Protocol):
    """Who uses a stream."""

    def established(self, stream: Stream, now: float) -> None:
        """Hear that the other side has proved that it is one of the cluster."""

    def take(self, stream: Stream, message: bytes, now: float) -> None:
        """Take a message.

        Raises:
            Refused: it cannot be used; the stream is closed.
        """

    def run_out(self, stream: Stream, now: float) -> None:
        """Hear that the time limit of an established stream has come."""

    def backlog(self, stream: Stream) -> None:
        """Hear that ``backlog_bytes`` has changed."""

    def closed(self, stream: Stream, reason: str, refusal: Refusal | None) -> None:
        """Hear that the stream is over."""


class Host(Protocol):
    """What the streams need of the node."""

    def refused(self, where: str, source: Address, refusal: Refused) -> None:
        """Count and report something that is not to be used."""

    def replaced(self, expected: int, found: int, now: float) -> None:
        """Hear that another process is where one was expected."""


class Stream:
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
        "user",
    )

    def __init__(
        self,
        number: int,
        purpose: Purpose,
        address: Address,
        codec: StreamCodec,
        user: User,
        now: float,
    ) -> None:
        self.number = number
        self.purpose = purpose
        self.address = address
        self.codec = codec
        self.user = user
        self.expected = 0  # the process that should be there; 0: whoever is
        self.opened = purpose is Purpose.ACCEPTED
        self.ending = False  # this side has sent all that it will
        self.joining = False
        self.queued = 0
        self.backlog_bytes = 0
        self.used_at = now
        self.timer: Timer | None = None
        self.done: Done | None = None

    @property
    def is_mine(self) -> bool:
        """Whether this node has opened it."""
        return self.number > 0


class Streams:
    """All streams of one node."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        *,
        process: int,
        entropy: Callable[[int], bytes],
        timers: Timers,
        counters: Counters,
        act: Callable[[Action], None],
        host: Host,
    ) -> None:
        """Begin without a stream; ``accepting`` has to be set."""
        self._settings = settings
        self._keyring = keyring
        self._process = process
        self._entropy = entropy
        self._timers = timers
        self._counters = counters
        self._act = act
        self._host = host
        self.accepting: User
        """Gets what other nodes open."""
        self.table: dict[int, Stream] = {}
        self._last = 0

    def set_keyring(self, keyring: Keyring) -> None:
        """Change the keys; streams whose key is not accepted any more end."""
        self._keyring = keyring
        for stream in list(self.table.values()):
            if stream.codec.key_tag not in keyring.tags:
                self.close(stream, "its key is not accepted any more", abort=True)

    # What the users ask.

    def open(
        self,
        purpose: Purpose,
        address: Address,
        expected: int,
        user: User,
        now: float,
        *,
        limit_s: float | None = None,
    ) -> Stream:
        """Open a stream to whoever is at that address (``expected`` if not 0)."""
        if purpose is not Purpose.DATA:
            self._make_room(accepted=False)
        self._last += 1
        codec = StreamCodec.client(self._keyring, self._process, self._entropy, self._settings)
        stream = self.table[self._last] = Stream(self._last, purpose, address, codec, user, now)
        stream.expected = expected
        self.limit(stream, limit_s or self._settings.stream_timeout_s, now)
        self._counters.streams_opened += 1
        self._act(OpenStream(stream.number, address))
        return stream

    def send(self, stream: Stream, message: bytes) -> None:
        """Say something; it goes out with the next ``flush``."""
        if not stream.ending:
            stream.codec.send(message)

    def end(self, stream: Stream) -> None:
        """Say that this side is done; the stream is closed when the other one is."""
        if not stream.ending:
            stream.ending = True
            stream.codec.end()

    def flush(self, stream: Stream) -> int:
        """Hand to the host what is to be written; give how many bytes that is."""
        if not stream.opened:
            return 0
        data = stream.codec.to_send()
        if data:
            self._counters.streams_sent_bytes += len(data)
            self._act(SendStream(stream.number, data))
        return len(data)

    def close(self, stream: Stream, reason: str, *, abort: bool = False) -> None:
        """Close a stream: after what is still to be written, or at once."""
        self._act(CloseStream(stream.number, abort))
        self._forget(stream, reason)

    def finish(self, stream: Stream, reason: str) -> None:
        """Say that this side is done, and close without waiting for the other one."""
        self.end(stream)
        self.flush(stream)
        self.close(stream, reason)

    def refuse(self, stream: Stream, refused: Refused) -> None:
        """Count what came as not to be used, and close."""
        self._host.refused("stream", stream.address, refused)
        self.flush(stream)  # the hello, in which the other side finds out why
        self._act(CloseStream(stream.number, abort=False))
        self._forget(stream, refused.detail, refused.reason)

    def limit(self, stream: Stream, limit_s: float, now: float) -> None:
        """Give it so long from now."""
        self._timers.cancel(stream.timer)
        stream.timer = self._timers.set(now + limit_s, partial(self._run_out, stream))

    def unlimit(self, stream: Stream) -> None:
        """Let it last."""
        self._timers.cancel(stream.timer)
        stream.timer = None

    # What the host says.

    def accepted(self, number: int, source: Address, now: float) -> None:
        """Hear of a stream that another node has opened."""
        self._make_room(accepted=True)
        codec = StreamCodec.server(self._keyring, self._process, self._entropy, self._settings)
        user = self.accepting
        stream = self.table[number] = Stream(number, Purpose.ACCEPTED, source, codec, user, now)
        self._counters.streams_accepted += 1
        self.limit(stream, self._settings.stream_timeout_s, now)

    def opened(self, number: int) -> None:
        """Hear that a stream is open."""
        stream = self.table.get(number)
        if stream is not None:
            stream.opened = True
            self.flush(stream)

    def received(self, number: int, data: bytes, now: float) -> None:
        """Take what came on a stream."""
        stream = self.table.get(number)
        if stream is None:
            return
        self._counters.streams_received_bytes += len(data)
        was_established = stream.codec.established
        try:
            found = stream.codec.receive(data)
            if not was_established and stream.codec.established:
                self._established(stream, now)
            for message in found:
                if number not in self.table:
                    return
                stream.user.take(stream, message, now)
        except Refused as refused:
            if number in self.table:
                self.refuse(stream, refused)
            return
        if number not in self.table:
            return
        if stream.codec.ended:
            self.end(stream)
            self.flush(stream)
            self.close(stream, "the other side ended it")
        else:
            self.flush(stream)

    def closed(self, number: int, reason: str) -> None:
        """Hear that a stream is over: it failed to open, was reset, or the peer closed it."""
        stream = self.table.get(number)
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
        stream = self.table.get(number)
        if stream is not None:
            stream.backlog_bytes = backlog_bytes
            stream.user.backlog(stream)

    def stop(self) -> None:
        """Close all streams."""
        for stream in list(self.table.values()):
            if stream.codec.established and not stream.ending:
                self.finish(stream, "this node has left")
            else:
                self.close(stream, "this node has left")

    # Bounds, and the end.

    def _established(self, stream: Stream, now: float) -> None:
        """See who is there."""
        peer = stream.codec.peer or 0
        stream.queued = 0
        if stream.expected and peer and peer != stream.expected:
            self._counters.wrong_recipient += 1
            self._host.replaced(stream.expected, peer, now)
        stream.user.established(stream, now)

    def _run_out(self, stream: Stream, now: float) -> None:
        if stream.codec.established and stream.purpose is not Purpose.ACCEPTED:
            stream.user.run_out(stream, now)
            return
        if stream.purpose is Purpose.ACCEPTED and not stream.codec.established:
            detail = "a stream that was not opened in time"
            self._host.refused("stream", stream.address, Refused(Refusal.TRUNCATED, detail))
        self.close(stream, "no answer in time", abort=True)

    def _make_room(self, *, accepted: bool) -> None:
        """Close what was used least recently where one more would be too many.

        Accepted streams that have proved nothing are bounded by themselves, so that strangers
        push out each other only.
        """
        mine = [
            stream
            for stream in self.table.values()
            if (stream.number < 0) is accepted and stream.purpose is not Purpose.DATA
        ]
        if accepted:
            pending = [s for s in mine if not s.codec.established]
            if len(pending) >= self._settings.streams_pending_max:
                self._counters.refuse("stream_pending")
                self.close(pending[0], "too many are not open yet", abort=True)
                return
        if len(mine) >= self._settings.streams_max:
            oldest = min(mine, key=lambda stream: stream.used_at)
            self._counters.refuse("stream_too_many")
            self.close(oldest, "too many streams", abort=True)

    def _forget(self, stream: Stream, reason: str, refusal: Refusal | None = None) -> None:
        self._timers.cancel(stream.timer)
        del self.table[stream.number]
        stream.user.closed(stream, reason, refusal)
