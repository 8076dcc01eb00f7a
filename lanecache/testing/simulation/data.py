"""The data of a scene: bounds so small that they are met, users, ingest, and the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lanecache.testing.simulation import lens
from lanecache.testing.simulation.data_agreement import (
    data_disagreement,
    left_over,
    old_rows,
    outlived,
    source_behind,
    unshown,
)
from lanecache.testing.simulation.ingests import Ingests
from lanecache.testing.simulation.users import TTLS_S, Users
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    import random

    from lanecache.cluster.settings import Settings
    from lanecache.testing.simulation.checkers import Found
    from lanecache.testing.simulation.data_checkers import DataSafety
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.scenario import Scene

SKEW_S_MAX = 8.0  # of a clock as it is when a process begins
CLOCK_OFF_S_MAX = 14.0  # of one that has drifted too: two are off by twice that at the most
GRACE_S_WAITED = 60.0  # a longer grace for tombstones is not waited for
SETTLE_S = 60.0  # for data, beside what members take


def choose_data_settings(chance: random.Random, settings: Settings) -> Settings:
    """Draw bounds, most of them so tight that they are met."""
    settings = msgspec.structs.replace(
        settings,
        ring_bytes_max=chance.choice((16_384, 32_768, 131_072, 1_048_576)),
        peer_queue_bytes_max=chance.choice((16_384, 262_144)),
        entry_bytes_max=8_192,
        tombstones_max=chance.choice((20, 1_000)),
        tombstone_grace_s=chance.choice((5.0, 20.0, 600.0)),
        origin_kept_s=chance.choice((30.0, 86_400.0)),
    )
    if chance.random() < 0.2:
        settings = msgspec.structs.replace(settings, mesh_nodes_max=chance.choice((1, 4)), fanout=2)
    return settings


def set_clocks(scene: Scene, chance: random.Random) -> None:
    """Set the wall clocks that are far off, and begin the processes again that rest on such."""
    for host in scene.hosts:
        if abs(host.wall_offset_s) > SKEW_S_MAX:
            host.wall_offset_s = chance.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        if host.running and abs(lens.clock_off_s(host)) > CLOCK_OFF_S_MAX:
            host.kill()
            scene.start(host)


class Data:
    """Everything about data in one run."""

    def __init__(self, scene: Scene, safety: DataSafety) -> None:
        self.scene = scene
        self.safety = safety
        self.users = Users(scene, safety)
        self.ingests = Ingests(scene, safety)
        self._random = scene.world.random("data")
        scene.on_host.append(self.furnish)

    def furnish(self, host: Host) -> None:
        """Draw what a new host's clock and store are like."""
        chance = self._random
        host.wall_offset_s = chance.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        host.changes["policy"] = chance.choice(("lru", "s3fifo"))
        if chance.random() < 0.25:
            host.is_small = True
            host.changes["keys_max"] = chance.choice((1, 8, 25))
        elif chance.random() < 0.1:
            host.is_small = True
            host.changes["bytes_max"] = chance.choice((500, 8_000, 20_000))

    def schedule(self, begins_at: float, ends_at: float) -> None:
        """Put the users' and the database's doings on the heap."""
        chance = self._random
        self.users.schedule(begins_at, ends_at, chance.choice((1.0, 3.0, 8.0)))
        self.ingests.schedule(begins_at, ends_at, chance.choice((0.5, 2.0)))
        if chance.random() < 0.3:
            self.scene.world.at(chance.uniform(begins_at, ends_at), self._misset)

    def _misset(self) -> None:
        """Let a process begin on a machine whose clock is far off: no other one may believe it."""
        live = self.scene.live()
        if live:
            host = self._random.choice(live)
            host.wall_offset_s = self._random.choice((-1, 1)) * self._random.uniform(60, 1e6)
            host.kill()
            self.scene.start(host)

    def heal(self) -> None:
        """End what would keep nodes apart: clocks that are far off are set, and begin again."""
        set_clocks(self.scene, self._random)
        self._keep_ingesting()
        self.scene.questions += [
            lambda: data_disagreement(self.safety, self.scene.hosts),
            lambda: source_behind(self.safety, self.scene.hosts),
            lambda: old_rows(self.safety, self.scene.hosts),
        ]

    def finish(self, within_s: float) -> None:
        """When all agree: what is written now arrives, and what is over goes.

        Raises:
            Violation: something does not, in time.
        """
        scene = self.scene
        before = list(scene.questions)
        keys: list[str] = []
        starts = {host: host.starts for host in scene.live()}
        for host in starts:
            keys += self.users.probe(host)
        self.ingests.database.commit_all()
        keys += self.ingests.database.rows()
        # Who begins later takes the state of another, who need not have room for all of it.
        scene.questions.append(
            lambda: unshown([each for each in starts if each.starts == starts[each]], keys)
        )
        scene.converge(within_s)
        scene.questions[:] = before
        ttl_s = max(TTLS_S) * 1.1 + 2.0
        scene.world.run(scene.world.now + ttl_s)
        self._ask(outlived(self.safety, scene.hosts))
        grace_s = scene.settings.tombstone_grace_s
        if grace_s <= GRACE_S_WAITED:
            scene.world.run(scene.world.now + grace_s + 15.0)
            self._ask(left_over(scene.hosts))

    def _ask(self, found: Found) -> None:
        if found is not None:
            sentence, concerned = found
            raise Violation("data agreement", sentence, *concerned)

    def _keep_ingesting(self) -> None:
        self.ingests.ensure()
        self.scene.world.after(1.0, self._keep_ingesting)
