"""What must hold at every step, and what must hold in the end.

*Safety* looks after each call of a node at what that call can have changed. *Liveness* is asked
once all faults are over: `disagreement` says what is not as it should be yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lanecache.cluster.wire.messages import MemberState
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.cluster.events import Member
    from lanecache.cluster.settings import Settings
    from lanecache.testing.simulation.hosts import Host

MEMBERS_EVERY_CALLS = 16  # how often all members are looked at, beside the calls that tell of some
PACKETS_PER_CALL_MAX = 256
LINKS_MAX = 2 * 64  # beside the streams: one with each peer, or two for a moment
TIMER_CALLS_PER_S_MAX = 200
TIMER_CALLS_AT_ONCE_MAX = 50  # at one instant: `timer_at` would stay in the past for ever

# One sentence of what is not as it should be, and the hosts whose story tells it.
Found: TypeAlias = tuple[str, tuple[str, ...]] | None


@dataclass(slots=True)
class Life:
    """What is known of one process: everything, since the simulator runs it."""

    name: str
    host: Host
    cluster: str
    addresses: set[Address] = field(default_factory=set)
    metadata: set[bytes] = field(default_factory=set)
    ended: str | None = None
    left: bool = False  # it was asked to leave


@dataclass(slots=True)
class _Seen:
    """What an observer has shown so far, and how often its timer was called lately."""

    members: dict[int, tuple[int, MemberState]] = field(default_factory=dict)
    calls: int = 0
    second: int = 0
    timer_calls: int = 0
    instant: float = -1.0
    timer_calls_at_once: int = 0


class Safety:
    """Looks at every call of every node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lives: dict[int, Life] = {}
        self.listeners: list[Callable[[Host, Any], None]] = []  # told of each node's events
        self.checks = 0
        self._seen: dict[Host, _Seen] = {}

    def name(self, process: int) -> str:
        """Name a process for people."""
        life = self.lives.get(process)
        return f"process {process}" if life is None else life.name

    def started(self, host: Host) -> None:
        """Enter a process that has just begun."""
        life = Life(f"{host.name}/{host.starts}", host, host.cluster)
        life.metadata = host.metadata_given
        self.lives[host.process] = life
        self._seen[host] = _Seen()

    def ended(self, host: Host, how: str) -> None:
        """Enter the end of a process."""
        self.lives[host.process].ended = how

    def called(self, host: Host, what: str) -> None:
        """Look at what a call has changed.

        Raises:
            Violation: a rule is broken.
        """
        seen = self._seen[host]
        seen.calls += 1
        life = self.lives[host.process]
        life.addresses.add(host.address)
        life.left = life.left or host.leaving
        if host.packets:
            self._check_packets(host)
        if what == "handle_timer":
            self._check_timer(host, seen)
        if host.events:
            if len(host.events) > self.settings.events_max:
                sentence = f"{host.name} has kept {len(host.events)} events"
                raise Violation("bounds", sentence, host.name)
            for event in host.events:
                for listener in self.listeners:
                    listener(host, event)
        if host.events or seen.calls % MEMBERS_EVERY_CALLS == 0:
            self._check_members(host, seen)
            self._check_streams(host)

    def _check_packets(self, host: Host) -> None:
        count = len(host.packets)
        if count > PACKETS_PER_CALL_MAX:
            raise Violation("bounds", f"{host.name} sends {count} packets in one call", host.name)
        size_max = self.settings.packet_bytes_max
        for data, _ in host.packets:
            if len(data) > size_max:
                sentence = f"{host.name} sends a packet of {len(data)} bytes, not {size_max}"
                raise Violation("packet size", sentence, host.name)

    def _check_timer(self, host: Host, seen: _Seen) -> None:
        now = host.world.now
        if int(now) != seen.second:
            seen.second = int(now)
            seen.timer_calls = 0
        seen.timer_calls += 1
        if now != seen.instant:
            seen.instant = now
            seen.timer_calls_at_once = 0
        seen.timer_calls_at_once += 1
        if seen.timer_calls_at_once > TIMER_CALLS_AT_ONCE_MAX:
            sentence = f"{host.name} asks to be called again and again at the same instant"
            raise Violation("busy loop", sentence, host.name)
        if seen.timer_calls > TIMER_CALLS_PER_S_MAX:
            sentence = f"{host.name} had its timer called {seen.timer_calls} times in a second"
            raise Violation("busy loop", sentence, host.name)

    def _check_streams(self, host: Host) -> None:
        opened = sum(1 for stream in host.ends if stream > 0)
        accepted = sum(1 for end in host.ends.values() if end.taken)
        settings = self.settings
        opened_max = settings.streams_max + LINKS_MAX
        accepted_max = opened_max + settings.streams_pending_max
        if opened > opened_max or accepted > accepted_max:
            sentence = f"{host.name} holds {opened} streams that it opened, {accepted} accepted"
            raise Violation("bounds", sentence, host.name)

    def _check_members(self, host: Host, seen: _Seen) -> None:
        assert host.node is not None
        self.checks += 1
        members = host.node.members()
        if len(members) > self.settings.members_max + 1:
            raise Violation("bounds", f"{host.name} holds {len(members)} members", host.name)
        held = seen.members
        selves = 0
        for member in members:
            shown = (member.incarnation, member.state)
            if member.process == host.process:
                selves += 1
                self._check_self(host, member)
            if held.get(member.process) != shown:
                self._check_change(host, member, held.get(member.process))
                held[member.process] = shown
        if selves != 1:
            raise Violation("self", f"{host.name} lists itself {selves} times", host.name)

    def _check_self(self, host: Host, member: Member) -> None:
        if member.state is not MemberState.ALIVE and not host.leaving:
            sentence = f"{host.name} holds itself {member.state.name.lower()}"
            raise Violation("self", sentence, host.name)

    def _check_change(
        self, host: Host, member: Member, before: tuple[int, MemberState] | None
    ) -> None:
        life = self.lives.get(member.process)
        if life is None:
            sentence = f"{host.name} has a member that never was: {member}"
            raise Violation("members", sentence, host.name)
        about = f"{host.name} holds {life.name} {member.state.name} of {member.incarnation}"
        concerned = (host.name, life.host.name)
        if life.cluster != host.cluster:
            sentence = f"{about}, which is of the cluster {life.cluster}, not {host.cluster}"
            raise Violation("clusters", sentence, *concerned)
        if before is not None:
            if before > (member.incarnation, member.state):
                sentence = f"{about}, after {before[1].name} of {before[0]}"
                raise Violation("order", sentence, *concerned)
            if before[1] is MemberState.LEFT and member.state is not MemberState.LEFT:
                raise Violation("left is final", f"{about}, after it had left", *concerned)
        if member.state is MemberState.LEFT and not life.left:
            raise Violation("left", f"{about}, and nobody asked it to leave", *concerned)
        if member.address not in life.addresses or member.metadata_bytes not in life.metadata:
            sentence = (
                f"{about} at {member.address} with {member.metadata_bytes!r}, which never was so"
            )
            raise Violation("members", sentence, *concerned)


def disagreement(safety: Safety, hosts: Iterable[Host]) -> Found:
    """Say in one sentence what a live node does not see as it is, and which hosts it concerns.

    Every live node has to hold exactly the live processes as alive, with the address, metadata and
    keys that they have now; who was killed as dead, and who left as left (or as dead, when the
    leaving was cut short or heard by nobody).
    """
    live = [host for host in hosts if host.node is not None and not host.leaving]
    by_process = {host.process: host for host in live}
    for host in live:
        found = _disagreement_of(safety, host, by_process)
        if found is not None:
            return found
    return None


def _disagreement_of(safety: Safety, host: Host, live: dict[int, Host]) -> Found:
    assert host.node is not None
    missing = dict(live)
    for member in host.node.members():
        about = f"{host.name} holds {safety.name(member.process)} {member.state.name}"
        other = missing.pop(member.process, None)
        if other is not None:
            now = (other.address, other.metadata, other.keyring.tags)
            told = (member.address, member.metadata_bytes, tuple(member.keys))
            if member.state is not MemberState.ALIVE:
                return f"{about} of {member.incarnation}, which runs", (host.name, other.name)
            if told != now:
                return f"{about} with {told}, not {now}", (host.name, other.name)
            continue
        life = safety.lives[member.process]
        if member.state is MemberState.DEAD or (member.state is MemberState.LEFT and life.left):
            continue
        concerned = (host.name, life.host.name)
        return f"{about}, which was {life.ended}", concerned
    if missing:
        others = tuple(other.name for other in missing.values())
        return f"{host.name} does not know {', '.join(others)}", (host.name, *others)
    return None
