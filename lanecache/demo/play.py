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
from lanecache.servers import MariaDb, Redis

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
    """Show a database under live writes and lanecache keeping a cache true to it.

    The database is a private MariaDB; the cache is in this process, or a private Redis. At the end,
    also when it is cancelled, every key is compared with what ``SELECT`` gives. Nothing is left
    behind.

    Args:
        seconds: when to stop; ``None``: not before it is cancelled.
        redis: whether the cache is a private Redis.
        console: where to show it; default: standard output.

    Returns:
        The exit code 0.

    Raises:
        ServerMissing: MariaDB (or Redis) is not installed; nothing was started.
        DemoFailed: the cache was not what it should be.
    """
    screen = Screen(console or Console())
    async with AsyncExitStack() as stack:
        servers = [MariaDb(), *([Redis()] if redis else [])]
        names = " and a private ".join(f"{s.product.name} {s.version}" for s in servers)
        screen.say(f"Starting a private {names} ...")
        for server in servers:
            await stack.enter_async_context(server)
        database = servers[0]
        assert isinstance(database, MariaDb)
        await open_shop(database)
        config = {
            "source": {"name": "demo", "url": database.url(), "start": "earliest"},
            "sinks": {"main": {"url": servers[1].url() if redis else "memory:"}},
            "lanes": LANES,
        }
        service = await stack.enter_async_context(lanecache.start(config))
