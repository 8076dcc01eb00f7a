"""TCP as the hosts' kernels do it: reliable ordered pipes that stall, break, and are reset.

What is kept of the real thing, because the cluster's code can be wrong about it: bytes arrive in
other pieces than they were sent in; a partition is silence, and only a sender notices it, after
`USER_TIMEOUT_S`; a reader that does not read fills its buffer, then the sender's; a process that
dies resets its streams, a machine that loses its power says nothing; and what is sent to the end of
a stream that is gone is answered by a reset.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING

from lanecache.address import Address

if TYPE_CHECKING:
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.network import Network
    from lanecache.testing.simulation.world import World

SEGMENT_BYTES = 16 * 1024
WINDOW_BYTES = 256 * 1024  # sent and not yet read: the reader's buffer
SEND_BUFFER_BYTES = 256 * 1024  # of the kernel; what is beyond stands in the process's memory
BANDWIDTH_BYTES_S = 100e6
RETRY_S = 0.4  # after a segment was not acknowledged; it doubles
RETRY_S_MAX = 15.0
USER_TIMEOUT_S = 30.0  # not acknowledged for so long, a stream breaks (as with TCP_USER_TIMEOUT)
CONNECT_RETRY_S = 1.0  # Linux: TCP_TIMEOUT_INIT; it doubles
CONNECT_TIMEOUT_S = 60.0
NO_ROUTE_S = 3.0  # until ARP gives up
EPHEMERAL_PORT = 32_768


class EndState(enum.Enum):
    """Where one end of a stream is."""

    CONNECTING = "connecting"
    OPEN = "open"
    ENDING = "ending"  # its process has closed it; what was sent before is still carried
    CLOSED = "closed"


class End:
    """One end of a stream, as its host's kernel holds it."""

    __slots__ = (
        "ended_by", "fin_sent", "flight_bytes", "host", "last_arrival_at", "lost", "out",
        "out_bytes", "peer", "reading", "retry_s", "stalled_at", "state", "stream", "taken",
        "unread",
    )  # fmt: skip

    def __init__(self, host: Host, stream: int, state: EndState) -> None:
        self.host = host
        self.stream = stream
        self.state = state
        self.peer: End | None = None
        self.out: deque[bytes] = deque()  # not sent yet
        self.out_bytes = 0
        self.flight_bytes = 0  # sent, and not read by the peer's process
        self.lost: deque[bytes | None] = deque()  # to be sent again, in order; None is the end
        self.stalled_at: float | None = None
        self.retry_s = RETRY_S
        self.last_arrival_at = 0.0
        self.fin_sent = False
        self.taken = False  # accepted, and its process knows of it
        self.unread: deque[bytes] = deque()
        self.reading = False  # a slow reader's next read is on its way
        self.ended_by: str | None = None  # the peer's end, or an error; after what is unread

    @property
    def backlog_bytes(self) -> int:
        """How much the process holds that the kernel would not take yet."""
        return max(0, self.out_bytes - SEND_BUFFER_BYTES)


class Streams:
    """Opens, carries and breaks the streams of all hosts."""

    def __init__(self, world: World, network: Network) -> None:
        self.world = world
        self.network = network
        self.random = world.random("streams")
        self.fragments = 0.0  # the share of reads that give a part only
        self.refusals = 0.0  # the share of connections that are refused
        self.tampered = 0.0  # the share of reads in which a bit is not what it was
        self._port = EPHEMERAL_PORT

    # Opening

    def open(self, host: Host, stream: int, address: Address) -> End:
        """Begin to connect; the host hears of it by `Host.stream_opened` or `stream_closed`."""
        end = End(host, stream, EndState.CONNECTING)
        self._connect(end, address, self.world.now, CONNECT_RETRY_S)
        return end

    def _connect(self, end: End, address: Address, begun_at: float, retry_s: float) -> None:
        if end.state is not EndState.CONNECTING:
            return
        world, host = self.world, end.host
        target = self.network.at_address.get(address)
        if target is None:
            world.after(NO_ROUTE_S, self._failed, end, "no route to host")
        elif self.network.reaches(host, target) and self.network.reaches(target, host):
            took_s = self.network.stream_latency_s(host, target)
            world.after(took_s, self._connect_arrived, end, target, took_s)
        elif world.now - begun_at > CONNECT_TIMEOUT_S:
            self._failed(end, "connection timed out")
        else:
            world.after(retry_s, self._connect, end, address, begun_at, retry_s * 2)

    def _connect_arrived(self, end: End, target: Host, took_s: float) -> None:
        if not target.listening or (self.refusals and self.random.random() < self.refusals):
            self.world.after(took_s, self._failed, end, "connection refused")
            return
        peer = End(target, target.next_accepted(), EndState.OPEN)
        peer.peer, end.peer = end, peer
        self._port = EPHEMERAL_PORT + (self._port + 1) % EPHEMERAL_PORT
        target.stream_accepted(peer, Address(end.host.address.host, self._port))
        self.world.after(took_s, self._connected, end)

    def _connected(self, end: End) -> None:
        if end.state is EndState.CONNECTING:
            end.state = EndState.OPEN
            end.host.stream_opened(end)
        elif end.peer is not None:
            self._reset(end.peer)

    def _failed(self, end: End, reason: str) -> None:
        if end.state in (EndState.CONNECTING, EndState.OPEN):
            end.ended_by = reason
            end.host.stream_readable(end)
        else:
            end.state = EndState.CLOSED

    # Sending

    def send(self, end: End, data: bytes) -> None:
        """Carry ``data`` after what was sent before."""
        end.out.append(data)
        end.out_bytes += len(data)
        self.pump(end)

    def close(self, end: End, abort: bool) -> None:
        """End the stream after what was sent, or drop that and reset it."""
        if end.state is EndState.CLOSED:
            return
        peer = end.peer
        if end.state is EndState.CONNECTING:
            end.state = EndState.CLOSED
        elif abort:
            self._abandon(end)
            if peer is not None and self.network.reaches(end.host, peer.host):
                self.world.after(
                    self.network.stream_latency_s(end.host, peer.host), self._reset, peer
                )
        else:
            end.state = EndState.ENDING
            end.unread.clear()
            self.pump(end)

    def interrupt(self, end: End) -> None:
        """Reset a stream for both its processes, as something between them may."""
        self.world.record(end.host.name, "has a stream reset", end.stream)
        for each in (end, end.peer):
            if each is not None:
                self._reset(each)

    def lose(self, end: End) -> None:
        """Forget an end without a word: its machine has lost its power."""
        self._abandon(end)

    def _abandon(self, end: End) -> None:
        end.state = EndState.CLOSED
        end.out.clear()
        end.out_bytes = 0
        end.lost.clear()
        end.unread.clear()

    def pump(self, end: End) -> None:
        """Send what the reader's window has room for."""
        if end.state not in (EndState.OPEN, EndState.ENDING) or end.host.muted:
            return
        out = end.out
        before_bytes = end.backlog_bytes
        while out and end.stalled_at is None and end.flight_bytes < WINDOW_BYTES:
            chunk = out.popleft()
            if len(chunk) > SEGMENT_BYTES:
                out.appendleft(chunk[SEGMENT_BYTES:])
                chunk = chunk[:SEGMENT_BYTES]
            end.out_bytes -= len(chunk)
            end.flight_bytes += len(chunk)
            end.host.sent_stream_bytes += len(chunk)
            self._transmit(end, chunk)
        if (before_bytes or end.backlog_bytes) and end.state is EndState.OPEN:
            self.world.after(0.0, end.host.stream_backlog, end)
        if end.state is EndState.ENDING and not (out or end.fin_sent or end.stalled_at is not None):
            end.fin_sent = True
            self._transmit(end, None)

    def _transmit(self, end: End, chunk: bytes | None) -> None:
        peer = end.peer
        assert peer is not None
        if end.stalled_at is not None or not self.network.reaches(end.host, peer.host):
            self._stall(end, chunk)
            return
        took_s = self.network.stream_latency_s(end.host, peer.host)
        if chunk is not None:
            took_s += len(chunk) / BANDWIDTH_BYTES_S
        end.last_arrival_at = max(end.last_arrival_at, self.world.now + took_s)
        self.world.at(end.last_arrival_at, self._arrive, end, chunk)

    def _arrive(self, end: End, chunk: bytes | None) -> None:
        peer = end.peer
        assert peer is not None
        if end.lost or not self.network.reaches(end.host, peer.host):
            if end.state is not EndState.CLOSED:
                self._stall(end, chunk)
            return
        acknowledged = self.network.reaches(peer.host, end.host)
        if peer.state in (EndState.CLOSED, EndState.ENDING) or peer.ended_by is not None:
            if chunk is None:
                end.state = EndState.CLOSED
            elif acknowledged:
                took_s = self.network.stream_latency_s(peer.host, end.host)
                self.world.after(took_s, self._reset, end)
            return
        if chunk is None:
            peer.ended_by = "end of file"
            end.state = EndState.CLOSED
        else:
            peer.unread.append(chunk)
            if not acknowledged:
                self._stall(end)
        peer.host.stream_readable(peer)

    def _stall(self, end: End, *chunks: bytes | None) -> None:
        end.lost.extend(chunks)
        if end.stalled_at is None:
            end.stalled_at = self.world.now
            end.retry_s = RETRY_S
            self.world.after(end.retry_s, self._retry, end)

    def _retry(self, end: End) -> None:
        peer = end.peer
        if end.state not in (EndState.OPEN, EndState.ENDING) or end.stalled_at is None:
            return
        assert peer is not None
        if self.network.reaches(end.host, peer.host) and self.network.reaches(peer.host, end.host):
            end.stalled_at = None
            lost, end.lost = end.lost, deque()
            for chunk in lost:
                self._transmit(end, chunk)
            self.pump(end)
        elif self.world.now - end.stalled_at > USER_TIMEOUT_S:
            self._failed(end, "timed out")
        else:
            end.retry_s = min(end.retry_s * 2, RETRY_S_MAX)
            self.world.after(end.retry_s, self._retry, end)

    # Reading

    def read(self, end: End, bytes_max: int | None = None) -> bytes:
        """Take what has come for the process: all of it, or a part as a kernel may give."""
        whole = b"".join(end.unread)
        end.unread.clear()
        data = whole if bytes_max is None else whole[:bytes_max]
        if len(data) > 1 and self.fragments and self.random.random() < self.fragments:
            data = data[: self.random.randrange(1, len(data))]
        if len(data) < len(whole):
            end.unread.append(whole[len(data) :])
        if data and self.tampered and self.random.random() < self.tampered:
            at = self.random.randrange(len(data))
            flipped = data[at] ^ (1 << self.random.randrange(8))
            data = data[:at] + bytes((flipped,)) + data[at + 1 :]
        sender = end.peer
        if data and sender is not None:
            sender.flight_bytes -= len(data)
            if sender.out:
                took_s = self.network.latency_s(end.host, sender.host)
                self.world.after(took_s, self.pump, sender)
        return data

    def _reset(self, end: End) -> None:
        if end.state is EndState.OPEN:
            self._failed(end, "connection reset by peer")
        else:
            end.state = EndState.CLOSED
