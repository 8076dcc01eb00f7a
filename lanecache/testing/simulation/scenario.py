"""One seed's story: hosts start, faults befall them and end, and all has to be well again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lanecache.address import Address, plain_host
from lanecache.cluster.node import Node
from lanecache.cluster.settings import LAN, LOCAL, WAN, Settings
from lanecache.cluster.wire.keyring import Keyring
from lanecache.cluster.wire.messages import MemberState
from lanecache.testing.simulation.checkers import Found, Safety, disagreement
from lanecache.testing.simulation.hosts import Host, NodeFactory
from lanecache.testing.simulation.names import Names
from lanecache.testing.simulation.network import Network
from lanecache.testing.simulation.streams import Streams
from lanecache.testing.simulation.violation import Violation
from lanecache.testing.simulation.world import World

PORT = 7946
CLUSTER = "simulated"
QUIET_S = 3.0  # so long all agree before that is believed
CHECK_EVERY_S = 1.0
SEEDS_MAX = 3
TIGHT = {
    "streams_max": 24,
    "streams_pending_max": 12,
    "events_max": 12,
    "senders_max": 64,
    "members_max": 120,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run that broke no rule has to tell."""

    seed: int
    nodes: int  # hosts of the cluster, those that came later included
    faults: tuple[str, ...]
    virtual_s: float
    steps: int
    checks: int
    writes: int = 0  # entries
    looks: int = 0  # items looked at
    converged_s: float  # after the faults had ended
    disagreed: str  # what was seen last that was not so, before all agreed


def make_node(settings: Settings) -> NodeFactory:
    """Make nodes as the asyncio shell does, with the host's generators in place of the system's."""

    def make(host: Host, generator: random.Random) -> Node:
        return Node(
            msgspec.structs.replace(settings, **host.changes),
            host.keyring,
            host.address,
            seeds=host.seeds,
            metadata=host.metadata,
            process=host.process,
            random=generator,
            entropy=random.Random(generator.getrandbits(64)).randbytes,
            wall=host.wall,
            monotonic=host.clock.read,
        )

    return make


class Scene:
    """A cluster in a world: hosts, the network between them, and what everybody agreed upon."""

    def __init__(
        self,
        seed: int,
        settings: Settings,
        *,
        factory: Callable[[Settings], NodeFactory] = make_node,
        watch: type[Safety] = Safety,
        ipv6: bool = False,
    ) -> None:
        self.world = World(seed)
        self.settings = settings
        self.network = Network(self.world)
        self.streams = Streams(self.world, self.network)
        self.names = Names(self.world)
        self.safety = watch(settings)
        self.hosts: list[Host] = []  # of the cluster
        self.seed_hosts: list[Host] = []  # of them
        self.strangers: list[Host] = []
        keys = self.world.random("secrets")
        self.secrets = (keys.randbytes(32), keys.randbytes(32), keys.randbytes(32))
        self.keyrings = [
            Keyring.of(CLUSTER, self.secrets[:1]),
            Keyring.of(CLUSTER, self.secrets[:2]),
            Keyring.of(CLUSTER, self.secrets[1::-1]),
            Keyring.of(CLUSTER, self.secrets[1:2]),
        ]
        self.keyring = self.keyrings[0]  # that a new host is given
        self.seeds: tuple[str, ...] = ()
        self.on_host: list[Callable[[Host], None]] = []  # told of each new host of the cluster
        # Asked in the end, in this order, what is not as it has to be.
        self.questions: list[Callable[[], Found]] = [lambda: disagreement(self.safety, self.hosts)]
        self.disagreed = ""  # what was the last thing that somebody did not see as it is
        self._ipv6 = ipv6
        self._addresses = 0
        self._factory = factory(settings)

    @staticmethod
    def generator(seed: int, name: str) -> random.Random:
        """Derive a generator from a seed before there is a world."""
        return World(seed).random(name)

    def every_keyring(self) -> list[Keyring]:
        """List the keyrings of all that may appear, strangers included."""
        own = Keyring.of(CLUSTER, self.secrets[2:])
        return [*self.keyrings[::3], own, Keyring.of("elsewhere", self.secrets[:1])]

    def fresh_address(self) -> Address:
        """Give an address that no host has had yet."""
        self._addresses += 1
        high, low = divmod(self._addresses, 250)
        host = f"fd00::{high:x}:{low + 1:x}" if self._ipv6 else f"10.0.{high}.{low + 1}"
        return Address(plain_host(host), PORT)

    def add_host(self, *, address: Address | None = None) -> Host:
        """Put up a machine of the cluster; nothing runs on it yet."""
        host = self._make_host(f"n{len(self.hosts):02}", CLUSTER, self.keyring, address)
        self.hosts.append(host)
        for told in self.on_host:
            told(host)
        return host

    def add_stranger(self, cluster: str, keyring: Keyring, address: Address | None) -> Host:
        """Put up a machine that belongs to somebody else, where nothing runs any more."""
        holder = None if address is None else self.network.at_address.get(address)
        if holder is not None:
            if holder.node is not None:
                address = None
            else:
                holder.powered = False
        host = self._make_host(f"x{len(self.strangers):02}", cluster, keyring, address)
        self.strangers.append(host)
        return host

    def _make_host(
        self, name: str, cluster: str, keyring: Keyring, address: Address | None
    ) -> Host:
        host = Host(
            self.world,
            self.network,
            self.streams,
            self.names,
            address or self.fresh_address(),
            name=name,
            cluster=cluster,
            keyring=keyring,
            make_node=self._factory,
            watch=self.safety,
        )
        host.seeds = self.seeds
        return host

    def start(self, host: Host, address: Address | None = None) -> None:
        """Start a host's process, where it was or elsewhere; the names follow it."""
        if host.node is not None:
            return
        wanted = address or host.address
        holder = self.network.at_address.get(wanted)
        if holder is not None and holder is not host:
            if holder.node is not None:
                wanted = self.fresh_address()
            else:
                holder.powered = False  # nothing answers there any more but the new one
        host.start(wanted)
        self.names.hosts[f"{host.name}.test"] = [wanted.host]
        self.names.hosts["seeds.test"] = [each.address.host for each in self.seed_hosts]

    def live(self) -> list[Host]:
        """List the hosts of the cluster that run and mean to stay."""
        return [host for host in self.hosts if host.running]

    def converge(self, within_s: float) -> float:
        """Let time pass until all live nodes agree, and say how long that took.

        Raises:
            Violation: they do not agree in time.
        """
        begun_at = self.world.now
        agreed_at: float | None = None
        while True:
            self.world.run(self.world.now + CHECK_EVERY_S)
            found = next(filter(None, (ask() for ask in self.questions)), None)
            if found is None:
                agreed_at = self.world.now if agreed_at is None else agreed_at
                if self.world.now - agreed_at >= QUIET_S:
                    return agreed_at - begun_at
                continue
            agreed_at = None
            self.disagreed = found[0]
            if self.world.now - begun_at > within_s:
                sentence, concerned = found
                took_s = self.world.now - begun_at
                message = f"{took_s:.0f} s after the last fault {sentence}"
                raise Violation("agreement", message, *concerned)


def settle_s(settings: Settings, nodes: int) -> float:
    """Bound how long it may take until all agree after the last fault."""
    return (
        settings.seed_retry_s
        + 3 * settings.dead_retry_s
        + 3 * settings.push_pull_s(nodes)
        + settings.suspicion_max_s(nodes)
        + settings.awareness_max * settings.probe_interval_s
        + 2 * nodes * settings.probe_interval_s
        + 3 * settings.stream_timeout_s
    )


def choose_settings(chance: random.Random, faults: tuple[str, ...]) -> Settings:
    """Draw a preset; over TCP only when that is among the faults; some with tight bounds."""
    settings = chance.choices((LAN, LOCAL, WAN), (6, 3, 1))[0]
    tight = chance.random() < 0.5
    if "tcp-only" in faults:
        return msgspec.structs.replace(settings, udp=False)
    if tight:
        # So that they are met: what a bound does is then simulated too.
        settings = msgspec.structs.replace(settings, **TIGHT)
    return settings


def choose_nodes(chance: random.Random, least: int, most: int) -> int:
    """Draw how many hosts there are, small clusters as often as large ones."""
    return min(most, int(least * ((most + 1) / least) ** chance.random()))


def start_all(scene: Scene, nodes: int, within_s: float, *, literal: bool) -> None:
    """Put up the first hosts and start them, one after the other or all at once.

    Their seeds are names, or ``literal`` addresses.
    """
    chance = scene.world.random("start")
    seeds = chance.randint(1, min(SEEDS_MAX, nodes))
    scene.seeds = tuple(f"n{index:02}.test:{PORT}" for index in range(seeds))
    if chance.random() < 0.2:
        scene.seeds = (f"seeds.test:{PORT}",)
    hosts = [scene.add_host() for _ in range(nodes)]
    scene.seed_hosts = hosts[:seeds]
    if literal:
        scene.seeds = tuple(str(host.address) for host in scene.seed_hosts)
    for host in hosts:
        host.seeds = scene.seeds
    for host in scene.seed_hosts:
        scene.names.hosts[f"{host.name}.test"] = [host.address.host]
    scene.names.hosts["seeds.test"] = [host.address.host for host in scene.seed_hosts]
    at_once = chance.random() < 0.3
    for host in hosts:
        scene.world.at(0.0 if at_once else chance.uniform(0, within_s), scene.start, host)


def end_well(scene: Scene, more_s: float = 0.0) -> None:
    """When all faults are over: one leaves, one is killed, one joins, and everybody knows.

    Raises:
        Violation: not everybody does, in time.
    """
    chance = scene.world.random("end")
    live = scene.live()
    settings = scene.settings
    others = [host for host in live if host not in scene.seed_hosts]
    if len(others) < 2:
        return
    leaver, killed = chance.sample(others, 2)
    left = leaver.process
    joiner = scene.add_host()
    leaver.leave()
    killed.kill()
    scene.start(joiner)
    within_s = (
        settings.suspicion_max_s(len(live))
        + 2 * len(live) * settings.probe_interval_s
        + settings.push_pull_s(len(live))
        + settings.leave_s
        + more_s
    )
    scene.converge(within_s)
    if leaver.node is not None:
        raise Violation("leaving", f"{leaver.name} has not left in {within_s:.0f} s", leaver.name)
    for host in scene.live():
        assert host.node is not None
        for member in host.node.members():
            if member.process == left and member.state is not MemberState.LEFT:
                sentence = f"{host.name} holds {leaver.name} {member.state.name}, which has left"
                raise Violation("leaving", sentence, host.name, leaver.name)
