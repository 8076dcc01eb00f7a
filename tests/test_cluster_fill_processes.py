"""Fills over real processes and sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from cluster_caches import Fleet, Node, together, wait_alive
from cluster_group import free_places

KEYS = [f"key:{number}" for number in range(20)]


def calls(path: Path) -> Counter[str]:
    """Count how often which key was filled."""
    return Counter(path.read_text().split())


async def fill_all(nodes: list[Node], path: Path, takes_s: float, tasks: int = 50) -> None:
    """Let all nodes fill all keys at once, and check what they get."""
    found = await together(
        *(node.call("fill_all", str(path), KEYS, tasks, takes_s) for node in nodes)
    )
    wanted = [f"value of {key}" for _ in range(tasks) for key in KEYS]
    assert found == [wanted] * len(nodes)


async def test_four_processes_with_fifty_tasks_each_fill_twenty_keys_twenty_times(
    tmp_path: Path,
) -> None:
    async with Fleet(tmp_path, [str(place) for place in free_places(4)]) as fleet:
        nodes = await fleet.start_all()
        path = tmp_path / "calls"
        await fill_all(nodes, path, takes_s=0.2)
        assert calls(path) == dict.fromkeys(KEYS, 1)
        for node in nodes:
            await node.holds({key: f"value of {key}" for key in KEYS})

        # Everything is there now; a delete of one key leads to one more fill.
        await fill_all(nodes, path, takes_s=0.2)
        assert sum(calls(path).values()) == 20
        await nodes[1].call("delete", KEYS[0])
        for node in nodes:
            await node.holds({KEYS[0]: None})
        await fill_all(nodes, path, takes_s=0.2)
        assert calls(path) == {KEYS[0]: 2, **dict.fromkeys(KEYS[1:], 1)}

        # So does a tag that is invalidated.
        await nodes[0].call("set_many", dict.fromkeys(KEYS, "tagged"), tags=["all"])
        for node in nodes:
            await node.holds(dict.fromkeys(KEYS, "tagged"))
        await nodes[3].call("invalidate_tag", "all")
        for node in nodes:
            await node.holds(dict.fromkeys(KEYS, None))
        await fill_all(nodes, path, takes_s=0.2)
        assert sum(calls(path).values()) == 41


async def test_a_process_that_is_killed_while_it_fills_is_followed_by_one_other(
    tmp_path: Path,
) -> None:
    async with Fleet(tmp_path, [str(place) for place in free_places(3)]) as fleet:
        nodes = await fleet.start_all()
        path = tmp_path / "calls"
        lost = asyncio.create_task(nodes[2].call("fill_all", str(path), KEYS, 1, 600.0))
        async with asyncio.timeout(30):
            while not path.exists() or len(calls(path)) < len(KEYS):
                await asyncio.sleep(0.05)
        rest = asyncio.create_task(fill_all(nodes[:2], path, takes_s=0.05, tasks=5))
        await asyncio.sleep(0.5)
        assert not rest.done(), "the others wait for it"
        await nodes[2].kill()
        lost.cancel()
        await rest
        await wait_alive(nodes[0], 2)
        assert calls(path) == dict.fromkeys(KEYS, 2)
