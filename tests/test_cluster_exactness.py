"""Laws 2, 3 and 4 with the cluster as the sink: read on three nodes, ingest killed, and doubled.

Three processes hold the cluster and read the ten equal keys (see ``exactness``); ingest runs in a
fourth one, which is a node too. Killed, it comes back with nothing, and goes on from what the three
hold. Where a second one is started beside it, the first one is overtaken, and ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster_caches import Fleet, Node, together
from cluster_group import free_places
from exactness import (
    KEYS,
    CounterReader,
    CounterWriter,
    Runner,
    counter_config,
    create_counters,
    torture,
)
from processes import Lanecache

from lanecache.servers import DatabaseServer

# Begins a new epoch without looking at what the cluster holds, as if each ingest were the first.
# From the oldest binlog on, so that what has been seen comes again.
POSITION_IGNORED = """
import os
from lanecache.cluster import sink
os.environ["LANECACHE_SOURCE__START"] = "earliest"
sink.ClusterSink._decode = lambda self, stored, source: None
"""

TAKEOVERS = 4

_numbers = itertools.count()


@asynccontextmanager
async def reading_nodes(folder: Path, places: list[str]) -> AsyncIterator[list[Node]]:
    """Give three nodes that read the counters again and again."""
    async with Fleet(folder, places) as fleet:
        nodes = [await fleet.start(number) for number in range(3)]
        for node in nodes:
            await node.call("read_counters")
        yield nodes


def ingest_config(
    folder: Path, database: DatabaseServer, schema: str, places: list[str], place: str
) -> Path:
    """Write the configuration of an ingest that is a node at ``place``."""
    path = folder / f"ingest-{place.rpartition(':')[2]}.toml"
    cluster = [
        "[cluster]",
        'name = "test"',
        'preset = "local"',
        f'listen = "{place}"',
        f"peers = {json.dumps(places[:3])}",
    ]
    sink = counter_config(database, schema, 'url = "cluster"')
    path.write_text("\n".join([sink, *cluster]) + "\n")
    return path


async def new_schema(database: DatabaseServer) -> str:
    name = f"cluster_torture_{next(_numbers)}"
    await database.execute(f"CREATE DATABASE {name}")
    return name


async def run_torture(
    database: DatabaseServer, folder: Path, *, kills: int, prelude: str = ""
) -> tuple[CounterReader, list[dict[str, Any]]]:
    """Torture it; give what was seen by the test on one node, and by each node itself."""
    schema = await new_schema(database)
    places = [str(place) for place in free_places(4)]
    async with reading_nodes(folder, places) as nodes:
        config = ingest_config(folder, database, schema, places, places[3])

        async def read() -> list[bytes | None]:
            found = await nodes[0].call("get_many", KEYS)
            return [found.get(key) for key in KEYS]

        reader = await torture(database, schema, Runner(config, prelude=prelude), read, kills=kills)
        for node in nodes:
            await node.call("counters_reach", reader.last)
        return reader, await together(*(node.call("counters_read") for node in nodes))


async def test_ten_equal_keys_stay_equal_on_three_nodes_while_ingest_is_killed_twenty_times(
    mariadb: DatabaseServer, tmp_path: Path
) -> None:
    reader, seen = await run_torture(mariadb, tmp_path, kills=20)
    assert reader.violations == []
    for each in seen:
        assert each["violations"] == []
        assert each["last"] == reader.last
        assert each["reads"] > 1000


async def test_the_torture_finds_an_ingest_that_ignores_the_position_of_the_cluster(
    mariadb: DatabaseServer, tmp_path: Path
) -> None:
    _, seen = await run_torture(mariadb, tmp_path, kills=1, prelude=POSITION_IGNORED)
    assert any(each["violations"] for each in seen)


async def test_two_ingests_at_once_turn_no_key_back_and_the_first_one_ends(
    mariadb: DatabaseServer, tmp_path: Path
) -> None:
    schema = await new_schema(mariadb)
    places = [str(place) for place in free_places(5)]
    await create_counters(mariadb, schema)
    configs = [ingest_config(tmp_path, mariadb, schema, places, each) for each in places[3:]]
    writer = CounterWriter(mariadb, schema)
    async with reading_nodes(tmp_path, places) as nodes:
        first = Lanecache(tmp_path, "run", configs[0]).__enter__()
        try:
            await first.wait_logged("streaming from")
            writing = asyncio.create_task(writer.run())
            for number in range(1, TAKEOVERS + 1):
                await nodes[0].call("counters_reach", writer.number)
                # In turns, the one that is overtaken is at work, or does not run meanwhile.
                is_paused = number % 2 == 0
                if is_paused:
                    first.send(signal.SIGSTOP)
                second = Lanecache(tmp_path, "run", configs[number % 2]).__enter__()
                await second.wait_logged("streaming from")
                if is_paused:
                    first.send(signal.SIGCONT)
                ended = await first.ended()
                assert "has taken over the source 'torture'" in ended.sentence(3)
                first = second
            writer.stop()
            await writing
            committed = await mariadb.scalar(f"SELECT MAX(n) FROM {schema}.counter")
            for node in nodes:
                await node.call("counters_reach", committed)
                wanted = {key: {"id": n, "n": committed} for n, key in enumerate(KEYS)}
                found = await node.call("get_many", KEYS)
                assert {key: json.loads(value) for key, value in found.items()} == wanted
            for seen in await together(*(node.call("counters_read") for node in nodes)):
                # What only the overtaken one had brought may be forgotten, and never turns back.
                assert [each for each in seen["violations"] if "a miss" not in each] == []
            assert (await first.end()).code == 0
        finally:
            first.__exit__()
