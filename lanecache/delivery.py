"""Delivery to one sink: a queue bounded in bytes, and the task that empties it, through failures.

A transaction stays here until the sink reports it durable. When the target fails, it is opened
again, and the position that is stored there says what to send once more; what it cannot say from
here (it holds an older position than anything kept) is the engine's to replay.

While a target is there and has no room, it would go on serving old values for as long as that
lasts. So the keys of everything that waits, and of what comes, are forgotten ahead between the
tries; values and position follow in their order when there is room again. A target that cannot be
reached cannot be told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import anyio

from lanecache.backlog import PATIENCE_S, Backlog
from lanecache.backoff import Backoff
from lanecache.errors import PositionLost, SinkError, SinkFull, SinkUnavailable
from lanecache.operation import (
    AgeTellingSink,
    Checkpoint,
    ForesightedSink,
    ForgettingSink,
    OperationSet,
    Position,
    Sink,
    Transaction,
    Version,
)
from lanecache.statistics import LinkState, SinkStatistics

if TYPE_CHECKING:
    from lanecache.config import SinkConfig

logger = logging.getLogger("lanecache.delivery")

# How long closing may wait for what is under way.
_CLOSE_TIMEOUT_S = 5.0

# How much is forgotten in one step at a target that is full, and how soon after one it is tried
# whether that has made room.
_FORGET_BYTES = 256 * 1024
_FORGOTTEN_RETRY_S = 0.2
_MEANWHILE = "; until then the keys of what waits are forgotten"


class SinkRewound(Exception):
    """The target came back, and what it lacks is not kept here.

    It was restored from older data, or had been detached. Everything after ``checkpoint`` must come
    from the source again; the delivery has ended, its queue is void, and ``open_first`` begins
    anew. Without a checkpoint the target holds nothing.
    """

    def __init__(self, sink: str, checkpoint: Checkpoint | None) -> None:
        where = checkpoint.position if checkpoint is not None else "the start"
        super().__init__(f"sink {sink} came back at {where}")
        self.sink = sink
        self.checkpoint = checkpoint


class Delivery:
    """Deliver one source's transactions to one sink, in order, each until it is durable.

    ``open_first``, then ``run`` in a task of its own, and ``offer`` for each transaction. One loop,
    one caller.

    Args:
        name: the sink's name in the configuration.
        sink: the target; nobody else may use it.
        config: limits and policy.
        source: the source's name, which names the position.
        writer: this process's random identity.
        prefixes: the key prefixes of every lane of this sink, for ``on_lost = "clear"``.
        backoff: how long to wait between tries.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        config: SinkConfig,
        *,
        source: str,
        writer: str,
        prefixes: tuple[str, ...],
        backoff: Backoff | None = None,
    ) -> None:
        self.name = name
        self._sink = sink
        self._config = config
        self._source = source
        self._writer = writer
        self._prefixes = prefixes
        self._backoff = backoff or Backoff(max_s=config.reconnect_delay_max_s)
        self._state = LinkState.CONNECTING
        self._last_error = ""
        self._lost_at = 0.0
        self._checkpoint: Checkpoint | None = None
        self._backlog = Backlog(config.queue_bytes_max, time.monotonic, self._folded)
        self._folding_said = False
        self._opened = False
        self._forgets = False
        self._foresighted = isinstance(sink, ForesightedSink)
        if isinstance(sink, ForesightedSink):
            sink.look_ahead(self._backlog)
        self._telling = sink if isinstance(sink, AgeTellingSink) else None
        self._vouched: float | None = None
        self._to_vouch: tuple[int, float] | None = None
        self._done = _Counts()
        self._offered = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._detached = False
        self._beginning: Version | None = None  # of what waits, with which the source begins anew

    # What the engine calls.

    @property
    def position(self) -> Position | None:
        """How far the target holds the source's changes.

        ``None`` before anything was stored, and while the source begins anew there: what is stored
        until then may be of another history, whose numbers mean something else.
        """
        if self._checkpoint is None or self._beginning is not None:
            return None
        return self._checkpoint.position

    @property
    def full(self) -> bool:
        """Whether the limits are met: the source has to pause until ``wait_room`` comes back."""
        return self._backlog.full

    @property
    def state(self) -> LinkState:
        """Where the connection to the target stands."""
        return self._state

    @property
    def forgets(self) -> bool:
        """Whether the target is full, and is told to forget what waits: it should go on coming."""
        return self._forgets

    def detach(self) -> None:
        """Let go of what is kept, and take nothing more, since the target is not there.

        When it comes back, ``run`` raises ``SinkRewound``, so that it gets from the source what it
        lacks.
        """
        logger.warning(
            "sink %s: its queue is full and it is not there; going on without it until it is back",
            self.name,
        )
        self._detached = True
        self._void()

    def offer(self, transaction: Transaction) -> None:
        """Queue a transaction behind all others. Takes it even when full: ask ``full`` first."""
        if self._detached:
            return
        self._backlog.offer(transaction)
        if transaction.anew:
            self._beginning = transaction.version
        self._offered.set()

    @property
    def tells_age(self) -> bool:
        """Whether the sink wants ``tell_age``."""
        return self._telling is not None

    def tell_age(self, as_of: float | None) -> None:
        """Have the sink tell its readers how old what they read may be.

        Args:
            as_of: everything that the source had committed by then has been offered, by
                ``time.monotonic``; None: that is not known. It counts from when all that was
                offered until this call is durable.
        """
        if self._telling is None or self._detached:
            return
        if self._to_vouch is None and as_of is not None:
            self._to_vouch = (self._backlog.offered, as_of)
        self._vouch()
        vouched = self._vouched
        self._telling.tell_age(None if vouched is None else max(0.0, time.monotonic() - vouched))

    def _vouch(self) -> None:
        """See whether what was to be vouched for is there by now."""
        if self._to_vouch is not None and self._backlog.settled >= self._to_vouch[0]:
            self._vouched = self._to_vouch[1]
            self._to_vouch = None

    async def wait_room(self) -> None:
        """Wait until ``full`` is false."""
        while self.full:
            await self._changed()

    async def wait_durable_all(self) -> None:
        """Wait until everything that was offered is durable."""
        while self._backlog:
            await self._changed()

    async def wait_durable(self) -> None:
        """Wait until something more becomes durable."""
        await self._changed()

    def statistics(self) -> SinkStatistics:
        """Take a snapshot."""
        done = self._done
        return SinkStatistics(
            state=self._state,
            transactions=done.transactions,
            operations=done.operations,
            bytes=done.bytes,
            queue_bytes=self._backlog.bytes,
            queue_bytes_max=self._config.queue_bytes_max,
            position=str(self.position or ""),
            durable_at=done.durable_at,
            # Not part of the protocol: a sink that counts them has it.
            invalidated=done.invalidated + getattr(self._sink, "invalidated", 0),
            waiting_s=self._backlog.waiting_s,
            last_error=self._last_error + (_MEANWHILE if self._forgets else ""),
        )

    async def open_first(self) -> Checkpoint | None:
        """Open the sink at the start and give what is stored there; drops what was queued.

        Waits for ever for a target that is down, and says so once. One that is full is not waited
        for: what comes has to be forgotten there.

        When it is opened once more after a run, a position that was stored before and is gone now
        is handled as the configuration says.

        Raises:
            PositionLost: it is gone, and the configuration says to stop.
            SinkError: the target can never work like this.
        """
        before = self._checkpoint
        self._detached = False
        self._void()
        try:
            self._checkpoint = await self._open()
            self._opened = True
            self._found()
        except SinkFull as error:
            self._lost(error)
            self._checkpoint = _stored(error)
            self._opened = False
        if self._checkpoint is None and before is not None:
            self._checkpoint = before
            self._reconcile(None)
        return self._checkpoint

    def _void(self) -> None:
        self._backlog.void()
        self._vouched = self._to_vouch = None
        self._beginning = None
        self._wake()

    async def run(self) -> None:
        """Deliver until cancelled; at the end the sink is closed.

        Raises:
            SinkRewound: the target came back from older data; the source must start from there.
            PositionLost: the target lost the position, and the configuration says to stop.
            SinkError: the target can never work like this.
        """
        try:
            if not self._opened:
                await self._open_again()
            while True:
                error = await self._serve()
                self._lost(error)
                await self._open_again(full=isinstance(error, SinkFull))
        except SinkError as error:
            self._last_error = str(error)
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the sink, waiting a few seconds for what is under way; ``run`` does it by itself.

        For a delivery that was opened and never ran. Idempotent.
        """
        self._state = LinkState.STOPPED
        with anyio.move_on_after(_CLOSE_TIMEOUT_S, shield=True):
            await self._sink.close()

    # Running.

    async def _serve(self) -> SinkUnavailable:
        """Feed the sink until it fails for now, and give the error."""
        failures: list[SinkError] = []
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                try:
                    await self._sink.watch()
                except SinkError as error:
                    failures.append(error)
                    group.cancel_scope.cancel()

            group.start_soon(watch, name=f"watch {self.name}")
            try:
                await self._feed()
            except SinkError as error:
                failures.append(error)
                group.cancel_scope.cancel()
        # Cancelled from outside, the task group has raised; so here is a failure. A permanent one
        # comes first, whichever of the two tasks saw it.
        for failure in failures:
            if not isinstance(failure, SinkUnavailable):
                raise failure
        passing = [failure for failure in failures if isinstance(failure, SinkUnavailable)]
        return next((each for each in passing if isinstance(each, SinkFull)), passing[0])

    async def _feed(self) -> None:
        while True:
            while not self._backlog.queued:
                self._offered.clear()
                await self._offered.wait()
            self._folding_said = False
            try:
                await self._sink.apply(
                    self._backlog.take(self._config.window_bytes_max, up_to_clear=self._foresighted)
                )
            finally:
                self._backlog.end()

    def _durable(self, count: int, /) -> None:
        """Take note that the first ``count`` given transactions are durable."""
        given = len(self._backlog.given)
        if not 0 < count <= given:
            raise RuntimeError(
                f"sink {self.name} reported {count} of {given} transactions as durable"
            )
        settled = self._backlog.settle(count)
        done = self._done
        done.transactions += settled.transactions
        done.operations += settled.operations
        done.bytes += settled.size_bytes
        done.durable_at = time.time()
        self._backoff.reset()
        self._checkpoint = Checkpoint.of(settled.last, self._writer)
        if self._beginning is not None and settled.last.version >= self._beginning:
            self._beginning = None
        self._wake()

    # Losing and finding the target.

    async def _open(self) -> Checkpoint | None:
        """Open the sink, as often as it takes.

        Raises:
            SinkFull: it is full; it may be told to forget.
        """
        while True:
            try:
                return await self._sink.open(self._source, self._writer, self._durable)
            except SinkFull:
                raise
            except SinkUnavailable as error:
                await self._sink.close()
                self._lost(error)
                # It may come back with what it was told to forget.
                self._backlog.end()
            await anyio.sleep(self._backoff.delay_s())

    async def _open_again(self, *, full: bool = False) -> None:
        """Open the sink, as often as it takes, and decide what is sent once more.

        Args:
            full: whether it was lost for want of room, though what it holds can be deleted.
        """
        await self._sink.close()
        if not full:
            await anyio.sleep(self._backoff.delay_s() if self._opened else 0)
        while True:
            try:
                self._reconcile(await self._open())
                self._opened = True
                break
            except SinkFull as error:
                self._lost(error)
                self._reconcile(_stored(error))
                await self._hold()
                await self._sink.close()
                full = False
        if full:
            # It has room for a position, and had none for what came behind it.
            await self._hold()
        else:
            self._backoff.reset()
        self._found()

    def _found(self) -> None:
        """Take note that the sink is open."""
        if self._state is LinkState.WAITING:
            away_s = time.monotonic() - self._lost_at
            logger.info("sink %s: back after %.1f s", self.name, away_s)
        self._state = LinkState.CONNECTED
        self._forgets = False
        self._backlog.end()

    async def _hold(self) -> None:
        """Wait before the next try at a target that is full, and forget there what waits and comes.

        When that has made room, the next try comes soon. Nothing is given to the sink here.
        """
        sink = self._sink
        until = time.monotonic() + self._backoff.delay_s()
        if not isinstance(sink, ForgettingSink):
            await anyio.sleep(until - time.monotonic())
            return
        if not self._forgets:
            self._forgets = True
            logger.warning(
                "sink %s: until it has room, the keys of what waits are forgotten", self.name
            )
        self._backlog.begin_full(self._prefixes)
        try:
            while (left_s := until - time.monotonic()) > 0:
                self._offered.clear()
                run = self._backlog.next_run(_FORGET_BYTES)
                if run:
                    await sink.forget(run)
                    until = min(until, time.monotonic() + _FORGOTTEN_RETRY_S)
                    continue
                # A full queue is folded some time later.
                with anyio.move_on_after(min(left_s, PATIENCE_S) if self.full else left_s):
                    await self._offered.wait()
        except SinkUnavailable as error:
            self._forgets = False
            self._backlog.end()
            self._lost(error)
            await anyio.sleep(max(0.0, until - time.monotonic()))

    def _lost(self, error: SinkUnavailable) -> None:
        """Take note of a failure; said once, and again only when the reason changes."""
        if self._state is not LinkState.WAITING or self._last_error != str(error):
            logger.warning("sink %s: %s; trying again", self.name, error)
        if self._state is not LinkState.WAITING:
            self._lost_at = time.monotonic()
        self._state = LinkState.WAITING
        self._last_error = str(error)

    def _reconcile(self, stored: Checkpoint | None) -> None:
        """Decide from the position in a target that came back what is sent once more."""
        durable = self._checkpoint
        if self._detached:
            raise SinkRewound(self.name, stored)
        if stored is None and durable is not None:
            self._position_lost(durable)
        elif stored is not None and (durable is None or stored.position != durable.position):
            for index, transaction in enumerate(self._backlog.given):
                if transaction.position == stored.position:
                    # Executed before the connection was lost; only the answer did not come.
                    self._durable(index + 1)
                    break
            else:
                raise SinkRewound(self.name, stored)
        if self._backlog.given:
            self._backlog.take_back()

    def _position_lost(self, durable: Checkpoint) -> None:
        if self._config.on_lost == "stop":
            raise PositionLost(
                f"sink {self.name} no longer holds the position of source {self._source!r}, so its "
                'data is gone or incomplete: fill it again, or set on_lost = "clear" to go on with '
                "empty lanes",
                sink=self.name,
            )
        logger.error(
            "sink %s: the position of source %r is gone from the target, so its data is gone or "
            'incomplete; clearing every lane\'s keys and going on from %s (on_lost = "clear")',
            self.name,
            self._source,
            durable.position,
        )
        oldest = self._backlog.given or self._backlog.queued
        if oldest and oldest[0].position == durable.position:
            return  # the clearing is on its way already; the target was lost again before it came
        operations = OperationSet()
        for prefix in self._prefixes:
            operations.clear(prefix)
        self._vouched = self._to_vouch = None
        self._backlog.put_first(
            Transaction(
                self._source, durable.position, durable.version, 0.0, operations, durable.lanes
            )
        )

    def _folded(self, invalidated: int) -> None:
        """Take note that values which waited behind a clear were dropped for want of room."""
        if invalidated and not self._folding_said:
            self._folding_said = True
            logger.warning(
                "sink %s: its queue was full while %s; what waited is applied "
                "as invalidations of its keys, so that the source goes on being read",
                self.name,
                "the target was" if self._forgets else "keys were being cleared",
            )
        self._done.invalidated += invalidated
        self._wake()

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def _stored(error: SinkFull) -> Checkpoint | None:
    """Give what is stored in a target that could not be opened for want of room."""
    checkpoint = error.checkpoint
    assert checkpoint is None or isinstance(checkpoint, Checkpoint)
    return checkpoint


class _Counts:
    """What has become durable since the start of the process."""

    __slots__ = ("bytes", "durable_at", "invalidated", "operations", "transactions")

    def __init__(self) -> None:
        self.transactions = 0
        self.operations = 0
        self.bytes = 0
        self.invalidated = 0
        self.durable_at: float | None = None
