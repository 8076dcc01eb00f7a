"""What can go wrong, by name, and when it does in one run: all of it follows from the seed.

A fault is a function that draws from its own generator and puts what it does on the world's heap.
Whatever it begins it also ends, at ``Stage.ends_at`` at the latest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from lanecache.cluster.wire.keyring import Keyring
from lanecache.config import METADATA_BYTES_MAX
from lanecache.testing.simulation.hosts import LAG_S_MAX, Host
from lanecache.testing.simulation.network import Effect
from lanecache.testing.simulation.scenario import CLUSTER

if TYPE_CHECKING:
    import random

    from lanecache.testing.simulation.stage import Stage

JOINS_MAX = 5

Fault: TypeAlias = "Callable[[Stage, random.Random], None]"


def _loss(stage: Stage, chance: random.Random) -> None:
    """Links lose packets."""
    for _ in stage.times(chance, 3):
        effect = Effect(loss=chance.choice((0.02, 0.1, 0.3, 0.6)))
        stage.hold(effect, stage.links(chance), *stage.window(chance))


def _delay(stage: Stage, chance: random.Random) -> None:
    """Links are slow, and not evenly so."""
    for _ in stage.times(chance, 3):
        delay_s = chance.choice((0.01, 0.1, 0.4, 1.5))
        effect = Effect(delay_s=delay_s, jitter_s=delay_s * chance.random())
        stage.hold(effect, stage.links(chance), *stage.window(chance))


def _reorder(stage: Stage, chance: random.Random) -> None:
    """Packets overtake each other."""
    stage.hold(Effect(reorder=0.3), stage.links(chance), *stage.window(chance, 100.0))


def _duplicate(stage: Stage, chance: random.Random) -> None:
    """Packets arrive twice."""
    stage.hold(Effect(duplicate=0.3), stage.links(chance), *stage.window(chance, 100.0))


def _corrupt(stage: Stage, chance: random.Random) -> None:
    """Damaged copies of packets arrive, and garbage; and streams carry what was not sent."""
    stage.hold(Effect(corrupt=0.1), stage.links(chance), *stage.window(chance))
    begins_at, ends_at = stage.window(chance)
    stage.world.at(begins_at, setattr, stage.scene.streams, "tampered", 0.02)
    stage.world.at(ends_at, setattr, stage.scene.streams, "tampered", 0.0)


def _replay(stage: Stage, chance: random.Random) -> None:
    """Somebody sends packets of the past again, to anybody, as anybody."""
    begins_at, ends_at = stage.window(chance, 100.0)
    stage.world.at(stage.begins_at, setattr, stage.scene.network, "recording", True)
    for _ in range(int((ends_at - begins_at) * 4)):
        stage.world.at(chance.uniform(begins_at, ends_at), stage.scene.network.replay)


def _partition(stage: Stage, chance: random.Random) -> None:
    """The hosts fall into two groups that do not reach each other."""
    for _ in stage.times(chance, 3):
        side = {host.index for host in stage.some(chance)}
        every = range(len(stage.scene.network.hosts))
        links = [(a, b) for a in every for b in every if (a in side) != (b in side)]
        stage.hold(Effect(blocked=True), links, *stage.window(chance, 60.0))


def _one_way(stage: Stage, chance: random.Random) -> None:
    """Nothing gets from some hosts to the others; the other way it does."""
    for _ in stage.times(chance, 2):
        side = {host.index for host in stage.some(chance)}
        every = range(len(stage.scene.network.hosts))
        links = [(a, b) for a in every for b in every if a in side and b not in side]
        if chance.random() < 0.5:
            links = [(b, a) for a, b in links]
        stage.hold(Effect(blocked=True), links, *stage.window(chance))


def _udp_blocked(stage: Stage, chance: random.Random) -> None:
    """A firewall lets TCP through and no UDP."""
    stage.hold(Effect(udp_blocked=True), stage.links(chance), *stage.window(chance))


def _pause(stage: Stage, chance: random.Random) -> None:
    """A process is stopped, or its loop blocked, and goes on after a while."""

    def begin(lasts_s: float) -> None:
        host = stage.running(chance)
        if host is not None:
            host.pause()
            start = host.starts
            until = min(stage.ends_at, stage.world.now + lasts_s)
            stage.world.at(until, lambda: host.resume() if host.starts == start else None)

    for _ in stage.times(chance, 5):
        begins_at, _ = stage.window(chance)
        stage.world.at(begins_at, begin, chance.choice((0.3, 1.0, 3.0, 8.0, 20.0)))


def _slow(stage: Stage, chance: random.Random) -> None:
    """A host hears and says nothing, then everything at once, again and again."""

    def turn(host: Host, muted_s: float, open_s: float, ends_at: float) -> None:
        if stage.world.now >= ends_at:
            return
        if host.muted:
            host.unmute()
            stage.world.after(open_s, turn, host, muted_s, open_s, ends_at)
        else:
            host.mute()
            stage.world.after(muted_s, turn, host, muted_s, open_s, ends_at)
            stage.world.at(ends_at, host.unmute)

    begins_at, ends_at = stage.window(chance)
    for host in stage.some(chance)[:2]:
        muted_s, open_s = chance.choice((0.2, 1.0, 4.0)), chance.choice((0.05, 0.3, 2.0))
        stage.world.at(begins_at, turn, host, muted_s, open_s, ends_at)


def _lag(stage: Stage, chance: random.Random) -> None:
    """The timers of some hosts are late."""

    def put(host: Host, lag_s: float) -> None:
        host.lag_s = lag_s

    begins_at, ends_at = stage.window(chance)
    for host in stage.some(chance):
        stage.world.at(begins_at, put, host, chance.choice((0.05, 0.2, 0.6)))
        stage.world.at(ends_at, put, host, LAG_S_MAX)


def _crash(stage: Stage, chance: random.Random) -> None:
    """A process is killed; it may be started again on the same address."""
    _down(stage, chance, Host.kill)


def _power(stage: Stage, chance: random.Random) -> None:
    """A machine loses its power; it may come up again."""
    _down(stage, chance, Host.switch_off)


def _down(stage: Stage, chance: random.Random, end: Callable[[Host], None]) -> None:
    def happen() -> None:
        host = stage.running(chance)
        if host is not None:
            end(host)
            if chance.random() < 0.7:
                stage.world.after(chance.choice((0.0, 0.5, 3.0, 20.0)), stage.scene.start, host)

    for _ in stage.times(chance, 4):
        stage.world.at(stage.window(chance)[0], happen)


def _move(stage: Stage, chance: random.Random) -> None:
    """A process is killed and comes back at another address: a new one, or one of the dead."""

    def happen() -> None:
        host = stage.running(chance)
        if host is None:
            return
        address = None
        dead = [other for other in stage.scene.hosts if other.node is None]
        kind = chance.randrange(3)
        host.kill()
        if kind == 0 and dead:
            address = chance.choice(dead).address
        elif kind == 1 and (other := stage.running(chance)) is not None:
            # They change places.
            address = other.address
            other.kill()
            mine = host.address
            stage.world.after(chance.random() * 3, stage.scene.start, other, mine)
        address = address or stage.scene.fresh_address()
        stage.world.after(chance.random() * 3, stage.scene.start, host, address)

    for _ in stage.times(chance, 3):
        stage.world.at(stage.window(chance)[0], happen)


def _leave(stage: Stage, chance: random.Random) -> None:
    """A node leaves on purpose; it may come back as a new process."""

    def happen() -> None:
        host = stage.running(chance)
        if host is not None:
            host.leave()
            if chance.random() < 0.5:
                stage.world.after(chance.uniform(0, 20), stage.scene.start, host)

    for _ in stage.times(chance, 3):
        stage.world.at(stage.window(chance)[0], happen)


def _join(stage: Stage, chance: random.Random) -> None:
    """New hosts join, late."""

    def happen() -> None:
        stage.scene.start(stage.scene.add_host())

    for _ in stage.times(chance, JOINS_MAX):
        stage.world.at(stage.window(chance)[0], happen)


def _metadata(stage: Stage, chance: random.Random) -> None:
    """Nodes change what they say of themselves."""

    def happen() -> None:
        host = stage.running(chance)
        if host is not None:
            length = chance.choice((0, 1, 40, METADATA_BYTES_MAX))
            host.set_metadata(chance.randbytes(length))

    for _ in stage.times(chance, 10):
        stage.world.at(stage.window(chance)[0], happen)


def _drift(stage: Stage, chance: random.Random) -> None:
    """Monotonic clocks run at different rates."""
    for host in stage.some(chance):
        stage.world.at(stage.window(chance)[0], host.drift, chance.uniform(0.95, 1.05))
        stage.world.at(stage.ends_at, host.drift, chance.uniform(0.999_5, 1.000_5))


def _wall(stage: Stage, chance: random.Random) -> None:
    """Wall clocks jump, which no decision about members may feel."""

    def happen(host: Host, offset_s: float) -> None:
        host.wall_offset_s = offset_s

    for host in stage.some(chance):
        stage.world.at(stage.window(chance)[0], happen, host, chance.uniform(-1e5, 1e5))


def _dns(stage: Stage, chance: random.Random) -> None:
    """Names are not found, or late."""
    names = stage.scene.names
    begins_at, ends_at = stage.window(chance, 100.0)
    stage.world.at(begins_at, setattr, names, "failing", chance.choice((0.3, 1.0)))
    stage.world.at(begins_at, setattr, names, "late", 0.5)
    stage.world.at(ends_at, setattr, names, "failing", 0.0)
    stage.world.at(ends_at, setattr, names, "late", 0.0)


def _reset(stage: Stage, chance: random.Random) -> None:
    """Streams are reset in the middle of whatever they carry."""

    def happen() -> None:
        ends = [end for host in stage.scene.network.hosts for end in host.ends.values()]
        if ends:
            stage.scene.streams.interrupt(chance.choice(ends))

    for _ in range(chance.randint(20, 200)):
        stage.world.at(chance.uniform(stage.begins_at, stage.ends_at), happen)


def _refuse(stage: Stage, chance: random.Random) -> None:
    """Connections are refused."""
    begins_at, ends_at = stage.window(chance)
    stage.world.at(begins_at, setattr, stage.scene.streams, "refusals", chance.choice((0.3, 1.0)))
    stage.world.at(ends_at, setattr, stage.scene.streams, "refusals", 0.0)


def _slow_reader(stage: Stage, chance: random.Random) -> None:
    """Some processes read their streams slowly."""

    def put(host: Host, rate: float | None) -> None:
        host.read_bytes_s = rate

    begins_at, ends_at = stage.window(chance)
    for host in stage.some(chance):
        stage.world.at(begins_at, put, host, chance.choice((100.0, 2_000.0, 20_000.0)))
        stage.world.at(ends_at, put, host, None)


def _fragments(stage: Stage, chance: random.Random) -> None:
    """Reads of streams give parts of what was sent."""
    stage.scene.streams.fragments = chance.choice((0.3, 0.9))


def _rotate(stage: Stage, chance: random.Random) -> None:
    """The secret is changed on all hosts, in the three steps that need no standstill."""
    scene = stage.scene
    steps = scene.keyrings[1:]
    between_s = (stage.ends_at - stage.begins_at) / len(steps)

    def put(host: Host, keyring: Keyring) -> None:
        host.set_keyring(keyring)

    def step(keyring: Keyring) -> None:
        scene.keyring = keyring
        for host in scene.hosts:
            stage.world.after(chance.random() * between_s * 0.8, put, host, keyring)

    for index, keyring in enumerate(steps):
        stage.world.at(stage.begins_at + index * between_s, step, keyring)


def _stranger(stage: Stage, chance: random.Random) -> None:
    """Nodes of another cluster, or with another secret, come to this one's addresses and seeds."""
    scene = stage.scene

    def happen() -> None:
        if chance.random() < 0.5:
            cluster, keyring = "elsewhere", Keyring.of("elsewhere", scene.secrets[:1])
        else:
            cluster, keyring = f"{CLUSTER} by another", Keyring.of(CLUSTER, scene.secrets[2:])
        dead = [host for host in scene.hosts if host.node is None]
        address = chance.choice(dead).address if dead and chance.random() < 0.7 else None
        stranger = scene.add_stranger(cluster, keyring, address)
        scene.start(stranger)

    for _ in stage.times(chance, 2):
        stage.world.at(stage.window(chance)[0], happen)


def _tcp_only(stage: Stage, chance: random.Random) -> None:
    """All nodes run without UDP (a setting; it holds from the start)."""


FAULTS: dict[str, Fault] = {
    "loss": _loss,
    "delay": _delay,
    "reorder": _reorder,
    "duplicate": _duplicate,
    "corrupt": _corrupt,
    "replay": _replay,
    "partition": _partition,
    "one-way": _one_way,
    "udp-blocked": _udp_blocked,
    "pause": _pause,
    "slow": _slow,
    "lag": _lag,
    "crash": _crash,
    "power": _power,
    "move": _move,
    "leave": _leave,
    "join": _join,
    "metadata": _metadata,
    "drift": _drift,
    "wall": _wall,
    "dns": _dns,
    "reset": _reset,
    "refuse": _refuse,
    "slow-reader": _slow_reader,
    "fragments": _fragments,
    "rotate": _rotate,
    "stranger": _stranger,
    "tcp-only": _tcp_only,
}
SOMETIMES = frozenset({"tcp-only"})  # left out of most runs under all faults


def choose_faults(chance: random.Random, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Draw the faults of one run: all that are allowed, or a part, which finds other things."""
    if chance.random() < 0.5:
        share = chance.random()
        return tuple(name for name in allowed if chance.random() < share)
    return tuple(name for name in allowed if name not in SOMETIMES or chance.random() < 0.15)


def schedule(stage: Stage, names: tuple[str, ...]) -> None:
    """Put the faults of these names on the heap."""
    for name in names:
        FAULTS[name](stage, stage.world.random(f"fault {name}"))
