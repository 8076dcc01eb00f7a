"""The asyncio protocol of a dump: takes over the transport of a logged-in connection.

One ``await`` a read of the socket, none a packet; the packets are framed in ``framing``.
"""

from __future__ import annotations

import asyncio

from lanecache.errors import SourceError, SourceUnavailable
from lanecache.ingest.framing import BUFFER_BYTES, EVENT_BYTES_MAX, Block, EventFramer

__all__ = ["BinlogProtocol", "Block", "EventFramer"]


class BinlogProtocol(asyncio.BufferedProtocol):
    """Receive a dump on a transport that another protocol logged in with.

    Use: write the dump command, then ``transport.set_protocol(protocol)`` without an ``await``
    between. While nobody reads, the buffer fills up and the socket is no longer read: a slow
    consumer slows the server down.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        where: str = "the source",
        event_bytes_max: int = EVENT_BYTES_MAX,
        deadline_s: float | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        """Make a protocol for ``transport``.

        Args:
            transport: the logged-in connection's; closing it is the caller's.
            where: names the server in errors.
            event_bytes_max: larger events are cut, see ``Block``.
            deadline_s: how long ``read`` waits without a single byte arriving.
            buffer_bytes: how much is received ahead of the reader.
        """
        self._transport = transport
        self._where = where
        self._deadline_s = deadline_s
        self._framer = EventFramer(
            where=where, event_bytes_max=event_bytes_max, buffer_bytes=buffer_bytes
        )
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False
        self._lost = ""  # why the connection ended
        self._broken: SourceError | None = None  # why it must not be read any more
        self.received_at = self._loop.time()
        """When the last byte arrived, on the loop's clock."""
        self.received_bytes = 0
        """How many bytes have arrived."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._framer.free()

    def buffer_updated(self, nbytes: int) -> None:
        self.received_at = self._loop.time()
        self.received_bytes += nbytes
        framer = self._framer
        framer.received(nbytes)
        if self._waiter is not None and framer.ready:
            self._wake()
        if not framer.free() and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        self._lost = self._lost or "the server closed it"
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._lost or (str(exc) if exc is not None else "it was closed")
        self._wake()

    def break_off(self, error: SourceError) -> None:
        """Fail the reader with an error, now or when it reads next; what has arrived is dropped."""
        self._broken = error
        self._wake()

    async def read(self) -> Block | None:
        """Wait for at least one whole event, and give all that have arrived.

        Gives ``None`` when the server says that it has sent everything. One task at a time.

        Raises:
            SourceUnavailable: the connection was lost, was silent for the deadline, or brought
                something that is no dump; whatever came before has been given. Retryable.
            SourceError: the server refused to go on; see ``refusal``. Or what ``break_off`` says.
        """
        while True:
            if self._broken is not None:
                raise self._broken
            block = self._framer.take()
            if self._paused and self._framer.free():
                self._paused = False
                self._transport.resume_reading()
            if block is not None:
                return block
            if self._framer.ended:
                return None
            if self._framer.ready:
                continue
            if self._lost:
                raise SourceUnavailable(f"the connection to {self._where} was lost: {self._lost}")
            await self._wait()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _wait(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiter = waiter
        timer = None
        if self._deadline_s is not None:
            timer = self._loop.call_later(
                self._deadline_s, self._check_silence, waiter, self._loop.time(), self._deadline_s
            )
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _check_silence(
        self, waiter: asyncio.Future[None], waiting_since: float, deadline_s: float
    ) -> None:
        """Fail the reader if nothing has come since; else look again when it could be due."""
        if waiter.done():
            return
        silent_s = self._loop.time() - max(waiting_since, self.received_at)
        # Timers may fire a clock's resolution early.
        if silent_s < deadline_s - 0.001:
            self._loop.call_later(
                deadline_s - silent_s, self._check_silence, waiter, waiting_since, deadline_s
            )
            return
        waiter.set_exception(
            SourceUnavailable(
                f"the connection to {self._where} has been silent for {silent_s:.1f} s, "
                "heartbeats included: connecting again"
            )
        )
