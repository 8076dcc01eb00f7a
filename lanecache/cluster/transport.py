"""UDP packets and TCP streams on one port: bytes in, bytes out, and what could not be sent.

It decides nothing: whom to talk to, what to say and when to close is told to it, and what happens
is told to its receiver, in order. Everything it holds is bounded: a packet that cannot be sent at
once is dropped, as UDP may drop it anywhere, and a stream whose other side does not read is cut
when too much waits for it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, cast

import anyio

from lanecache.address import Address, plain_host
from lanecache.cluster.listening import BACKLOG, reason_of
from lanecache.cluster.resolving import is_ip_address

if TYPE_CHECKING:
    import socket

    from anyio.abc import TaskGroup

    from lanecache.cluster.listening import Listening

# Packets taken in one go, so that a flood of them does not hold up the timer and the streams.
PACKETS_AT_ONCE = 64
# What waits to be written to a stream is told to the receiver from here on, and until it is less.
BACKLOG_TOLD_BYTES = 64 * 1024
BACKLOG_BYTES_MAX = 32 * 1024 * 1024
# What the other side may still send on a stream that this side has ended.
_UNREAD_BYTES_MAX = 1024 * 1024

logger = logging.getLogger("lanecache")


class Receiver(Protocol):
    """What is told of all that happens."""

    def packet_received(self, data: bytes, source: Address) -> None:
        """Take a packet; one that is longer than the limit comes cut, one byte above it."""

    def stream_accepted(self, stream: int, source: Address) -> None:
        """Take a stream that somebody else opened; its number is negative."""

    def stream_opened(self, stream: int) -> None:
        """Learn that a stream, which ``open_stream`` began, is there."""

    def stream_received(self, stream: int, data: bytes) -> None:
        """Take what came on a stream."""

    def stream_closed(self, stream: int, reason: str) -> None:
        """Learn that a stream has ended, or could not be opened; not told of one closed here."""

    def stream_backlog(self, stream: int, backlog_bytes: int) -> None:
        """Learn how much waits to be written."""


class Transport:
    """The sockets of one node.

    Args:
        listening: the bound sockets; ``running`` closes them.
        receiver: is told of everything, on the event loop, one call at a time.
        packet_bytes_max: of a longer packet only so much and one byte are read.
        open_timeout_s: for opening a stream.
        linger_s: how long a stream that was closed here may take to send what waits.
        backlog_bytes_max: from where on a stream is cut.
    """

    def __init__(
        self,
        listening: Listening,
        receiver: Receiver,
        *,
        packet_bytes_max: int,
        open_timeout_s: float,
        linger_s: float,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self.receiver = receiver
        self.counters: Counter[str] = Counter()
        """What could not be sent, received, opened or kept; the node counts what could."""
        self.linger_s = linger_s
        self._listening = listening
        self._packet_bytes_max = packet_bytes_max
        self._open_timeout_s = open_timeout_s
        self._backlog_bytes_max = backlog_bytes_max
        self._streams: dict[int, _Stream] = {}
        self._opening: dict[int, anyio.CancelScope] = {}
        self._leaving: set[_Stream] = set()  # closed here, and not yet gone
        self._accepted = itertools.count(-1, -1)
        self._connects: TaskGroup | None = None
        self._all_gone: asyncio.Future[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take packets and streams for the time of the block; let go of everything after it."""
        loop = asyncio.get_running_loop()
        tcp, udp = self._listening.tcp, self._listening.udp
        try:
            server = await loop.create_server(self._accept, sock=tcp, backlog=BACKLOG)
            try:
                async with anyio.create_task_group() as self._connects:
                    if udp is not None:
                        loop.add_reader(udp, self._read_packets, udp)
                    yield
                    self._connects.cancel_scope.cancel()
            finally:
                if udp is not None:
                    loop.remove_reader(udp)
                server.close()
                with anyio.CancelScope(shield=True):
                    await self._close_all()
                    await server.wait_closed()
        finally:
            self._listening.close()

    # Packets.

    def send_packet(self, data: bytes, address: Address) -> None:
        """Send a packet, or drop and count it."""
        udp = self._listening.udp
        target = _socket_address(address, ":" in self._listening.address.host)
        if udp is None or target is None:
            self.counters["packets_unsendable"] += 1
            return
        try:
            udp.sendto(data, target)
        except OSError as error:
            # Full buffers and networks that are gone included: the node sends again what matters.
            self.counters["packets_unsent"] += 1
            self.counters[f"packets_unsent_{errno.errorcode.get(error.errno or 0, 'other')}"] += 1

    def _read_packets(self, udp: socket.socket) -> None:
        for _ in range(PACKETS_AT_ONCE):
            try:
                data, source = udp.recvfrom(self._packet_bytes_max + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                # Told of an earlier packet that was sent, where the system does so.
                self.counters["packets_receive_errors"] += 1
                continue
            self.receiver.packet_received(data, _address(source[0], source[1]))

    # Streams.

    def open_stream(self, stream: int, address: Address) -> None:
        """Begin to open a stream; what becomes of it is told to the receiver."""
        if self._connects is not None:
            self._opening[stream] = anyio.CancelScope()
            self._connects.start_soon(self._connect, stream, address, name=f"connect {address}")

    def send_stream(self, stream: int, data: bytes) -> None:
        """Write to a stream; nothing happens when it is gone already."""
        if data and (found := self._streams.get(stream)) is not None:
            found.write(data)

    def close_stream(self, stream: int, *, abort: bool) -> None:
        """Close a stream: with what waits to be sent, or at once; it is not told of any more."""
        opening = self._opening.pop(stream, None)
        found = self._streams.pop(stream, None)
        if found is not None:
            self._leaving.add(found)
            found.leave(abort=abort)
        elif opening is not None:
            opening.cancel()

    def _accept(self) -> _Stream:
        return _Stream(self, next(self._accepted))

    async def _connect(self, stream: int, address: Address) -> None:
        scope = self._opening.get(stream)
        if scope is None:
            return  # closed before it began
        reason = ""
        with scope:
            try:
                if not is_ip_address(address.host):
                    raise OSError("its address is not an IP address")
                async with asyncio.timeout(self._open_timeout_s):
                    await asyncio.get_running_loop().create_connection(
                        lambda: _Stream(self, stream),
                        address.host,
                        address.port,
                        local_addr=self._local_address(address),
                    )
            except TimeoutError:
                reason = f"it does not answer within {self._open_timeout_s:g} s"
            except OSError as error:
                reason = reason_of(error)
        if self._opening.pop(stream, None) is not None:
            self.counters["streams_unopened"] += 1
            self.receiver.stream_closed(stream, f"cannot connect to {address}: {reason}")

    def _local_address(self, target: Address) -> tuple[str, int] | None:
        """Let streams come from where the packets come from, where the node is bound to that."""
        own = self._listening.address
        same_kind = (":" in own.host) == (":" in target.host)
        if own.is_wildcard or not same_kind or own.is_loopback != target.is_loopback:
            return None
        return own.host, 0

    def made(self, stream: _Stream) -> bool:
        """Enter a stream that has just come to be; false when nobody wants it any more."""
        if stream.number > 0 and self._opening.pop(stream.number, None) is None:
            self._leaving.add(stream)
            return False
        self._streams[stream.number] = stream
        if stream.number > 0:
            self.receiver.stream_opened(stream.number)
        else:
            self.receiver.stream_accepted(stream.number, stream.peer)
        return True

    def received(self, stream: _Stream, data: bytes) -> None:
        """Hand on what came."""
        self.receiver.stream_received(stream.number, data)

    def backlog(self, stream: _Stream, backlog_bytes: int) -> None:
        """Tell of what waits to be written, and cut a stream where that is too much."""
        if self._streams.get(stream.number) is not stream:
            return
        if backlog_bytes > self._backlog_bytes_max:
            self.counters["streams_cut"] += 1
            self.close_stream(stream.number, abort=True)
            self.receiver.stream_closed(
                stream.number, f"it does not read: {backlog_bytes} bytes waited for it"
            )
        else:
            self.receiver.stream_backlog(stream.number, backlog_bytes)

    def lost(self, stream: _Stream, error: Exception | None) -> None:
        """Tell of the end of a stream, unless it was closed here."""
        self._leaving.discard(stream)
        if self._streams.get(stream.number) is stream:
            del self._streams[stream.number]
            self.receiver.stream_closed(stream.number, _reason(error))
        if self._all_gone is not None and not self._leaving and not self._all_gone.done():
            self._all_gone.set_result(None)

    async def _close_all(self) -> None:
        for number in list(self._streams):
            self.close_stream(number, abort=False)
        for abort in (False, True):
            if abort:
                for stream in list(self._leaving):
                    stream.leave(abort=True)
            if self._leaving:
                self._all_gone = asyncio.get_running_loop().create_future()
                # An aborted one is gone with the next turn of the loop.
                await asyncio.wait([self._all_gone], timeout=self.linger_s)


class _Stream(asyncio.Protocol):
    """One TCP stream."""

    def __init__(self, owner: Transport, number: int) -> None:
        self.number = number
        self.peer = Address("0.0.0.0", 0)
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._told = False  # that the backlog was long
        self._telling = False
        self._left = False
        self._unread_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one without saying so.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=BACKLOG_TOLD_BYTES)
        peer = transport.get_extra_info("peername")
        if peer:
            self.peer = _address(peer[0], peer[1])
        if not self._owner.made(self):
            self.leave(abort=True)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._owner.received(self, data)
            return
        self._unread_bytes += len(data)
        if self._unread_bytes > _UNREAD_BYTES_MAX:
            self.leave(abort=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._owner.lost(self, exc)

    def pause_writing(self) -> None:
        self._told = True
        self._tell_soon()

    def resume_writing(self) -> None:
        self._told = False
        self._tell_soon()

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
        if self._told:
            self._tell_soon()

    def leave(self, *, abort: bool) -> None:
        """End it: orderly, with the other side's end waited for a while, or at once.

        A socket that is closed while something unread lies in it sends a reset, which takes from
        the other side what it had not read yet. So the own side is ended first.
        """
        assert self._transport is not None
        if abort:
            self._left = True
            self._transport.abort()
        elif not self._left:
            self._left = True
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(self._owner.linger_s, self._transport.abort)
            if self._transport.can_write_eof() and not self._transport.is_closing():
                self._transport.write_eof()
            else:
                self._transport.close()

    def _tell_soon(self) -> None:
        # Not now: it may be called from a write that the receiver is in the middle of.
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        if self._transport is not None and not self._left:
            self._owner.backlog(self, self._transport.get_write_buffer_size())


def _reason(error: Exception | None) -> str:
    if error is None:
        return "the other side closed it"
    return reason_of(error) if isinstance(error, OSError) else str(error)


@functools.lru_cache(maxsize=4096)
def _address(host: str, port: int) -> Address:
    return Address(plain_host(host), port)


@functools.lru_cache(maxsize=4096)
def _socket_address(address: Address, v6: bool) -> tuple[str, int] | None:
    """Spell an address for ``sendto``; ``None`` when this socket cannot send there.

    A name is never looked up: that would block the loop.
    """
    if not is_ip_address(address.host):
        return None
    if v6 and ":" not in address.host:
        return f"::ffff:{address.host}", address.port
    if not v6 and ":" in address.host:
        return None
    return address.host, address.port
