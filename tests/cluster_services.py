"""Several services in one process, each a node of one cluster on loopback sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from cluster_group import free_places

import lanecache
from lanecache import Cache

WAIT_S = 30.0


@asynccontextmanager
async def caches(count: int, **fields: Any) -> AsyncIterator[list[Cache]]:
    """Start so many nodes, which know each other and are ready; give their caches."""
    places = [str(place) for place in free_places(count)]
    async with AsyncExitStack() as stack:
        found = []
        for place in places:
            cluster = {
                "name": "test",
                "preset": "local",
                "listen": place,
                "peers": places[:1],
                **fields,
            }
            service = await stack.enter_async_context(lanecache.start({"cluster": cluster}))
            assert service.cache is not None
            found.append(service.cache)
        async with asyncio.timeout(WAIT_S):
            for cache in found:
                await cache.ready()
            while any(len(cache.members()) < count for cache in found):
                await asyncio.sleep(0.01)
        yield found


async def until_all(caches: list[Cache], key: str, value: Any) -> None:
    """Wait until every node has that value for a key (``None``: none)."""
    async with asyncio.timeout(WAIT_S):
        while any(cache.get(key) != value for cache in caches):
            await asyncio.sleep(0.005)
