"""The asyncio shell around a node: clock, sockets, one timer, name look-ups and the secret file.

It decides nothing. Whatever happens becomes one call of the node with the time; then what the node
wants is done, and the timer is set to when it wants to be called again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from lanecache.address import Address
from lanecache.cluster.actions import CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.event_log import describe
from lanecache.cluster.event_stream import Broadcast
from lanecache.cluster.events import SeedFailed
from lanecache.cluster.fill.filler import Filler
from lanecache.cluster.fill_engine import EnginePort
from lanecache.cluster.listening import listen
from lanecache.cluster.node import Node
from lanecache.cluster.one_timer import OneTimer
from lanecache.cluster.places import RESOLVE_S, find_advertised, resolved_place, sendable
from lanecache.cluster.plan import without_secret
from lanecache.cluster.resolving import ResolveError, Resolver
from lanecache.cluster.secret_watch import watch_keys
from lanecache.cluster.transport import Transport
from lanecache.cluster.wire.messages import PROCESS_MAX
from lanecache.errors import CacheStopped

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from lanecache.cluster.events import Event
    from lanecache.cluster.plan import Plan
    from lanecache.cluster.replica.entry import Mark, Operation
    from lanecache.cluster.replica.replica import Opened
    from lanecache.cluster.wire.keyring import Keyring

KEYS_LOOK_S = 2.0  # how often the secret file is looked at
LINGER_S = 2.0  # for what waits to be sent on a stream that is closed
# Beyond the node's own limit for leaving: only a fault of it would need this one.
_LEAVE_SPARE_S = 2.0

logger = logging.getLogger("lanecache")


class Engine:
    """One node on real sockets.

    All methods belong to the event loop that ``running`` was entered on.

    Args:
        plan: what ``plan_node`` gave.
        read_keys: gives the keys; called again and again in a thread, since the secret may change.
        make_node: in place of ``Node``, for tests.
        resolver: for tests.
    """

    def __init__(
        self,
        plan: Plan,
        read_keys: Callable[[], Keyring],
        *,
        make_node: Callable[..., Node] = Node,
        resolver: Resolver | None = None,
    ) -> None:
        self.plan = plan
        self.events = Broadcast(plan.settings.events_max)
        self.address: Address | None = None
        """Where it listens."""
        self.advertised: Address | None = None
        """Where the others reach it."""
        self.process = random.SystemRandom().randint(1, PROCESS_MAX)
        self._read_keys = read_keys
        self._make_node = make_node
        self._resolver = resolver or Resolver()
        self._node: Node | None = None
        self._transport: Transport | None = None
        self._tasks: TaskGroup | None = None
        self._timer = OneTimer(
            lambda: self.node.timer_at(), lambda: self._step(self.node.handle_timer)
        )
        self._failure: Exception | None = None
        self._left = anyio.Event()
        self._unresolved: dict[str, str] = {}
        self._serving = False
        self._flush: asyncio.Handle | None = None
        self._stepped: anyio.Event | None = None
        self.filler = Filler(EnginePort(self))
        """Fills what is missing, for callers here."""
        self.observers: list[Callable[[Node], None]] = [self._answer_fills]
        """Called after each step of the node."""

    @property
    def node(self) -> Node:
        """The node; only while it runs, and after it."""
        if self._node is None:
            raise RuntimeError("the cluster's node has not been started")
        return self._node

    @property
    def started(self) -> bool:
        """Whether there is a node yet."""
        return self._node is not None

    @property
    def transport(self) -> Transport:
        """The sockets, for their counters; only while it runs, and after it."""
        assert self._transport is not None
        return self._transport

    @property
    def joined(self) -> bool:
        """Whether it is in the cluster."""
        return self._node is not None and self._node.joined

    @property
    def running_node(self) -> Node:
        """The node, while it runs.

        Raises:
            CacheStopped: it does not run.
        """
        if self._node is None or not self._serving:
            raise CacheStopped(
                f"the node of the cluster {self.plan.name} does not run: its service has stopped,"
                " or has not started"
            )
        return self._node

    def write(self, operations: Sequence[Operation], mark: Mark | None = None) -> int:
        """Write an entry, which is visible here when this comes back; the others get it soon.

        Entries that are written without a pause between them leave together.

        Returns:
            Its number in this node's log.

        Raises:
            CacheStopped: the node does not run.
            CacheValueError: it is larger than ``entry_bytes_max``; nothing was changed.
        """
        node = self.running_node
        if self._flush is None:
            # First of all: outside of the loop it fails, and then nothing must have been written.
            self._flush = asyncio.get_running_loop().call_soon(self._on_flush)
        return node.write(operations, time.monotonic(), mark=mark)

    def open_source(self, name: str) -> Opened:
        """Begin a new epoch of a source that this process reads: the others follow it then.

        Raises:
            CacheStopped: the node does not run.
        """
        opened = self.running_node.open_source(name, time.monotonic())
        self._step(self.node.flush)
        return opened

    def forget_source(self, name: str) -> None:
        """Give up a source on all nodes.

        Raises:
            CacheStopped: the node does not run.
        """
        self.running_node.forget_source(name, time.monotonic())
        self._step(self.node.flush)

    def flush(self) -> None:
        """Send what was written now; by itself that comes when the loop turns."""
        if self._flush is not None:
            self._flush.cancel()
            self._on_flush()

    async def wait(self, met: Callable[[Node], bool]) -> None:
        """Wait until the node is as asked for, which is looked at after each of its steps.

        Raises:
            CacheStopped: it does not run, or stops meanwhile.
        """
        self.flush()
        while not met(self.running_node):
            if self._stepped is None:
                self._stepped = anyio.Event()
            await self._stepped.wait()

    def counters(self) -> dict[str, int]:
        """Give the node's counts, and the sockets' of what it does not see."""
        node = self.node
        return node.counters.snapshot() | node.fills.counters.snapshot() | self.transport.counters

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen, join, and take part for the time of the block; then leave, and let go of all.

        A block that is cancelled does not leave: the others find out by themselves.

        Raises:
            ConfigError: it cannot listen, the secret cannot be read, or no address is found that
                others could be told; nothing was started.
        """
        keyring = await anyio.to_thread.run_sync(self._read_keys, abandon_on_cancel=True)
        place = await resolved_place(self._resolver, self.plan.listen, "cluster.listen")
        if not keyring.secured and not place.is_loopback:
            raise without_secret(place)
        bound = listen(place, udp=self.plan.settings.udp)
        try:
            self.advertised = await find_advertised(self._resolver, self.plan, bound.address)
        except BaseException:
            bound.close()
            raise
        self.address = bound.address
        settings = self.plan.settings
        self._transport = Transport(
            bound,
            self,
            packet_bytes_max=settings.packet_bytes_max,
            open_timeout_s=settings.stream_timeout_s,
            linger_s=LINGER_S,
            backlog_bytes_max=settings.backlog_bytes_max,
        )
        self._node = self._make_node(
            settings,
            keyring,
            self.advertised,
            seeds=[str(peer) for peer in self.plan.peers],
            metadata=self.plan.metadata,
            process=self.process,
            random=random.Random(os.urandom(32)),
            entropy=os.urandom,
            wall=time.time,
            monotonic=time.monotonic,
        )
        async with anyio.create_task_group() as self._tasks:
            async with self._transport.running():
                if self.plan.secret_in_file:
                    self._tasks.start_soon(
                        watch_keys,
                        keyring,
                        self._read_keys,
                        partial(self._step, self._node.set_keyring),
                        KEYS_LOOK_S,
                        name="watch the secret file",
                    )
                logger.info(
                    "the node of the cluster %s listens on %s%s",
                    self.plan.name,
                    self.address,
                    f", told to others as {self.advertised}"
                    if self.advertised != self.address
                    else "",
                )
                self._serving = True
                self._step(self._node.start)
                try:
                    with self.filler.serving(self._tasks):
                        yield
                finally:
                    self._stop_serving()
                    try:
                        if self._failure is None:
                            await self._leave()
                    finally:
                        self._timer.disarm()
                        self.events.end()
            self._tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    def _stop_serving(self) -> None:
        """Take no more writes; whoever waits hears of it."""
        self.flush()
        self._serving = False
        self._wake()

    def _wake(self) -> None:
        """Let those who wait look at the node."""
        if self._stepped is not None:
            self._stepped.set()
            self._stepped = None

    async def _leave(self) -> None:
        self._step(self.node.leave)
        with anyio.move_on_after(self.plan.settings.leave_s + _LEAVE_SPARE_S):
            await self._left.wait()

    # What happens, as calls of the node.

    def packet_received(self, data: bytes, source: Address) -> None:
        """Hand a packet to the node."""
        self._step(self.node.receive_packet, data, source)

    def stream_accepted(self, stream: int, source: Address) -> None:
        """Tell the node of a stream that somebody opened."""
        self._step(self.node.stream_accepted, stream, source)

    def stream_opened(self, stream: int) -> None:
        """Tell the node that a stream is open."""
        self._step(self.node.stream_opened, stream)

    def stream_received(self, stream: int, data: bytes) -> None:
        """Hand what came on a stream to the node."""
        self._step(self.node.receive_stream, stream, data)

    def stream_closed(self, stream: int, reason: str) -> None:
        """Tell the node that a stream has ended."""
        self._step(self.node.stream_closed, stream, reason)

    def stream_backlog(self, stream: int, backlog_bytes: int) -> None:
        """Tell the node how much waits to be written."""
        self._step(self.node.stream_backlog, stream, backlog_bytes)

    def call_fills(self, call: Callable[[float], None]) -> None:
        """Have something done with the node's fills."""
        self._step(self.node.call_fills, call)

    def _answer_fills(self, node: Node) -> None:
        answers = node.fills.answers()
        if answers:
            self.filler.answered(answers)

    def _on_flush(self) -> None:
        self._flush = None
        self._step(self.node.flush)

    def _step(self, call: Callable[..., None], *arguments: Any) -> None:
        """Make one call of the node, and do what it wants then."""
        if self._failure is not None:
            return
        try:
            call(*arguments, time.monotonic())
            self._carry_out(self.node, self.transport)
        except Exception as error:
            # A node in an unknown state must not go on as if nothing were wrong.
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._serving = False
        self._wake()
        self._timer.disarm()
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()

    def _carry_out(self, node: Node, transport: Transport) -> None:
        for data, address in node.packets_to_send():
            transport.send_packet(data, address)
        for action in node.actions():
            if isinstance(action, SendStream):
                transport.send_stream(action.stream, action.data)
            elif isinstance(action, OpenStream):
                transport.open_stream(action.stream, action.address)
            elif isinstance(action, CloseStream):
                transport.close_stream(action.stream, abort=action.abort)
            elif isinstance(action, Resolve):
                assert self._tasks is not None
                self._tasks.start_soon(self._resolve, action.seed, name=f"resolve {action.seed}")
        events, lost = node.notifications()
        if events or lost:
            self._tell(events, lost)
        if node.left and not self._left.is_set():
            self._left.set()
        for observe in self.observers:
            observe(node)
        self._wake()
        self._timer.arm()

    def _tell(self, events: Sequence[Event], lost: int) -> None:
        for event in events:
            if isinstance(event, SeedFailed) and event.seed in self._unresolved:
                continue  # what the look-up itself said has been logged
            level, sentence = describe(event)
            logger.log(level, "cluster %s: %s", self.plan.name, sentence)
        self.events.publish(events, lost)

    # Tasks.

    async def _resolve(self, seed: str) -> None:
        addresses: tuple[Address, ...] = ()
        try:
            addresses = await self._resolver.resolve(Address.parse(seed), timeout_s=RESOLVE_S)
        except (ResolveError, ValueError) as error:
            if self._unresolved.get(seed) != str(error):
                self._unresolved[seed] = str(error)
                logger.warning(
                    "cluster.peers: %s cannot be resolved: %s; it is tried again", seed, error
                )
        else:
            self._unresolved.pop(seed, None)
        assert self.address is not None
        self._step(self.node.resolved, seed, sendable(self.address, addresses))
