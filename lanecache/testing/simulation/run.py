"""Runs one seed from its beginning to its end, and tells the story of one that fails."""

from __future__ import annotations

import contextlib
import shlex
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from lanecache.testing.simulation.checkers import Safety
from lanecache.testing.simulation.data import SETTLE_S, Data, choose_data_settings
from lanecache.testing.simulation.data_checkers import DataSafety
from lanecache.testing.simulation.faults import FAULTS, choose_faults, schedule
from lanecache.testing.simulation.plants import PLANTS
from lanecache.testing.simulation.scenario import (
    Outcome,
    Scene,
    choose_nodes,
    choose_settings,
    end_well,
    settle_s,
    start_all,
)
from lanecache.testing.simulation.stage import Stage
from lanecache.testing.simulation.trace import Spelling
from lanecache.testing.simulation.violation import Violation

if TYPE_CHECKING:
    from lanecache.testing.simulation.world import TraceEntry

STARTING_S = 5.0
FAULTS_S_MIN = 30.0
FAULTS_S_MAX = 90.0
STORY_EVENTS = 40
NODES_MIN = 3
NODES_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What kind of runs are wanted; together with a seed it decides everything."""

    nodes_min: int = NODES_MIN
    nodes_max: int = NODES_MAX
    data: bool = True  # False: members only, nobody writes
    faults: tuple[str, ...] | None = None  # None: all, or a part of them, as the seed decides
    plant: str | None = None

    def command(self, seed: int) -> str:
        """Spell the command that runs this seed again."""
        parts = ["python", "-m", "lanecache.testing.simulation", "--seeds", "1"]
        parts += ["--first", str(seed)]
        if (self.nodes_min, self.nodes_max) != (NODES_MIN, NODES_MAX):
            parts += ["--nodes", f"{self.nodes_min}-{self.nodes_max}"]
        if not self.data:
            parts.append("--no-data")
        if self.faults is not None:
            parts += ["--faults", ",".join(self.faults) or "none"]
        if self.plant is not None:
            parts += ["--plant", self.plant]
        return shlex.join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run that broke a rule, told for people."""

    seed: int
    command: str
    step: int
    virtual_s: float
    rule: str
    sentence: str
    faults: tuple[str, ...]
    story: tuple[str, ...]  # the last events of the hosts concerned

    def __str__(self) -> str:
        """Tell it, the seed first."""
        lines = [
            f"seed {self.seed} fails: {self.command}",
            f"step {self.step}, {self.virtual_s:.6f} s: {self.rule}: {self.sentence}",
            f"faults: {', '.join(self.faults) or 'none'}",
            *self.story,
        ]
        return "\n".join(lines)


def simulate(
    seed: int, options: Options, on_line: Callable[[str], None] | None = None
) -> Outcome | Failure:
    """Run one seed.

    Args:
        seed: decides everything, together with ``options``.
        options: what kind of run it is.
        on_line: told of everything that happens, spelled; spelling takes far longer than the run.
    """
    with contextlib.ExitStack() as stack:
        if options.plant is not None:
            stack.enter_context(PLANTS[options.plant]())
        return _simulate(seed, options, on_line)


def _simulate(
    seed: int, options: Options, on_line: Callable[[str], None] | None
) -> Outcome | Failure:
    chance = Scene.generator(seed, "options")
    faults = options.faults
    if faults is None:
        faults = choose_faults(chance, tuple(FAULTS))
    settings = choose_settings(chance, faults)
    ipv6 = chance.random() < 0.2
    if options.data:
        settings = choose_data_settings(Scene.generator(seed, "data settings"), settings)
    else:
        settings = msgspec.structs.replace(settings, mesh_nodes_max=1, fanout=0)  # no links
    scene = Scene(seed, settings, ipv6=ipv6, watch=DataSafety if options.data else Safety)
    data = Data(scene, scene.safety) if isinstance(scene.safety, DataSafety) else None
    spelling = Spelling(scene.safety, scene.every_keyring())
    if on_line is not None:
        write = on_line

        def tell(entry: TraceEntry) -> None:
            write(spelling.line(entry))

        scene.world.on_trace = tell
    try:
        nodes = choose_nodes(chance, options.nodes_min, options.nodes_max)
        # With literal addresses as seeds, nobody may take a seed's address away.
        literal = chance.random() < 0.5 and not {"move", "stranger"} & set(faults)
        start_all(scene, nodes, STARTING_S, literal=literal)
        ends_at = STARTING_S + chance.uniform(FAULTS_S_MIN, FAULTS_S_MAX)
        stage = Stage(scene, STARTING_S * chance.random(), ends_at)
        schedule(stage, faults)
        if data is not None:
            data.schedule(stage.begins_at, ends_at)
        scene.world.run(ends_at)
        stage.heal()
        within_s = settle_s(settings, len(scene.hosts))
        if data is not None:
            data.heal()
            within_s += SETTLE_S
        converged_s = scene.converge(within_s)
        disagreed = scene.disagreed
        if data is not None:
            data.finish(within_s)
        end_well(scene, 0.0 if data is None else SETTLE_S)
    except Violation as violation:
        return _failure(seed, options, scene, spelling, faults, violation)
    except Exception as error:
        # A fault of the simulator itself; the seed is as worth telling.
        sentence = f"{error!r}\n{traceback.format_exc()}"
        own_fault = Violation("simulator", sentence)
        return _failure(seed, options, scene, spelling, faults, own_fault)
    return Outcome(
        seed=seed,
        nodes=len(scene.hosts),
        faults=faults,
        virtual_s=scene.world.now,
        steps=scene.world.steps,
        checks=scene.safety.checks,
        writes=0 if data is None else data.safety.writes.count,
        looks=0 if data is None else data.safety.looks,
        converged_s=converged_s,
        disagreed=disagreed,
    )


def _failure(
    seed: int,
    options: Options,
    scene: Scene,
    spelling: Spelling,
    faults: tuple[str, ...],
    violation: Violation,
) -> Failure:
    history = scene.world.history(violation.hosts, STORY_EVENTS)
    return Failure(
        seed=seed,
        command=options.command(seed),
        step=scene.world.steps,
        virtual_s=scene.world.now,
        rule=violation.rule,
        sentence=violation.sentence,
        faults=faults,
        story=tuple(spelling.line(entry) for entry in history),
    )
