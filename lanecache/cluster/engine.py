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
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from lanecache.address import Address
from lanecache.cluster.actions import CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.event_log import describe
from lanecache.cluster.event_stream import Broadcast
from lanecache.cluster.events import SeedFailed
from lanecache.cluster.listening import address_to_tell, listen
from lanecache.cluster.messages import PROCESS_MAX
from lanecache.cluster.node import Node
from lanecache.cluster.plan import without_secret
from lanecache.cluster.resolving import ResolveError, Resolver
from lanecache.cluster.transport import Transport
from lanecache.errors import ConfigError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from lanecache.cluster.events import Event
    from lanecache.cluster.keyring import Keyring
    from lanecache.cluster.plan import Plan

KEYS_LOOK_S = 2.0  # how often the secret file is looked at
RESOLVE_S = 5.0  # for one name
LINGER_S = 2.0  # for what waits to be sent on a stream that is closed
# Beyond the node's own limit for leaving: only a fault of it would need this one.
_LEAVE_SPARE_S = 2.0
# uvloop counts in milliseconds; a timer that is set to less would fire at once, again and again.
_TIMER_S_MIN = 0.001

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
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._failure: Exception | None = None
        self._joined = anyio.Event()
        self._left = anyio.Event()
        self._unresolved: dict[str, str] = {}

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
        return self._joined.is_set()

    def counters(self) -> dict[str, int]:
        """Give the node's counts, and the sockets' of what it does not see."""
        return self.node.counters.snapshot() | self.transport.counters

    async def wait_joined(self) -> None:
        """Wait until it is in the cluster."""
        await self._joined.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen, join, and take part for the time of the block; then leave, and let go of all.

        A block that is cancelled does not leave: the others find out by themselves.

        Raises:
            ConfigError: it cannot listen, the secret cannot be read, or no address is found that
                others could be told; nothing was started.
        """
        keyring = await anyio.to_thread.run_sync(self._read_keys, abandon_on_cancel=True)
        place = await self._resolved_place(self.plan.listen, "cluster.listen")
        if not keyring.secured and not place.is_loopback:
            raise without_secret(place)
        bound = listen(place, udp=self.plan.settings.udp)
        try:
            self.advertised = await self._find_advertised(bound.address)
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
        )
        async with anyio.create_task_group() as self._tasks:
            async with self._transport.running():
                if self.plan.secret_in_file:
                    self._tasks.start_soon(self._watch_keys, keyring, name="watch the secret file")
                logger.info(
                    "the node of the cluster %s listens on %s%s",
                    self.plan.name,
                    self.address,
                    f", told to others as {self.advertised}"
                    if self.advertised != self.address
                    else "",
                )
                self._step(self._node.start)
                try:
                    yield
                finally:
                    try:
                        if self._failure is None:
                            await self._leave()
                    finally:
                        self._disarm()
                        self.events.end()
            self._tasks.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _leave(self) -> None:
        self._step(self.node.leave)
        with anyio.move_on_after(self.plan.settings.leave_s + _LEAVE_SPARE_S):
            await self._left.wait()

    # Addresses.

    async def _resolved_place(self, address: Address, field: str) -> Address:
        try:
            return (await self._resolver.resolve(address, timeout_s=RESOLVE_S))[0]
        except ResolveError as error:
            raise ConfigError(
                f"{field}: the name {address.host} cannot be resolved: {error}", path=field
            ) from error

    async def _find_advertised(self, bound: Address) -> Address:
        wanted = self.plan.advertise
        if wanted is not None:
            found = await self._resolved_place(wanted, "cluster.advertise")
            return found if found.port else found._replace(port=bound.port)
        if not bound.is_wildcard:
            return bound
        towards: list[Address] = []
        for peer in self.plan.peers:
            try:
                towards += await self._resolver.resolve(peer, timeout_s=RESOLVE_S)
                break
            except ResolveError:
                continue  # the node asks for it again, and tells of it then
        return address_to_tell(bound, towards)

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
        self._disarm()
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
        if node.joined and not self._joined.is_set():
            self._joined.set()
        if node.left and not self._left.is_set():
            self._left.set()
        self._arm(node.timer_at())

    def _tell(self, events: Sequence[Event], lost: int) -> None:
        for event in events:
            if isinstance(event, SeedFailed) and event.seed in self._unresolved:
                continue  # what the look-up itself said has been logged
            level, sentence = describe(event)
            logger.log(level, "cluster %s: %s", self.plan.name, sentence)
        self.events.publish(events, lost)

    # Time.

    def _arm(self, at: float | None) -> None:
        """See to it that the node is called when it wants to be.

        A timer that is set to an earlier time is left: it looks again when it fires.
        """
        if at is None:
            self._disarm()
            return
        if self._timer is not None:
            if at >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = at
        delay_s = max(_TIMER_S_MIN, at - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        at = self.node.timer_at()
        if at is not None and time.monotonic() >= at:
            self._step(self.node.handle_timer)
        else:
            self._arm(at)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
        self._step(self.node.resolved, seed, self._sendable(addresses))

    def _sendable(self, addresses: tuple[Address, ...]) -> tuple[Address, ...]:
        """Leave out what this node's socket has no way to, unless that is all there is."""
        assert self.address is not None
        if ":" not in self.address.host:
            kept = tuple(address for address in addresses if ":" not in address.host)
        elif not self.address.is_wildcard:
            kept = tuple(address for address in addresses if ":" in address.host)
        else:
            return addresses
        return kept or addresses

    async def _watch_keys(self, keyring: Keyring) -> None:
        wrong = ""
        while True:
            await anyio.sleep(KEYS_LOOK_S)
            try:
                found = await anyio.to_thread.run_sync(self._read_keys, abandon_on_cancel=True)
            except ConfigError as error:
                if str(error) != wrong:
                    wrong = str(error)
                    logger.warning("%s; the keys read before are used until it is right", wrong)
                continue
            wrong = ""
            if found == keyring:
                continue
            keyring = found
            tags = ", ".join(tag.hex() for tag in found.tags)
            logger.info("the secret has changed: keys %s, the first one is used", tags)
            self._step(self.node.set_keyring, keyring)
