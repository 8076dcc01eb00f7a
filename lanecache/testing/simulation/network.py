"""The network between the hosts: who reaches whom, and what happens to packets on the way.

A link is a pair of hosts in one direction. What is wrong with it is the sum of the `Effect`s that
hold at the time: losses multiply, delays add up, and one blocking effect blocks. TCP (``streams``)
goes over the same links and sees their faults as TCP does: as delay, and as silence.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lanecache.address import Address
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.world import World

DATAGRAM_BYTES_MAX = 65_507  # what UDP over IPv4 can carry at all
HEADER_BYTES = 28  # of IPv4 and UDP, for the counts of what a network carries
LATENCY_S_MIN = 0.000_1
LATENCY_S_MAX = 0.001
RETRANSMIT_S = 0.2  # TCP's least retransmission timeout (Linux: TCP_RTO_MIN)
RECORDED_MAX = 512  # packets kept for `Network.replay`

Link = tuple[int, int]  # from the host of this index to the one of that


@dataclass(frozen=True, slots=True)
class Effect:
    """What a fault does to the links that it holds for; the default does nothing."""

    loss: float = 0.0  # the share of packets that never arrive
    delay_s: float = 0.0
    jitter_s: float = 0.0  # up to so much more, evenly
    duplicate: float = 0.0  # the share of packets that arrive twice
    reorder: float = 0.0  # the share of packets that others overtake
    corrupt: float = 0.0  # the share of packets of which a damaged copy arrives as well
    blocked: bool = False  # nothing passes
    udp_blocked: bool = False  # no packet passes, TCP does


NOTHING = Effect()


def summed(effects: Iterable[Effect]) -> Effect:
    """Put together what holds for one link at the same time."""
    found = list(effects)
    return Effect(
        loss=1.0 - math.prod(1.0 - effect.loss for effect in found),
        delay_s=sum(effect.delay_s for effect in found),
        jitter_s=sum(effect.jitter_s for effect in found),
        duplicate=max((effect.duplicate for effect in found), default=0.0),
        reorder=max((effect.reorder for effect in found), default=0.0),
        corrupt=max((effect.corrupt for effect in found), default=0.0),
        blocked=any(effect.blocked for effect in found),
        udp_blocked=any(effect.udp_blocked for effect in found),
    )


class Network:
    """Carries packets between hosts, and knows the state of every link."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random("network")
        self.hosts: list[Host] = []
        self.at_address: dict[Address, Host] = {}
        self.recording = False  # whether packets are kept for `replay`
        self._recorded: deque[tuple[bytes, Address, Address]] = deque(maxlen=RECORDED_MAX)
        self._effects: dict[Link, list[Effect]] = {}
        self._summed: dict[Link, Effect] = {}

    def add(self, effect: Effect, links: Iterable[Link]) -> None:
        """Let ``effect`` hold for ``links`` from now on."""
        for link in links:
            held = self._effects.setdefault(link, [])
            held.append(effect)
            self._summed[link] = summed(held)

    def remove(self, effect: Effect, links: Iterable[Link]) -> None:
        """Take back what `add` did with the same arguments."""
        for link in links:
            held = self._effects[link]
            held.remove(effect)
            if held:
                self._summed[link] = summed(held)
            else:
                del self._effects[link], self._summed[link]

    def effect(self, source: Host, target: Host) -> Effect:
        """Say what is wrong between two hosts, in this direction."""
        return self._summed.get((source.index, target.index), NOTHING)

    def reaches(self, source: Host, target: Host) -> bool:
        """Say whether anything gets from one host to the other, and finds it switched on."""
        return target.powered and not self.effect(source, target).blocked

    def latency_s(self, source: Host, target: Host) -> float:
        """Draw how long something takes that is not lost."""
        if source is target:
            return 0.000_02
        random = self.random
        took_s = LATENCY_S_MIN + (LATENCY_S_MAX - LATENCY_S_MIN) * random.random()
        effect = self._summed.get((source.index, target.index))
        if effect is not None:
            took_s += effect.delay_s + effect.jitter_s * random.random()
        return took_s

    def stream_latency_s(self, source: Host, target: Host) -> float:
        """Draw how long a segment takes with TCP's retransmissions; the link is not blocked."""
        took_s = self.latency_s(source, target)
        loss = self.effect(source, target).loss
        if loss and source is not target:
            again_s = RETRANSMIT_S
            while self.random.random() < loss and again_s < 10.0:
                took_s += again_s
                again_s *= 2
        return took_s

    def send(self, source: Host, data: bytes, destination: Address) -> None:
        """Carry a packet, or lose it."""
        world = self.world
        source.sent_packets += 1
        source.sent_bytes += len(data) + HEADER_BYTES
        target = self.at_address.get(destination)
        if target is None:
            world.record(source.name, "sends to nobody", destination, data)
            return
        random = self.random
        took_s = self.latency_s(source, target)
        if source is not target:
            effect = self._summed.get((source.index, target.index))
            if effect is not None:
                if effect.blocked or effect.udp_blocked or random.random() < effect.loss:
                    world.record(source.name, "loses", target.name, data)
                    return
                if effect.reorder and random.random() < effect.reorder:
                    took_s += random.random() * 0.5
                if effect.duplicate and random.random() < effect.duplicate:
                    again_s = took_s + random.random() * 0.5
                    world.after(again_s, self._arrive, data, source.address, destination)
                if effect.corrupt and random.random() < effect.corrupt:
                    damaged = self._damaged(data)
                    world.after(took_s, self._arrive, damaged, source.address, destination)
            if self.recording and random.random() < 0.05:
                self._recorded.append((data, source.address, destination))
        world.record(source.name, "sends", target.name, data)
        world.after(took_s, self._arrive, data, source.address, destination)

    def inject(self, data: bytes, source: Address, destination: Address) -> None:
        """Let a packet arrive that no host has sent, or not now."""
        self.world.record("network", "injects", source, destination, data)
        self.world.after(LATENCY_S_MIN, self._arrive, data, source, destination)

    def replay(self) -> None:
        """Send a packet of the past again: to whom it went, or to another; as whoever it was."""
        if not self._recorded:
            return
        random = self.random
        data, source, destination = random.choice(self._recorded)
        if random.random() < 0.3:
            destination = random.choice(self.hosts).address
        if random.random() < 0.3:
            source = random.choice(self.hosts).address
        self.inject(data, source, destination)

    def _arrive(self, data: bytes, source: Address, destination: Address) -> None:
        target = self.at_address.get(destination)
        if target is not None and target.powered:
            target.packet_arrived(data, source)

    def _damaged(self, data: bytes) -> bytes:
        random = self.random
        kind = random.randrange(4)
        at = random.randrange(len(data))
        if kind == 0:
            return data[:at]
        if kind == 1:
            return data + random.randbytes(random.randrange(1, DATAGRAM_BYTES_MAX - len(data)))
        if kind == 2:
            return random.randbytes(random.randrange(1, 2000))
        return data[:at] + bytes((data[at] ^ (1 << random.randrange(8)),)) + data[at + 1 :]
