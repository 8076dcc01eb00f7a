"""One node of the cluster behind one face: bytes and time in, bytes and wishes out.

No call raises for what comes from the network: it is counted in ``counters`` and reported once
for each source and kind. After every call the host takes ``packets_to_send``, ``actions`` and
``notifications``, and arms its one timer for ``timer_at``.

Inside, time is *lived time*: the host's clock less what this process did not live through. A call
that comes more than ``stall_s`` after ``timer_at`` shows that the process was stopped or its loop
blocked. Nothing may run out for what could not be heard meanwhile, so lived time goes on from when
the call was due, and what is due then gets ``stall_s`` more: the answers are still in the sockets.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from lanecache.address import Address
from lanecache.cluster import events, messages
from lanecache.cluster.actions import Action, CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.counters import Counters
from lanecache.cluster.events import Event
from lanecache.cluster.exchanges import Exchanges
from lanecache.cluster.messages import Alive, MemberState
from lanecache.cluster.packet_codec import PACKET_VERSION, PacketCodec
from lanecache.cluster.refusal import Refusal, Refused
from lanecache.cluster.rumours import member_of
from lanecache.cluster.seeds import Seeds
from lanecache.cluster.status import MemberStatus, Status
from lanecache.cluster.swim import Swim
from lanecache.cluster.timers import Timers
from lanecache.config import METADATA_BYTES_MAX

if TYPE_CHECKING:
    import random

    from lanecache.cluster.events import Member
    from lanecache.cluster.keyring import Keyring
    from lanecache.cluster.settings import Settings

__all__ = ["Action", "CloseStream", "Event", "Node", "OpenStream", "Resolve", "SendStream"]

_REPORTED_MAX = 1024  # sources and kinds of refused traffic that are remembered as reported


class Node:
    """A member of the cluster, without a socket, a clock or a generator of its own."""

    def __init__(
        self,
        settings: Settings,
        keyring: Keyring,
        advertised: Address,
        *,
        seeds: Sequence[str],
        metadata: bytes = b"",
        process: int,
        random: random.Random,
        entropy: Callable[[int], bytes],
    ) -> None:
        """Make a node that does nothing before ``start``.

        Args:
            settings: durations and bounds.
            keyring: the cluster's name and secrets.
            advertised: where the others reach this node.
            seeds: ``host:port`` of nodes to join by; this node's own among them is passed over.
            metadata: at most ``metadata_bytes_max`` bytes that the others see.
            process: this start's id: 63 random bits, not 0.
            random: for choices that need not be secret.
            entropy: gives so many bytes that nobody can guess.

        Raises:
            ValueError: the metadata is too long, a seed or the address cannot be one.
        """
        self._settings = settings
        self._keyring = keyring
        _check_metadata(metadata, settings)
        if not advertised.port > 0:
            raise ValueError(f"{advertised} is no address that others could reach")
        self.process = process
        self.counters = Counters()
        self._timers = Timers()
        self._stalled_s = 0.0
        self._packets: list[tuple[bytes, Address]] = []
        self._actions: list[Action] = []
        self._events: deque[Event] = deque()
        self._events_lost = 0
        self._reported: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._started = False
        self._stopped = False
        self._codec = PacketCodec(
            keyring,
            process,
            senders_max=settings.senders_max,
            packet_bytes_max=settings.packet_bytes_max,
        )
        own = Alive(
            process=process,
            incarnation=0,
            host=advertised.host,
            port=advertised.port,
            metadata=metadata,
            version_min=PACKET_VERSION,
            version_max=PACKET_VERSION,
            keys=keyring.tags,
        )
        self._swim = Swim(
            settings,
            own,
            rng=random,
            timers=self._timers,
            counters=self.counters,
            outlet=self,
            emit=self._emit,
            body_bytes_max=self._codec.body_bytes_max,
        )
        self._exchanges = Exchanges(
            settings,
            keyring,
            self._swim,
            process=process,
            entropy=entropy,
            timers=self._timers,
            counters=self.counters,
            act=self._actions.append,
            host=self,
        )
        self._seeds = Seeds(
            seeds,
            settings,
            own=lambda: self.advertised,
            members=self._swim.members,
            exchanges=self._exchanges,
            rng=random,
            timers=self._timers,
            act=self._actions.append,
            emit=self._emit,
        )

    # What the host says.

    def start(self, now: float) -> None:
        """Begin: join by the seeds, probe, gossip."""
        if self._started:
            return
        self._started = True
        self._timers.now = now
        self._swim.start(now)
        self._seeds.start(now)

    def leave(self, now: float) -> None:
        """Leave in good order: ``left`` becomes true when it is told, or ``leave_s`` is over."""
        lived = self._enter(now)
        self._seeds.stop()
        self._swim.leave(lived)
        self._settle()

    def receive_packet(self, data: bytes, source: Address, now: float) -> None:
        """Take a packet."""
        lived = self._enter(now)
        if not self._is_running:
            return
        self.counters.packets_received += 1
        self.counters.packets_received_bytes += len(data)
        try:
            opened = self._codec.open(data)
            try:
                found = messages.decode_packet(opened.body)
            except (ValueError, msgspec.MsgspecError):
                detail = "a packet of messages that are none of lanecache's"
                raise Refused(Refusal.GARBAGE, detail) from None
            if len(found) > self._settings.packet_messages_max:
                raise Refused(Refusal.OVERSIZED, f"a packet of {len(found)} messages")
        except Refused as refused:
            self.refused("packet", source, refused)
            return
        if opened.to in (0, self.process):
            self._swim.receive(found, opened.sender, source, lived)
        else:
            self._swim.stray(found, opened.sender, source, lived)
        self._settle()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        lived = self._enter(now)
        self._timers.run(lived)
        self._settle()

    def stream_accepted(self, stream: int, source: Address, now: float) -> None:
        """Hear of a stream that was opened to this node; its number is below 0."""
        lived = self._enter(now)
        if self._is_running:
            self._exchanges.accepted(stream, source, lived)
        else:
            self._actions.append(CloseStream(stream, abort=True))

    def stream_opened(self, stream: int, now: float) -> None:
        """Hear that a stream is open that this node has asked for."""
        self._enter(now)
        self._exchanges.opened(stream)

    def receive_stream(self, stream: int, data: bytes, now: float) -> None:
        """Take what came on a stream."""
        lived = self._enter(now)
        self._exchanges.received(stream, data, lived)
        self._settle()

    def stream_closed(self, stream: int, reason: str, now: float) -> None:
        """Hear that a stream is over: it failed to open, was reset, or its other side closed it."""
        self._enter(now)
        self._exchanges.closed(stream, reason)
        self._settle()

    def stream_backlog(self, stream: int, backlog_bytes: int, now: float) -> None:
        """Hear how many bytes of a stream could not be written yet."""
        self._enter(now)
        self._exchanges.backlog(stream, backlog_bytes)

    def resolved(self, seed: str, addresses: Sequence[Address], now: float) -> None:
        """Hear where a seed is, as asked for by ``Resolve``; nowhere, if that failed."""
        lived = self._enter(now)
        self._seeds.resolved(seed, addresses, lived)
        self._settle()

    def set_metadata(self, metadata: bytes, now: float) -> None:
        """Show the others something else.

        Raises:
            ValueError: it is too long; nothing was changed.
        """
        self._enter(now)
        _check_metadata(metadata, self._settings)
        if metadata != self._swim.rumours.own.metadata:
            self._swim.rumours.raise_own(0, metadata=metadata)

    def set_keyring(self, keyring: Keyring, now: float) -> None:
        """Change the keys, and tell the others which are held now.

        Streams that are open keep theirs; those whose key is gone end.

        Raises:
            ValueError: it is that of another cluster; nothing was changed.
        """
        self._enter(now)
        self._codec.keyring = keyring
        self._keyring = keyring
        self._exchanges.set_keyring(keyring)
        if keyring.tags != self._swim.rumours.own.keys:
            self._swim.rumours.raise_own(0, keys=keyring.tags)

    # What the host asks.

    def timer_at(self) -> float | None:
        """Say when ``handle_timer`` is to be called, by the host's clock; None: not at all."""
        at = self._timers.next_at()
        return None if at is None else at + self._stalled_s

    def packets_to_send(self) -> list[tuple[bytes, Address]]:
        """Give the packets to send now, once."""
        packets = self._packets
        if packets:
            self._packets = []
        return packets

    def actions(self) -> list[Action]:
        """Give what else is to be done now, in order, once."""
        if not self._actions:
            return []
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def notifications(self) -> tuple[list[Event], int]:
        """Give what has happened since the last call, and how many older events were lost."""
        if not self._events:
            return [], 0
        found = list(self._events)
        lost, self._events_lost = self._events_lost, 0
        self._events.clear()
        return found, lost

    @property
    def advertised(self) -> Address:
        """Where the others reach this node."""
        own = self._swim.rumours.own
        return Address(own.host, own.port)

    @property
    def joined(self) -> bool:
        """Whether it knows its cluster: a seed has answered, a member is there, or it is alone."""
        seeds = self._seeds
        return seeds.reached or bool(self._swim.members.live) or (self._started and seeds.alone)

    @property
    def left(self) -> bool:
        """Whether leaving is done."""
        return self._swim.left

    @property
    def awareness(self) -> int:
        """The local health score: 0 is healthy."""
        return self._swim.rumours.awareness.score

    def members(self) -> list[Member]:
        """List all members that it knows, itself first, the dead and those who left too."""
        rumours = self._swim.rumours
        state = MemberState.LEFT if rumours.leaving else MemberState.ALIVE
        own = member_of(rumours.own, state, rumours.own.incarnation, is_self=True)
        return [own, *map(rumours.member, self._swim.members)]

    def since_s(self, member: Member) -> float:
        """Say for how long a member has been in its state; 0 for this node itself."""
        entry = self._swim.members.entries.get(member.process)
        return 0.0 if entry is None else max(0.0, self._timers.now - entry.changed_at)

    def status(self) -> Status:
        """Describe this node and what it knows."""
        return Status(
            process=self.process,
            address=str(self.advertised),
            joined=self.joined,
            leaving=self._swim.rumours.leaving,
            awareness=self.awareness,
            key=self._keyring.tags[0].hex(),
            secured=self._keyring.secured,
            members=tuple(MemberStatus.of(each, self.since_s(each)) for each in self.members()),
            counters=self.counters.snapshot(),
        )

    # What the parts of the node say.

    def send(self, route: Address | int, to: int, parts: list[bytes]) -> None:
        """Send a packet: part of ``Outlet``."""
        if isinstance(route, int):
            self._exchanges.answer_packet(route, to, parts)
        elif self._settings.udp:
            data = self._codec.seal(messages.encode_packet(parts), to)
            self.counters.packets_sent += 1
            self.counters.packets_sent_bytes += len(data)
            self._packets.append((data, route))
        else:
            self._exchanges.send_packet(to, route, parts, self._timers.now)

    def tcp_ping(self, process: int, address: Address, ping: bytes, until_s: float) -> None:
        """Ping over a stream: part of ``Outlet``."""
        self._exchanges.ping(process, address, ping, until_s, self._timers.now)

    def push_pull(self, process: int, address: Address) -> None:
        """Exchange lists: part of ``Outlet``."""
        self._exchanges.exchange(address, process, None, self._timers.now)

    def refused(self, where: str, source: Address, refusal: Refused) -> None:
        """Count what is not to be used; report it once for each source host and kind."""
        kind = f"{where}_{refusal.reason.value}"
        self.counters.refuse(kind)
        if refusal.reason is Refusal.REFLECTED:
            return  # a seed that is this node: as many have it
        key = (kind, source.host)
        if key in self._reported:
            return
        if len(self._reported) >= _REPORTED_MAX:
            self._reported.popitem(last=False)
        self._reported[key] = None
        self._emit(events.TrafficRefused(source, kind, refusal.detail))

    def status_bytes(self) -> bytes:
        """Spell the status."""
        return msgspec.msgpack.encode(self.status())

    @property
    def _is_running(self) -> bool:
        return self._started and not self._stopped

    def _emit(self, event: Event) -> None:
        if len(self._events) >= self._settings.events_max:
            self._events.popleft()
            self._events_lost += 1
            self.counters.events_lost += 1
        self._events.append(event)

    def _enter(self, now: float) -> float:
        """Begin a call: give lived time, less the stall if there was one."""
        timers = self._timers
        lived = now - self._stalled_s
        due_at = timers.next_at()
        if due_at is not None and lived - due_at > self._settings.stall_s:
            late_s = lived - due_at
            lived = max(timers.now, due_at - self._settings.stall_s)
            self._stalled_s = now - lived
            self.counters.stalls += 1
            self.counters.stalled_ms += int(late_s * 1000)
            self._swim.rumours.awareness.apply(1)
            self._emit(events.Stalled(late_s))
        elif lived < timers.now:
            lived = timers.now
        timers.now = lived
        return lived

    def _settle(self) -> None:
        """End what is left open when this node has left."""
        if self._swim.left and not self._stopped:
            self._stopped = True
            self._seeds.stop()
            self._exchanges.stop()
            self._timers.clear()


def _check_metadata(metadata: bytes, settings: Settings) -> None:
    limit = min(settings.metadata_bytes_max, METADATA_BYTES_MAX)
    if len(metadata) > limit:
        raise ValueError(f"metadata has at most {limit} bytes, not {len(metadata)}")
