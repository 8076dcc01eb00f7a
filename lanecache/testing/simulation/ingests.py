"""A model of ingest: it reads the model database and writes what it reads to its own node.

It does what a process of lanecache does with its cluster as the sink: wait until the node is
ready, open the source, go on from what the cluster holds (or from the start), write each
transaction as one entry with its position, and stop when another has taken over. A large
transaction is written in phases (``source_steps``): everything it touches goes first.

What befalls it: its process is killed and comes back there or elsewhere, a second one runs beside
it by mistake, and it begins further back than it needs to.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from lanecache.cluster.replica.entry import Clear, Put, Remove
from lanecache.cluster.source_steps import SourceSteps, Step
from lanecache.testing.simulation import lens
from lanecache.testing.simulation.database import PREFIX, SOURCE, number_of
from lanecache.testing.simulation.writes import Order, Written

if TYPE_CHECKING:
    import random

    from lanecache.testing.simulation.data_checkers import DataSafety
    from lanecache.testing.simulation.hosts import Host
    from lanecache.testing.simulation.scenario import Scene

STEP_BYTES_MAX = 4_096
READY_EVERY_S = 0.25
HEARTBEAT_S = 5.0  # rarely enough that there are moments at which all have seen all
PAUSES_S = (0.02, 0.1, 0.4)


class Ingest:
    """One run of ingest in one process."""

    def __init__(self, ingests: Ingests, host: Host, chance: random.Random) -> None:
        self.host = host
        self.ended: str | None = None
        self.position = 0  # the last transaction that is read
        self.opened = False
        self.epoch: Order = ()
        self._ingests = ingests
        self._random = chance
        self._start = host.starts
        self._pause_s = chance.choice(PAUSES_S)
        self._beat_at = 0.0
        self._complete_at: float | None = None  # when all of the database was last written
        self._clears = False  # the first entry clears all that the lanes make
        self._rest: deque[Step] = deque()
        self._steps = SourceSteps(
            "simulated",
            ingests.scene.settings,
            value_bytes_max=ingests.scene.settings.value_bytes_max,
            batch_bytes_max=STEP_BYTES_MAX,
        )

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        host = self.host
        if self.ended is None and (host.node is None or host.starts != self._start):
            self.ended = "its process ended"
        if self.ended is None and host.leaving:
            self.ended = "its process leaves"
        return self.ended is None

    def step(self) -> None:
        """Do the next thing, and come back for the one after it."""
        if not self.alive:
            return
        world = self._ingests.scene.world
        world.after(self._pause_s if self.opened else READY_EVERY_S, self.step)
        if self.host.paused:
            return
        node = self.host.node
        assert node is not None
        if not self.opened:
            if lens.ready(node):
                self.host.do("open_source", self._open)
        elif lens.is_overtaken(node, SOURCE, self.epoch):
            self.ended = "another has taken over"
            world.record(self.host.name, "is overtaken as ingest")
        elif self._rest or self.position < self._ingests.database.last:
            self.host.do("write", self._write)
        else:
            self._complete_at = self.host.clock.read()
        if self.opened and self.ended is None and world.now >= self._beat_at:
            self._beat_at = world.now + HEARTBEAT_S
            self.host.do("write", self._beat)

    def rewind(self) -> None:
        """Write again what was written, as one does that does not know how far it had come."""
        if self.alive and self.opened and not self._rest:
            # The parts of a large transaction do not say where they belong, so they cannot be told
            # from new ones. (The real sink never writes again what its opening has found written.)
            log = self._ingests.database.log[: self.position]
            least = max((change.number for change in log if change.large), default=0)
            self.position = self._random.randint(least, self.position)
            self._ingests.scene.world.record(self.host.name, "replays from", self.position)

    def _beat(self, now: float) -> None:
        node = self.host.node
        assert node is not None
        complete_at = self._complete_at
        age_s = None if complete_at is None else now - complete_at
        self._enter(lens.write(node, (), now, lens.heartbeat(self.epoch, SOURCE, age_s)))

    def _open(self, now: float) -> None:
        node = self.host.node
        assert node is not None
        opened = node.open_source(SOURCE, now)
        position = lens.number_of(opened.checkpoint)
        self.epoch = opened.epoch
        self.opened = True
        self._clears = position is None
        self.position = position or 0
        self._enter(lens.digest(node)[lens.origin(node)])
        self._ingests.scene.world.record(self.host.name, "opens the source", position)

    def _write(self, now: float) -> None:
        if not self._rest:
            count = 1 if self._random.random() < 0.7 else self._random.randint(2, 8)
            changes = self._ingests.database.log[self.position : self.position + count]
            self.position += len(changes)
            self._rest.extend(self._steps.of([change.transaction() for change in changes]))
        self._write_step(self._rest.popleft(), now)
        while self._rest and self._random.random() < 0.7:
            self._write_step(self._rest.popleft(), now)

    def _write_step(self, step: Step, now: float) -> None:
        operations = list(step.operations)
        if self._clears:
            operations.insert(0, Clear(PREFIX))
        node = self.host.node
        assert node is not None
        position = None if step.last is None else step.last.position.offset
        mark = lens.mark(self.epoch, SOURCE, step, self.host.name)
        seq = lens.write(node, operations, now, mark)
        self._clears = False
        puts = {each.key: each.value for each in operations if isinstance(each, Put)}
        self._enter(
            seq,
            sets=puts,
            removes=frozenset(each.key for each in operations if isinstance(each, Remove)),
            clears=tuple(each.prefix for each in operations if isinstance(each, Clear)),
            position=position,
            numbers={key: number_of(value) for key, value in puts.items()},
        )

    def _enter(self, seq: int, **what: Any) -> None:
        node = self.host.node
        assert node is not None
        self._ingests.safety.wrote(
            self.host,
            Written(
                origin=lens.origin(node),
                seq=seq,
                order=lens.last_order(node),
                writer=self.host.name,
                at=self._ingests.scene.world.now,
                source=True,
                **what,
            ),
        )


class Ingests:
    """Who ingests, and what befalls them."""

    def __init__(self, scene: Scene, safety: DataSafety) -> None:
        self.scene = scene
        self.safety = safety
        self.database = safety.database
        self.database.now = lambda: scene.world.now
        self.runs: list[Ingest] = []
        self._random = scene.world.random("ingest")
        self._rows = scene.world.random("database")

    def schedule(self, begins_at: float, ends_at: float, per_s: float) -> None:
        """Let the database change and ingest run, with what befalls it, in a time."""
        world, chance = self.scene.world, self._random
        for _ in range(int((ends_at - begins_at) * per_s)):
            world.at(chance.uniform(begins_at, ends_at), self.database.commit_any, self._rows)
        world.at(begins_at, self.ensure)
        for _ in range(int((ends_at - begins_at) / 5)):
            world.at(chance.uniform(begins_at, ends_at), self.ensure)
        events = (self._kill, self._move, self._second, self._second, self._replay)
        for _ in range(chance.randint(0, 14)):
            world.at(chance.uniform(begins_at, ends_at), chance.choice(events))

    def alive(self) -> list[Ingest]:
        """List those that run."""
        return [run for run in self.runs if run.alive]

    def ensure(self) -> None:
        """Start one if none runs: where the last one was, or elsewhere."""
        if not self.alive():
            live = self.scene.live()
            last = self.runs[-1].host if self.runs else None
            if last in live and self._random.random() < 0.5:
                self._start(last)
            elif live:
                self._start(self._random.choice(live))

    def _start(self, host: Host | None) -> None:
        assert host is not None
        self.scene.world.record(host.name, "begins to ingest")
        run = Ingest(self, host, self._random)
        self.runs.append(run)
        run.step()

    def _kill(self) -> None:
        """Kill its process; it comes back at once or later, and ingests again."""
        for run in self.alive()[:1]:
            host = run.host
            host.kill()
            self.scene.world.after(self._random.choice((0.0, 0.2, 5.0)), self._again, host)

    def _again(self, host: Host) -> None:
        self.scene.start(host)
        if host.running and not self.alive():
            self._start(host)

    def _move(self) -> None:
        """Kill its process; another host takes over."""
        for run in self.alive()[:1]:
            host = run.host
            host.kill()
            self.scene.world.after(self._random.uniform(0, 20), self.scene.start, host)
            self.scene.world.after(self._random.choice((0.0, 1.0, 8.0)), self._elsewhere, host)

    def _elsewhere(self, before: Host) -> None:
        others = [host for host in self.scene.live() if host is not before]
        if others and not self.alive():
            self._start(self._random.choice(others))

    def _second(self) -> None:
        """Start another beside the one that runs."""
        others = [
            host for host in self.scene.live() if all(r.host is not host for r in self.alive())
        ]
        if others:
            self._start(self._random.choice(others))

    def _replay(self) -> None:
        for run in self.alive()[:1]:
            run.rewind()
