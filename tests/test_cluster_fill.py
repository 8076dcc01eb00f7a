"""``get_or_fill``: one fill for all who ask, and never over a newer write; on virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from cluster_fillers import ANSWER_S, Shells, shells
from virtual_loop import run_virtual

from lanecache.cluster.fill.early_refresh import QUIET_MAX, Quiet, is_due
from lanecache.cluster.store.absent import ABSENT
from lanecache.errors import (
    CacheStopped,
    CacheValueError,
    FillFailed,
    FillReentered,
    FillTimeout,
)


class Source:
    """What fillers read from: it changes, takes its time, and can be down."""

    def __init__(self, takes_s: float = 0.1) -> None:
        self.rows: dict[str, Any] = {}
        self.takes_s = takes_s
        self.error: Exception | None = None
        self.calls: list[Any] = []
        self.running = 0
        self.most = 0

    async def read(self, key: str) -> Any:
        self.calls.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        value = self.rows.get(key, ABSENT)  # what it reads is what is there when it begins
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return value

    async def read_many(self, keys: list[str]) -> dict[str, Any]:
        self.calls.append(tuple(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return found


def virtual(
    count: int = 1,
) -> Callable[[Callable[[Shells, Source], Awaitable[None]]], Callable[[], None]]:
    """Run a test with so many nodes on a loop of virtual time."""

    def decorate(test: Callable[[Shells, Source], Awaitable[None]]) -> Callable[[], None]:
        async def main() -> None:
            async with shells(count) as group:
                source = Source()
                source.rows.update(a=1, b=2, c=3)
                await test(group, source)
                await asyncio.sleep(100)
                for node in group.nodes:
                    if node.up:
                        assert node.fills.wanted == node.fills.leases == 0
                        assert node.fills.leases_held == node.filler.flights == 0

        def run() -> None:
            run_virtual(main())

        run.__name__ = test.__name__
        return run

    return decorate


async def ask_all(group: Shells, key: str, fill: Any, times: int = 10, **options: Any) -> list[Any]:
    return await asyncio.gather(
        *(node.get_or_fill(key, fill, **options) for node in group.nodes for _ in range(times)),
        return_exceptions=True,
    )


# One fill.


@virtual()
async def test_a_value_is_made_once_and_then_read(group: Shells, source: Source) -> None:
    node = group[0]
    assert await node.get_or_fill("a", source.read) == 1
    assert await node.get_or_fill("a", source.read) == 1
    assert node.get("a") == 1
    assert source.calls == ["a"]


@virtual()
async def test_all_who_ask_meanwhile_share_one_fill(group: Shells, source: Source) -> None:
    assert await ask_all(group, "a", source.read, 100) == [1] * 100
    assert source.calls == ["a"]
    assert group[0].counters.fills == 1
    assert group[0].counters.fills_shared == 99


@virtual(4)
async def test_all_nodes_share_one_fill(group: Shells, source: Source) -> None:
    assert await ask_all(group, "a", source.read, 50) == [1] * 200
    assert source.calls == ["a"]
    assert sum(node.counters.fills for node in group.nodes) == 1
    assert [node.get("a") for node in group.nodes] == [1] * 4


@virtual(4)
async def test_many_keys_are_filled_at_once(group: Shells, source: Source) -> None:
    source.rows = {f"k{number}": number for number in range(50)}
    began = group[0].now()
    await asyncio.gather(*(ask_all(group, key, source.read) for key in source.rows))
    assert sorted(source.calls) == sorted(source.rows)
    assert group[0].now() - began < 0.2


@virtual(4)
async def test_an_error_reaches_every_caller_on_every_node_and_is_not_kept(
    group: Shells, source: Source
) -> None:
    source.error = ValueError("no such thing")
    found = await ask_all(group, "a", source.read)
    assert source.calls == ["a"]
    assert Counter(type(each) for each in found) == {ValueError: 10, FillFailed: 30}
    remote = next(each for each in found if isinstance(each, FillFailed))
    assert str(remote) == "the filler of 'a' failed on another node: ValueError: no such thing"
    assert remote.key == "a"
    assert remote.retryable
    source.error = None
    assert await group[1].get_or_fill("a", source.read) == 1


@virtual(3)
async def test_an_error_is_kept_when_that_is_asked_for(group: Shells, source: Source) -> None:
    source.error = ValueError("down")
    await ask_all(group, "a", source.read, error_ttl_s=5.0)
    for _ in range(3):
        found = await ask_all(group, "a", source.read, error_ttl_s=5.0)
        assert {type(each) for each in found} == {FillFailed}
    assert source.calls == ["a"]
    await asyncio.sleep(5.0)
    source.error = None
    assert await group[2].get_or_fill("a", source.read) == 1


@virtual()
async def test_many_callers_do_not_leave_their_frames_on_the_one_error(
    group: Shells, source: Source
) -> None:
    source.error = ValueError("no")
    found = await ask_all(group, "a", source.read, 300)
    (error,) = set(found)
    depth, trace = 0, error.__traceback__
    while trace is not None:
        depth, trace = depth + 1, trace.tb_next
    assert depth < 20


@virtual()
async def test_a_value_that_came_meanwhile_is_not_made_again(group: Shells, source: Source) -> None:
    node = group[0]

    async def ask() -> Any:
        return await node.get_or_fill("a", source.read)

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0)  # it has the lease; its filler is about to be called
    assert node.fills.leases_held == 1
    node.set("a", "set")
    assert await asked == "set"
    assert source.calls == []


@virtual()
async def test_a_filler_runs_in_the_context_of_who_asked_first(
    group: Shells, source: Source
) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")

    async def fill(key: str) -> Any:
        await asyncio.sleep(0.1)
        return request.get("nobody's")

    request.set("the first's")
    first = asyncio.create_task(group[0].get_or_fill("a", fill))
    request.set("the second's")
    await asyncio.sleep(0.01)
    second = asyncio.create_task(group[0].get_or_fill("a", fill))
    assert await asyncio.gather(first, second) == ["the first's"] * 2


# Callers who go.


@virtual()
async def test_a_caller_that_is_cancelled_leaves_alone(group: Shells, source: Source) -> None:
    node = group[0]
    first = asyncio.create_task(node.get_or_fill("a", source.read))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(node.get_or_fill("a", source.read))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await second == 1
    assert first.cancelled()
    assert source.calls == ["a"]


@virtual()
async def test_a_fill_goes_on_when_nobody_waits_any_more(group: Shells, source: Source) -> None:
    node = group[0]
    only = asyncio.create_task(node.get_or_fill("a", source.read))
    await asyncio.sleep(0.05)
    only.cancel()
    await asyncio.sleep(0.1)
    assert node.get("a") == 1


@virtual(3)
async def test_nobody_fills_what_nobody_wants_any_more(group: Shells, source: Source) -> None:
    holder = asyncio.create_task(group[0].get_or_fill("a", source.read))
    await asyncio.sleep(0.01)
    gone = asyncio.create_task(group[1].get_or_fill("a", source.read))
    await asyncio.sleep(0.01)
    gone.cancel()
    source.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await holder
    await asyncio.sleep(30)
    assert source.calls == ["a"]


@virtual()
async def test_a_stop_ends_fillers_and_tells_callers(group: Shells, source: Source) -> None:
    node = Shells(1)[0]
    node.live = [node.process]
    source.takes_s = 1000.0
    async with anyio.create_task_group() as tasks:
        with node.filler.serving(tasks):
            waits = asyncio.create_task(node.get_or_fill("a", source.read, hard_timeout_s=2000))
            await asyncio.sleep(1)
            assert source.running == 1
    with pytest.raises(CacheStopped, match="stops"):
        await waits
    assert source.running == 0
    with pytest.raises(CacheStopped, match="has stopped"):
        await node.get_or_fill("a", source.read)


# Fillers that are wrong.


@virtual()
async def test_a_missing_filler_is_an_error_even_where_it_is_not_needed(
    group: Shells, source: Source
) -> None:
    node = group[0]
    for there in (False, True):
        with pytest.raises(TypeError, match="a filler must be an async function, not NoneType"):
            await node.get_or_fill("a", None)
        with pytest.raises(TypeError, match="not int"):
            await node.get_or_fill_many(["a"], 5)
        if not there:
            node.set("a", 1)


@virtual()
async def test_a_filler_that_is_not_async_is_an_error(group: Shells, source: Source) -> None:
    with pytest.raises(TypeError, match=r"must be an async function: it gave int"):
        await group[0].get_or_fill("a", lambda key: 5)


@virtual(2)
async def test_a_value_that_cannot_be_stored_is_an_error_everywhere(
    group: Shells, source: Source
) -> None:
    source.rows["a"] = {1, 2}
    found = await ask_all(group, "a", source.read, 1)
    assert {type(each) for each in found} == {CacheValueError, FillFailed}
    assert all("is of the type set" in str(each) for each in found)
    assert source.calls == ["a"]
    with pytest.raises(CacheValueError, match="must not be empty"):
        await group[0].get_or_fill("", source.read)
    assert source.calls == ["a"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"ttl_s": 0}, ValueError, "ttl_s must be a number above 0"),
        ({"ttl_s": -1}, ValueError, "ttl_s"),
        ({"ttl_s": float("nan")}, ValueError, "ttl_s"),
        ({"ttl_s": "5"}, TypeError, "ttl_s must be a number, not str"),
        ({"ttl_s": True}, TypeError, "not bool"),
        ({"stale_s": 5}, ValueError, "stale_s needs a ttl_s"),
        ({"early_refresh": 1}, ValueError, "early_refresh needs a ttl_s"),
        ({"ttl_s": 5, "soft_timeout_s": 1}, ValueError, "soft_timeout_s needs a stale_s"),
        ({"ttl_s": 5, "ttl_jitter": 1.5}, ValueError, "ttl_jitter must be a number from 0 to 1"),
        ({"lease_s": 0}, ValueError, "lease_s must be a number above 0"),
        ({"hard_timeout_s": None}, TypeError, "hard_timeout_s must be a number, not NoneType"),
        ({"absent_ttl_s": 0}, ValueError, "absent_ttl_s"),
        ({"tags": "red"}, TypeError, "tags must be a sequence of names, not str"),
        ({"tags": [1]}, TypeError, "a tag must be a str, not int"),
        ({"ttl": 5}, TypeError, "ttl is no keyword of a fill"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_filled(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    @virtual()
    async def check(group: Shells, source: Source) -> None:
        with pytest.raises(error, match=says):
            await group[0].get_or_fill("a", source.read, **options)
        with pytest.raises(error, match=says):
            await group[0].get_or_fill_many(["a"], source.read_many, **options)
        assert source.calls == []

    check()


# Fillers that ask for themselves.


@virtual(2)
async def test_a_filler_that_asks_for_its_own_key_is_told_so(group: Shells, source: Source) -> None:
    node = group[0]

    async def fill(key: str) -> Any:
        return await node.get_or_fill(key, source.read)

    with pytest.raises(FillReentered, match="the filler of 'a' asks for 'a' itself") as caught:
        await node.get_or_fill("a", fill)
    assert caught.value.key == "a"


@virtual()
async def test_a_task_that_a_filler_starts_is_inside_of_it_too(
    group: Shells, source: Source
) -> None:
    node = group[0]

    async def fill(key: str) -> Any:
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(node.get_or_fill_many(["b", key], source.read_many))
        return asked.result()

    with pytest.raises(ExceptionGroup) as caught:
        await node.get_or_fill("a", fill)
    assert isinstance(caught.value.exceptions[0], FillReentered)


@virtual()
async def test_a_task_that_outlives_its_filler_may_ask_for_the_key(
    group: Shells, source: Source
) -> None:
    node = group[0]
    later: list[asyncio.Task[Any]] = []

    async def ask(key: str) -> Any:
        await asyncio.sleep(1)
        return await node.get_or_fill(key, source.read)

    async def fill(key: str) -> Any:
        later.append(asyncio.create_task(ask(key)))
        return "first"

    assert await node.get_or_fill("a", fill) == "first"
    node.delete("a")
    assert await later[0] == 1


@virtual()
async def test_fillers_may_ask_for_other_keys(group: Shells, source: Source) -> None:
    node = group[0]

    async def fill(key: str) -> Any:
        return 10 * await node.get_or_fill("b", source.read)

    assert await node.get_or_fill("a", fill) == 20
    assert node.get("b") == 2


@virtual()
async def test_two_fillers_that_wait_for_each_other_are_told_so(
    group: Shells, source: Source
) -> None:
    node = group[0]
    results: dict[str, Any] = {}

    async def fill(key: str) -> Any:
        await asyncio.sleep(0.1)
        other = {"a": "b", "b": "c", "c": "a"}[key]
        return await node.get_or_fill(other, fill)

    async def ask(key: str) -> None:
        try:
            results[key] = await node.get_or_fill(key, fill)
        except FillReentered as error:
            results[key] = error

    contexts = [contextvars.copy_context() for _ in range(3)]
    tasks = [
        asyncio.create_task(ask(key), context=context)
        for key, context in zip("abc", contexts, strict=True)
    ]
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    assert all(isinstance(each, FillReentered) for each in results.values())
    assert any("whose filler waits for it" in str(each) for each in results.values())


# The races that others have: a fill that began before a write never hides it.


@virtual(3)
async def test_caffeine_193_a_delete_during_a_fill_is_not_undone(
    group: Shells, source: Source
) -> None:
    """A value computed before an invalidation was stored after it (caffeine#193)."""
    for deleter in group.nodes:
        source.rows["a"] = "old"
        filling = asyncio.create_task(group[0].get_or_fill("a", source.read))
        await asyncio.sleep(0.05)
        source.rows["a"] = "new"
        deleter.delete("a")
        assert await filling == "old", "its own caller asked before"
        await asyncio.sleep(0.1)
        assert [node.get("a") for node in group.nodes] == [None] * 3
        assert await group[0].get_or_fill("a", source.read) == "new"
        await asyncio.sleep(0.1)
        group[0].delete("a")
        await asyncio.sleep(0.1)
    assert group[0].counters.fills_overtaken == 3


@virtual(3)
async def test_caffeine_251_who_asks_after_a_delete_does_not_get_the_fill_from_before(
    group: Shells, source: Source
) -> None:
    """A reader joined a refresh that had begun before the invalidation (caffeine#251)."""
    for asker in group.nodes:
        source.rows["a"] = "old"
        before = asyncio.create_task(group[0].get_or_fill("a", source.read))
        await asyncio.sleep(0.05)
        source.rows["a"] = "new"
        asker.delete("a")
        assert await asker.get_or_fill("a", source.read) == "new"
        assert await before in ("old", "new")
        await asyncio.sleep(0.1)
        assert [node.get("a") for node in group.nodes] == ["new"] * 3
        asker.delete("a")
        await asyncio.sleep(0.1)


@virtual(3)
async def test_guava_1881_clearing_everything_reaches_fills_under_way(
    group: Shells, source: Source
) -> None:
    """invalidateAll() did not touch entries that were being loaded (guava#1881)."""
    source.rows["shop:1"] = "old"
    filling = asyncio.create_task(group[0].get_or_fill("shop:1", source.read))
    await asyncio.sleep(0.05)
    source.rows["shop:1"] = "new"
    group[1].clear("shop:")
    await asyncio.sleep(0.01)
    assert await group[2].get_or_fill("shop:1", source.read) == "new"
    assert await filling in ("old", "new")
    await asyncio.sleep(0.1)
    assert [node.get("shop:1") for node in group.nodes] == ["new"] * 3


@virtual(3)
async def test_bcache_a_set_during_a_fill_stays_and_is_what_its_callers_get(
    group: Shells, source: Source
) -> None:
    """bcache stored what its filler made whatever had been written meanwhile."""
    for writer in group.nodes:
        filling = asyncio.create_task(group[0].get_or_fill("a", source.read))
        await asyncio.sleep(0.05)
        writer.set("a", "set")
        assert await filling == "set"
        await asyncio.sleep(0.1)
        assert [node.get("a") for node in group.nodes] == ["set"] * 3
        writer.delete("a")
        await asyncio.sleep(0.1)


@virtual(3)
async def test_bcache_a_set_that_arrives_with_an_older_clock_than_the_fill_wins(
    group: Shells, source: Source
) -> None:
    filling = asyncio.create_task(group[0].get_or_fill("a", source.read))
    await asyncio.sleep(0.05)
    group.data_delay_s = 0.2  # the set is on its way while the fill ends
    group[1].set("a", "set")
    assert await filling == 1
    await asyncio.sleep(1)
    assert [node.get("a") for node in group.nodes] == ["set"] * 3


@virtual(3)
async def test_a_tag_that_is_invalidated_during_a_fill_voids_it(
    group: Shells, source: Source
) -> None:
    group[0].set("b", 1)
    await asyncio.sleep(0.01)
    filling = asyncio.create_task(group[0].get_or_fill("a", source.read, tags=["red"]))
    await asyncio.sleep(0.05)
    group[1].invalidate_tag("red")
    assert await filling == 1
    await asyncio.sleep(0.1)
    assert [node.get("a") for node in group.nodes] == [None] * 3


@virtual(3)
async def test_who_asks_after_a_tag_was_invalidated_does_not_join_a_fill_from_before(
    group: Shells, source: Source
) -> None:
    for asker in group.nodes:
        source.rows["a"] = "old"
        before = asyncio.create_task(group[0].get_or_fill("a", source.read, tags=["red"]))
        await asyncio.sleep(0.05)
        source.rows["a"] = "new"
        asker.invalidate_tag("red")
        await asyncio.sleep(0.01)
        assert await asker.get_or_fill("a", source.read, tags=["red"]) == "new"
        await before
        await asyncio.sleep(0.2)
        assert [node.get("a") for node in group.nodes] == ["new"] * 3
        asker.delete("a")
        await asyncio.sleep(0.1)


@virtual(1)
async def test_who_asks_after_a_set_that_was_evicted_at_once_does_not_join_a_fill_from_before(
    group: Shells, source: Source
) -> None:
    (node,) = group.nodes
    before = asyncio.create_task(node.get_or_fill("a", source.read))
    await asyncio.sleep(0.05)
    source.rows["a"] = "new"
    node.set("a", "new")
    node.evict("a")
    assert await node.get_or_fill("a", source.read) == "new"
    await before
    assert source.calls == ["a", "a"]


@virtual(3)
async def test_a_lease_that_a_write_has_ended_on_its_way_is_not_used(
    group: Shells, source: Source
) -> None:
    owner = next(node for node in group.nodes if node.process == _owner(group, "a"))
    one, other = (node for node in group.nodes if node is not owner)
    group.delay_s = 0.05
    first = asyncio.create_task(one.get_or_fill("a", source.read))
    await asyncio.sleep(0.07)  # the lease is on its way
    one.delete("a")
    second = asyncio.create_task(other.get_or_fill("a", source.read))
    assert await asyncio.gather(first, second) == [1, 1]
    assert source.calls == ["a"]


@virtual(4)
async def test_writes_and_fills_at_random_never_leave_a_stale_value(
    group: Shells, source: Source
) -> None:
    dice = random.Random(7)
    source.takes_s = 0.03
    version = 0
    source.rows["a"] = 0

    async def ask() -> None:
        for _ in range(60):
            await asyncio.sleep(dice.random() * 0.05)
            node = dice.choice(group.nodes)
            begun = version
            value = await node.get_or_fill("a", source.read, lease_s=0.05)
            # Not older than what every node had seen when the question was asked.
            assert value >= seen[0] or value >= begun - 1, (value, begun)

    seen = [0]

    async def write() -> None:
        nonlocal version
        for _ in range(60):
            await asyncio.sleep(dice.random() * 0.05)
            version += 1
            source.rows["a"] = version
            dice.choice(group.nodes).delete("a")
            await asyncio.sleep(0.002)
            seen[0] = version

    await asyncio.gather(write(), *(ask() for _ in range(5)))
    await asyncio.sleep(0.5)
    held = {node.get("a") for node in group.nodes}
    assert held in ({version}, {None})


@virtual(3)
async def test_a_fill_that_begins_after_a_delete_which_is_still_on_its_way_is_not_lost(
    group: Shells, source: Source
) -> None:
    owner = next(node for node in group.nodes if node.process == _owner(group, "a"))
    asker = next(node for node in group.nodes if node is not owner)
    group.data_delay_s = 0.5
    owner.delete("a")
    assert await asker.get_or_fill("a", source.read) == 1
    await asyncio.sleep(2)
    assert [node.get("a") for node in group.nodes] == [1] * 3


# Leases, on several nodes.


@virtual(4)
async def test_a_node_that_dies_while_it_fills_is_followed_by_one_other(
    group: Shells, source: Source
) -> None:
    asked = [asyncio.create_task(node.get_or_fill("a", source.read)) for node in group.nodes]
    await asyncio.sleep(0.05)
    holder = next(node for node in group.nodes if node.fills.leases_held)
    await group.kill(holder)
    asked[group.nodes.index(holder)].cancel()
    others = [task for task, node in zip(asked, group.nodes, strict=True) if node is not holder]
    assert await asyncio.gather(*others) == [1] * 3
    assert len(source.calls) == 2
    await asyncio.sleep(1)


@virtual(4)
async def test_a_fill_that_outlasts_its_lease_lets_one_other_begin_at_a_time(
    group: Shells, source: Source
) -> None:
    source.takes_s = 3.5
    found = await ask_all(group, "a", source.read, lease_s=1.0)
    assert found == [1] * 40
    assert source.most <= 4
    assert len(source.calls) == 4  # at 0, 1, 2 and 3 seconds


@virtual(4)
async def test_nodes_that_cannot_reach_each_other_fill_once_each(
    group: Shells, source: Source
) -> None:
    group.cut = {node.process for node in group.nodes}
    began = group[0].now()
    assert await ask_all(group, "a", source.read) == [1] * 40
    assert len(source.calls) == 4
    assert group[0].now() - began < 2 * ANSWER_S + 0.2


@virtual(6)
async def test_each_side_of_a_partition_fills_once(group: Shells, source: Source) -> None:
    source.rows = {f"k{number}": number for number in range(20)}
    group.part()
    for _ in range(2):  # before and after the others are known to be gone
        source.calls.clear()
        found = await asyncio.gather(*(ask_all(group, key, source.read, 5) for key in source.rows))
        assert found == [[number] * 30 for number in range(20)]
        # Before it, a node whose key's owners are on the other side may be left to itself.
        assert len(source.calls) <= 2 * len(source.rows) + 20
        await asyncio.sleep(5)
        for node in group.nodes:
            node.clear("")
        await asyncio.sleep(1)
    source.calls.clear()
    await asyncio.gather(*(ask_all(group, key, source.read, 5) for key in source.rows))
    assert Counter(source.calls) == dict.fromkeys(source.rows, 2)


# Absence.


@virtual(3)
async def test_none_is_a_value_and_absent_is_none(group: Shells, source: Source) -> None:
    source.rows["a"] = None
    node = group[0]
    assert await node.get_or_fill("a", source.read, default="?") is None
    assert await node.get_or_fill("a", source.read, default="?") is None
    assert source.calls == ["a"]
    assert await node.get_or_fill("none", source.read, default="?") == "?"
    assert node.get("none", "not held") == "not held"


@virtual(3)
async def test_an_absence_is_shared_but_not_kept(group: Shells, source: Source) -> None:
    assert await ask_all(group, "none", source.read) == [None] * 30
    assert source.calls == ["none"]
    assert await group[1].get_or_fill("none", source.read, default=0) == 0
    assert len(source.calls) == 2


@virtual(3)
async def test_an_absence_is_kept_on_all_nodes_when_that_is_asked_for(
    group: Shells, source: Source
) -> None:
    await group[0].get_or_fill("none", source.read, absent_ttl_s=5.0)
    await asyncio.sleep(0.1)
    for node in group.nodes:
        assert await node.get_or_fill("none", source.read, default="gone") == "gone"
        assert await node.get_or_fill_many(["none"], source.read_many) == {}
        assert node.get("none", "nothing") == "nothing"
        assert node.counters.absences == 2
    assert source.calls == ["none"]
    source.rows["none"] = "there"
    await asyncio.sleep(5.0)
    assert await group[2].get_or_fill("none", source.read) == "there"


@virtual(3)
async def test_a_set_ends_an_absence(group: Shells, source: Source) -> None:
    await group[0].get_or_fill("none", source.read, absent_ttl_s=50.0)
    group[1].set("none", "now")
    await asyncio.sleep(0.1)
    assert [node.get("none") for node in group.nodes] == ["now"] * 3
    assert await group[2].get_or_fill("none", source.read) == "now"


# Stale values.


@virtual(3)
async def test_a_failure_is_answered_with_the_stale_value_for_its_time(
    group: Shells, source: Source
) -> None:
    node = group[0]
    options = {"ttl_s": 10.0, "stale_s": 60.0}
    await node.get_or_fill("a", source.read, **options)
    await asyncio.sleep(11)
    source.error = ConnectionError("down")
    for each in group.nodes:
        assert each.get("a") is None, "get misses"
        assert await each.get_or_fill("a", source.read, **options) == 1
    assert node.counters.stale_answers == 1
    found = await ask_all(group, "a", source.read, 1)
    assert {type(each) for each in found} == {ConnectionError, FillFailed}
    await asyncio.sleep(60)
    with pytest.raises(ConnectionError):
        await node.get_or_fill("a", source.read, **options)


@virtual(3)
async def test_a_stale_value_that_was_deleted_or_invalidated_is_not_given(
    group: Shells, source: Source
) -> None:
    options = {"ttl_s": 10.0, "stale_s": 60.0, "tags": ["red"]}
    for how in ("delete", "clear", "tag"):
        source.error = None
        await group[0].get_or_fill("a", source.read, **options)
        await asyncio.sleep(11)
        if how == "delete":
            group[1].delete("a")
        elif how == "clear":
            group[1].clear("")
        else:
            group[1].invalidate_tag("red")
        await asyncio.sleep(0.1)
        source.error = ConnectionError("down")
        with pytest.raises(ConnectionError):
            await group[0].get_or_fill("a", source.read, **options)


@virtual(2)
async def test_after_the_soft_limit_comes_the_stale_value_and_the_fill_goes_on(
    group: Shells, source: Source
) -> None:
    node = group[0]
    options = {"ttl_s": 10.0, "stale_s": 60.0, "soft_timeout_s": 0.5}
    await node.get_or_fill("a", source.read, **options)
    await asyncio.sleep(11)
    source.rows["a"], source.takes_s = "new", 3.0
    began = node.now()
    assert await node.get_or_fill("a", source.read, **options) == 1
    assert node.now() - began == pytest.approx(0.5)
    await asyncio.sleep(3.0)
    assert [each.get("a") for each in group.nodes] == ["new"] * 2
    assert len(source.calls) == 2


@virtual(2)
async def test_each_caller_says_how_stale_a_value_may_be(group: Shells, source: Source) -> None:
    node = group[0]
    await node.get_or_fill("a", source.read, ttl_s=10.0, stale_s=60.0)
    await asyncio.sleep(15)
    source.error = ValueError("down")
    assert await node.get_or_fill("a", source.read, ttl_s=10.0, stale_s=6.0) == 1
    with pytest.raises(ValueError, match="down"):
        await node.get_or_fill("a", source.read, ttl_s=10.0, stale_s=4.0)


@virtual(3)
async def test_who_left_with_a_stale_value_counts_on_the_fill_that_another_node_makes(
    group: Shells, source: Source
) -> None:
    options = {"ttl_s": 10.0, "stale_s": 60.0}
    await group[0].get_or_fill("a", source.read, **options)
    await asyncio.sleep(11)
    source.takes_s = 3.0
    dies = asyncio.create_task(group[0].get_or_fill("a", source.read, **options))
    await asyncio.sleep(0.1)
    assert group[0].fills.leases_held == 1
    assert await group[1].get_or_fill("a", source.read, soft_timeout_s=0.5, **options) == 1
    dies.cancel()
    await group.kill(group[0])
    source.rows["a"] = "new"
    await asyncio.sleep(5)
    assert group[1].get("a") == group[2].get("a") == "new"


@virtual()
async def test_without_a_stale_value_the_soft_limit_is_none(group: Shells, source: Source) -> None:
    source.takes_s = 3.0
    options = {"ttl_s": 10.0, "stale_s": 60.0, "soft_timeout_s": 0.5}
    assert await group[0].get_or_fill("a", source.read, **options) == 1


@virtual(2)
async def test_the_hard_limit_ends_the_filler_and_tells_all(group: Shells, source: Source) -> None:
    source.takes_s = 100.0
    found = await ask_all(group, "a", source.read, 3, hard_timeout_s=2.0)
    assert {type(each) for each in found} <= {FillTimeout, FillFailed}
    assert source.running == 0
    assert group[0].now() - 1000.0 < 3.0
    assert isinstance(next(e for e in found if isinstance(e, FillTimeout)), TimeoutError)
    source.takes_s = 0.1
    assert await group[0].get_or_fill("a", source.read) == 1


@virtual()
async def test_a_caller_with_less_time_leaves_and_the_fill_goes_on(
    group: Shells, source: Source
) -> None:
    node = group[0]
    source.takes_s = 5.0
    patient = asyncio.create_task(node.get_or_fill("a", source.read))
    await asyncio.sleep(0.1)
    with pytest.raises(FillTimeout, match="hard_timeout_s = 1 s"):
        await node.get_or_fill("a", source.read, hard_timeout_s=1.0)
    assert await patient == 1
    assert source.calls == ["a"]


@virtual()
async def test_a_filler_that_will_not_be_cancelled_does_not_hold_its_callers(
    group: Shells, source: Source
) -> None:
    node = group[0]

    async def stubborn(key: str) -> Any:
        for _ in range(20):
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                continue
        return "late"

    with pytest.raises(FillTimeout):
        await node.get_or_fill("a", stubborn, hard_timeout_s=2.0)
    await asyncio.sleep(30)
    assert node.get("a") is None


@virtual(2)
async def test_a_filler_that_is_cancelled_from_inside_is_a_failure(
    group: Shells, source: Source
) -> None:
    async def cancelled(key: str) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(FillFailed, match="was cancelled"):
        await group[0].get_or_fill("a", cancelled)
    assert await group[0].get_or_fill("a", source.read) == 1


# Early refresh and jitter.


@virtual(4)
async def test_one_node_refreshes_before_the_value_expires_and_nobody_waits(
    group: Shells, source: Source
) -> None:
    source.takes_s = 1.0
    options = {"ttl_s": 60.0, "early_refresh": 1.0}
    await group[0].get_or_fill("a", source.read, **options)
    waited = []
    for _ in range(3000):
        source.rows["a"] += 1
        await asyncio.sleep(0.1)
        began = group[0].now()
        for node in group.nodes:
            await node.get_or_fill("a", source.read, **options)
        waited.append(group[0].now() - began)
    assert max(waited) == 0.0
    assert 5 <= len(source.calls) - 1 <= 7, "about one for each 55 seconds of 300"
    assert source.most == 1
    assert sum(node.counters.refreshes for node in group.nodes) == len(source.calls) - 1


@virtual(2)
async def test_a_node_asks_once_for_each_refresh_that_another_one_makes(
    group: Shells, source: Source
) -> None:
    options = {"ttl_s": 10.0, "early_refresh": 1000.0}
    source.takes_s = 2.0
    await group[0].get_or_fill("a", source.read, **options)
    await asyncio.sleep(0.5)
    source.takes_s = 2.0
    await group[0].get_or_fill("a", source.read, **options)
    sent = group.sent
    await asyncio.sleep(0.5)
    for _ in range(100):
        await group[1].get_or_fill("a", source.read, **options)
        await asyncio.sleep(0.01)
    assert group.sent - sent <= 4
    assert len(source.calls) == 2


@virtual(2)
async def test_a_refresh_that_fails_leaves_the_value(group: Shells, source: Source) -> None:
    options = {"ttl_s": 10.0, "early_refresh": 100.0}
    await group[0].get_or_fill("a", source.read, **options)
    source.error = ValueError("down")
    for _ in range(95):
        await asyncio.sleep(0.1)
        assert await group[0].get_or_fill("a", source.read, **options) == 1
    assert 2 <= len(source.calls) <= 12


@virtual(2)
async def test_a_delete_during_a_refresh_is_not_undone(group: Shells, source: Source) -> None:
    options = {"ttl_s": 10.0, "early_refresh": 1000.0}
    source.takes_s = 1.0
    await group[0].get_or_fill("a", source.read, **options)
    await asyncio.sleep(5)
    await group[0].get_or_fill("a", source.read, **options)
    await asyncio.sleep(0.5)
    assert source.running == 1
    group[1].delete("a")
    await asyncio.sleep(3)
    assert [node.get("a") for node in group.nodes] == [None, None]


@virtual(2)
async def test_a_refresh_that_finds_nothing_takes_the_value_away(
    group: Shells, source: Source
) -> None:
    options = {"ttl_s": 10.0, "early_refresh": 1000.0, "stale_s": 100.0}
    await group[0].get_or_fill("a", source.read, **options)
    del source.rows["a"]
    await asyncio.sleep(5)
    assert await group[0].get_or_fill("a", source.read, **options) == 1
    await asyncio.sleep(1)
    assert [node.get("a") for node in group.nodes] == [None, None]
    source.error = ValueError("down")
    with pytest.raises(ValueError, match="down"):
        await group[0].get_or_fill("a", source.read, **options)


@virtual()
async def test_jitter_only_shortens_a_ttl_and_spreads_it(group: Shells, source: Source) -> None:
    node = group[0]
    deadlines = []
    for number in range(200):
        source.rows[f"k{number}"] = number
        await node.get_or_fill(f"k{number}", source.read, 100.0, ttl_jitter=0.2)
        item = node.found(f"k{number}")
        assert item is not None
        assert item.deadline is not None
        deadlines.append(item.deadline - node.now())
    assert 80.0 <= min(deadlines) < 82.0
    assert 98.0 < max(deadlines) <= 100.0


# Several keys.


@virtual(3)
async def test_missing_keys_are_filled_in_one_call(group: Shells, source: Source) -> None:
    node = group[0]
    node.set("b", "held")
    found = await node.get_or_fill_many(["a", "b", "none", "c"], source.read_many)
    assert found == {"a": 1, "b": "held", "c": 3}
    assert list(found) == ["a", "b", "c"]
    assert [set(call) for call in source.calls] == [{"a", "none", "c"}]
    assert node.get_many(["a", "c"]) == {"a": 1, "c": 3}
    assert await node.get_or_fill_many([], source.read_many) == {}


@virtual(4)
async def test_keys_that_another_node_fills_are_waited_for(group: Shells, source: Source) -> None:
    source.rows = {f"k{number}": number for number in range(20)}
    keys = list(source.rows)
    found = await asyncio.gather(
        *(node.get_or_fill_many(keys[5 * n : 5 * n + 10], source.read_many)
          for n, node in enumerate(group.nodes[:3])),
        *(node.get_or_fill(key, source.read) for node in group.nodes for key in keys),
    )  # fmt: skip
    for n in range(3):
        assert found[n] == {key: source.rows[key] for key in keys[5 * n : 5 * n + 10]}
    asked = Counter(k for call in source.calls for k in ([call] if isinstance(call, str) else call))
    assert asked == dict.fromkeys(keys, 1)


@virtual(2)
async def test_a_failure_of_several_is_that_of_each(group: Shells, source: Source) -> None:
    source.error = ValueError("no")
    found = await asyncio.gather(
        *(node.get_or_fill_many(["a", "b"], source.read_many) for node in group.nodes),
        group[0].get_or_fill("a", source.read),
        return_exceptions=True,
    )
    assert {type(each) for each in found} <= {ValueError, FillFailed}
    source.error = None
    assert await group[0].get_or_fill_many(["a", "b"], source.read_many) == {"a": 1, "b": 2}


@virtual()
async def test_a_filler_of_several_has_to_give_a_mapping(group: Shells, source: Source) -> None:
    async def wrong(keys: list[str]) -> Any:
        return [1, 2]

    with pytest.raises(TypeError, match="must give a mapping of key to value, not list"):
        await group[0].get_or_fill_many(["a", "b"], wrong)


@virtual()
async def test_stale_values_of_several_come_after_one_soft_limit(
    group: Shells, source: Source
) -> None:
    node = group[0]
    options = {"ttl_s": 10.0, "stale_s": 60.0, "soft_timeout_s": 0.5}
    await node.get_or_fill_many(["a", "b", "c"], source.read_many, **options)
    await asyncio.sleep(11)
    source.takes_s = 5.0
    began = node.now()
    found = await node.get_or_fill_many(["a", "b", "c"], source.read_many, **options)
    assert found == {"a": 1, "b": 2, "c": 3}
    assert node.now() - began == pytest.approx(0.5)


def test_a_node_that_was_told_the_owner_s_value_need_not_hold_it() -> None:
    @virtual(3)
    async def check(group: Shells, source: Source) -> None:
        await group[0].get_or_fill("a", source.read)
        await asyncio.sleep(0.1)
        for node in group.nodes:
            owner = next(n for n in group.nodes if n.process == _owner(group, "a"))
            if node is not owner:
                node.evict("a")
                assert await node.get_or_fill("a", source.read) == 1
        assert source.calls == ["a"]

    check()


def _owner(group: Shells, key: str) -> int | None:
    from lanecache.cluster.fill.owners import owner_of

    return owner_of(key, [node.process for node in group.nodes])


def test_xfetch_refreshes_the_earlier_the_longer_a_value_takes() -> None:
    dice = random.Random(3)
    throws = [1.0 - dice.random() for _ in range(20_000)]

    def share(left_s: float, took_s: float, beta: float = 1.0) -> float:
        return sum(is_due(100.0 - left_s, 100.0, took_s, beta, each) for each in throws) / 20_000

    # P(-ln u >= left / (took * beta)) = exp(-left / (took * beta)), by the paper.
    for left_s, took_s, beta in (
        (1.0, 1.0, 1.0),
        (2.0, 1.0, 1.0),
        (2.0, 1.0, 2.0),
        (5.0, 2.0, 1.0),
    ):
        assert share(left_s, took_s, beta) == pytest.approx(
            math.exp(-left_s / (took_s * beta)), abs=0.01
        )
    assert share(0.0, 1.0) == 1.0
    assert share(0.1, 0.0) == 0.0


def test_keys_to_be_left_alone_are_bounded() -> None:
    quiet = Quiet()
    for number in range(3 * QUIET_MAX):
        quiet.hush(f"k{number}", number + 10.0, float(number))
    assert len(quiet._until) <= QUIET_MAX
    assert quiet(f"k{3 * QUIET_MAX - 1}", 3.0 * QUIET_MAX)
    assert not quiet(f"k{3 * QUIET_MAX - 1}", 4.0 * QUIET_MAX)
    assert not quiet("other", 0.0)
