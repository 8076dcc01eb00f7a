"""bcache's acceptance cases, and its faults, on real processes; and eight processes under writes.

The cases are those of bcache's own tests (three nodes, the second and third join by the first). Its
faults are what an older design of such a cache got wrong; each would fail there.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cluster_caches import Failed, Fleet, Node, together, wait_alive
from cluster_group import free_places

import lanecache
from lanecache.errors import ConfigError

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Give three nodes, and a place for a fourth."""
    places = [str(place) for place in free_places(4)]
    async with Fleet(tmp_path_factory.mktemp("fleet"), places) as fleet:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(fleet.start(number))
        await together(*(wait_alive(node, 3) for node in fleet.nodes.values()))
        yield fleet


@pytest.fixture
def nodes(fleet: Fleet) -> list[Node]:
    return [fleet.nodes[number] for number in range(3)]


async def everywhere(nodes: list[Node], wanted: dict[str, object], timeout_s: float = 3.0) -> None:
    await together(*(node.holds(wanted, timeout_s=timeout_s) for node in nodes))


async def test_fifty_keys_with_a_ttl_are_everywhere_within_three_seconds(
    nodes: list[Node],
) -> None:
    wanted = {f"fifty:{number}": f"value {number}" for number in range(50)}
    for key, value in wanted.items():
        await nodes[0].call("set", key, value, 60.0)
    await everywhere(nodes, wanted)


async def test_an_overwrite_on_the_second_reaches_the_first_and_the_third(
    nodes: list[Node],
) -> None:
    await nodes[0].call("set", "overwritten", "first")
    await everywhere(nodes, {"overwritten": "first"})
    await nodes[1].call("set", "overwritten", "second")
    await everywhere(nodes, {"overwritten": "second"})


async def test_a_delete_on_the_first_is_seen_everywhere(nodes: list[Node]) -> None:
    await nodes[1].call("set", "deleted", "there", 60.0)
    await everywhere(nodes, {"deleted": "there"})
    await nodes[0].call("delete", "deleted")
    await everywhere(nodes, {"deleted": None})


async def test_a_node_that_joins_later_has_everything_within_two_seconds(
    fleet: Fleet, nodes: list[Node]
) -> None:
    wanted = {f"fifteen:{number}": number for number in range(15)}
    await nodes[2].call("set_many", wanted)
    await everywhere(nodes, wanted)
    late = await fleet.start(3)
    try:
        # It was ready: that says that it has caught up.
        assert await late.call("get_many", list(wanted)) == wanted
    finally:
        await late.stop()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:70000"])
async def test_a_listen_address_without_a_port_or_with_a_bad_one_is_an_error(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.listen must be"):
        await lanecache.start({"cluster": {"name": "test", "listen": listen}})


# Its faults.


async def test_a_longer_ttl_does_not_beat_a_newer_write(nodes: list[Node]) -> None:
    await nodes[0].call("set", "ttl", "old", 10_000.0)
    await everywhere(nodes, {"ttl": "old"})
    await nodes[1].call("set", "ttl", "new", 30.0)
    await everywhere(nodes, {"ttl": "new"})
    await nodes[0].call("settled", 10.0)
    await everywhere(nodes, {"ttl": "new"})


async def test_a_set_and_a_delete_in_one_go_do_not_lose_the_delete(nodes: list[Node]) -> None:
    await nodes[2].call("set_then_delete", "flying", 200)
    await nodes[2].call("settled", 10.0)
    await everywhere(nodes, {f"flying:{number}": None for number in range(200)})


async def test_a_key_with_a_ttl_that_is_over_is_not_there_and_does_not_come_back(
    fleet: Fleet, nodes: list[Node]
) -> None:
    await nodes[0].call("set", "short", 1, 0.05)
    await nodes[0].call("set", "long", 1, 60.0)
    await everywhere(nodes, {"short": None, "long": 1})
    late = await fleet.start(3)
    try:
        assert await late.call("get_many", ["short", "long"]) == {"long": 1}
        await everywhere(nodes, {"short": None, "long": 1})
    finally:
        await late.stop()


async def test_values_that_are_no_utf_8_arrive_as_they_were(nodes: list[Node]) -> None:
    value = bytes(range(256))
    await nodes[0].call("set", "binary", value)
    await nodes[1].call("set", "binary too", [value, {"é": "\x00\U0001f600"}])
    await everywhere(nodes, {"binary": value, "binary too": [value, {"é": "\x00\U0001f600"}]})


async def test_a_state_of_twelve_mib_reaches_a_node_that_joins_and_recency_stays_as_it_was(
    tmp_path: Path,
) -> None:
    places = [str(place) for place in free_places(3)]
    async with Fleet(tmp_path, places) as fleet:
        first = await fleet.start(0, keys_max=1000)
        for number in range(12):
            wanted = {f"large:{number}:{part}": b"x" * 16_384 for part in range(64)}
            await first.call("set_many", wanted)
        # The coldest one is used: it must not be the first to go, whoever joins or merges.
        assert await first.call("get", "large:0:0") == b"x" * 16_384
        second = await fleet.start(1)
        keys = [f"large:{number}:{part}" for number in range(12) for part in range(64)]
        assert len(await second.call("get_many", keys)) == 768
        assert (await first.call("cluster_statistics"))["cache"]["entries"] == 768
        await second.call("set_many", {f"more:{number}": number for number in range(300)})
        await first.holds({f"more:{number}": number for number in range(300)})
        there = await first.call("get_many", keys)
        assert len(there) == 700
        assert "large:0:0" in there
        assert "large:0:1" not in there
        # What the first has evicted, the second still has; and it does not come back.
        assert len(await second.call("get_many", keys)) == 768
        assert await second.call("get", "large:0:1") is not None
        await fleet.start(2)
        assert await first.call("get", "large:0:1") is None
        # A delete of what this node does not hold reaches those who do.
        await first.call("delete", "large:0:1")
        await second.holds({"large:0:1": None})


async def test_expiry_does_not_depend_on_the_wall_clock_of_who_writes(tmp_path: Path) -> None:
    places = [str(place) for place in free_places(2)]
    async with Fleet(tmp_path, places) as fleet:
        right = await fleet.start(0)
        ahead = await fleet.start(1, wall_clock_ahead_s=20.0)
        await ahead.call("set", "a", 1, 15.0)
        await right.holds({"a": 1})
        left_s = (await right.call("explained", "a"))["ttl_left_s"]
        assert 5.0 < left_s <= 15.0
        # And the one whose clock is behind can still overwrite what the other wrote.
        await right.call("set", "a", 2)
        await ahead.holds({"a": 2})


async def test_values_that_are_not_taken_are_refused_by_name(nodes: list[Node]) -> None:
    with pytest.raises(Failed, match=r"CacheValueError.*value_bytes_max"):
        await nodes[0].call("set", "huge", b"x" * (1024 * 1024 + 1))
    await everywhere(nodes, {"huge": None})


# Eight processes.


async def test_of_eight_processes_one_is_killed_and_one_paused_and_the_others_agree(
    tmp_path: Path,
) -> None:
    keys = [f"key:{number}" for number in range(200)]
    async with Fleet(tmp_path, [str(place) for place in free_places(8)]) as fleet:
        nodes = await fleet.start_all()
        killed, paused = nodes[3], nodes[5]
        survivors = [node for node in nodes if node is not killed]
        writing = [
            asyncio.create_task(node.call("write_at_random", node.number, 800, len(keys)))
            for node in nodes
        ]
        await nodes[0].call("until_written", 150)
        killed.send(signal.SIGKILL)
        paused.send(signal.SIGSTOP)
        with pytest.raises(Failed, match=f"TimeoutError.*{fleet.listens[5]}"):
            await nodes[0].call("settled", 0.2)
        await nodes[0].call("until_written", 600)
        paused.send(signal.SIGCONT)
        done = await asyncio.gather(*writing, return_exceptions=True)
        assert [outcome for outcome in done if outcome != 800] == [done[3]]
        assert isinstance(done[3], Failed)
        for node in survivors:
            await wait_alive(node, 7)
        await together(*(node.call("settled", 30.0) for node in survivors))
        held = await agreed(survivors, keys)
        # Writes of all went in, those of the one that was killed as well.
        assert len(held) > 50


async def agreed(nodes: list[Node], keys: list[str]) -> dict[str, object]:
    """Wait until all nodes give the same for every key."""
    async with asyncio.timeout(30):
        while True:
            held = await together(*(node.call("get_many", keys) for node in nodes))
            if all(each == held[0] for each in held):
                return held[0]  # type: ignore[no-any-return]
            await asyncio.sleep(0.05)
