"""Put the demonstration together: servers, shop, service, and the screen that shows them."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import anyio
import msgspec
from rich.console import Console

import lanecache
from lanecache.demo.shop import LANES, Shop, Write, open_shop, read_shop
from lanecache.demo.view import Scene, Screen, ShownWrite
from lanecache.errors import LanecacheError
from lanecache.servers import MariaDb, Redis, Session

WRITES_PER_S = 25.0
# How finely the arrival of a transaction is measured.
LOOK_INTERVAL_S = 0.0005
ARRIVAL_MAX_S = 30.0


class DemoFailed(LanecacheError):
    """The cache was not equal to the database, or did not become so in time."""


class Cache(Protocol):
    """How the demonstration looks into the cache, past lanecache."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None]: ...

    async def keys(self) -> set[str]: ...


class MemoryCache:
    """The sink ``memory:`` of a service."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._sink.get(key) for key in keys]

    async def keys(self) -> set[str]:
        return set(self._sink.snapshot())


class RedisCache:
    """A Redis, asked as any reader would."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        return list(await self._client.mget(keys)) if keys else []

    async def keys(self) -> set[str]:
        found = [key.decode() async for key in self._client.scan_iter(count=1000)]
        return {key for key in found if not key.startswith("lanecache:")}


async def run_demo(
    seconds: float | None = None, redis: bool = False, *, console: Console | None = None
) -> int:
    """Show a database under live writes, and lanecache keeping a cache true to it.

    The database is a private MariaDB; the cache is in this process, or a private Redis. At the end,
    also when that is a cancellation, every key is compared with what ``SELECT`` gives. Nothing is
    left behind.

    Args:
        seconds: when to stop; ``None``: when it is cancelled.
        redis: whether the cache is a private Redis.
        console: where to show it; default: standard output.

    Returns:
        The exit code 0.

    Raises:
        ServerMissing: MariaDB (or Redis) is not installed; nothing was started.
        DemoFailed: the cache was not what it should be.
    """
    screen = Screen(console or Console())
    database = MariaDb()
    redis_server = Redis() if redis else None
    async with AsyncExitStack() as stack:
        screen.say(f"Starting a private MariaDB {database.version}")
        await stack.enter_async_context(database)
        if redis_server is not None:
            screen.say(f"Starting a private Redis {redis_server.version}")
            await stack.enter_async_context(redis_server)
            screen.say(f"To look into it: redis-cli -p {redis_server.port} --scan")
        await open_shop(database)
        config = {
            "source": {"name": "demo", "url": database.url(), "start": "earliest"},
            "sinks": {"main": {"url": redis_server.url() if redis_server else "memory:"}},
            "lanes": LANES,
        }
        service = await stack.enter_async_context(lanecache.start(config))
        session = await stack.enter_async_context(database.session())
        cache: Cache
        if redis_server is not None:
            cache = RedisCache(await stack.enter_async_context(redis_server.client()))
            scene = Scene(f"MariaDB {database.version}", f"Redis {redis_server.version}")
        else:
            cache = MemoryCache(service.sinks["main"].target)
            scene = Scene(f"MariaDB {database.version}", "in this process")
        play = Play(scene, screen, cache, Shop(session, random.Random(1)))
        try:
            with screen.showing(scene), anyio.move_on_after(seconds):
                await play.run()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.fail_after(ARRIVAL_MAX_S):
                await _audit(service, session, cache, screen, scene)
            raise
        with anyio.fail_after(ARRIVAL_MAX_S):
            await _audit(service, session, cache, screen, scene)
    return 0


class Play:
    """The tasks of the demonstration: one writes, one waits for arrivals, one draws."""

    def __init__(self, scene: Scene, screen: Screen, cache: Cache, shop: Shop) -> None:
        self._scene = scene
        self._screen = screen
        self._cache = cache
        self._shop = shop
        self._send, self._receive = anyio.create_memory_object_stream[
            tuple[Write, ShownWrite, float]
        ](100)

    async def run(self) -> None:
        """Play until it is cancelled."""
        async with self._send, self._receive, anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, name="demo: customers")
            tasks.start_soon(self._watch, name="demo: arrivals")
            tasks.start_soon(self._draw, name="demo: screen")

    async def _write(self) -> None:
        next_at = time.monotonic()
        while True:
            # Whole transactions only: a connection that is cancelled amid one cannot be used again.
            with anyio.CancelScope(shield=True):
                write = await self._shop.write()
            now = time.monotonic()
            shown = self._scene.wrote(write.text, write.committed, now)
            if write.committed:
                await self._send.send((write, shown, now))
            next_at = max(next_at + 1 / WRITES_PER_S, now)
            await anyio.sleep(next_at - now)

    async def _watch(self) -> None:
        """Measure from the end of each COMMIT to the moment that a reader of the cache sees it."""
        async for write, shown, committed_at in self._receive:
            key = f"product:{write.product_id}"
            while not await self._has(key, write.revision):
                if time.monotonic() - committed_at > ARRIVAL_MAX_S:
                    raise DemoFailed(
                        f"{key} did not arrive in the cache within {ARRIVAL_MAX_S:.0f} s"
                    )
                await anyio.sleep(LOOK_INTERVAL_S)
            now = time.monotonic()
            self._scene.arrived(shown, now - committed_at)
            for touched in write.keys[-3:]:
                self._scene.touch(touched, now)

    async def _has(self, key: str, revision: int) -> bool:
        (value,) = await self._cache.get([key])
        return value is not None and int(msgspec.json.decode(value)["rev"]) >= revision

    async def _draw(self) -> None:
        while True:
            await anyio.sleep(self._screen.interval_s)
            shown = list(self._scene.keys)
            values = await self._cache.get(shown)
            self._scene.keys_total = len(await self._cache.keys())
            now = time.monotonic()
            for key, value in zip(shown, values, strict=True):
                decoded: Mapping[str, Any] | None = msgspec.json.decode(value) if value else None
                self._scene.keys[key].update(decoded, now)
            self._screen.draw(self._scene)


async def _audit(
    service: lanecache.Service, session: Session, cache: Cache, screen: Screen, scene: Scene
) -> None:
    """Compare the whole cache with the database, once the last commit has arrived."""
    wanted = await read_shop(session)
    await service.wait_for(await lanecache.commit_token(session.connection), sink="main")
    keys = sorted(await cache.keys() | wanted.keys())
    values = await cache.get(keys)
    for key, value in zip(keys, values, strict=True):
        found = None if value is None else msgspec.json.decode(value)
        if found != wanted.get(key):
            raise DemoFailed(f"{key} is {found} in the cache and {wanted.get(key)} in the database")
    if not screen.in_place:  # there it has just been shown
        screen.say(scene.line(time.monotonic()))
    screen.say(f"Compared {len(keys)} keys with what SELECT gives: all are equal")
