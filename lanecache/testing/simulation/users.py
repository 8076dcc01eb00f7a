"""What the services do whose processes the nodes live in: they read and write on their own node.

Keys come in kinds. ``k:``: single keys, of every type of value. ``g:``: groups, whose keys are
always written together. ``t:``: keys with tags. The model database has ``db:`` for itself, but a
service may delete what is there, or clear everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lanecache.testing.simulation import lens
from lanecache.testing.simulation.database import EVERY
from lanecache.testing.simulation.writes import Written

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lanecache.testing.simulation.data_checkers import DataSafety
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.scenario import Scene

SINGLES = tuple(f"k:{index:02}" for index in range(40))
GROUPS = tuple(tuple(f"g:{group}:{index}" for index in range(4)) for group in range(6))
TAGGED = tuple(f"t:{index}" for index in range(12))
TAGS = ("red", "green", "blue")
PREFIXES = ("k:0", "k:1", "k:2", "g:0:", "g:1:", "g:2:", "t:", "db:row:")
WIDE_PREFIXES = ("k:", "g:", "db:", "")
TTLS_S = (0.001, 0.5, 2.0, 8.0, 30.0)
LARGE_BYTES_MAX = 6_000


class Users:
    """Writes and reads on the nodes of a scene, from generators of their own."""

    def __init__(self, scene: Scene, safety: DataSafety) -> None:
        self.scene = scene
        self.safety = safety
        self.writes = safety.writes
        self.ttl_until = 0.0  # when the last of what was written with a TTL is over
        self._random = scene.world.random("users")
        self._values = 0

    def schedule(self, begins_at: float, ends_at: float, per_s: float) -> None:
        """Let writes and reads happen in a time, about so many a second."""
        world = self.scene.world
        for _ in range(int((ends_at - begins_at) * per_s)):
            world.at(self._random.uniform(begins_at, ends_at), self._happen)
        for _ in range(int((ends_at - begins_at) / 10)):
            world.at(self._random.uniform(begins_at, ends_at), self._burst)

    def write(
        self,
        host: Host,
        *,
        sets: Mapping[str, Any] | None = None,
        ttl_s: float | None = None,
        tags: tuple[str, ...] = (),
        removes: tuple[str, ...] = (),
        clears: tuple[str, ...] = (),
        invalidates: tuple[str, ...] = (),
    ) -> None:
        """Write one entry on a host, and enter it."""
        sets = sets or {}
        operations = [
            *(lens.clear(prefix) for prefix in clears),
            *(lens.remove(key) for key in removes),
            *(lens.put(key, value, ttl_s, tags) for key, value in sets.items()),
            *(lens.invalidate(tag) for tag in invalidates),
        ]
        now = self.scene.world.now
        if ttl_s is not None:
            self.ttl_until = max(self.ttl_until, now + ttl_s)

        node = host.node
        assert node is not None

        def call(clock: float) -> None:
            seq = lens.write(node, operations, clock)
            self.safety.wrote(
                host,
                Written(
                    origin=lens.origin(node),
                    seq=seq,
                    order=lens.last_order(node),
                    writer=host.name,
                    at=now,
                    sets=sets,
                    ttl_s=ttl_s,
                    tags=tags,
                    removes=frozenset(removes),
                    clears=clears,
                    invalidates=invalidates,
                ),
            )

        host.do("write", call)

    def read(self, host: Host, key: str) -> None:
        """Read a key on a host, and compare what comes with what is there."""

        node = host.node
        assert node is not None

        def call(_: float) -> None:
            self.safety.was_read(host, key, lens.get(node, key))

        host.do("get", call)

    def value(self, copies: int = 1) -> Any:
        """Make a value of any type, to be written so many times in one entry."""
        chance = self._random
        self._values += 1
        number = self._values
        kinds: tuple[Any, ...] = (
            number,
            float(number) + 0.5,
            f"value {number} \N{SNOWMAN}",
            b"value %d \xff" % number,
            [number, None, True, "x"],
            {"number": number, "more": [1.5, b"\x00"]},
            -number - 2**40,
            None,
            number % 2 == 0,
            f"{number} " + "x" * int(LARGE_BYTES_MAX / copies * chance.random() ** 3),
        )
        return chance.choice(kinds)

    def probe(self, host: Host) -> tuple[str, ...]:
        """Write a group that nobody else writes, to see that writes arrive at all."""
        keys = tuple(f"probe:{host.name}:{index}" for index in range(2))
        self.write(host, sets=dict.fromkeys(keys, self.value(2)))
        return keys

    def _host(self) -> Host | None:
        able = [host for host in self.scene.live() if not host.paused]
        return self._random.choice(able) if able else None

    def _burst(self) -> None:
        host = self._host()
        if host is not None:
            for _ in range(self._random.choice((5, 20, 60))):
                if host.running:
                    self._act(host)

    def _happen(self) -> None:
        host = self._host()
        if host is not None:
            self._act(host)

    def _act(self, host: Host) -> None:
        chance = self._random
        kind = chance.random()
        ttl_s = chance.choice(TTLS_S) if chance.random() < 0.25 else None
        if kind < 0.25:
            self.write(host, sets={chance.choice(SINGLES): self.value()}, ttl_s=ttl_s)
        elif kind < 0.30:
            keys = chance.sample(SINGLES, 3)
            self.write(host, sets={key: self.value(3) for key in keys}, ttl_s=ttl_s)
        elif kind < 0.50:
            group = chance.choice(GROUPS)
            self.write(host, sets=dict.fromkeys(group, self.value(4)), ttl_s=ttl_s)
        elif kind < 0.60:
            tags = tuple(sorted(chance.sample(TAGS, chance.choice((1, 2)))))
            key = chance.choice(TAGGED)
            self.write(host, sets={key: self.value()}, ttl_s=ttl_s, tags=tags)
        elif kind < 0.70:
            self.write(host, removes=(chance.choice(SINGLES + TAGGED + EVERY),))
        elif kind < 0.74:
            self.write(host, removes=chance.choice(GROUPS))
        elif kind < 0.77:
            self.write(host, invalidates=(chance.choice(TAGS),))
        elif kind < 0.80:
            self.write(host, clears=(chance.choice(PREFIXES),))
        elif kind < 0.802:
            self.write(host, clears=(chance.choice(WIDE_PREFIXES),))
        else:
            self.read(host, chance.choice(SINGLES + TAGGED + EVERY + GROUPS[0]))
