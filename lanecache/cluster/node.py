"""One node of the cluster behind one face: bytes and time in, bytes and wishes out.

No call raises for what comes from the network: it is counted in ``counters`` and reported once
for each source and kind. After every call the host takes ``packets_to_send``, ``actions`` and
``notifications``, and arms its one timer for ``timer_at``.

Inside, time is *lived time*: see ``lived_time``. What is held lives by the host's clock: a value's
time to live goes on while a process is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lanecache.cluster import events
from lanecache.cluster.actions import Action, CloseStream, OpenStream, Resolve, SendStream
from lanecache.cluster.counters import Counters
from lanecache.cluster.events import Event
from lanecache.cluster.fill.node_fills import NodeFills
from lanecache.cluster.links.data import Data
from lanecache.cluster.lived_time import LivedTime
from lanecache.cluster.member_face import MemberFace
from lanecache.cluster.membership.exchanges import Exchanges
from lanecache.cluster.membership.seeds import Seeds
from lanecache.cluster.membership.swim import Swim
from lanecache.cluster.notices import Notices
from lanecache.cluster.packets import Packets
from lanecache.cluster.replica.holding import make_replica
from lanecache.cluster.streams import Streams
from lanecache.cluster.timers import Timers
from lanecache.cluster.wire.messages import Alive
from lanecache.cluster.wire.packet_codec import PACKET_VERSION
from lanecache.cluster.wire.refusal import Refused
from lanecache.config import METADATA_BYTES_MAX

if TYPE_CHECKING:
    import random

    from lanecache.address import Address
    from lanecache.cluster.links.links import FillTaker
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.wire.keyring import Keyring

__all__ = ["Action", "CloseStream", "Event", "Node", "OpenStream", "Resolve", "SendStream"]


class Node(MemberFace):
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
        wall: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
        fills: FillTaker | None = None,
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
            wall: reads the wall clock, in seconds since 1970; without it, that is the host's.
            monotonic: reads the host's clock, for what is asked of the store between calls; without
                it, that is the time of the last call.
            fills: takes messages of fills in place of its own, for tests.

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
        self._lived = LivedTime(self._timers, settings.stall_s)
        self._actions: list[Action] = []
        self._notices = Notices(settings.events_max, self.counters)
        self._started = False
        self._stopped = False
        self._leaving = False
        self._leave_late = False
        self._wire = Packets(settings, keyring, process, self.counters)
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
            emit=self._member_event,
            body_bytes_max=self._wire.codec.body_bytes_max,
        )
        self._streams = Streams(
            settings,
            keyring,
            process=process,
            entropy=entropy,
            timers=self._timers,
            counters=self.counters,
            act=self._actions.append,
            host=self,
        )
        self._exchanges = Exchanges(
            settings,
            self._streams,
            self._swim,
            process=process,
            timers=self._timers,
            counters=self.counters,
            status=self.status_bytes,
            link=lambda stream, message, now: self.data.links.accept(stream, message, now),
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
            emit=self._notices.emit,
        )
        monotonic = monotonic or (lambda: self._timers.host_now)
        self.monotonic = monotonic
        self.replica = make_replica(
            settings,
            origin=(int.from_bytes(entropy(8), "big") >> 1) or 1,
            wall=wall or monotonic,
            monotonic=monotonic,
        )
        self.store = self.replica.store
        self.fills = NodeFills(
            settings,
            process,
            self.replica,
            self._swim.members,
            self._timers,
            send=self.send_fill,
        )
        self.replica.touched = self.fills.touched
        self.data = Data(
            settings,
            self._streams,
            self._swim.members,
            self.replica,
            process=process,
            seeds=tuple(seeds),
            joined=lambda: self.joined,
            alone=lambda: self._seeds.alone,
            rng=random,
            timers=self._timers,
            counters=self.counters,
            emit=self._notices.emit,
            fills=fills or self.fills,
        )

    # What the host says.

    def start(self, now: float) -> None:
        """Begin: join by the seeds, probe, gossip."""
        if self._started:
            return
        self._started = True
        self._lived.start(now)
        self._swim.start(now)
        self._seeds.start(now)
        self.data.start(now)

    def leave(self, now: float) -> None:
        """Leave in good order.

        ``left`` becomes true when it is told, and the others have what this node wrote, or when
        ``leave_s`` is over.
        """
        lived = self._enter(now)
        self._seeds.stop()
        self.data.leave()
        if not self._leaving:
            self._leaving = True
            self._timers.set(lived + self._settings.leave_s, self._leave_now)
        self._swim.leave(lived)
        self._settle()

    def flush(self, now: float) -> None:
        """Hear that nothing more is written just now: what was written goes with ``actions``."""
        self._enter(now)

    def receive_packet(self, data: bytes, source: Address, now: float) -> None:
        """Take a packet."""
        lived = self._enter(now)
        if not self._is_running:
            return
        try:
            opened, found = self._wire.open(data)
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
            self._streams.accepted(stream, source, lived)
        else:
            self._actions.append(CloseStream(stream, abort=True))

    def stream_opened(self, stream: int, now: float) -> None:
        """Hear that a stream is open that this node has asked for."""
        self._enter(now)
        self._streams.opened(stream)

    def receive_stream(self, stream: int, data: bytes, now: float) -> None:
        """Take what came on a stream."""
        lived = self._enter(now)
        self._streams.received(stream, data, lived)
        self._settle()

    def stream_closed(self, stream: int, reason: str, now: float) -> None:
        """Hear that a stream is over: it failed to open, was reset, or its other side closed it."""
        self._enter(now)
        self._streams.closed(stream, reason)
        self._settle()

    def stream_backlog(self, stream: int, backlog_bytes: int, now: float) -> None:
        """Hear how many bytes of a stream could not be written yet.

        The host says so when it is more than some ten thousand, each time that it changes then, and
        when it is less again.
        """
        self._enter(now)
        self._streams.backlog(stream, backlog_bytes)

    def resolved(self, seed: str, addresses: Sequence[Address], now: float) -> None:
        """Hear where a seed is, as asked for by ``Resolve``; nowhere, if that failed."""
        lived = self._enter(now)
        self._seeds.resolved(seed, addresses, lived)
        self._settle()

    def call_fills(self, call: Callable[[float], None], now: float) -> None:
        """Have something done with ``fills``, which take lived time."""
        call(self._enter(now))

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
        self._wire.codec.keyring = keyring
        self._keyring = keyring
        self._streams.set_keyring(keyring)
        if keyring.tags != self._swim.rumours.own.keys:
            self._swim.rumours.raise_own(0, keys=keyring.tags)

    # What the host asks.

    def timer_at(self) -> float | None:
        """Say when ``handle_timer`` is to be called, by the host's clock; None: not at all."""
        return self._lived.host_time(self._timers.next_at())

    def packets_to_send(self) -> list[tuple[bytes, Address]]:
        """Give the packets to send now, once."""
        return self._wire.take()

    def actions(self) -> list[Action]:
        """Give what else is to be done now, in order, once."""
        self.fills.settle(self._timers.now)
        self.data.outflow.flush()
        if not self._actions:
            return []
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def notifications(self) -> tuple[list[Event], int]:
        """Give what has happened since the last call, and how many older events were lost."""
        return self._notices.take()

    @property
    def left(self) -> bool:
        """Whether leaving is done."""
        return self._stopped

    # What the parts of the node say.

    def send(self, route: Address | int, to: int, parts: list[bytes]) -> None:
        """Send a packet: part of ``Outlet``."""
        if isinstance(route, int):
            self._exchanges.answer_packet(route, to, parts)
        elif self._settings.udp:
            self._wire.seal(parts, to, route)
        else:
            self._exchanges.send_packet(to, route, parts, self._timers.now)

    def tcp_ping(self, process: int, address: Address, ping: bytes, until_s: float) -> None:
        """Ping over a stream: part of ``Outlet``."""
        self._exchanges.ping(process, address, ping, until_s, self._timers.now)

    def push_pull(self, process: int, address: Address) -> None:
        """Exchange lists: part of ``Outlet``."""
        self._exchanges.exchange(address, process, None, self._timers.now)

    def refused(self, where: str, source: Address, refusal: Refused) -> None:
        """Count and report what is not to be used: part of ``streams.Host``."""
        self._notices.refused(where, source, refusal)

    def replaced(self, expected: int, found: int, now: float) -> None:
        """Hear that another process is where one was expected: part of ``streams.Host``."""
        self._swim.rumours.replaced(expected, found, now)

    @property
    def _is_running(self) -> bool:
        return self._started and not self._stopped

    def _member_event(self, event: Event) -> None:
        self._notices.emit(event)
        if isinstance(event, events.MEMBERSHIP) and self._is_running:
            self.data.members_changed()
            self.fills.membership_changed()

    def _enter(self, now: float) -> float:
        """Begin a call: give lived time."""
        lived, late_s = self._lived.enter(now)
        if late_s:
            self.counters.stalls += 1
            self.counters.stalled_ms += int(late_s * 1000)
            self._swim.rumours.awareness.apply(1)
            self.replica.ages.stalled(late_s, now)
            self._notices.emit(events.Stalled(late_s))
        return lived

    def _leave_now(self, now: float) -> None:
        self._leave_late = True

    def _settle(self) -> None:
        """End what is left open when this node has left."""
        is_done = self._swim.left and (self._leave_late or self.data.peers.flushed())
        if is_done and not self._stopped:
            self._stopped = True
            self._seeds.stop()
            self.data.stop()
            self.fills.stop()
            self._streams.stop()
            self._timers.clear()


def _check_metadata(metadata: bytes, settings: Settings) -> None:
    limit = min(settings.metadata_bytes_max, METADATA_BYTES_MAX)
    if len(metadata) > limit:
        raise ValueError(f"metadata has at most {limit} bytes, not {len(metadata)}")
