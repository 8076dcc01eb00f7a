"""Runs one seed of a scene with fills: ``simulate_fills``."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from lanecache.testing.simulation.data import SKEW_S_MAX, set_clocks
from lanecache.testing.simulation.faults import FAULTS, choose_faults, schedule
from lanecache.testing.simulation.fill_apps import App
from lanecache.testing.simulation.fill_loop import WorldLoop
from lanecache.testing.simulation.fill_plants import FILL_PLANTS
from lanecache.testing.simulation.fills import KEYS, LEASE_S, LIMIT_S, TAG, FillSafety
from lanecache.testing.simulation.scenario import (
    Scene,
    choose_nodes,
    choose_settings,
    settle_s,
    start_all,
)
from lanecache.testing.simulation.stage import Stage
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    import random

    from anyio.abc import TaskGroup

    from lanecache.cluster.fill.fill_options import FillOptions
    from lanecache.testing.simulation.hosts import Host

STARTING_S = 5.0
CALM_FAULTS = ("duplicate", "reorder")  # by which no news is late, and nobody seems dead
_KINDS = ("delete", "delete", "set", "clear", "tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class FillOutcome:
    """What a run that broke no rule has to tell."""

    seed: int
    nodes: int
    faults: tuple[str, ...]
    calls: int
    fills: int
    changes: int
    looks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FillFailure:
    """What a run has broken."""

    seed: int
    rule: str
    sentence: str
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Tell it, the seed first."""
        faults = ", ".join(self.faults) or "none"
        return f"fills, seed {self.seed}: {self.rule}: {self.sentence} (faults: {faults})"


def simulate_fills(
    seed: int,
    *,
    nodes: tuple[int, int] = (3, 8),
    faults: tuple[str, ...] | None = None,
    plant: str | None = None,
) -> FillOutcome | FillFailure:
    """Run one seed.

    Args:
        seed: decides everything, together with the other arguments.
        nodes: how many hosts there are, at the least and at the most.
        faults: which; None: as the seed decides.
        plant: breaks the product in one way, see ``FILL_PLANTS``.
    """
    with ExitStack() as stack:
        if plant is not None:
            stack.enter_context(FILL_PLANTS[plant]())
        return _FillRun(seed, nodes, faults).run()


class _FillRun:
    def __init__(self, seed: int, nodes: tuple[int, int], faults: tuple[str, ...] | None) -> None:
        chance = Scene.generator(seed, "fill options")
        self.seed = seed
        self.faults = choose_faults(chance, tuple(FAULTS)) if faults is None else faults
        settings = choose_settings(chance, self.faults)
        self.scene = Scene(seed, settings, watch=FillSafety)
        assert isinstance(self.scene.safety, FillSafety)
        self.safety = self.scene.safety
        self.safety.now = lambda: self.scene.world.now
        self.is_calm = set(self.faults) <= set(CALM_FAULTS)
        if self.is_calm:
            self.safety.calm_from = 2 * STARTING_S + settings.stream_timeout_s
        self.chance = self.scene.world.random("fills")
        self.nodes = choose_nodes(chance, *nodes)
        self.takes_s = chance.choice((0.01, 0.2, 1.0, 2.0))
        self.calls = 0
        self.tasks: TaskGroup | None = None
        self.scene.on_host.append(self._furnish)
        self.safety.begin = self._begin

    def run(self) -> FillOutcome | FillFailure:
        """Run to the end."""
        loop = WorldLoop(self.scene.world)
        try:
            main = loop.create_task(self._main())
            try:
                loop.run_until_complete(main)
            except BaseExceptionGroup as group:
                raise _first(group) from None
            finally:
                loop.stop_world()
                _cancel_all(loop)
        except Violation as violation:
            return self._failure(violation.rule, str(violation))
        except Exception as error:
            return self._failure("simulator", f"{error!r}\n{traceback.format_exc()}")
        finally:
            loop.close()
        return FillOutcome(
            seed=self.seed,
            nodes=len(self.scene.hosts),
            faults=self.faults,
            calls=self.calls,
            fills=len(self.safety.fills),
            changes=sum(map(len, self.safety.changes.values())),
            looks=self.safety.looks,
        )

    def _failure(self, rule: str, sentence: str) -> FillFailure:
        return FillFailure(seed=self.seed, rule=rule, sentence=sentence, faults=self.faults)

    def _furnish(self, host: Host) -> None:
        if not self.is_calm:
            host.wall_offset_s = self.chance.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        if self.chance.random() < 0.15:
            host.is_small = True
            host.changes["keys_max"] = self.chance.choice((1, 3))

    def _begin(self, host: Host) -> App:
        assert host.node is not None
        assert self.tasks is not None
        serving = ExitStack()
        chance = self.scene.world.random(f"app {host.name}/{host.starts}")
        app = App(host, host.node, self.safety, chance, serving, partial(self._duration, chance))
        serving.enter_context(app.filler.serving(self.tasks))
        return app

    def _duration(self, chance: random.Random) -> float:
        return self.takes_s * chance.choice((0.5, 1.0, 1.0, 1.0, 4.0))

    async def _main(self) -> None:
        scene, world = self.scene, self.scene.world
        async with anyio.create_task_group() as self.tasks:
            # With literal addresses as seeds, nobody may take a seed's address away.
            literal = not {"move", "stranger"} & set(self.faults)
            start_all(scene, self.nodes, STARTING_S, literal=literal)
            ends_at = STARTING_S + self.chance.uniform(20.0, 50.0)
            stage = Stage(scene, STARTING_S * self.chance.random(), ends_at)
            schedule(stage, self.faults)
            for _ in range(int((ends_at - STARTING_S) * self.chance.choice((2.0, 6.0)))):
                world.at(self.chance.uniform(STARTING_S, ends_at), self._change)
            for _ in range(int((ends_at - STARTING_S) * 4)):
                world.at(self.chance.uniform(STARTING_S, ends_at), self._ask)
            await asyncio.sleep(ends_at - world.now)
            stage.heal()
            await self._heal()
            await self._end_fresh()
            self.tasks.cancel_scope.cancel()

    def _change(self) -> None:
        app = self._any()
        if app is not None:
            app.change(self.chance.choice(KEYS), self.chance.choice(_KINDS))

    def _ask(self) -> None:
        """Let several ask for one key at once, on some nodes."""
        key = self.chance.choice(KEYS)
        for _ in range(self.chance.choice((1, 2, 6))):
            app = self._any()
            if app is not None:
                self._ask_on(app, key)

    def _any(self) -> App | None:
        apps = [app for app in self.safety.apps.values() if app.up and not app.host.leaving]
        return self.chance.choice(apps) if apps else None

    def _ask_on(self, app: App, key: str) -> None:
        assert self.tasks is not None
        self.calls += 1
        options: FillOptions = {"lease_s": LEASE_S, "hard_timeout_s": LIMIT_S, "tags": (TAG,)}
        self.tasks.start_soon(app.ask, key, options)

    async def _heal(self) -> None:
        scene = self.scene
        set_clocks(scene, self.chance)  # one that is far off keeps nodes apart
        within_s = settle_s(scene.settings, len(scene.hosts)) + 60.0
        begun_at = scene.world.now
        while True:
            await asyncio.sleep(1.0)
            hosts = scene.live()
            waiting = [host.name for host in hosts if host.node and not host.node.ready]
            found = next(filter(None, (ask() for ask in scene.questions)), None)
            behind = [host.name for host in hosts if host.node and not host.node.caught_up]
            if found is None and not waiting and not behind:
                break
            if scene.world.now - begun_at > within_s:
                message = f"{found}; not ready: {waiting}; behind: {behind}"
                raise Violation("agreement", message, *(host.name for host in hosts))
        await asyncio.sleep(LIMIT_S + LEASE_S + 2.0)
        hosts = scene.live()
        for host in hosts:
            if self.safety.apps[host].open_calls:
                raise Violation("calls", f"calls of {host.name} do not end", host.name)
        kept = self.safety.at_rest(hosts)
        if kept:
            raise Violation("calls", kept)

    async def _end_fresh(self) -> None:
        """Change everything once more; then all get what the database has, by one fill each."""
        scene, safety = self.scene, self.safety
        self.takes_s = 0.2
        writer = safety.apps[scene.live()[0]]
        for kind in ("tag", "clear"):
            writer.change(KEYS[0], kind)
        await asyncio.sleep(15.0)
        safety.calm_from = scene.world.now
        before = len(safety.fills)
        hosts = scene.live()
        options: FillOptions = {"lease_s": LEASE_S, "hard_timeout_s": LIMIT_S, "tags": (TAG,)}
        for key in KEYS:
            answers: list[object] = []

            async def ask(app: App, key: str, answers: list[object]) -> None:
                for _ in range(20):  # its filler fails now and then
                    value = await app.ask(key, options)
                    if value is not None:
                        answers.append(app.version_of(value))
                        return

            async with anyio.create_task_group() as group:
                for host in hosts:
                    group.start_soon(ask, safety.apps[host], key, answers)
            if answers != [safety.database[key]] * len(hosts):
                message = f"{key}: {answers}, not {safety.database[key]}"
                raise Violation("fresh", message, *(host.name for host in hosts))
        made = safety.fills[before:]
        if len(made) > 3 * len(KEYS):  # one each, and some more for those that failed
            raise Violation("lease", f"{len(made)} fills of {len(KEYS)} keys when all was well")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if isinstance(e, Violation)), error.exceptions[0])
    return error


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
