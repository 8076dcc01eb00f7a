"""Fills on nodes as they run: data, links and sockets are the real ones."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from cluster_data import ready_cluster
from cluster_services import caches, until_all
from cluster_world import World
from hypothesis import given
from hypothesis import strategies as st

from lanecache import ABSENT, Cache, FillTimeout
from lanecache.cluster.fill.fill_answers import Answer, Leased
from lanecache.cluster.fill.owners import owner_of
from lanecache.cluster.links.readings import Readings
from lanecache.cluster.wire.fill_messages import Ask, encode_part, encode_run


async def echo(key: str) -> str:
    await asyncio.sleep(0.001)
    return f"value of {key}"


async def test_a_node_alone_fills() -> None:
    async with caches(1) as (cache,):
        assert await cache.get_or_fill("a", echo, 60.0) == "value of a"
        assert cache.get("a") == "value of a"

        async def absent(key: str) -> Any:
            return ABSENT

        assert await cache.get_or_fill("b", absent, absent_ttl_s=600.0, default=0) == 0
        assert await cache.get_or_fill("b", echo, default=0) == 0
        assert await cache.get_or_fill("d", absent, absent_ttl_s=0.01, default=0) == 0
        async with asyncio.timeout(60):
            while await cache.get_or_fill("d", echo, default=0) == 0:
                await asyncio.sleep(0.005)
        assert cache.get("d") == "value of d"

        @cache.cached(key="c:{number}", ttl_s=5, tags=("c",))
        async def double(number: int) -> int:
            return 2 * number

        assert await double(4) == 8
        assert cache.get("c:4") == 8
        double.invalidate(number=4)
        assert cache.get("c:4") is None


async def test_a_fill_s_value_s_ttl_stale_time_and_absence_travel() -> None:
    async with caches(2) as (one, other):
        await one.get_or_fill("a", echo, ttl_s=0.2, stale_s=30.0)
        await until_all([one, other], "a", "value of a")
        await until_all([one, other], "a", None)

        async def down(key: str) -> str:
            raise ConnectionError("down")

        for cache in (one, other):
            assert await cache.get_or_fill("a", down, ttl_s=0.2, stale_s=30.0) == "value of a"
            with pytest.raises(ConnectionError):
                await cache.get_or_fill("a", down)


async def test_nodes_without_room_keep_what_they_have_just_filled() -> None:
    async with caches(3, keys_max=40) as nodes:
        for number in range(400):
            cache = nodes[number % 3]
            key = f"k{number}"
            assert await cache.get_or_fill(key, echo) == f"value of {key}"
            assert cache.get(key) == f"value of {key}", "it is not taken for something forgotten"
            if number % 40 == 39:
                await until_all(nodes, key, f"value of {key}")
        assert sum(fills(cache, "fills") for cache in nodes) == 400
        assert sum(fills(cache, "fills_overtaken") for cache in nodes) == 0


def fills(cache: Cache, name: str) -> int:
    return cache.statistics().counters[name]


async def test_a_write_on_another_node_during_a_fill_wins_on_all() -> None:
    async with caches(3) as nodes:
        for writer in nodes:
            for how in ("set", "delete", "clear"):
                begun = asyncio.Event()

                async def slow(key: str, begun: asyncio.Event = begun) -> str:
                    begun.set()
                    await asyncio.sleep(0.1)
                    return "old"

                filling = asyncio.create_task(nodes[0].get_or_fill("a", slow))
                await begun.wait()
                if how == "set":
                    writer.set("a", "new")
                elif how == "delete":
                    writer.delete("a")
                else:
                    writer.clear("")
                assert await filling in ("old", "new")
                await asyncio.gather(*(cache.settled(10) for cache in nodes))
                wanted = "new" if how == "set" else None
                assert [cache.get("a") for cache in nodes] == [wanted] * 3
                nodes[0].delete("a")
                await until_all(nodes, "a", None)


async def test_a_filler_beyond_the_hard_limit_is_cancelled() -> None:
    async with caches(1) as (cache,):

        async def endless(key: str) -> None:
            await asyncio.sleep(60)

        with pytest.raises(FillTimeout):
            await cache.get_or_fill("a", endless, hard_timeout_s=0.05)


# Clocks.


def test_who_becomes_the_owner_knows_of_its_own_lease_when_it_is_asked_at_once() -> None:
    world = World()
    a, b, c = ready_cluster(world, 3)
    owner, heir, asker = a.node.process, b.node.process, c.node.process
    everybody = [owner, heir, asker]
    key = next(
        key
        for key in map(str, itertools.count())
        if owner_of(key, everybody) == owner and owner_of(key, everybody, [owner]) == heir
    )
    b.call(b.node.call_fills, lambda now: b.node.fills.want([key], 60.0, now))
    answers: list[Answer] = []

    def leased() -> bool:
        answers.extend(b.node.fills.answers())
        return any(isinstance(answer, Leased) for answer in answers)

    world.until(leased, 5)
    a.call(a.node.leave)
    while owner in b.live():
        assert world.step(world.now + 60)
    assert b.node.fills._review is not None, "nobody has looked at who is there now"
    asked = encode_run([encode_part(Ask(key, 1, 60_000))])
    b.node.fills.receive_fill(asker, asked, b.node._timers.now)
    lease = b.node.fills._leases._leases[key]
    assert (lease.holder, list(lease.waiters)) == (heir, [asker])


def test_nothing_is_promised_before_all_live_members_have_said_so() -> None:
    digest = {7: 3}
    readings = Readings(digest, patience_s=10.0)
    assert readings.least(100, [1, 2], now=0.0) == 0
    readings.heard(1, 7, 3, 50)
    assert readings.least(100, [1, 2], now=1.0) == 0
    readings.heard(2, 8, 0, 60)
    assert readings.least(100, [1, 2], now=1.0) == 50
    assert readings.least(40, [1, 2], now=1.0) == 40
    assert readings.counted() == {1, 2}


def test_a_promise_counts_when_all_that_was_written_before_it_is_here() -> None:
    digest = {7: 3}
    readings = Readings(digest, patience_s=10.0)
    readings.heard(1, 7, 3, 50)
    readings.heard(1, 7, 4, 70)
    assert readings.least(100, [1], now=0.0) == 50
    digest[7] = 4
    assert readings.least(100, [1], now=0.0) == 70


def test_who_never_promises_anything_holds_up_the_others_for_a_while_only() -> None:
    readings = Readings({}, patience_s=10.0)
    readings.heard(1, 7, 0, 50)
    assert readings.least(100, [1, 2], now=0.0) == 0
    assert readings.least(100, [1, 2], now=9.9) == 0
    assert readings.least(100, [1, 2], now=10.0) == 50
    readings.forget_others([1])
    assert readings.least(100, [1, 2], now=20.0) == 0


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(1, 10)), max_size=30),
    st.lists(st.integers(1, 3), max_size=30),
)
def test_the_least_clock_is_never_above_one_that_is_not_known_to_be_kept(
    heard: list[tuple[int, int, int]], applied: list[int]
) -> None:
    digest = {10 + process: 0 for process in (1, 2, 3)}
    readings = Readings(digest, patience_s=1e9)
    clocks = dict.fromkeys((1, 2, 3), 0)
    seqs = dict.fromkeys((1, 2, 3), 0)
    promised: list[tuple[int, int, int]] = []
    for (process, more, later), turn in zip(heard, [*applied, *[1] * 30], strict=False):
        seqs[process] += more
        clocks[process] += later
        promised.append((process, seqs[process], clocks[process]))
        readings.heard(process, 10 + process, seqs[process], clocks[process])
        digest[10 + turn] = min(digest[10 + turn] + 2, seqs[turn])
        kept = dict.fromkeys((1, 2, 3), 0)
        for each, seq, clock in promised:
            if seq <= digest[10 + each]:
                kept[each] = max(kept[each], clock)
        assert readings.least(1000, [1, 2, 3], now=0.0) <= min(kept.values())
