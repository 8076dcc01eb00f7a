"""Figures that a simulated cluster gives: false deaths, how fast news spreads, what it costs.

Each is a command, and each says how it was measured, so that the README's figures can be had again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lanecache.cluster.events import MemberFailed, MemberJoined
from lanecache.cluster.settings import PRESETS, Settings
from lanecache.testing.simulation.checkers import Safety, disagreement
from lanecache.testing.simulation.network import HEADER_BYTES
from lanecache.testing.simulation.scenario import PORT, Scene

if TYPE_CHECKING:
    from lanecache.testing.simulation.hosts import Host

# The experiments of "Lifeguard: Local Health Awareness for More Accurate Failure Detection"
# (Dadgar, Phillips, Currey; section V): a member that hears and says nothing for so long, then is
# itself for so long, and so on.
SLOW_S = (4.0, 8.0, 16.0, 32.0)
BETWEEN_S = (0.016, 0.256, 1.024)
SWIM_MULTIPLIER = 5  # the paper's α, and memberlist's at the time

JOIN_WITHIN_S = 10.0
CHURN_EVERY_S = 10.0


@click.group()
def measure() -> None:
    """Measure what the README tells, on virtual time."""


def plain_swim(settings: Settings, multiplier: int) -> Settings:
    """Take Lifeguard out: no awareness, and each suspicion lasts as long as any other."""
    return msgspec.structs.replace(
        settings,
        awareness_max=1,
        suspicion_max_multiplier=1,
        suspicion_multiplier=multiplier,
    )


class Quiet(Safety):
    """Tells the listeners of events, and checks nothing: a thousand nodes are a million members."""

    def called(self, host: Host, what: str) -> None:
        """Tell the listeners."""
        if host.events:
            life = self.lives[host.process]
            life.addresses.add(host.address)
            for event in host.events:
                for listener in self.listeners:
                    listener(host, event)


def cluster(seed: int, settings: Settings, nodes: int, within_s: float, seeds: int = 3) -> Scene:
    """Put up a cluster whose hosts all start within a time, evenly."""
    scene = Scene(seed, settings, watch=Quiet)
    scene.seeds = tuple(f"n{index:02}.test:{PORT}" for index in range(min(seeds, nodes)))
    chance = scene.world.random("start")
    for _ in range(nodes):
        host = scene.add_host()
        scene.names.hosts[f"{host.name}.test"] = [host.address.host]
        scene.world.at(chance.uniform(0, within_s), scene.start, host)
    return scene


def run_until(
    scene: Scene, done: Callable[[], bool], within_s: float, step_s: float = 0.1
) -> float:
    """Let time pass until something is so, and say how long it took.

    Raises:
        click.ClickException: it is not so in time.
    """
    begun_at = scene.world.now
    while not done():
        if scene.world.now - begun_at > within_s:
            raise click.ClickException(f"not done in {within_s:.0f} s of virtual time")
        scene.world.run(scene.world.now + step_s)
    return scene.world.now - begun_at


def agreed(scene: Scene) -> bool:
    """Say whether everybody holds the truth, of everybody."""
    return disagreement(scene.safety, scene.hosts) is None


# False deaths


def false_deaths(
    seed: int, settings: Settings, nodes: int, slow_s: float, between_s: float, lasts_s: float
) -> tuple[int, int]:
    """Count how often a healthy node was taken for dead while one other node was slow.

    Returns:
        By anybody, and by nodes that are healthy themselves (FP and FP- in the paper).
    """
    scene = cluster(seed, settings, nodes, within_s=2.0)
    run_until(scene, lambda: len(scene.live()) == nodes and agreed(scene), within_s=120.0)
    slow = scene.hosts[-1]
    counts = [0, 0]

    def listen(host: Host, event: Any) -> None:
        if isinstance(event, MemberFailed) and event.member.process != slow.process:
            counts[0] += 1
            counts[1] += host is not slow

    scene.safety.listeners.append(listen)
    ends_at = scene.world.now + lasts_s
    while scene.world.now < ends_at:
        slow.mute()
        scene.world.run(scene.world.now + slow_s)
        slow.unmute()
        scene.world.run(scene.world.now + between_s)
    scene.world.run(scene.world.now + 10.0)
    return counts[0], counts[1]


@measure.command()
@click.option("--nodes", default=32, show_default=True)
@click.option("--seconds", default=120.0, show_default=True, help="Virtual time of each run.")
@click.option("--seeds", default=2, show_default=True, help="Runs of each kind.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="lan", show_default=True)
def lifeguard(nodes: int, seconds: float, seeds: int, preset: str) -> None:
    """Count false deaths of healthy nodes where one node is slow: Lifeguard and plain SWIM."""
    settings = PRESETS[preset]
    kinds = {
        f"SWIM, suspicion {SWIM_MULTIPLIER}": plain_swim(settings, SWIM_MULTIPLIER),
        f"SWIM, suspicion {settings.suspicion_multiplier}": plain_swim(
            settings, settings.suspicion_multiplier
        ),
        "as shipped": settings,
    }
    begun_at = time.process_time()
    head = " | ".join(f"slow for {slow_s:g} s" for slow_s in SLOW_S)
    click.echo(f"| | {head} | all | seen by anybody |")
    click.echo("|---|" + "---:|" * (len(SLOW_S) + 2))
    for name, chosen in kinds.items():
        total = 0
        healthy = []
        for slow_s in SLOW_S:
            runs = [
                false_deaths(seed, chosen, nodes, slow_s, between_s, seconds)
                for between_s in BETWEEN_S
                for seed in range(1, seeds + 1)
            ]
            total += sum(run[0] for run in runs)
            healthy.append(sum(run[1] for run in runs))
        figures = " | ".join(f"{count:,}" for count in (*healthy, sum(healthy), total))
        click.echo(f"| {name} | {figures} |")
    click.echo(
        "\nhealthy nodes taken for dead by healthy nodes (the last column: by the slow one too);"
        f" {nodes} nodes, one of them slow, with {spelled(BETWEEN_S)} s between,"
        f" {seconds:.0f} s for each of these, {seeds} seeds;"
        f" {time.process_time() - begun_at:.0f} s of CPU time"
    )


def spelled(values: tuple[float, ...]) -> str:
    """Spell a few numbers."""
    return ", ".join(f"{value:g}" for value in values)


# News


def join_all(scene: Scene, nodes: int, within_s: float) -> float:
    """Let all join, and say how long after the last start everybody knew everybody."""
    known: dict[str, int] = {}

    def listen(host: Host, event: Any) -> None:
        if isinstance(event, MemberJoined):
            known[host.name] = known.get(host.name, 0) + 1
        elif isinstance(event, MemberFailed):
            known[host.name] = known.get(host.name, 0) - 1

    scene.safety.listeners.append(listen)
    run_until(scene, lambda: len(scene.live()) == nodes, within_s)

    def all_known() -> bool:
        return sum(known.values()) == nodes * (nodes - 1)

    took_s = run_until(scene, all_known, within_s)
    scene.safety.listeners.remove(listen)
    found = disagreement(scene.safety, scene.hosts)
    if found is not None:
        raise click.ClickException(f"all were told of all, and yet {found[0]}")
    return took_s


def crash_one(scene: Scene, within_s: float) -> list[float]:
    """Kill one, and say after how long each of the others knew."""
    chance = scene.world.random("crash")
    victim = chance.choice([host for host in scene.live() if host not in scene.hosts[:3]])
    process = victim.process
    known: list[float] = []
    begun_at = scene.world.now

    def listen(_: Host, event: Any) -> None:
        if isinstance(event, MemberFailed) and event.member.process == process:
            known.append(scene.world.now - begun_at)

    scene.safety.listeners.append(listen)
    victim.kill()
    others = len(scene.live())
    run_until(scene, lambda: len(known) >= others, within_s)
    scene.safety.listeners.remove(listen)
    return sorted(known)


@measure.command()
@click.option("--nodes", default=1000, show_default=True)
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="lan", show_default=True)
@click.option("--seed", default=1, show_default=True)
def news(nodes: int, preset: str, seed: int) -> None:
    """Let many nodes join, and kill one: how long until everybody knows."""
    gc.disable()  # nothing here is garbage, and there are millions of objects
    begun_at = time.process_time()
    settings = PRESETS[preset]
    scene = cluster(seed, settings, nodes, JOIN_WITHIN_S)
    joined_s = join_all(scene, nodes, within_s=300.0)
    click.echo(
        f"{nodes} nodes started within {JOIN_WITHIN_S:.0f} s know each other"
        f" {joined_s:.1f} s after the last start"
    )
    times = crash_one(scene, within_s=300.0)
    click.echo(
        f"one is killed: the first knows after {times[0]:.1f} s, half of them after"
        f" {times[len(times) // 2]:.1f} s, all after {times[-1]:.1f} s"
    )
    click.echo(f"{time.process_time() - begun_at:.0f} s of CPU time")


# Traffic


def traffic(scene: Scene, lasts_s: float) -> tuple[float, float]:
    """Let time pass, and say how many bytes per node and second were sent: packets, streams."""
    hosts = scene.hosts
    packets = sum(host.sent_bytes for host in hosts)
    streams = sum(host.sent_stream_bytes for host in hosts)
    scene.world.run(scene.world.now + lasts_s)
    scale = len(hosts) * lasts_s
    return (
        (sum(host.sent_bytes for host in hosts) - packets) / scale,
        (sum(host.sent_stream_bytes for host in hosts) - streams) / scale,
    )


@measure.command(name="traffic")
@click.option("--nodes", default="10,100,1000", show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="Virtual time of each figure.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="lan", show_default=True)
@click.option("--seed", default=1, show_default=True)
def traffic_command(nodes: str, seconds: float, preset: str, seed: int) -> None:
    """Print the bytes per node and second, idle and while nodes crash and come back."""
    gc.disable()
    begun_at = time.process_time()
    click.echo("| nodes | idle, UDP | idle, TCP | churn, UDP | churn, TCP |")
    click.echo("|---:|---:|---:|---:|---:|")
    for count in (int(each) for each in nodes.split(",")):
        scene = cluster(seed, PRESETS[preset], count, JOIN_WITHIN_S)
        join_all(scene, count, within_s=300.0)
        # The news of the joins is told until it is old.
        scene.world.run(scene.world.now + 30.0)
        idle = traffic(scene, seconds)
        churn(scene, seconds)
        busy = traffic(scene, seconds)
        figures = " | ".join(f"{value:,.0f}" for value in (*idle, *busy))
        click.echo(f"| {count:,} | {figures} |")
    click.echo(
        f"\nbytes per node and second, as sealed, with {HEADER_BYTES} for the headers of each"
        " packet (IPv4, UDP);"
        f" churn: every {CHURN_EVERY_S:.0f} s one node is killed and started again at once;"
        f" {seconds:.0f} s each; {time.process_time() - begun_at:.0f} s of CPU time"
    )


def churn(scene: Scene, lasts_s: float) -> None:
    """Have a node killed and started again every few seconds."""
    chance = scene.world.random("churn")

    def happen(host: Host) -> None:
        host.kill()
        scene.start(host)

    for index in range(int(lasts_s / CHURN_EVERY_S)):
        host = chance.choice(scene.hosts[3:])
        scene.world.after((index + 0.5) * CHURN_EVERY_S, happen, host)
