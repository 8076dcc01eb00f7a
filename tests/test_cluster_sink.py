"""The cluster as a sink of ingest: what every sink has to do, takeovers, large transactions."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from cluster_caches import Fleet
from cluster_group import free_places
from cluster_in_process import NAME, node_config, services
from processes import run_to_end, until

import lanecache
from lanecache import Service
from lanecache.cluster.cache import Cache
from lanecache.cluster.sink import ClusterSink
from lanecache.config import SinkConfig
from lanecache.errors import SinkConflict, SinkUnavailable
from lanecache.operation import Clear, Delete, Set, Transaction
from lanecache.servers import DatabaseServer
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction

_numbers = itertools.count()


def sink_of(service: Service, **fields: Any) -> ClusterSink:
    """Make a sink of a running node, as the service itself makes it."""
    made = service._make_cluster_sink("cluster", SinkConfig(**({"url": "cluster"} | fields)))
    assert isinstance(made, ClusterSink)
    return made


class OneNode(SinkContract):
    count = 1

    @pytest.fixture(autouse=True)
    async def _nodes(self) -> AsyncIterator[None]:
        async with services(self.count) as self.services:
            yield

    def make(self) -> ClusterSink:
        return sink_of(self.services[0])


class TestClusterSinkOnOneNode(OneNode):
    async def read(self, key: str) -> Value:
        value: Value = self.services[0].cache.get(key)
        return value


class TestClusterSinkReadOnAnotherNode(OneNode):
    """What is durable can be read on every other node: the last of three is asked."""

    count = 3

    async def read(self, key: str) -> Value:
        await self.services[0].cache.settled(20.0)
        value: Value = self.services[-1].cache.get(key)
        return value


async def opened(sink: ClusterSink, durable: Durable | None = None) -> Durable:
    durable = durable or Durable()
    await sink.open(SOURCE, "writer", durable)
    return durable


async def applied(sink: ClusterSink, *run: Transaction) -> None:
    """Apply a run and wait until it is durable."""
    durable = await opened(sink)
    await sink.apply(run)
    await durable.wait(len(run))


# Taking over.


async def test_another_process_goes_on_from_what_the_cluster_holds() -> None:
    async with services(3) as (first, second, third):
        await applied(
            sink_of(first), transaction(1, Set("a", b"1")), transaction(2, Set("b", b"2"))
        )
        sink = sink_of(second)
        durable = Durable()
        stored = await sink.open(SOURCE, "next", durable)
        assert stored is not None
        assert stored.position == transaction(2).position
        await sink.apply([transaction(3, Set("a", b"3"))])
        await durable.wait(1)
        await second.cache.settled(20.0)
        for node in (first, second, third):
            assert node.cache.get_many(["a", "b"]) == {"a": b"3", "b": b"2"}
        await sink.close()


async def test_an_ingest_that_was_overtaken_hears_of_it_and_turns_nothing_back() -> None:
    async with services(2) as (first, second):
        old, new = sink_of(first), sink_of(second)
        await applied(old, transaction(1, Set("a", b"1")))
        durable = Durable()
        await new.open(SOURCE, "next", durable)
        await new.apply([transaction(2, Set("a", b"2"))])
        await durable.wait(1)
        with pytest.raises(SinkConflict, match="another lanecache process has taken over"):
            with anyio.fail_after(20):
                await old.watch()
        with pytest.raises(SinkConflict):
            await old.apply([transaction(2, Set("a", b"an old one's")), transaction(3)])
        await first.cache.settled(20.0)
        assert first.cache.get("a") == second.cache.get("a") == b"2"
        await old.close()
        # The overtaking one is not disturbed, and what it writes counts.
        await new.apply([transaction(3, Set("a", b"3"))])
        await durable.wait(2)
        await second.cache.settled(20.0)
        assert first.cache.get("a") == second.cache.get("a") == b"3"
        await new.close()


async def test_what_is_durable_outlives_the_process_that_wrote_it() -> None:
    async with services(2) as (reader, _):
        place = [str(each) for each in free_places(1)]
        peers = [reader.cache.statistics().address]
        writer = await lanecache.start(node_config(place[0], peers))
        await writer.cache.ready(20.0)
        sink = sink_of(writer)
        await applied(sink, transaction(1, Set("a", b"1")))
        await writer.stop()
        assert reader.cache.get("a") == b"1"
        successor = sink_of(reader)
        stored = await successor.open(SOURCE, "next", Durable())
        assert stored is not None
        assert stored.position == transaction(1).position
        await successor.close()


async def test_a_cluster_that_is_new_as_a_whole_holds_no_position() -> None:
    async with services(1) as (only,):
        await applied(sink_of(only), transaction(1, Set("a", b"1")))
    async with services(1) as (only,):
        sink = sink_of(only)
        assert await sink.open(SOURCE, "next", Durable()) is None
        await sink.close()


async def test_two_sources_have_a_position_each() -> None:
    async with services(2) as (one, other):
        shop, stock = sink_of(one), sink_of(other)
        durable = Durable()
        await shop.open("shop", "writer", durable)
        await stock.open("stock", "writer", durable)
        await shop.apply([transaction(1, Set("shop", b"1"), source="shop")])
        await stock.apply([transaction(5, Set("stock", b"5"), source="stock")])
        await durable.wait(2)
        await shop.close()
        await stock.close()
        await one.cache.settled(20.0)
        await other.cache.settled(20.0)
        for node in (one, other):
            assert node.cache.get_many(["shop", "stock"]) == {"shop": b"1", "stock": b"5"}
            assert [source.name for source in node.cache.statistics().sources] == ["shop", "stock"]
        taken = await sink_of(other).open("shop", "next", durable)
        assert taken is not None
        assert taken.position == transaction(1).position


async def test_a_node_that_has_not_caught_up_is_not_opened() -> None:
    own, silent = (str(place) for place in free_places(2))
    async with lanecache.start(node_config(own, [silent], alone_after_s=3600.0)) as service:
        sink = sink_of(service, connect_timeout_s=0.05)
        with pytest.raises(SinkUnavailable, match=silent):
            await sink.open(SOURCE, "writer", Durable())
        await sink.close()


async def test_durable_means_that_a_live_peer_has_it_and_one_that_stands_still_holds_nothing_up(
    tmp_path: Path,
) -> None:
    places = [str(place) for place in free_places(3)]
    async with Fleet(tmp_path, places) as fleet:
        quick, slow = [await fleet.start(number) for number in range(2)]
        async with lanecache.start(node_config(places[2], places[:2])) as writer:
            await writer.cache.ready(20.0)
            await until(lambda: len(writer.cache.statistics().links) == 2)
            sink = sink_of(writer)
            durable = await opened(sink)
            slow.send(signal.SIGSTOP)
            run = [
                transaction(n, Set(f"k:{n}", b"1"), Set("last", b"%d" % n)) for n in range(1, 51)
            ]
            await sink.apply(run)
            await durable.wait(50)
            assert await quick.call("get", "last") == b"50"
            # Now nobody can say that he has it, until both are known to be dead.
            quick.send(signal.SIGSTOP)
            await sink.apply([transaction(51, Set("last", b"51"))])
            assert durable.count == 50
            assert writer.cache.get("last") == b"51"
            await durable.wait(51)
            states = {member.state.name for member in writer.cache.members()}
            assert states == {"ALIVE", "DEAD"}
            for node in (quick, slow):
                node.send(signal.SIGCONT)
            wanted = {f"k:{n}": b"1" for n in range(1, 51)} | {"last": b"51"}
            await quick.holds(wanted)
            await slow.holds(wanted)
            await sink.close()


# What a transaction is.


async def test_a_key_that_moved_or_was_cleared_is_never_seen_beside_its_new_one() -> None:
    async with services(2) as (one, other):
        sink = sink_of(one)
        durable = await opened(sink)
        seen: set[tuple[str, ...]] = set()
        done = asyncio.Event()
        keys = ["p:old", "p:new", "q:1", "q:2"]

        async def look(cache: Cache) -> None:
            while not done.is_set():
                seen.add(tuple(cache.get_many(keys)))
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(look(one.cache))
            group.create_task(look(other.cache))
            for number in range(50):
                first = transaction(2 * number + 1, Delete("p:new"), Set("p:old", b"1"),
                                    Clear("q:"), Set("q:1", b"1"))  # fmt: skip
                second = transaction(2 * number + 2, Delete("p:old"), Set("p:new", b"1"),
                                     Clear("q:"), Set("q:2", b"1"))  # fmt: skip
                await sink.apply([first])
                await durable.wait(2 * number + 1)
                await sink.apply([second])
                await durable.wait(2 * number + 2)
            done.set()
        assert seen <= {(), ("p:old", "q:1"), ("p:new", "q:2")}
        assert len(seen) > 1
        await sink.close()


async def test_each_transaction_of_a_run_is_an_entry_with_its_own_position() -> None:
    async with services(2) as (one, other):
        sink = sink_of(one)
        durable = await opened(sink)
        assert one._engine is not None
        node = one._engine.running_node
        before = node.written
        run = [transaction(n, Set("k", b"%d" % n), Set(f"k:{n}", b"")) for n in range(1, 51)]
        await sink.apply(run)
        await durable.wait(50)
        assert node.written == before + 50
        await one.cache.settled(20.0)
        for service in (one, other):
            assert service.cache.get("k") == b"50"
            for n in (1, 25, 50):
                explained = service.cache.explain(f"k:{n}")
                assert explained is not None
                position = transaction(n).position
                assert (explained.file, explained.offset) == (position.file, position.offset)
        await sink.close()


@pytest.mark.parametrize("spilled", [False, True])
async def test_a_transaction_larger_than_an_entry_is_applied_in_two_phases(spilled: bool) -> None:
    keys = [f"k:{number}" for number in range(300)]
    limits = {"entry_bytes_max": 65_536, "value_bytes_max": 2000, "key_bytes_max": 100}
    async with services(2, **limits) as (one, other):
        sink = sink_of(one, batch_bytes_max=8192)
        durable = await opened(sink)
        await sink.apply([transaction(1, *(Set(key, b"old") for key in keys), Set("p:1", b"old"))])
        await durable.wait(1)
        await one.cache.settled(20.0)
        mixes: list[set[bytes]] = []
        misses = 0
        done = asyncio.Event()

        async def look(cache: Cache) -> None:
            nonlocal misses
            while not done.is_set():
                values = cache.get_many([*keys, "p:1"])
                generations = {value[:3] for value in values.values()}
                if len(generations) > 1:
                    mixes.append(generations)
                misses += 0 < len(values) < len(keys)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(look(one.cache))
            group.create_task(look(other.cache))
            large = [Clear("p:"), *(Set(key, b"new" + b"x" * 1000) for key in keys)]
            await sink.apply([transaction(2, *large, Delete("k:7"), spilled=spilled)])
            await durable.wait(2)
            await one.cache.settled(20.0)
            done.set()
        assert mixes == []
        assert misses > 0
        wanted = {key: b"new" + b"x" * 1000 for key in keys if key != "k:7"}
        assert one.cache.get_many([*keys, "p:1"]) == wanted
        assert other.cache.get_many([*keys, "p:1"]) == wanted
        explained = other.cache.explain("k:1")
        assert explained is not None
        assert (explained.source, explained.offset) == (SOURCE, 200)
        await sink.close()
        stored = await sink_of(other).open(SOURCE, "next", Durable())
        assert stored is not None
        assert stored.position == transaction(2).position


async def test_values_and_keys_that_are_too_long_become_invalidations_and_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with services(2, value_bytes_max=1000, key_bytes_max=20) as (one, other):
        sink = sink_of(one)
        durable = await opened(sink)
        await sink.apply([transaction(1, Set("a", b"1"), Set("h", {"x": b"1"}), Set("b", b"1"))])
        with caplog.at_level(logging.WARNING):
            await sink.apply(
                [
                    transaction(
                        2,
                        Set("a", b"x" * 998),
                        Set("b", b"x" * 997),
                        Set("h", {"x": b"x" * 500, "y": b"x" * 500}),
                        Set("k" * 21, b"1"),
                        Delete("k" * 22),
                    )
                ]
            )
        await durable.wait(2)
        await one.cache.settled(20.0)
        for node in (one, other):
            found = node.cache.get_many(["a", "b", "h", "k" * 20])
            assert found == {"b": b"x" * 997}
        assert sink.invalidated == 3
        assert len([record for record in caplog.records if "too long" in record.message]) == 3
        await sink.close()


async def test_what_waits_is_bounded_by_the_window() -> None:
    async with services(2) as (one, _):
        sink = sink_of(one, window_bytes_max=20_000, batch_bytes_max=5000)
        durable = await opened(sink)
        largest = 0
        run = [transaction(n, Set(f"k:{n}", b"x" * 1000)) for n in range(1, 201)]
        async with asyncio.TaskGroup() as group:
            applying = group.create_task(sink.apply(run))
            while not applying.done():
                largest = max(largest, sink._given_bytes)
                await asyncio.sleep(0)
        await durable.wait(200)
        assert 0 < largest <= 20_000 + 6000
        await sink.close()


# In a service.


@pytest.fixture
async def product(database: DatabaseServer, schema: str) -> str:
    """Give a schema with a table ``product``."""
    await database.execute(
        f"CREATE TABLE {schema}.product (id INT PRIMARY KEY, name VARCHAR(20)) ENGINE=InnoDB"
    )
    return schema


@pytest.fixture
async def shop(mariadb: DatabaseServer) -> AsyncIterator[str]:
    """Give the same in MariaDB, for what is alike in every database."""
    name = f"cluster_sink_{next(_numbers)}"
    await mariadb.execute(
        f"CREATE DATABASE {name}",
        f"CREATE TABLE {name}.product (id INT PRIMARY KEY, name VARCHAR(20)) ENGINE=InnoDB",
    )
    yield name
    await mariadb.execute(f"DROP DATABASE {name}")


def ingest(database: DatabaseServer, schema: str, **sections: Any) -> dict[str, Any]:
    return {
        "source": {"name": "shop", "url": database.url(), "heartbeat_s": 1.0},
        "lanes": [{"table": f"{schema}.product", "key": "product:{id}"}],
        **sections,
    }


async def test_a_source_and_lanes_alone_are_enough_for_a_cache(
    database: DatabaseServer, product: str
) -> None:
    async with lanecache.start(ingest(database, product)) as service:
        async with database.session(product) as session:
            await session.execute("INSERT INTO product VALUES (1, 'Tea'), (2, 'Honey')")
            token = await lanecache.commit_token(session.connection)
        await service.wait_for(token, sink="cluster", timeout_s=20)
        assert json.loads(service.cache.get("product:1")) == {"id": 1, "name": "Tea"}
        position = service.sinks["cluster"].position
        assert position is not None
        statistics = service.statistics()
        assert statistics.ready
        assert statistics.cluster is not None
        assert statistics.cluster.name == "shop"
        (source,) = statistics.cluster.sources
        assert (source.name, source.is_here) == ("shop", True)
        assert source.position == str(position)
        explained = service.cache.explain("product:1")
        assert explained is not None
        assert explained.source == "shop"


async def test_ingest_moves_to_another_process_and_misses_nothing(
    mariadb: DatabaseServer, shop: str
) -> None:
    places = [str(place) for place in free_places(3)]

    def with_cluster(place: str) -> dict[str, Any]:
        return ingest(mariadb, shop, **node_config(place, [places[0]]))

    async with (
        lanecache.start(node_config(places[0], [])) as reader,
        mariadb.session(shop) as session,
    ):
        async with lanecache.start(with_cluster(places[1])) as first:
            await session.execute("INSERT INTO product VALUES (1, 'a')")
            token = await lanecache.commit_token(session.connection)
            await first.wait_for(token, timeout_s=20)
        # Nobody reads the source now: what is committed meanwhile comes with the next one.
        await session.execute("UPDATE product SET name = 'b' WHERE id = 1")
        await session.execute("INSERT INTO product VALUES (2, 'b')")
        assert json.loads(reader.cache.get("product:1")) == {"id": 1, "name": "a"}
        async with lanecache.start(with_cluster(places[2])) as second:
            token = await lanecache.commit_token(session.connection)
            await second.wait_for(token, sink="cluster", timeout_s=20)
            await second.cache.settled(20.0)
            found = reader.cache.get_many(["product:1", "product:2"])
            assert [json.loads(value)["name"] for value in found.values()] == ["b", "b"]


async def test_a_second_ingest_of_the_same_source_ends_the_first_with_one_sentence(
    mariadb: DatabaseServer, shop: str
) -> None:
    places = [str(place) for place in free_places(2)]
    first = await lanecache.start(ingest(mariadb, shop, **node_config(places[0], [])))
    async with lanecache.start(ingest(mariadb, shop, **node_config(places[1], places))):
        with pytest.raises(SinkConflict, match="give them different source names"):
            async with asyncio.timeout(20):
                await first.wait()


async def test_check_and_tail_take_a_configuration_without_sinks(
    mariadb: DatabaseServer, shop: str, tmp_path: Path
) -> None:
    path = tmp_path / "lanecache.toml"
    path.write_text(
        f'[source]\nname = "shop"\nurl = "{mariadb.url()}"\nstart = "earliest"\n'
        f'[[lanes]]\ntable = "{shop}.product"\nkey = "product:{{id}}"\n'
    )
    await mariadb.execute(f"INSERT INTO {shop}.product VALUES (1, 'Tea')")
    checked = await run_to_end(tmp_path, "check", path)
    assert checked.code == 0, checked
    assert "sink cluster: the rows are held by the node of this process" in checked.out
    tailed = await run_to_end(tmp_path, "tail", "--limit", "1", path)
    assert tailed.code == 0, tailed
    assert json.loads(tailed.out)["sinks"] == ["cluster"]
    ran = await run_to_end(tmp_path, "run", "--once", path)
    assert ran.code == 0, ran
    assert "held by this process alone" in ran.err


async def test_check_says_what_position_the_running_cluster_holds(
    mariadb: DatabaseServer, shop: str, tmp_path: Path
) -> None:
    (place,) = (str(each) for each in free_places(1))
    settings = ingest(mariadb, shop, **node_config(place, []))
    async with lanecache.start(settings) as service:
        await until(lambda: service.sinks["cluster"].position is not None)
        path = tmp_path / "lanecache.json.toml"
        path.write_text(
            f'[source]\nname = "shop"\nurl = "{mariadb.url()}"\n'
            f'[[lanes]]\ntable = "{shop}.product"\nkey = "product:{{id}}"\n'
            f'[cluster]\nname = "{NAME}"\nlisten = "{place}"\n'
        )
        checked = await run_to_end(tmp_path, "check", path)
        assert checked.code == 0, checked
        assert f"a node of the cluster {NAME} runs at {place} already" in checked.out
        position = str(service.sinks["cluster"].position)
        assert "sink cluster: the binlog goes on from the position that is stored" in checked.out
        asked = await run_to_end(tmp_path, "status", path)
        assert f"source shop: {position}, read by this node" in asked.out, asked
        told = json.loads((await run_to_end(tmp_path, "status", "--json", path)).out)
        (source,) = told["sources"]
        assert source.pop("age_s") >= 0
        assert source.pop("silent_s") >= 0
        assert source == {"name": "shop", "position": position, "is_here": True}
