"""One cache in three nodes, with no database: what is slow is done once for all of them.

::

    python examples/three_nodes.py

So that one command shows it, the three nodes are in one process here. In yours each process starts
one, and nothing else is different: the same cluster's name, and the address of another to join by.
"""

import asyncio
from contextlib import AsyncExitStack

import lanecache

PLACES = ["127.0.0.1:7946", "127.0.0.1:7947", "127.0.0.1:7948"]
made = 0


async def make_report(key: str) -> str:
    """Stand for a query that takes long."""
    global made
    made += 1
    number = made
    await asyncio.sleep(0.2)
    return f"{key} number {number}"


async def main(places: list[str]) -> None:
    async with AsyncExitStack() as stack:
        caches = []
        for place in places:
            cluster = {"name": "reports", "listen": place, "peers": places[:1], "preset": "local"}
            service = await stack.enter_async_context(lanecache.start({"cluster": cluster}))
            caches.append(service.cache)
        for cache in caches:
            await cache.ready(timeout_s=10)
        while any(len(cache.members()) < len(places) for cache in caches):
            await asyncio.sleep(0.01)  # a moment later each knows of the last one too

        async def ask_everywhere() -> None:
            """Ask for the report in fifty tasks of every node, at once."""
            asked = [
                cache.get_or_fill("report", make_report, ttl_s=60)
                for cache in caches
                for _ in range(50)
            ]
            reports = await asyncio.gather(*asked)
            print(f"{len(reports)} tasks got {set(reports)}; it was made {made} times so far")

        await ask_everywhere()
        await ask_everywhere()  # all have it: no node asks another
        caches[0].delete("report")
        await caches[0].settled(timeout_s=10)  # every node has seen that
        await ask_everywhere()


if __name__ == "__main__":
    asyncio.run(main(PLACES))
