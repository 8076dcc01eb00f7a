"""The demonstration with a private Redis: the service and a reader are in this process."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import msgspec

import lanecache
from lanecache.demo.shop import LANES, PRODUCTS
from lanecache.demo.view import Place, Scene, State

if TYPE_CHECKING:
    from lanecache.servers import Redis

LOOK_INTERVAL_S = 0.0005
READ_INTERVAL_S = 0.01
READS_AT_ONCE = 10
FIGURES_INTERVAL_S = 0.1
READ_KEYS_MAX = 76

_PRODUCT_KEYS = [f"product:{number}" for number in range(1, len(PRODUCTS) + 1)]


class RedisFollower:
    """A reader of a Redis that lanecache writes to."""

    def __init__(self, place: Place, scene: Scene, client: Any) -> None:
        self.place = place
        self._scene = scene
        self._client = client
        self._reads = self._hits = 0
        self._keys: deque[str] = deque(_PRODUCT_KEYS, maxlen=READ_KEYS_MAX)

    def touch(self, keys: Sequence[str]) -> None:
        """Hear that a transaction has changed these keys."""
        self._keys.extend(key for key in keys if key not in self._keys)

    async def dump(self, keys: Sequence[str]) -> tuple[int, dict[str, Any]]:
        """Give how many keys it holds, and the values of these that it holds."""
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.mget(keys)
            pipeline.keys("*:*")
            values, names = await pipeline.execute()
        held = {
            key: msgspec.json.decode(value)
            for key, value in zip(keys, values, strict=True)
            if value
        }
        return sum(not name.startswith(b"lanecache:") for name in names), held

    async def run(self) -> None:
        """Read, look and report until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            for work in (self._look, self._read, self._report):
                tasks.start_soon(work, name=f"demo: {work.__name__}")

    async def _look(self) -> None:
        """Notice each product's new revision, while one is awaited."""
        seen: dict[str, bytes] = {}
        while True:
            if self._scene.oldest_awaited_at(self.place) is not None:
                values = await self._client.mget(_PRODUCT_KEYS)
                now = time.monotonic()
                for number, (key, value) in enumerate(zip(_PRODUCT_KEYS, values, strict=True), 1):
                    if value is not None and seen.get(key) != value:
                        seen[key] = value
                        self._scene.arrived(
                            self.place, number, msgspec.json.decode(value)["rev"], now
                        )
            await anyio.sleep(LOOK_INTERVAL_S)

    async def _read(self) -> None:
        chance = random.Random(1)
        while True:
            values = await self._client.mget(chance.choices(self._keys, k=READS_AT_ONCE))
            self._hits += sum(value is not None for value in values)
            self._reads += len(values)
            await anyio.sleep(READ_INTERVAL_S)

    async def _report(self) -> None:
        while True:
            keys = list(self._scene.keys)
            self.place.keys, held = await self.dump([*keys, *_PRODUCT_KEYS])
            self.place.values = held
            self.place.count_reads(self._reads, self._hits, time.monotonic())
            await anyio.sleep(FIGURES_INTERVAL_S)


@asynccontextmanager
async def redis_follower(
    server: Redis, scene: Scene, source: Mapping[str, Any]
) -> AsyncIterator[RedisFollower]:
    """Run a service that keeps a Redis true to a source, and a reader of it."""
    config = {"source": source, "sinks": {"main": {"url": server.url()}}, "lanes": LANES}
    (place,) = scene.places
    async with (
        lanecache.start(config),
        server.client() as client,
        anyio.create_task_group() as tasks,
    ):
        follower = RedisFollower(place, scene, client)
        place.pid, place.state = server.pid, State.READY
        tasks.start_soon(follower.run, name="demo: reader")
        yield follower
        tasks.cancel_scope.cancel()
