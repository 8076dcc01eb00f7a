"""The wire to Redis: batches of ``MULTI … EXEC`` and plain commands out, replies in, in bulk.

A transaction that Redis refused for a passing reason (full, no replica) must never be followed by
a later one that it accepts: the later one's position would cover the refused one. The same holds
for one that was executed on other data than the one before. Redis offers
nothing that makes one ``EXEC`` depend on another, so the order is kept here: the commands of a
batch travel while the batch before it is still being executed, but its ``EXEC`` is held back until
the ``EXEC`` before it was answered well. At most one ``EXEC`` is under way, and Redis has the next
one's commands queued by then, so the connection idles for no longer than a round trip per batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from lanecache.errors import SinkError, SinkUnavailable
from lanecache.sinks.redis_commands import EXEC, MULTI, Piece, pack_command
from lanecache.sinks.redis_replies import error_of_reply, is_forbidden

FORBIDDEN = object()
"""In place of a reply: the command may not be used here."""

Done = Callable[[list[Any]], None]
"""Told the answers in the ``EXEC`` array when a batch has been executed."""


class Batch:
    """One ``MULTI … EXEC`` on its way."""

    __slots__ = ("answered", "complete", "done", "executing", "queued", "size_bytes")

    def __init__(self, done: Done) -> None:
        self.done = done
        self.size_bytes = 0
        self.queued = 1  # commands sent that are answered before EXEC is, MULTI too
        self.answered = 0
        self.complete = False  # every command but EXEC is sent
        self.executing = False  # EXEC is sent


class Call:
    """Plain commands outside of any transaction, and the future of their replies."""

    __slots__ = ("commands", "replies", "reply", "size_bytes", "tolerant")

    def __init__(
        self, commands: int, size_bytes: int, reply: asyncio.Future[list[Any]], tolerant: bool
    ) -> None:
        self.commands = commands
        self.tolerant = tolerant
        self.size_bytes = size_bytes
        self.reply = reply
        self.replies: list[Any] = []


class RedisProtocol(asyncio.Protocol):
    """Own one connection that is logged in: sends, matches replies, and knows when it failed.

    ``error`` is set once, when the connection is lost, refused something or made no sense; every
    waiting call then raises it, and so does every later one. Nothing is sent after that.
    """

    def __init__(
        self, transport: asyncio.Transport, *, where: str, sink: str, reply_timeout_s: float
    ) -> None:
        self.error: SinkError | None = None
        self.outstanding_bytes = 0
        self._transport = transport
        self._where = where
        self._sink = sink
        self._reply_timeout_s = reply_timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._pending: deque[Batch | Call] = deque()
        self._open: Batch | None = None  # its EXEC has not been sent
        self._writable = True
        self._waiters: list[asyncio.Future[None]] = []
        self._heard_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)
        transport.resume_reading()

    # What the sink calls.

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._pending

    async def room(self, size_bytes: int, window_bytes_max: int) -> None:
        """Wait until ``size_bytes`` more fit the window, or nothing is under way."""
        while (
            self.error is None
            and self.outstanding_bytes
            and self.outstanding_bytes + size_bytes > window_bytes_max
        ):
            await self._changed()
        self.check()

    async def turn(self) -> None:
        """Wait until the ``EXEC`` of the batch before has been sent: a new one may begin."""
        while self.error is None and self._open is not None:
            await self._changed()
        self.check()

    async def writable(self) -> None:
        """Wait until the transport's buffer has drained."""
        while self.error is None and not self._writable:
            await self._changed()
        self.check()

    async def drained(self) -> None:
        """Wait until everything that was sent has been answered."""
        while self.error is None and self._pending:
            await self._changed()
        self.check()

    async def failed(self) -> SinkError:
        """Wait until the connection has failed, and give the reason."""
        while self.error is None:
            await self._changed()
        return self.error

    def check(self) -> None:
        """Raise ``error`` when there is one."""
        if self.error is not None:
            raise self.error

    def begin(self, done: Done) -> Batch:
        """Begin a batch; ``turn`` must have come back. Nothing is sent before its first piece."""
        self.check()
        assert self._open is None, "two batches cannot be open on one connection"
        batch = self._open = Batch(done)
        self._await_reply(batch)
        return batch

    def send(self, batch: Batch, piece: Piece, *, last: bool) -> None:
        """Send a piece of the open batch; after the last one comes ``EXEC``, in its turn."""
        self.check()
        data = piece.data
        if batch.size_bytes == 0:
            data = MULTI + data
        batch.queued += piece.commands
        if last:
            batch.complete = True
            if self._pending[0] is batch:
                data += EXEC
                batch.executing = True
        batch.size_bytes += len(data)
        self.outstanding_bytes += len(data)
        self._transport.write(data)
        if batch.executing:
            self._open = None

    def call(self, piece: Piece, *, tolerant: bool = False) -> asyncio.Future[list[Any]]:
        """Send plain commands; the future gives their replies.

        It raises on an error reply, or gives a ``hiredis.ReplyError`` in its place if ``tolerant``.
        """
        assert self._open is None, "a plain command would end up inside the open transaction"
        reply: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.error is not None:
            reply.set_exception(self.error)
            return reply
        self.outstanding_bytes += len(piece.data)
        self._await_reply(Call(piece.commands, len(piece.data), reply, tolerant))
        self._transport.write(piece.data)
        return reply

    def ask(self, *arguments: str | bytes | int) -> asyncio.Future[list[Any]]:
        """Send one plain command (``call``); the future gives a list of its one reply."""
        return self.call(Piece(pack_command(arguments), 1))

    def ping(self) -> None:
        """Ask for a sign of life; that none came in time is seen by ``failed``."""
        # Retrieved, so that asyncio does not complain of an error that is kept for the next caller.
        self.ask("PING").add_done_callback(
            lambda done: None if done.cancelled() else done.exception()
        )

    async def try_ask(self, *arguments: str | bytes | int) -> Any:
        """Send one plain command whose use may be forbidden.

        Gives its reply, or ``FORBIDDEN`` where the user may not use it or the server (a proxy) does
        not have it.
        """
        reply = (await self.call(Piece(pack_command(arguments), 1), tolerant=True))[0]
        if isinstance(reply, hiredis.ReplyError):
            if is_forbidden(str(reply)):
                return FORBIDDEN
            raise self._refused(reply)
        return reply

    def close(self) -> None:
        """Let go of the connection; what waits raises. Idempotent."""
        self.fail(SinkUnavailable(f"the connection to Redis at {self._where} was closed"))

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        self._heard_at = self._loop.time()
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if not self._pending:
                    if isinstance(reply, hiredis.ReplyError):
                        self.fail(self._refused(reply))
                    else:
                        self.fail(self._garbage(f"an answer to nothing: {reply!r:.80}"))
                    return
                head = self._pending[0]
                if type(head) is Batch:
                    self._take_batch_reply(head, reply)
                else:
                    self._take_call_reply(cast("Call", head), reply)
                if self.error is not None:
                    return
        except hiredis.ProtocolError as error:
            self.fail(self._garbage(str(error)))

    def eof_received(self) -> None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None and str(exc) else ""
        self.fail(SinkUnavailable(f"Redis at {self._where} dropped the connection{reason}"))

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._wake()

    # Replies.

    def _take_batch_reply(self, batch: Batch, reply: Any) -> None:
        if batch.answered < batch.queued:
            expected = b"QUEUED" if batch.answered else b"OK"
            if reply == expected:
                batch.answered += 1
            elif isinstance(reply, hiredis.ReplyError):
                self.fail(self._refused(reply))
            else:
                self.fail(self._garbage(f"{reply!r:.80} in place of {expected.decode()}"))
            return
        if not batch.executing:
            self.fail(self._garbage("an answer to an EXEC that was not sent"))
        elif type(reply) is list and len(reply) == batch.queued - 1:
            self._pending.popleft()
            self.outstanding_bytes -= batch.size_bytes
            # It may give the connection up: then nothing is executed behind it.
            batch.done(reply)
            if self.error is None:
                self._release()
                self._wake()
        elif isinstance(reply, hiredis.ReplyError):
            self.fail(self._refused(reply))
        else:
            self.fail(self._garbage(f"{reply!r:.80} in answer to EXEC"))

    def _take_call_reply(self, call: Call, reply: Any) -> None:
        call.replies.append(reply)
        if len(call.replies) < call.commands:
            return
        self._pending.popleft()
        self.outstanding_bytes -= call.size_bytes
        if not call.reply.done():
            for part in call.replies:
                if isinstance(part, hiredis.ReplyError) and not call.tolerant:
                    call.reply.set_exception(self._refused(part))
                    break
            else:
                call.reply.set_result(call.replies)
        self._release()
        self._wake()

    def _release(self) -> None:
        """Send the ``EXEC`` that was held back, now that everything before it is answered."""
        batch = self._open
        if batch is not None and batch.complete and self._pending[0] is batch:
            batch.executing = True
            batch.size_bytes += len(EXEC)
            self.outstanding_bytes += len(EXEC)
            self._open = None
            self._transport.write(EXEC)

    def _refused(self, reply: hiredis.ReplyError) -> SinkError:
        return error_of_reply(str(reply), self._where, self._sink)

    def _garbage(self, what: str) -> SinkUnavailable:
        return SinkUnavailable(
            f"{self._where} does not answer as Redis does ({what}): check that the URL leads to a "
            "Redis and that no proxy changes the stream",
            sink=self._sink,
        )

    # Failure, time, waking.

    def _await_reply(self, pending: Batch | Call) -> None:
        if not self._pending:
            self._heard_at = self._loop.time()
        self._pending.append(pending)
        if self._timer is None and self.error is None:
            self._timer = self._loop.call_later(self._reply_timeout_s, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if not self._pending or self.error is not None:
            return
        due_at = self._heard_at + self._reply_timeout_s
        if self._loop.time() >= due_at:
            self.fail(
                SinkUnavailable(
                    f"Redis at {self._where} has not answered for {self._reply_timeout_s:g} s",
                    sink=self._sink,
                )
            )
        else:
            self._timer = self._loop.call_at(due_at, self._check_time)

    def fail(self, error: SinkError) -> None:
        """Give the connection up for ``error``, unless it has failed already."""
        if self.error is not None:
            return
        self.error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        idle = not self._pending
        for pending in self._pending:
            if isinstance(pending, Call) and not pending.reply.done():
                pending.reply.set_exception(error)
                # A caller that was cancelled leaves the future alone; the error is kept above.
                pending.reply.exception()
        self._pending.clear()
        self._open = None
        self.outstanding_bytes = 0
        if idle:
            self._transport.close()
        else:
            # What is still buffered must not reach Redis behind a refused command, and a target
            # that does not read must not keep the transport.
            self._transport.abort()
        self._wake()

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
