"""Who is probed when, and what an answer or none means (SWIM, section 3; Lifeguard, IV-A)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

from lanecache.address import Address
from lanecache.cluster import events
from lanecache.cluster.wire import messages
from lanecache.cluster.wire.messages import (
    Ack,
    Dead,
    MemberState,
    Nack,
    Ping,
    PingRequest,
    Suspect,
)

if TYPE_CHECKING:
    import random

    from lanecache.cluster.counters import Counters
    from lanecache.cluster.membership.members import Entry
    from lanecache.cluster.membership.rumours import Rumours
    from lanecache.cluster.settings import Settings
    from lanecache.cluster.timers import Timer, Timers

Route: TypeAlias = Address | int
"""Where a packet goes: an address, or the stream on which the question came."""

_SEQUENCES = 2**32
_RELAYED_MAX = 512  # probes on others' behalf at a time
_MISSED_MAX = 64  # members that are remembered as not having answered a relayed probe
_RELAY_SHARE = 0.8  # of the time left to who asked: then the nack still comes in time
_TCP_ONLY_SAID = 2  # probes in a row that only TCP answered, before UDP is said to fail


class Outlet(Protocol):
    """What sends, for probing and gossip."""

    def send(self, route: Route, to: int, parts: list[bytes]) -> None:
        """Send a packet of these messages; it may get lost."""

    def tcp_ping(self, process: int, address: Address, ping: bytes, until_s: float) -> None:
        """Open a stream and send a ping on it; its ack comes back like any other."""

    def push_pull(self, process: int, address: Address) -> None:
        """Exchange member lists with a member."""


class _Probe:
    """This node's own probe of a member, in its present interval."""

    __slots__ = (
        "ends_at",
        "entry",
        "incarnation",
        "nacks",
        "relays",
        "sequence",
        "started_at",
        "tcp",
    )

    def __init__(self, entry: Entry, sequence: int, now: float, ends_at: float) -> None:
        self.entry = entry
        self.started_at = now
        self.incarnation = entry.incarnation
        self.sequence = sequence
        self.ends_at = ends_at
        self.relays: tuple[int, ...] = ()
        self.nacks: set[int] = set()
        self.tcp = False


class _Relay:
    """A probe on another's behalf."""

    __slots__ = ("process", "requester", "route", "sequence", "timer")

    def __init__(self, process: int, requester: int, route: Route, sequence: int) -> None:
        self.process = process
        self.requester = requester
        self.route = route
        self.sequence = sequence  # that the requester chose
        self.timer: Timer | None = None


class _Check:
    """A ping whose ack changes nothing, but that another process may answer."""

    __slots__ = ("process",)

    def __init__(self, process: int) -> None:
        self.process = process


class Prober:
    """Probes one member per interval, and for others when they ask."""

    def __init__(
        self,
        settings: Settings,
        rumours: Rumours,
        *,
        rng: random.Random,
        timers: Timers,
        counters: Counters,
        outlet: Outlet,
        emit: Callable[[events.Event], None],
    ) -> None:
        """Begin with nobody probed; ``start`` sets it going."""
        self._settings = settings
        self._rumours = rumours
        self._random = rng
        self._timers = timers
        self._counters = counters
        self._outlet = outlet
        self._emit = emit
        self._sequence = int(rng.random() * _SEQUENCES)
        self._asked: dict[int, _Probe | _Relay | _Check] = {}
        self._relayed = 0
        self._missed: dict[int, float] = {}  # who has not answered when probed for others, when
        self._probe: _Probe | None = None
        self._timer: Timer | None = None

    def start(self, now: float) -> None:
        """Begin to probe at a random time within the first interval."""
        at = now + self._random.random() * self._settings.probe_interval_s
        self._timer = self._timers.set(at, self._begin)

    def stop(self) -> None:
        """Probe no more; what others ask is still done."""
        self._timers.cancel(self._timer)
        self._timer = None
        if self._probe is not None:
            self._asked.pop(self._probe.sequence, None)
            self._probe = None

    def check(self, process: int, address: Address, incarnation: int, now: float) -> None:
        """Ask whether a member is at its address, telling it if it is held suspect or dead."""
        sequence = self._next_sequence()
        parts = [messages.encode(Ping(sequence))]
        entry = self._rumours.members.entries.get(process)
        if entry is not None and entry.state is MemberState.DEAD:
            parts.append(messages.encode(Dead(process, incarnation, self._rumours.process)))
            parts.append(self._rumours.own_encoded)
        elif entry is not None and entry.state is MemberState.SUSPECT:
            parts.append(messages.encode(Suspect(process, incarnation, process)))
        self._asked[sequence] = _Check(process)
        forget_at = now + self._settings.probe_interval_s
        self._timers.set(forget_at, lambda _now: self._asked.pop(sequence, None))
        self._outlet.send(address, process, parts)

    def relay(self, request: PingRequest, requester: int, route: Route, now: float) -> None:
        """Probe on another's behalf: pass the ack on, or send a nack while it is of use."""
        if request.process == self._rumours.process:
            self._outlet.send(route, requester, [messages.encode(Ack(request.sequence))])
            return
        if self._relayed >= _RELAYED_MAX:
            return  # no nack comes: so whoever asked does not take it for a sign of its own health
        settings = self._settings
        sequence = self._next_sequence()
        relay = _Relay(request.process, requester, route, request.sequence)
        left_s = min(settings.probe_timeout_s, settings.probe_interval_s - settings.probe_timeout_s)
        relay.timer = self._timers.set(
            now + left_s * _RELAY_SHARE, partial(self._miss, sequence, relay)
        )
        self._asked[sequence] = relay
        self._relayed += 1
        address = Address(request.host, request.port)
        self._outlet.send(address, request.process, [messages.encode(Ping(sequence))])

    def acked(self, sequence: int, sender: int, over_stream: bool, now: float) -> None:
        """Take an ack: of this node's own probe, or for another."""
        asked = self._asked.get(sequence)
        if self._missed:
            self._missed.pop(sender, None)
        if isinstance(asked, _Probe):
            if sender != asked.entry.process and sender not in asked.relays:
                return
            if over_stream and self._settings.udp:
                asked.tcp = True  # a packet that comes yet says more: the end is waited for
                return
            asked.entry.tcp_only = 0
            self._succeed(asked, now)
        elif isinstance(asked, _Relay):
            if sender == asked.process:
                self._finish(sequence, asked)
                self._outlet.send(
                    asked.route, asked.requester, [messages.encode(Ack(asked.sequence))]
                )
        elif asked is not None:
            del self._asked[sequence]

    def has_missed(self, process: int, now: float) -> bool:
        """Tell whether a member has just not answered this node, when probed for another."""
        at = self._missed.get(process)
        return at is not None and now - at < self._settings.probe_interval_s

    def nacked(self, sequence: int, sender: int, now: float) -> None:
        """Take a nack: a relay has no answer either, or another process has the address now."""
        asked = self._asked.get(sequence)
        if isinstance(asked, _Probe):
            if sender in asked.relays:
                asked.nacks.add(sender)
            elif sender != asked.entry.process:
                self._rumours.replaced(asked.entry.process, sender, now)
                self._succeed(asked, now)  # the answer was as quick as an ack
        elif isinstance(asked, _Relay):
            if sender != asked.process:
                self._rumours.replaced(asked.process, sender, now)
                self._give_up(sequence, asked)
        elif asked is not None and sender != asked.process:
            del self._asked[sequence]
            self._rumours.replaced(asked.process, sender, now)

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return self._sequence

    def _miss(self, sequence: int, relay: _Relay, now: float) -> None:
        if len(self._missed) >= _MISSED_MAX:
            del self._missed[next(iter(self._missed))]
        self._missed[relay.process] = now
        self._give_up(sequence, relay)

    def _give_up(self, sequence: int, relay: _Relay) -> None:
        if self._asked.get(sequence) is relay:
            self._finish(sequence, relay)
            nack = messages.encode(Nack(relay.sequence))
            self._outlet.send(relay.route, relay.requester, [nack])

    def _finish(self, sequence: int, relay: _Relay) -> None:
        del self._asked[sequence]
        self._timers.cancel(relay.timer)
        self._relayed -= 1

    def _begin(self, now: float) -> None:
        rumours = self._rumours
        entry = rumours.members.next_turn()
        if entry is None:
            self._timer = self._timers.set(now + self._settings.probe_interval_s, self._begin)
            return
        sequence = self._next_sequence()
        ends_at = now + rumours.awareness.scaled_s(self._settings.probe_interval_s)
        self._probe = self._asked[sequence] = _Probe(entry, sequence, now, ends_at)
        self._counters.probes += 1
        parts = [messages.encode(Ping(sequence))]
        if entry.state is MemberState.SUSPECT:
            # Whoever it is about is told first, and can refute with its ack (Lifeguard, IV-C).
            suspect = Suspect(entry.process, entry.incarnation, rumours.process)
            parts.append(messages.encode(suspect))
        self._timer = self._timers.set(now + self._settings.probe_timeout_s, self._widen)
        self._outlet.send(entry.address, entry.process, parts)

    def _widen(self, now: float) -> None:
        """Ask others to probe, and try TCP: the answer to the ping has not come in time."""
        probe = self._probe
        if probe is None:
            return
        self._counters.probes_indirect += 1
        settings = self._settings
        entry = probe.entry
        members = self._rumours.members
        self._timer = self._timers.set(max(now, probe.ends_at), self._end)
        wanted = settings.indirect_probes
        # Some that are suspect may be drawn, and are of no use: so a few more are.
        drawn = members.sample(wanted + 2, members.live, without=entry.process)
        relays = [other for other in drawn if other.state is MemberState.ALIVE][:wanted]
        probe.relays = tuple(relay.process for relay in relays)
        request = messages.encode(
            PingRequest(probe.sequence, entry.process, entry.alive.host, entry.alive.port)
        )
        for relay in relays:
            self._outlet.send(relay.address, relay.process, [request])
        if settings.udp:
            ping = messages.encode(Ping(probe.sequence))
            self._outlet.tcp_ping(entry.process, entry.address, ping, probe.ends_at - now)

    def _end(self, now: float) -> None:
        """Draw the conclusion: no packet has answered."""
        probe = self._probe
        if probe is None:
            return
        entry = probe.entry
        if probe.tcp:
            self._counters.probes_tcp_only += 1
            entry.tcp_only += 1
            if entry.tcp_only >= _TCP_ONLY_SAID and not entry.udp_said and entry.place >= 0:
                entry.udp_said = True
                self._emit(events.UdpFails(self._rumours.member(entry)))
            self._rumours.awareness.apply(-1)
        elif entry.place >= 0:
            self._counters.probes_failed += 1
            missing = len(probe.relays) - len(probe.nacks)
            self._rumours.awareness.apply(missing if probe.relays else 1)
            self._rumours.hear_suspect(entry.process, probe.incarnation, self._rumours.process, now)
        self._asked.pop(probe.sequence, None)
        self._probe = None
        self._begin(now)

    def _succeed(self, probe: _Probe, now: float) -> None:
        del self._asked[probe.sequence]
        self._probe = None
        self._rumours.awareness.apply(-1)
        self._timers.cancel(self._timer)
        # The next one keeps the rhythm of the interval, unless this answer was slower than it.
        next_at = max(now, probe.started_at + self._settings.probe_interval_s)
        self._timer = self._timers.set(next_at, self._begin)
