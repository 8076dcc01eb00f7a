"""Nodes in memory on virtual time, for tests of ``Node``: small, and without a random fault."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

from lanecache.address import Address
from lanecache.cluster.events import Event
from lanecache.cluster.links.links import FillTaker
from lanecache.cluster.node import CloseStream, Node, OpenStream, Resolve, SendStream
from lanecache.cluster.settings import LAN, Settings
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import MemberState

DELAY_S = 0.001
CONNECT_S = 0.002
READ_S = 0.01  # between two reads of a slow reader


class Host:
    """One place of the network, where one node runs."""

    def __init__(self, world: World, node: Node, address: Address) -> None:
        self.world = world
        self.node = node
        self.address = address
        self.up = True
        self.paused = False
        self.events: list[Event] = []
        self.lost = 0
        self.sent: list[tuple[float, bytes, Address]] = []
        self.read_bytes_s: float | None = None  # how fast it reads each stream; None: at once
        self.armed: float | None = None
        self.inbox: list[Callable[[], None]] = []

    def call(self, method: Callable[..., None], *arguments: object) -> None:
        if not self.up:
            return
        if self.paused:
            self.inbox.append(lambda: self.call(method, *arguments))
            return
        method(*arguments, self.world.now)
        self.world.carry_out(self)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self) -> dict[int, MemberState]:
        return {m.process: m.state for m in self.node.members() if not m.is_self}

    def live(self) -> set[int]:
        return {p for p, state in self.states().items() if state <= MemberState.SUSPECT}


class World:
    """The network and its clock."""

    def __init__(self, seed: int = 1, settings: Settings = LAN) -> None:
        self.now = 1000.0
        self.settings = settings
        self.random = random.Random(seed)
        self.names: dict[str, list[Address]] = {}
        self.at: dict[Address, Host] = {}
        self.hosts: list[Host] = []
        self.blocked: Callable[[str, Address, Address], bool] = lambda kind, a, b: False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._streams: dict[tuple[Host, int], tuple[Host, int]] = {}
        self._accepted = itertools.count(1)
        self._pending: dict[tuple[Host, int], bytearray] = {}
        self.resolves: list[tuple[float, str]] = []

    def host(
        self,
        *seeds: str,
        ip: str | None = None,
        settings: Settings | None = None,
        secrets: tuple[bytes, ...] = (bytes(range(32)),),
        name: str = "shop",
        metadata: bytes = b"",
        start: bool = True,
        wall_s: float = 0.0,
        wall: Callable[[], float] | None = None,
        fills: FillTaker | None = None,
    ) -> Host:
        address = Address(ip or f"10.0.0.{len(self.hosts) + 1}", 7946)
        node = Node(
            settings or self.settings,
            Keyring.of(name, secrets),
            address,
            seeds=seeds,
            metadata=metadata,
            process=self.random.getrandbits(62) + 1,
            random=random.Random(self.random.getrandbits(64)),
            entropy=self.random.randbytes,
            wall=wall or (lambda: self.now + wall_s),
            monotonic=lambda: self.now,
            fills=fills,
        )
        host = Host(self, node, address)
        self.hosts.append(host)
        self.at[address] = host
        if start:
            host.call(node.start)
        return host

    def cluster(self, count: int, **options: object) -> list[Host]:
        first = self.host(**options)
        hosts = [first, *(self.host(str(first.address), **options) for _ in range(count - 1))]
        self.until(lambda: all(len(h.live()) == count - 1 for h in hosts), 30)
        return hosts

    def crash(self, host: Host) -> None:
        host.up = False
        if self.at.get(host.address) is host:
            del self.at[host.address]
        for (one, stream), (other, there) in list(self._streams.items()):
            if one is host:
                self._streams.pop((other, there), None)
                del self._streams[one, stream]
                self.after(DELAY_S, other.call, other.node.stream_closed, there, "reset")

    def pause(self, host: Host) -> None:
        host.paused = True

    def resume(self, host: Host, *, timer_first: bool = False) -> None:
        host.paused = False
        inbox, host.inbox = host.inbox, []
        if timer_first:
            host.call(host.node.handle_timer)
        for call in inbox:
            call()

    def after(self, delay_s: float, call: Callable[..., None], *arguments: object) -> None:
        item = (self.now + delay_s, next(self._order), lambda: call(*arguments))
        heapq.heappush(self._queue, item)

    def step(self, until: float) -> bool:
        if not self._queue or self._queue[0][0] > until:
            return False
        at, _, call = heapq.heappop(self._queue)
        self.now = max(self.now, at)
        call()
        return True

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = end

    def until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """Run until the condition holds; give how long that took."""
        start = self.now
        while not condition():
            if not self.step(start + limit_s):
                raise AssertionError(f"not within {limit_s} s")
        return self.now - start

    def carry_out(self, host: Host) -> None:
        node = host.node
        for data, address in node.packets_to_send():
            host.sent.append((self.now, data, address))
            self.after(DELAY_S, self._deliver, host, data, address)
        for action in node.actions():
            self._act(host, action)
        found, lost = node.notifications()
        host.events += found
        host.lost += lost
        self._arm(host)

    def _arm(self, host: Host) -> None:
        at = host.node.timer_at()
        if at is not None and (host.armed is None or at < host.armed):
            host.armed = at
            self.after(max(0.0, at - self.now), self._fire, host, at)

    def _fire(self, host: Host, at: float) -> None:
        if host.armed != at or not host.up:
            return
        host.armed = None
        due = host.node.timer_at()
        if due is not None and due <= self.now:
            host.call(host.node.handle_timer)
        else:
            self._arm(host)

    def _deliver(self, host: Host, data: bytes, address: Address) -> None:
        other = self.at.get(address)
        if other is not None and not self.blocked("udp", host.address, address):
            other.call(other.node.receive_packet, data, host.address)

    def _act(self, host: Host, action: object) -> None:
        if isinstance(action, OpenStream):
            self.after(CONNECT_S, self._connect, host, action.stream, action.address)
        elif isinstance(action, SendStream):
            end = self._streams.get((host, action.stream))
            if end is not None:
                self._write(host, action.stream, end, action.data)
        elif isinstance(action, CloseStream):
            end = self._streams.pop((host, action.stream), None)
            self._pending.pop((host, action.stream), None)
            if end is not None:
                self.after(DELAY_S, self._end, end)
        elif isinstance(action, Resolve):
            self.resolves.append((self.now, action.seed))
            addresses = self.names.get(action.seed, [])
            self.after(DELAY_S, host.call, host.node.resolved, action.seed, addresses)

    def _connect(self, host: Host, stream: int, address: Address) -> None:
        other = self.at.get(address)
        if self.blocked("tcp", host.address, address):
            return
        if other is None:
            host.call(host.node.stream_closed, stream, "connection refused")
            return
        number = -next(self._accepted)
        self._streams[host, stream] = (other, number)
        self._streams[other, number] = (host, stream)
        other.call(other.node.stream_accepted, number, host.address)
        host.call(host.node.stream_opened, stream)

    def _write(self, host: Host, stream: int, end: tuple[Host, int], data: bytes) -> None:
        pending = self._pending.get((host, stream))
        if pending is not None:
            pending += data
        elif end[0].read_bytes_s is None:
            self.after(DELAY_S, self._bytes, host, end, data)
            return
        else:
            pending = self._pending[host, stream] = bytearray(data)
            self.after(READ_S, self._drain, host, stream)
        self.after(0.0, host.call, host.node.stream_backlog, stream, len(pending))

    def _drain(self, host: Host, stream: int) -> None:
        """Let a slow reader read some of what waits, and tell the writer how much still does."""
        end = self._streams.get((host, stream))
        pending = self._pending.get((host, stream))
        if end is None or pending is None:
            return
        speed = end[0].read_bytes_s
        count = len(pending) if speed is None else int(speed * READ_S)
        data = bytes(pending[:count])
        del pending[:count]
        if pending:
            self.after(READ_S, self._drain, host, stream)
        else:
            del self._pending[host, stream]
        self.after(DELAY_S, self._bytes, host, end, data)
        host.call(host.node.stream_backlog, stream, len(pending))

    def _bytes(self, host: Host, end: tuple[Host, int], data: bytes) -> None:
        other, number = end
        if not self.blocked("tcp", host.address, other.address):
            other.call(other.node.receive_stream, number, data)

    def _end(self, end: tuple[Host, int]) -> None:
        other, number = end
        if self._streams.pop(end, None) is not None:
            other.call(other.node.stream_closed, number, "closed by the other side")
