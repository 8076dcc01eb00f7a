"""The Redis Cluster sink, on real clusters of three primaries and three replicas."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from exactness import KEYS, CounterReader, Runner, counter_config, torture
from redis.asyncio.cluster import RedisCluster as ClusterClient
from sink_contract import SOURCE, Durable, SinkContract, Value, transaction

from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import ConfigError, PositionLost, SinkConflict, SinkError, SinkUnavailable
from lanecache.finding import Severity
from lanecache.operation import Checkpoint, Clear, Delete, Position, Set, Transaction
from lanecache.servers import DatabaseServer, Redis, Valkey
from lanecache.servers.programs import find_programs
from lanecache.servers.redis_groups import RedisCluster
from lanecache.sinks.make import check_sink, make_sink
from lanecache.sinks.redis_address import parse_target
from lanecache.sinks.redis_cluster import RedisClusterSink, read_records
from lanecache.sinks.redis_nodes import RedisNodes, Request
from lanecache.sinks.redis_records import Record, Standing, node_command, slot_command, stand
from lanecache.sinks.redis_slots import (
    SLOTS,
    parse_redirect,
    parse_slots,
    record_key,
    slot_of,
    witnesses_of,
)

pytestmark = pytest.mark.servers

KINDS: list[type[Redis]] = [
    kind for kind in (Valkey, Redis) if find_programs(kind.product)
] or [Redis]


def in_thread(function: Callable[..., Any], *args: Any) -> None:
    """Run an asynchronous function to its end in a thread, away from the tests' event loop."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(function, *args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def newest_series(kind: type[Redis]) -> str | None:
    programs = find_programs(kind.product)
    return max((program.series for program in programs), default=None, key=_number)


def _number(series: str) -> list[int]:
    return [int(part) for part in series.split(".")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.product.name)
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    kind = request.param
    found = RedisCluster(kind, newest_series(kind))
    in_thread(found.__aenter__)
    yield found
    in_thread(found.__aexit__)


@pytest.fixture
async def empty_cluster(cluster: RedisCluster) -> RedisCluster:
    await cluster.wait_agreed()
    for node in cluster.nodes:
        if (await node.execute("ROLE"))[0] in (b"master", "master"):
            await node.empty()
    return cluster


@asynccontextmanager
async def client_of(cluster: RedisCluster) -> AsyncIterator[ClusterClient]:
    node = next(node for node in cluster.nodes if node.running)
    client = ClusterClient(host=node.host, port=node.port)
    try:
        yield client
    finally:
        await client.aclose()


def sink_for(cluster: RedisCluster, **limits: Any) -> RedisClusterSink:
    return RedisClusterSink(SinkConfig(url=cluster.url(), **limits), name="main")


async def opened(cluster: RedisCluster, durable: Durable, **limits: Any) -> RedisClusterSink:
    sink = sink_for(cluster, **limits)
    await sink.open(SOURCE, "writer", durable)
    return sink


class TestRedisClusterSink(SinkContract):
    @pytest.fixture(autouse=True)
    async def _client(self, empty_cluster: RedisCluster) -> AsyncIterator[None]:
        self.cluster = empty_cluster
        async with client_of(empty_cluster) as self.client:
            yield

    def make(self) -> RedisClusterSink:
        return sink_for(self.cluster, window_bytes_max=65536, batch_bytes_max=16384)

    async def read(self, key: str) -> Value:
        kind = await self.client.type(key)
        if kind == b"hash":
            fields = await self.client.hgetall(key)
            return {field.decode(): value for field, value in fields.items()}
        return await self.client.get(key)  # type: ignore[no-any-return]
