"""A machine with one real `Node` on it: its clocks, its kernel's buffers, and what befalls it.

A host does what the asyncio shell does with a node, and nothing more: it hands in what arrives and
the time, and carries out what the node asks for. Everything else here is a fault that a process
meets in real life, told as its kernel would tell it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lanecache.cluster.node import CloseStream, OpenStream, Resolve, SendStream
from lanecache.testing.simulation.clock import Clock
from lanecache.testing.simulation.streams import End, EndState, Streams
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    import random

    from lanecache.address import Address
    from lanecache.cluster.node import Node
    from lanecache.cluster.wire.keyring import Keyring
    from lanecache.testing.simulation.names import Names
    from lanecache.testing.simulation.network import Network
    from lanecache.testing.simulation.world import World

SOCKET_BUFFER_BYTES = 212_992  # Linux: net.core.rmem_default
PACKET_COST_BYTES = 768  # what the kernel counts for a small packet beside its bytes
ACCEPTED_WAITING_MAX = 128  # connections that a process has not taken yet
WALL_BEGINS_AT = 1_800_000_000.0  # what a right clock says when a run begins
LAG_S_MAX = 0.002  # how late a loop's timers are when nothing is wrong

NodeFactory: TypeAlias = "Callable[[Host, random.Random], Node]"


class Watch(Protocol):
    """What looks at a host after every call of its node (``checkers``)."""

    def started(self, host: Host) -> None:
        """Look at a process that has just begun."""

    def called(self, host: Host, what: str) -> None:
        """Look at what a call has changed."""

    def ended(self, host: Host, how: str) -> None:
        """Look at a process that is no more."""


class Host:
    """One machine, switched on or off, on which a process runs or not."""

    def __init__(
        self,
        world: World,
        network: Network,
        streams: Streams,
        names: Names,
        address: Address,
        *,
        name: str,
        cluster: str,
        keyring: Keyring,
        make_node: NodeFactory,
        watch: Watch,
    ) -> None:
        self.world = world
        self.network = network
        self.streams = streams
        self.names = names
        self.address = address
        self.name = name
        self.keyring = keyring  # that a process is given
        self.cluster = cluster
        self.seeds: tuple[str, ...] = ()
        self.index = len(network.hosts)
        network.hosts.append(self)
        network.at_address[address] = self
        self.random = world.random(f"host {name}")
        # The machine.
        self.powered = True
        self.clock = Clock(world, self.random.uniform(0, 1e6))
        self.wall_offset_s = 0.0
        self.changes: dict[str, Any] = {}  # of the settings, for the nodes of this host
        self.is_small = False  # its store has no room for everything
        self.sent_packets = 0
        self.sent_bytes = 0
        self.sent_stream_bytes = 0
        # The process.
        self.node: Node | None = None
        self.process = 0
        self.metadata = b""
        self.metadata_given: set[bytes] = set()  # to the process that runs
        self.starts = 0
        self.leaving = False
        self.paused = False  # stopped by a signal, or its loop is blocked
        self.muted = False  # its input and output stand still, its timers do not
        self.lag_s = LAG_S_MAX
        self.read_bytes_s: float | None = None  # a slow reader of streams
        self.ends: dict[int, End] = {}
        self.events_lost = 0
        self.packets: list[tuple[bytes, Address]] = []  # of the last call
        self.events: list[Any] = []
        self._make_node = make_node
        self._watch = watch
        self._armed_at: float | None = None
        self._timer_waits = False
        self._accepted = 0
        self._accepted_waiting = 0
        self._outbox: deque[tuple[bytes, Address]] = deque()
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._waiting_bytes = 0

    def wall(self) -> float:
        """Read the wall clock, which may jump: no decision about members may rest on it.

        Orders of writes rest on what it says when a process begins.
        """
        return WALL_BEGINS_AT + self.world.now + self.wall_offset_s

    def drift(self, rate: float) -> None:
        """Let the monotonic clock run at another rate from now on."""
        self.clock.drift(rate)
        self._armed_at = None
        self._arm()

    # The process

    @property
    def listening(self) -> bool:
        """Whether a process is there that connections can be opened to."""
        return self.node is not None and self._accepted_waiting < ACCEPTED_WAITING_MAX

    @property
    def running(self) -> bool:
        """Whether a process is there that means to stay."""
        return self.node is not None and not self.leaving

    def start(self, address: Address | None = None, metadata: bytes | None = None) -> None:
        """Start a new process, on the same address or another one that is free."""
        assert self.node is None
        if address is not None and address != self.address:
            if self.network.at_address.get(self.address) is self:
                del self.network.at_address[self.address]
            self.address = address
        self.network.at_address[self.address] = self
        self.powered = True
        self.starts += 1
        self.leaving = self.paused = self.muted = False
        self.process = self.random.getrandbits(63) or 1
        self.metadata = self.random.randbytes(8) if metadata is None else metadata
        self.metadata_given = {self.metadata}
        self._armed_at = None
        self.node = self._make_node(self, self.world.random(f"node {self.name}/{self.starts}"))
        self._watch.started(self)
        self.world.record(self.name, "starts", self.process, self.address)
        self._call("start", self.node.start)

    def leave(self) -> None:
        """Ask the process to leave; it ends when it says that it has left."""
        if self.node is not None and not self.leaving:
            self.leaving = True
            self.world.record(self.name, "leaves")
            self._later(self._node_leaves)

    def kill(self) -> None:
        """End the process as SIGKILL does: its kernel closes what it had open."""
        if self.node is not None:
            self.world.record(self.name, "is killed")
            self._end("killed", self.streams.close)

    def switch_off(self) -> None:
        """Take the machine's power away: nobody is told."""
        if self.node is not None:
            self.world.record(self.name, "loses its power")
            self._end("switched off", lambda end, _: self.streams.lose(end))
        self.powered = False

    def do(self, what: str, call: Callable[[float], None]) -> None:
        """Let the process's own code use its node: now, since it runs."""
        if self.node is not None and not self.paused:
            self._call(what, self._do, call)

    def set_metadata(self, metadata: bytes) -> None:
        """Give the process new metadata."""
        if self.node is not None:
            self.metadata = metadata
            self.metadata_given.add(metadata)
            self._later(self._node_gets_metadata, metadata)

    def set_keyring(self, keyring: Keyring) -> None:
        """Give the process, and those that come after it, other secrets."""
        self.keyring = keyring
        if self.node is not None:
            self._later(self._node_gets_keyring, keyring)

    def pause(self) -> None:
        """Stop the process, as SIGSTOP or a blocked loop does; its kernel goes on."""
        if self.node is not None and not self.paused:
            self.world.record(self.name, "is paused")
            self.paused = True

    def resume(self) -> None:
        """Let a paused process go on: all that has come meanwhile is there at once.

        A loop that wakes up takes what is readable, then its timers, then reads on, and what
        exactly comes before its timers is chance.
        """
        if self.node is None or not self.paused:
            return
        self.world.record(self.name, "goes on")
        self.paused = False
        if not self.muted:
            first = self.random.choice((0, 1, 1, 3, len(self._waiting)))
            self._run_waiting(first)
            if self._timer_waits:
                self._timer_waits = False
                self._arm()
                self._fire_due()
            self._run_waiting()

    def mute(self) -> None:
        """Hold back all input and output of the process, while its timers run on.

        So the experiments of the Lifeguard paper (Dadgar, Phillips, Currey: section V) make a
        member slow.
        """
        if self.node is not None and not self.muted:
            self.world.record(self.name, "is muted")
            self.muted = True

    def unmute(self) -> None:
        """Let everything through that was held back."""
        if self.node is None or not self.muted:
            return
        self.world.record(self.name, "is heard again")
        self.muted = False
        while self._outbox:
            self.network.send(self, *self._outbox.popleft())
        for end in list(self.ends.values()):
            self.streams.pump(end)
        if not self.paused:
            self._run_waiting()

    def _end(self, how: str, close: Callable[[End, bool], None]) -> None:
        self._watch.ended(self, how)
        for end in list(self.ends.values()):
            close(end, bool(end.unread))
        self.ends.clear()
        self.node = None
        self.paused = self.muted = self.leaving = self._timer_waits = False
        self._armed_at = None
        self._outbox.clear()
        self._waiting.clear()
        self._waiting_bytes = self._accepted_waiting = 0

    def _run_waiting(self, count: int | None = None) -> None:
        count = len(self._waiting) if count is None else count
        while count > 0 and self._waiting and not self.paused and not self.muted:
            count -= 1
            call, arguments = self._waiting.popleft()
            call(*arguments)
        if not self._waiting:
            self._waiting_bytes = 0

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        """Run this in the process: now, or when it goes on."""
        if self.paused or self.muted:
            self._waiting.append((call, arguments))
        else:
            call(*arguments)

    # What the kernel hands to the process

    def packet_arrived(self, data: bytes, source: Address) -> None:
        """Take a packet for the process, if there is one and its buffer has room."""
        if self.node is None:
            return
        if self.paused or self.muted:
            cost_bytes = len(data) + PACKET_COST_BYTES
            if self._waiting_bytes + cost_bytes > SOCKET_BUFFER_BYTES:
                self.world.record(self.name, "has no room for", data)
                return
            self._waiting_bytes += cost_bytes
            self._waiting.append((self._packet, (data, source)))
        else:
            self._packet(data, source)

    def _packet(self, data: bytes, source: Address) -> None:
        if self.node is not None:
            self.world.record(self.name, "receives", source, data)
            self._call("receive_packet", self.node.receive_packet, data, source)

    def next_accepted(self) -> int:
        """Choose the id of the next accepted stream: a negative one."""
        self._accepted -= 1
        return self._accepted

    def stream_accepted(self, end: End, source: Address) -> None:
        """Take a connection for the process."""
        self.ends[end.stream] = end
        self._accepted_waiting += 1
        self._later(self._accept, end, source)

    def _accept(self, end: End, source: Address) -> None:
        self._accepted_waiting = max(0, self._accepted_waiting - 1)
        if self.node is not None and end.stream in self.ends:
            end.taken = True
            self.world.record(self.name, "accepts", end.stream, source)
            self._call("stream_accepted", self.node.stream_accepted, end.stream, source)

    def stream_opened(self, end: End) -> None:
        """Tell the process that a connection of its own has come about."""
        self._later(self._opened, end)

    def _opened(self, end: End) -> None:
        if self.node is not None and self.ends.get(end.stream) is end:
            self.world.record(self.name, "has opened", end.stream)
            self._call("stream_opened", self.node.stream_opened, end.stream)

    def stream_readable(self, end: End) -> None:
        """Tell the process that there is something to read, or that the stream has ended."""
        if self.ends.get(end.stream) is end:
            self._later(self._read, end)

    def _read(self, end: End) -> None:
        if end.reading:
            return
        while self.node is not None and self.ends.get(end.stream) is end and end.unread:
            if self.read_bytes_s is None:
                data = self.streams.read(end)
            else:
                data = self.streams.read(end, max(1, int(self.read_bytes_s * 0.1)))
                end.reading = True
                self.world.after(len(data) / self.read_bytes_s, self._read_on, end)
            self.world.record(self.name, "reads", end.stream, len(data))
            self._call("receive_stream", self.node.receive_stream, end.stream, data)
            if end.reading:
                return
        if self.node is not None and self.ends.get(end.stream) is end and end.ended_by:
            del self.ends[end.stream]
            orderly = end.ended_by == "end of file" and bool(end.out)
            end.state = EndState.ENDING if orderly else EndState.CLOSED
            self.streams.pump(end)
            self.world.record(self.name, "loses stream", end.stream, end.ended_by)
            self._call("stream_closed", self.node.stream_closed, end.stream, end.ended_by)

    def _read_on(self, end: End) -> None:
        end.reading = False
        self.stream_readable(end)

    def stream_backlog(self, end: End) -> None:
        """Tell the process how much of a stream its kernel would not take."""
        if self.node is not None and self.ends.get(end.stream) is end and not self.paused:
            backlog_bytes = end.backlog_bytes
            self._call("stream_backlog", self.node.stream_backlog, end.stream, backlog_bytes)

    def _resolved(self, process: int, seed: str, addresses: list[Address]) -> None:
        if self.process == process:
            self._later(self._node_resolved, process, seed, addresses)

    def _node_resolved(self, process: int, seed: str, addresses: list[Address]) -> None:
        if self.node is not None and self.process == process:
            self.world.record(self.name, "resolves", seed, addresses)
            self._call("resolved", self.node.resolved, seed, addresses)

    def _node_leaves(self) -> None:
        if self.node is not None:
            self._call("leave", self.node.leave)

    def _node_gets_metadata(self, metadata: bytes) -> None:
        if self.node is not None:
            self.world.record(self.name, "gets metadata", metadata)
            self._call("set_metadata", self.node.set_metadata, metadata)

    def _node_gets_keyring(self, keyring: Keyring) -> None:
        if self.node is not None:
            self.world.record(self.name, "gets keys", keyring.tags)
            self._call("set_keyring", self.node.set_keyring, keyring)

    # What the process does

    def _do(self, call: Callable[[float], None], now: float) -> None:
        call(now)
        if self.node is not None:
            self.node.flush(now)

    def _call(self, what: str, call: Callable[..., None], *arguments: Any) -> None:
        node = self.node
        assert node is not None
        now = self.clock.read()
        if what == "handle_timer":
            # A timer never fires early; that its instant is not quite a float is no node's fault.
            now = self.clock.read(node.timer_at())
        try:
            call(*arguments, now)
            self.packets = packets = node.packets_to_send()
            actions = node.actions()
            self.events, lost = node.notifications()
        except Violation:
            raise  # what a checker has found in the midst of it
        except Exception as error:
            message = f"Node.{what} raises {type(error).__name__}: {error}"
            raise Violation("raises", message, self.name) from error
        self.events_lost += lost
        for data, address in packets:
            if self.muted:
                self._outbox.append((data, address))
            else:
                self.network.send(self, data, address)
        for action in actions:
            self._act(action)
        self._watch.called(self, what)
        if self.leaving and node.left:
            self.world.record(self.name, "has left")
            self._end("left", self.streams.close)
        elif self.node is node:
            self._arm()

    def _act(self, action: object) -> None:
        match action:
            case SendStream(stream=stream, data=data):
                self.streams.send(self._end_of(stream, "sends to"), data)
            case OpenStream(stream=stream, address=address):
                if stream <= 0 or stream in self.ends:
                    message = f"the node opens a stream with the id {stream}"
                    raise Violation("streams", message, self.name)
                self.world.record(self.name, "opens", stream, address)
                self.ends[stream] = self.streams.open(self, stream, address)
            case CloseStream(stream=stream, abort=abort):
                end = self._end_of(stream, "closes")
                self.world.record(self.name, "aborts" if abort else "closes", stream)
                del self.ends[stream]
                self.streams.close(end, abort)
            case Resolve(seed=seed):
                self.names.resolve(seed, self._resolved, self.process)
            case _:
                raise Violation("actions", f"the node asks for {action!r}", self.name)

    def _end_of(self, stream: int, what: str) -> End:
        end = self.ends.get(stream)
        if end is None or (end.state is EndState.CONNECTING and what == "sends to"):
            message = f"the node {what} stream {stream}, which is not open"
            raise Violation("streams", message, self.name)
        return end

    # The timer

    def _arm(self) -> None:
        node = self.node
        at = None if node is None else node.timer_at()
        if at is None:
            return
        when = max(self.clock.virtual(at), self.world.now)
        if self._armed_at is None or when < self._armed_at:
            self._armed_at = when
            lag_s = self.random.random() * self.lag_s
            self.world.at(when + lag_s, self._fire, self.starts, when)

    def _fire(self, start: int, when: float) -> None:
        if start != self.starts or when != self._armed_at or self.node is None:
            return
        self._armed_at = None
        if self.paused:
            self._timer_waits = True
        else:
            self._fire_due()

    def _fire_due(self) -> None:
        node = self.node
        at = None if node is None else node.timer_at()
        if node is not None and at is not None:
            if self.clock.virtual(at) <= self.world.now:
                self._call("handle_timer", node.handle_timer)
            else:
                self._arm()
