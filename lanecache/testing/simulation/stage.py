"""When faults may hold, and what they have in common: whom they befall, how long, and their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lanecache.testing.simulation.hosts import LAG_S_MAX, Host

if TYPE_CHECKING:
    import random

    from lanecache.testing.simulation.network import Effect, Link
    from lanecache.testing.simulation.scenario import Scene


class Stage:
    """A scene with the time in which faults may hold, and what faults have in common."""

    def __init__(self, scene: Scene, begins_at: float, ends_at: float) -> None:
        self.scene = scene
        self.world = scene.world
        self.begins_at = begins_at
        self.ends_at = ends_at

    def window(self, chance: random.Random, longest_s: float = 40.0) -> tuple[float, float]:
        """Draw when something begins and ends: short ones are more frequent."""
        begins_at = chance.uniform(self.begins_at, self.ends_at)
        lasts_s = longest_s * chance.random() ** 2
        return begins_at, min(self.ends_at, begins_at + lasts_s)

    def times(self, chance: random.Random, most: int) -> range:
        """Draw how often something happens, at least once."""
        return range(chance.randint(1, most))

    def some(self, chance: random.Random) -> list[Host]:
        """Draw a part of the hosts: one, a few, or a half."""
        hosts = self.scene.hosts
        count = chance.choice((1, 1, 2, max(1, len(hosts) // 2)))
        return chance.sample(hosts, min(count, len(hosts)))

    def links(self, chance: random.Random) -> list[Link]:
        """Draw links: all, those of some hosts, or single ones."""
        every = range(len(self.scene.network.hosts))
        kind = chance.randrange(4)
        if kind == 0:
            return [(a, b) for a in every for b in every if a != b]
        some = {host.index for host in self.some(chance)}
        if kind == 1:
            return [(a, b) for a in every for b in every if a != b and (a in some or b in some)]
        return [(a, b) for a in every for b in every if a != b and chance.random() < 0.3]

    def hold(self, effect: Effect, links: list[Link], begins_at: float, ends_at: float) -> None:
        """Let an effect hold for a time."""
        network = self.scene.network
        self.world.at(begins_at, self.world.record, "network", "begins", effect, len(links))
        self.world.at(begins_at, network.add, effect, links)
        self.world.at(ends_at, network.remove, effect, links)
        self.world.at(ends_at, self.world.record, "network", "ends", effect, len(links))

    def running(self, chance: random.Random) -> Host | None:
        """Draw one of the hosts that run."""
        live = self.scene.live()
        return chance.choice(live) if live else None

    def heal(self) -> None:
        """End what is left of the faults: all go on, and enough of the hosts run again."""
        scene = self.scene
        scene.streams.refusals = scene.streams.tampered = 0.0
        scene.names.failing = scene.names.late = 0.0
        scene.network.recording = False
        for host in scene.network.hosts:
            host.unmute()
            host.resume()
            host.lag_s = LAG_S_MAX
            host.read_bytes_s = None
        for host in scene.hosts:
            # A process that came up while the secrets changed, with what its file held then.
            if host.keyring is not scene.keyring:
                host.set_keyring(scene.keyring)
        least = max(2, len(scene.hosts) // 3)
        for host in scene.hosts:
            if host.leaving and host in scene.seed_hosts:
                host.kill()  # and start again
            if host.node is None and (host in scene.seed_hosts or len(scene.live()) < least):
                scene.start(host)
