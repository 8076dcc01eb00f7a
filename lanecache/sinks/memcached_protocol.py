"""The wire to one memcached: pipelined commands out, and their replies by the barrier behind them.

Every exchange ends with ``mn``, whose answer ``MN`` comes when everything before it is done
(doc/protocol.txt, "Meta No-Op"). What comes before that are the replies that quiet commands do
not suppress.
"""

from __future__ import annotations

import asyncio
from collections import deque

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.memcached_commands import BARRIER

# More than any answer that is asked for (`stats conns` of 100,000 connections): it is no memcached.
_ANSWER_BYTES_MAX = 64 * 1024 * 1024


class Exchange:
    """Commands under way, and the lines that were answered to them."""

    __slots__ = ("lines", "reply", "size_bytes")

    def __init__(self, reply: asyncio.Future[list[bytes]]) -> None:
        self.reply = reply
        self.lines: list[bytes] = []
        self.size_bytes = 0


class MemcachedProtocol(asyncio.Protocol):
    """Own one open connection: sends, matches replies, and knows when it failed.

    ``error`` is set once; every waiting call then raises it, and so does every later one.
    """

    def __init__(
        self, transport: asyncio.Transport, *, where: str, sink: str, reply_timeout_s: float
    ) -> None:
        self.error: SinkError | None = None
        self._transport = transport
        self._where = where
        self._sink = sink
        self._reply_timeout_s = reply_timeout_s
        self._encrypted = transport.get_extra_info("sslcontext") is not None
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Exchange] = deque()
        self._unread = b""
        self._value_bytes = -1  # of the value that follows a VA line
        self._waiters: list[asyncio.Future[None]] = []
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)
        transport.resume_reading()

    def call(self, commands: bytes) -> asyncio.Future[list[bytes]]:
        """Send commands and a barrier; the future gives the lines answered before the barrier's.

        A value (``VA``) is a line of its own, behind its header.
        """
        reply: asyncio.Future[list[bytes]] = self._loop.create_future()
        if self.error is not None:
            reply.set_exception(self.error)
            reply.exception()
            return reply
        if not self._pending:
            self._heard_at = self._loop.time()
        self._pending.append(Exchange(reply))
        if self._timer is None:
            self._timer = self._loop.call_later(self._reply_timeout_s, self._check_time)
        if self._encrypted and commands:
            # memcached 1.6.18 stops reading with a rest of a TLS record in hand, and goes on when
            # more comes: the barrier in a record of its own is what makes it go on.
            self._transport.write(commands)
            self._transport.write(BARRIER)
        else:
            self._transport.write(commands + BARRIER)
        return reply

    async def failed(self) -> SinkError:
        """Wait until the connection has failed, and give the reason."""
        while self.error is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        return self.error

    def close(self) -> None:
        """Let go of the connection; what waits raises. Idempotent."""
        self.fail(self._unavailable("'s connection was closed"))

    def fail(self, error: SinkError) -> None:
        """Give the connection up for ``error``, unless it has failed already."""
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending or self._encrypted:
            # What is still buffered here must not arrive any more; and where nothing is, there is
            # no reason to wait for the other side's farewell of TLS.
            self._transport.abort()
        else:
            self._transport.close()
        for exchange in self._pending:
            if not exchange.reply.done():
                exchange.reply.set_exception(error)
                # A caller that was cancelled leaves the future alone; the error is kept above.
                exchange.reply.exception()
        self._pending.clear()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        data = self._unread + data if self._unread else data
        if not self._pending:
            self.fail(self._garbage(data))
            return
        exchange = self._pending[0]
        exchange.size_bytes += len(data) - len(self._unread)
        start = 0
        while True:
            if self._value_bytes >= 0:
                end = start + self._value_bytes
                if len(data) < end + 2:
                    break
                exchange.lines.append(data[start:end])
                self._value_bytes, start = -1, end + 2
                continue
            end = data.find(b"\r\n", start)
            if end < 0:
                break
            line = data[start:end]
            start = end + 2
            if line == b"MN":
                self._pending.popleft()
                if not exchange.reply.done():
                    exchange.reply.set_result(exchange.lines)
                if not self._pending:
                    break
                exchange = self._pending[0]
                exchange.size_bytes = len(data) - start
            elif not self._take(exchange, line):
                return
        self._unread = data[start:]
        if not self._pending and self._unread:
            self.fail(self._garbage(self._unread))
        elif self._pending and exchange.size_bytes > _ANSWER_BYTES_MAX:
            self.fail(self._garbage(data[:80]))

    def _take(self, exchange: Exchange, line: bytes) -> bool:
        """Take one line of an answer; false where the connection is of no more use."""
        if line.startswith(b"VA "):
            size = line.split(b" ", 2)[1]
            if not size.isdigit():
                self.fail(self._garbage(line))
                return False
            self._value_bytes = int(size)
        elif line == b"CLIENT_ERROR unauthenticated":
            self.fail(
                SinkError(
                    f"memcached at {self._where} wants a login (-Y), which lanecache does not"
                    " support: run it without, and use TLS or a closed network",
                    sink=self._sink,
                )
            )
            return False
        elif line.startswith(b"SERVER_ERROR out of memory writing"):
            self.fail(self._unavailable(f" is out of memory ({line.decode('latin-1')})"))
            return False
        exchange.lines.append(line)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None and str(exc) else ""
        self.fail(self._unavailable(f" dropped the connection{reason}"))

    def eof_received(self) -> None:
        return None

    # Time and trouble.

    def _check_time(self) -> None:
        self._timer = None
        if not self._pending or self.error is not None:
            return
        due_at = self._heard_at + self._reply_timeout_s
        if self._loop.time() >= due_at:
            self.fail(self._unavailable(f" has not answered for {self._reply_timeout_s:g} s"))
        else:
            self._timer = self._loop.call_at(due_at, self._check_time)

    def _garbage(self, data: bytes) -> SinkUnavailable:
        return self._unavailable(
            f" does not answer as memcached does ({data!r:.80}): check that the URL leads to a"
            " memcached 1.6.18 or newer, and that no proxy changes the stream"
        )

    def _unavailable(self, what: str) -> SinkUnavailable:
        return SinkUnavailable(f"memcached at {self._where}{what}", sink=self._sink)
