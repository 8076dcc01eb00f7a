"""``service.cache``: what it takes and refuses, what others see, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cluster_group import free_places
from cluster_in_process import NAME, node_config, services
from processes import run_to_end, until

import lanecache
from lanecache import CacheStopped, CacheValueError, Service
from lanecache.cluster.cache import Cache
from lanecache.cluster.events import MemberJoined


@pytest.fixture
async def cache() -> AsyncIterator[Cache]:
    """Give a cache that is alone."""
    async with services(1) as (service,):
        yield service.cache


async def holds(cache: Cache, wanted: Mapping[str, Any]) -> None:
    """Wait until a cache has exactly these of the keys; a value ``None``: not there."""
    there = {key: value for key, value in wanted.items() if value is not None}
    await until(
        lambda: cache.get_many(wanted) == there, lambda: f"{wanted} in {cache.get_many(wanted)}"
    )


# Reading and writing.


async def test_what_was_set_is_there_at_once_and_what_was_deleted_is_not(cache: Cache) -> None:
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert cache.get("b") is None
    assert cache.get("b", 5) == 5
    cache.set_many({"b": "two", "c": [3]}, ttl_s=60)
    assert cache.get_many(["c", "a", "nothing", "b"]) == {"c": [3], "a": 1, "b": "two"}
    cache.delete("a")
    cache.delete("never there")
    assert cache.get("a") is None
    cache.delete_many(["b", "nothing"])
    assert cache.get_many(["a", "b", "c"]) == {"c": [3]}


async def test_what_is_given_is_the_object_that_was_set(cache: Cache) -> None:
    value = {"a": [1, 2]}
    cache.set("a", value)
    assert cache.get("a") is value


async def test_a_clear_takes_its_prefix_literally_and_an_empty_one_takes_all(cache: Cache) -> None:
    keys = ["p:", "p:1", "p:*", "p", "px", "*", "x"]
    cache.set_many(dict.fromkeys(keys, 1))
    cache.clear("p:")
    assert list(cache.get_many(keys)) == ["p", "px", "*", "x"]
    cache.clear("*")
    assert list(cache.get_many(keys)) == ["p", "px", "x"]
    cache.clear("")
    assert cache.get_many(keys) == {}
    cache.set("p", 2)
    assert cache.get("p") == 2


async def test_a_none_that_was_set_is_told_from_a_miss_by_a_default(cache: Cache) -> None:
    missing = object()
    cache.set("none", None)
    assert cache.get("none", missing) is None
    assert cache.get("other", missing) is missing
    assert cache.get_many(["none", "other"]) == {"none": None}


async def test_empty_batches_are_fine_and_write_nothing(cache: Cache) -> None:
    cache.set_many({})
    cache.set_many({}, ttl_s=5)
    cache.delete_many([])
    assert cache.get_many([]) == {}
    assert cache.statistics().cache.entries == 0


async def test_a_value_is_gone_when_its_time_is_over(cache: Cache) -> None:
    cache.set("short", 1, ttl_s=0.03)
    cache.set("long", 1, ttl_s=100)
    assert cache.get("short") == 1
    await until(lambda: cache.get("short") is None)
    assert cache.get("long") == 1


# What is refused.


class Sub(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [object(), (1, 2), {1, 2}, Sub("x"), {1: 2}, [object()], 2**64, 1j, bytearray(b"x"), "\ud800"],
    ids=lambda value: type(value).__name__,
)
async def test_a_value_of_another_type_is_refused_and_nothing_is_changed(
    cache: Cache, value: object
) -> None:
    cache.set("a", 1)
    with pytest.raises(CacheValueError) as caught:
        cache.set("a", value)
    assert caught.value.key == "a"
    with pytest.raises(CacheValueError):
        cache.set_many({"b": 2, "a": value})
    assert cache.get_many(["a", "b"]) == {"a": 1}


@pytest.mark.parametrize("ttl_s", [0, 0.0, -1, -0.001, math.nan, -math.inf, math.inf, 1e12, "5"])
async def test_a_ttl_that_is_none_is_refused(cache: Cache, ttl_s: Any) -> None:
    for write in (
        lambda: cache.set("a", 1, ttl_s),
        lambda: cache.set_many({"a": 1, "b": 1}, ttl_s),
    ):
        with pytest.raises(CacheValueError) as caught:
            write()
        assert caught.value.limit == "ttl_s"
    assert cache.get("a") is None


async def test_what_is_too_large_is_refused_with_the_name_of_the_limit() -> None:
    async with services(1, value_bytes_max=1000, key_bytes_max=10, entry_bytes_max=5000) as (one,):
        cache = one.cache
        for write, limit in (
            (lambda: cache.set("a", b"x" * 998), "value_bytes_max"),
            (lambda: cache.set("a", ["x" * 500, "y" * 500]), "value_bytes_max"),
            (lambda: cache.set("k" * 11, 1), "key_bytes_max"),
            (lambda: cache.set("é" * 6, 1), "key_bytes_max"),
            (lambda: cache.delete("k" * 11), "key_bytes_max"),
            (lambda: cache.delete_many(["a", "k" * 11]), "key_bytes_max"),
            (lambda: cache.clear("k" * 11), "key_bytes_max"),
            (lambda: cache.set_many({str(n): b"x" * 900 for n in range(6)}), "entry_bytes_max"),
            (lambda: cache.delete_many([f"{n:10}" for n in range(500)]), "entry_bytes_max"),
        ):
            with pytest.raises(CacheValueError) as caught:
                write()
            assert caught.value.limit == limit
            assert limit in str(caught.value)
        assert cache.statistics().cache.entries == 0
        cache.set("k" * 10, b"x" * 997)
        cache.set("é" * 5, 1)
        cache.set_many({str(n): b"x" * 900 for n in range(5)})
        assert cache.statistics().cache.entries == 7


@pytest.mark.parametrize("key", ["", None, 5, b"bytes", "\ud800"])
async def test_a_key_that_is_none_is_refused(cache: Cache, key: Any) -> None:
    for write in (
        lambda: cache.set(key, 1),
        lambda: cache.set_many({key: 1}),
        lambda: cache.delete(key),
        lambda: cache.delete_many([key]),
    ):
        with pytest.raises(CacheValueError):
            write()


async def test_one_text_is_not_taken_for_several_keys(cache: Cache) -> None:
    with pytest.raises(CacheValueError, match="use delete"):
        cache.delete_many("abc")


async def test_a_cache_is_of_no_use_before_and_after_its_service() -> None:
    (place,) = free_places(1)
    async with lanecache.start(node_config(str(place))) as service:
        cache = service.cache
        cache.set("a", 1)
    for use in (
        lambda: cache.get("a"),
        lambda: cache.get_many(["a"]),
        lambda: cache.set("a", 2),
        lambda: cache.set_many({"a": 2}),
        lambda: cache.set_many({}),
        lambda: cache.delete("a"),
        lambda: cache.delete_many([]),
        lambda: cache.clear(""),
        lambda: cache.explain("a"),
    ):
        with pytest.raises(CacheStopped, match="its service has stopped"):
            use()
    with pytest.raises(CacheStopped):
        await cache.ready()
    with pytest.raises(CacheStopped):
        await cache.settled()
    assert cache.statistics().name == NAME
    assert [event async for event in cache.events()] == []


# With others.


VALUES = [
    None, True, False, 0, -(2**63), 2**64 - 1, 1.5, math.inf, -0.0, "", "é\x00\U0001f600", b"",
    b"\xff\x00", [], {}, [None, [b"", {"a": []}]], {"é": {"": [1.5]}},
]  # fmt: skip


async def test_every_value_is_the_same_on_another_node() -> None:
    async with services(2) as (one, other):
        wanted = {f"value:{number}": value for number, value in enumerate(VALUES)}
        one.cache.set_many(wanted)
        await one.cache.settled(20.0)
        found = other.cache.get_many(wanted)
        assert found == wanted
        assert [type(value) for value in found.values()] == [type(value) for value in VALUES]
        other.cache.set("nan", math.nan)
        await other.cache.settled(20.0)
        assert math.isnan(one.cache.get("nan"))


async def test_when_it_is_settled_every_peer_has_what_was_written_here() -> None:
    async with services(3) as (one, *others):
        for number in range(100):
            one.cache.set(f"key:{number}", number)
        one.cache.delete("key:5")
        one.cache.clear("key:9")
        wanted = {
            f"key:{number}": number
            for number in range(100)
            if number != 5 and not str(number).startswith("9")
        }
        await one.cache.settled(20.0)
        for other in others:
            assert other.cache.get_many(f"key:{number}" for number in range(100)) == wanted


async def test_a_group_is_seen_whole_or_not_at_all_on_every_node() -> None:
    keys = [f"group:{number}" for number in range(20)]
    async with services(3) as (one, *others):
        seen: set[int] = set()
        done = asyncio.Event()

        async def look(cache: Cache) -> None:
            while not done.is_set():
                values = list(cache.get_many(keys).values())
                assert len(values) in (0, 20)
                assert len(set(values)) <= 1
                seen.update(values)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for other in others:
                group.create_task(look(other.cache))
            for number in range(200):
                one.cache.set_many(dict.fromkeys(keys, number))
                if number % 10 == 9:
                    one.cache.delete_many(keys)
                await asyncio.sleep(0)
            await one.cache.settled(20.0)
            done.set()
        assert len(seen) > 1


async def test_of_crossing_writes_all_nodes_keep_the_same() -> None:
    async with services(3) as nodes:
        for number in range(50):
            for nth, node in enumerate(nodes):
                node.cache.set(f"crossed:{number}", nth)
        for node in nodes:
            await node.cache.settled(20.0)
        keys = [f"crossed:{number}" for number in range(50)]
        held = [node.cache.get_many(keys) for node in nodes]
        assert held[0] == held[1] == held[2]
        assert len(held[0]) == 50


async def test_a_delete_reaches_those_who_hold_what_this_node_does_not() -> None:
    async with services(2, {"keys_max": 3}) as (one, other):
        other.cache.set("a", 1)
        await holds(one.cache, {"a": 1})
        # Evicted here, silently: the other one keeps it.
        one.cache.set_many({f"filling:{number}": number for number in range(3)})
        await one.cache.settled(20.0)
        assert one.cache.get("a") is None
        assert other.cache.get("a") == 1
        one.cache.delete("a")
        one.cache.delete("held nowhere")
        await holds(other.cache, {"a": None, "filling:0": 0})


# What it says of itself.


async def test_a_node_whose_peers_are_silent_says_so_until_it_counts_as_alone() -> None:
    own, silent = (str(place) for place in free_places(2))
    cluster = {"name": NAME, "preset": "local", "listen": own, "peers": [silent]}
    waiting = {"cluster": cluster | {"alone_after_s": 3600.0}, "http": {"listen": "127.0.0.1:0"}}
    async with lanecache.start(waiting) as service:
        with pytest.raises(TimeoutError, match=silent):
            await service.cache.ready(0.05)
        statistics = service.statistics()
        assert not statistics.ready
        assert silent in statistics.not_ready_because
        # It can be used all the same: whoever asks for more waits until it is ready.
        service.cache.set("a", 1)
        assert service.cache.get("a") == 1
    async with lanecache.start({"cluster": cluster}) as service:
        await service.cache.ready(20.0)
        assert service.statistics().ready


async def test_a_node_without_peers_is_ready_and_settled_at_once(cache: Cache) -> None:
    await cache.ready(0.5)
    cache.set("a", 1)
    await cache.settled(0.5)


async def test_the_statistics_count_what_was_asked_for() -> None:
    async with services(2, keys_max=10) as (one, other):
        cache = one.cache
        cache.set_many({f"key:{number}": number for number in range(10)})
        cache.get("key:1")
        cache.get_many(["key:1", "key:2", "nothing"])
        await cache.settled(20.0)
        counted = cache.statistics().cache
        assert (counted.gets, counted.hits, counted.misses) == (4, 3, 1)
        assert (counted.sets, counted.entries, counted.keys_max) == (10, 10, 10)
        assert counted.hit_ratio == 0.75
        assert 0 < counted.bytes < counted.bytes_max
        cache.set("one more", 1)
        cache.set("short", 1, 0.001)
        await until(lambda: cache.get("short") is None)
        cache.delete("key:9")
        counted = cache.statistics().cache
        assert counted.evictions == 2
        assert counted.expirations == 1
        assert counted.tombstones > 0
        assert other.cache.statistics().cache.sets == 0
        (link,) = cache.statistics().links
        assert (link.address, link.linked) == (other.cache.statistics().address, True)
        await until(lambda: cache.statistics().links[0].lag_entries == 0)
        assert one.statistics().ready


async def test_the_events_tell_who_joins() -> None:
    async with services(1) as (one,):
        events = one.cache.events()
        place = one.cache.statistics().address
        (own,) = (str(each) for each in free_places(1))
        async with lanecache.start(node_config(own, [place])) as other:
            await other.cache.ready(20.0)
            async with asyncio.timeout(20):
                async for event in events:
                    if isinstance(event, MemberJoined):
                        break
            assert str(event.member.address) == own


async def test_a_key_is_explained_on_every_node() -> None:
    async with services(2) as (one, other):
        one.cache.set("a", "first")
        one.cache.set("a", "value", ttl_s=60)
        one.cache.set("b", 1)
        one.cache.delete("b")
        await one.cache.settled(20.0)
        for cache in (one.cache, other.cache):
            before = cache.statistics().cache.gets
            found = cache.explain("a")
            assert found is not None
            assert found.ttl_left_s is not None
            assert 0 < found.ttl_left_s <= 60
            assert 0 <= found.age_s < 60
            assert found.size_bytes == 6
            assert found.written_by == one.cache.statistics().address
            assert found.is_here is (cache is one.cache)
            assert (found.seq, found.source, found.is_fill) == (2, "", False)
            assert found.reason
            assert cache.explain("b") is None
            assert cache.explain("never there") is None
            assert cache.statistics().cache.gets == before
        other.cache.set("a", 2)
        await other.cache.settled(20.0)
        found = one.cache.explain("a")
        assert found is not None
        assert found.written_by == other.cache.statistics().address


async def test_the_command_status_shows_data_links_and_readiness(tmp_path: Path) -> None:
    async with services(2, keys_max=1000) as (one, other):
        one.cache.set_many({"a": 1, "b": 2})
        one.cache.get_many(["a", "nothing"])
        await one.cache.settled(20.0)
        place = one.cache.statistics().address
        asked = await run_to_end(tmp_path, "status", "--name", NAME, "--listen", place)
        assert asked.code == 0, asked
        first, *lines = asked.out.splitlines()
        assert first.startswith(f"node {place}  process ")
        assert "  ready  " in first
        assert any(line.startswith("2 of 1,000 keys, ") for line in lines)
        assert "1 hits of 2 gets (50.0%); 2 sets, 0 evicted, 0 expired" in asked.out
        (link,) = (line.split() for line in lines if line.startswith(_address(other) + "  yes"))
        assert link[2] == "0"  # behind by
        told = await run_to_end(tmp_path, "status", "--json", "--name", NAME, "--listen", place)
        status = json.loads(told.out)
        assert status["ready"]
        assert status["cache"]["entries"] == 2
        assert status["links"][0]["lag_entries"] == 0
        assert status["sources"] == []


async def test_the_command_status_says_why_a_node_is_not_ready(tmp_path: Path) -> None:
    own, silent = (str(place) for place in free_places(2))
    async with lanecache.start(node_config(own, [silent], alone_after_s=3600.0)):
        asked = await run_to_end(tmp_path, "status", "--name", NAME, "--listen", own)
        assert asked.code == 0, asked
        assert f"not ready: it has reached none of {silent}" in asked.out


async def test_metrics_page_and_readiness_show_the_data() -> None:
    places = [str(place) for place in free_places(3)]
    config = node_config(places[0]) | {"http": {"listen": places[1]}}
    async with (
        lanecache.start(config) as one,
        lanecache.start(node_config(places[2], places[:1])) as other,
        aiohttp.ClientSession(f"http://{places[1]}") as client,
    ):
        await other.cache.ready(20.0)
        one.cache.set_many({"a": 1, "b": 2})
        one.cache.get_many(["a", "nothing"])
        await one.cache.settled(20.0)
        async with client.get("/metrics") as response:
            metrics = await response.text()
        for line in (
            "lanecache_cluster_ready 1.0",
            "lanecache_cluster_links 1.0",
            "lanecache_cluster_lag_entries 0.0",
            "lanecache_cache_entries 2.0",
            "lanecache_cache_max_entries 100000.0",
            "lanecache_cache_hits_total 1.0",
            "lanecache_cache_misses_total 1.0",
            "lanecache_cache_sets_total 2.0",
        ):
            assert line in metrics.splitlines()
        async with client.get("/readyz") as response:
            assert response.status == 200
        async with client.get("/") as response:
            page = await response.text()
        assert "2 of 100,000" in page
        assert "1 of 2 (50.0%)" in page
        assert places[2] in page


def _address(service: Service) -> str:
    return service.cache.statistics().address
