"""Several nodes of one cluster in this process, for what needs no process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cluster_group import free_places

import lanecache
from lanecache import Service

NAME = "test"


def node_config(place: str, peers: Sequence[str] = (), **fields: Any) -> dict[str, Any]:
    """Give the configuration of a node without a source."""
    cluster = {"name": NAME, "preset": "local", "listen": place, "peers": list(peers)}
    return {"cluster": cluster | fields}


@asynccontextmanager
async def services(
    count: int, *own: Mapping[str, Any], **fields: Any
) -> AsyncIterator[list[Service]]:
    """Start so many nodes of one cluster, and wait until they are ready.

    At the end they are let go of without leaving, which would take them most of a second.
    ``own`` are fields of the first ones; ``fields`` of all.
    """
    places = [str(place) for place in free_places(count)]
    started: list[Service] = []
    try:
        for number, place in enumerate(places):
            special = own[number] if number < len(own) else {}
            config = node_config(place, places[:2], **fields, **special)
            started.append(await lanecache.start(config))
        for service in started:
            await service.cache.ready(20.0)
        yield started
    finally:
        for service in started:
            await let_go(service)


async def let_go(service: Service) -> None:
    """End a node as if its process had died, but for its sockets, which are closed."""
    engine, task = service._engine, service._task
    assert engine is not None
    assert engine._tasks is not None
    assert task is not None
    engine._tasks.cancel_scope.cancel()
    await asyncio.wait({task})
