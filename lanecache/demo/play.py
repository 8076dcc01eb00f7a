"""Put the demonstration together: database, shop, nodes, and the screen that shows them."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from rich.console import Console

from lanecache.demo.databases import Database, RecordedDatabase, live_database
from lanecache.demo.nodes import nodes
from lanecache.demo.redis_follower import redis_follower
from lanecache.demo.shop import OPENED_LAST
from lanecache.demo.view import Place, Scene, Screen, State
from lanecache.errors import LanecacheError
from lanecache.servers import MariaDb, Redis, ServerMissing

NODES = 3
ARRIVAL_MAX_S = 30.0
START_MAX_S = 15.0
ASK_INTERVAL_S = 0.02
DIFFERENCES_SHOWN_MAX = 3
_PRODUCT = "product:"


class DemoFailed(LanecacheError):
    """A transaction did not arrive in time."""


class Follower(Protocol):
    """Something that lanecache keeps true to the database, and how to look into it."""

    place: Place

    def touch(self, keys: Sequence[str]) -> None:
        """Hear that a transaction has changed these keys."""

    async def dump(self, keys: Sequence[str]) -> tuple[int, dict[str, Any]] | None:
        """Give how many keys it holds, and the values of these that it holds; all of one instant.

        ``None``: it cannot say now.
        """


async def run_demo(
    seconds: float | None = None,
    *,
    redis: bool = False,
    recorded: bool = False,
    console: Console | None = None,
    compared: Callable[[bool], object] = lambda equal: None,
) -> bool:
    """Show a shop's database under live writes, and lanecache keeping caches true to it.

    The database is a private MariaDB, or a recorded binlog where none is installed; the caches are
    the nodes of a cluster, each in a process of its own, or a private Redis. At the end, also when
    that is a cancellation, every key in each of them is compared with the database. Nothing is left
    behind.

    Args:
        seconds: when to stop; ``None``: when it is cancelled, or the recording is over.
        redis: whether the cache is a private Redis.
        recorded: whether to play the recording in any case.
        console: where to show it; default: standard output.
        compared: is told whether all were equal; when it is cancelled, nothing is returned.

    Returns:
        Whether all were equal; what differed was said.

    Raises:
        ServerMissing: Redis is wanted and not installed; nothing was started.
        DemoFailed: a transaction did not arrive in time.
        NodeFailed: a node gave up.
    """
    screen = Screen(console or Console())
    async with AsyncExitStack() as stack:
        server = Redis() if redis else None
        database = await stack.enter_async_context(_database(screen, recorded=recorded))
        followers: Sequence[Follower]
        if server is not None:
            screen.say(f"Starting a private Redis {server.version}")
            await stack.enter_async_context(server)
            screen.say(f"To look into it: redis-cli -p {server.port} --scan")
            scene = Scene(database.title, f"Redis {server.version}", [Place("Redis", "")])
            follower = redis_follower(server, scene, database.source())
            followers = [await stack.enter_async_context(follower)]
        else:
            screen.say(f"Starting a cluster of {NODES} processes")
            places = [Place(f"node {number + 1}") for number in range(NODES)]
            hint = "; kill -9 {pid} to see a node come back"
            scene = Scene(database.title, f"a cluster of {NODES} processes", places, hint=hint)
            places[0].note = "ingest"
            followers = await stack.enter_async_context(nodes(scene, database.source()))
        play = Play(scene, screen, database, followers)
        try:
            with screen.showing(scene):
                await play.run(seconds)
        finally:
            if play.outcome is not None:
                compared(play.outcome.equal)
                for line in play.outcome.lines:
                    screen.say(line)
    return play.outcome is not None and play.outcome.equal


@asynccontextmanager
async def _database(screen: Screen, *, recorded: bool) -> AsyncIterator[Database]:
    if not recorded:
        try:
            server = MariaDb()
        except ServerMissing as error:
            screen.say(f"{error}; until then, a recorded binlog is played")
        else:
            screen.say(f"Starting a private MariaDB {server.version}")
            async with server, live_database(server) as live:
                yield live
            return
    database = RecordedDatabase()
    screen.say(f"Playing a recorded binlog of {database.server}")
    yield database


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the comparison at the end has found, told for people."""

    equal: bool
    lines: list[str]


class Play:
    """The tasks of the demonstration: one writes, one draws; and the comparison at its end."""

    def __init__(
        self, scene: Scene, screen: Screen, database: Database, followers: Sequence[Follower]
    ) -> None:
        self.outcome: Outcome | None = None
        """What came out of it; ``None`` before its end."""
        self._scene = scene
        self._screen = screen
        self._database = database
        self._followers = followers
        self._touched: dict[str, None] = {}

    async def run(self, seconds: float | None) -> None:
        """Play for so long from the first transaction on, or until the recording is over; compare.

        A cancellation ends with a comparison too, once there was a commit.
        """
        async with anyio.create_task_group() as tasks:
            drawing = anyio.CancelScope(shield=True)
            tasks.start_soon(self._draw, drawing, name="demo: screen")
            try:
                # Latencies are to tell of lanecache, not of processes that start.
                with anyio.move_on_after(START_MAX_S):
                    while not self._ready():  # noqa: ASYNC110  other processes say so
                        await anyio.sleep(ASK_INTERVAL_S)
                with anyio.CancelScope() as scope:
                    await self._write(scope, seconds)
            except anyio.get_cancelled_exc_class():
                failed = any(place.state is State.FAILED for place in self._scene.places)
                if self._scene.committed_total and not failed:
                    with anyio.CancelScope(shield=True):
                        await self._end()
                raise
            else:
                await self._end()
            finally:
                drawing.cancel()

    def _ready(self) -> bool:
        return all(place.state is State.READY for place in self._scene.places)

    async def _write(self, scope: anyio.CancelScope, seconds: float | None) -> None:
        """Do all transactions; the time that is given begins with the first."""
        while (write := await self._database.write()) is not None:
            if seconds is not None and scope.deadline == math.inf:
                scope.deadline = anyio.current_time() + seconds
            self._scene.wrote(write)
            if write.committed:
                self._touched |= dict.fromkeys(write.keys)
                for follower in self._followers:
                    follower.touch(write.keys)

    async def _draw(self, scope: anyio.CancelScope) -> None:
        ready_since = dict.fromkeys(self._scene.places, float("inf"))
        with scope:
            while True:
                await anyio.sleep(self._screen.interval_s)
                self._screen.draw(self._scene)
                self._require_arrivals(ready_since)

    def _require_arrivals(self, ready_since: dict[Place, float]) -> None:
        now = time.monotonic()
        for place in self._scene.places:
            up = place.state is State.READY
            ready_since[place] = min(ready_since[place], now) if up else float("inf")
            awaited_at = self._scene.oldest_awaited_at(place)
            if awaited_at is not None and now - max(awaited_at, ready_since[place]) > ARRIVAL_MAX_S:
                raise DemoFailed(
                    f"a transaction did not arrive in {place.name} within {ARRIVAL_MAX_S:.0f} s"
                )

    async def _end(self) -> None:
        self.outcome = await self._compare()
        self._screen.draw(self._scene)

    async def _compare(self) -> Outcome:
        """Compare every key in every place with the database, once the last commit is there."""
        commits = self._scene.committed_total
        asked = list({*self._touched, *await self._database.keys()})
        deadline = anyio.current_time() + ARRIVAL_MAX_S
        lines: list[str] = []
        compared = 0
        for follower in self._followers:
            name = follower.place.name
            reached, found = await self._reached(follower, commits, asked, deadline)
            if found is None:
                lines.append(f"{name} could not be asked within {ARRIVAL_MAX_S:.0f} s")
                continue
            keys, values = found
            wanted = await self._database.rows(reached)
            differing = [key for key in asked if values.get(key) != wanted.get(key)]
            lines += [
                f"{key} is {values.get(key)} in {name} and {wanted.get(key)} in the database"
                for key in sorted(differing)[:DIFFERENCES_SHOWN_MAX]
            ]
            if keys != len(wanted):
                lines.append(f"{name} holds {keys} keys, and the database has {len(wanted)}")
            compared += len(wanted)
        if lines:
            return Outcome(False, lines)
        places = f" in {len(self._followers)} nodes" if len(self._followers) > 1 else ""
        return Outcome(True, [f"Compared {compared} keys{places} with the database: all are equal"])

    async def _reached(
        self, follower: Follower, commits: int, asked: Sequence[str], deadline: float
    ) -> tuple[int, tuple[int, dict[str, Any]] | None]:
        """Wait until a follower has so many commits; what it has by then is given in any case.

        Gives how many commits it has (a recording goes on meanwhile), how many keys, and their
        values, all of one instant: each commit raises one product's revision by one.
        """
        found: tuple[int, dict[str, Any]] | None = None
        with anyio.CancelScope(deadline=deadline):
            while True:
                found = await follower.dump(asked) or found
                reached = _commits(found[1]) if found is not None else 0
                if found is not None and reached >= commits and OPENED_LAST in found[1]:
                    return reached, found
                await anyio.sleep(ASK_INTERVAL_S)
        return commits, found


def _commits(values: Mapping[str, Any]) -> int:
    return sum(value["rev"] for key, value in values.items() if key.startswith(_PRODUCT))
