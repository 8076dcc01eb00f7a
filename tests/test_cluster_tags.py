"""Tags: forgetting all that has one, on every node, in one step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cluster_services import caches, until_all

from lanecache.errors import CacheStopped, CacheValueError


async def test_a_tag_is_invalidated_on_every_node_and_what_is_written_later_stays() -> None:
    async with caches(3) as (one, other, third):
        nodes = [one, other, third]
        one.set("a", 1, tags=["user:1", "list"])
        other.set_many({"b": 2, "c": 3}, tags=["user:2", "list"])
        third.set("d", 4)
        for key, value in {"a": 1, "b": 2, "c": 3, "d": 4}.items():
            await until_all(nodes, key, value)
        other.invalidate_tag("user:1")
        assert other.get("a") is None, "at once where it was said"
        await until_all(nodes, "a", None)
        assert [cache.get_many("abcd") for cache in nodes] == [{"b": 2, "c": 3, "d": 4}] * 3
        third.set("a", 5, tags=["user:1"])
        await until_all(nodes, "a", 5)
        one.invalidate_tag("list")
        await until_all(nodes, "b", None)
        assert [cache.get_many("abcd") for cache in nodes] == [{"a": 5, "d": 4}] * 3
        one.set("b", 6)  # without the tag that it had
        one.invalidate_tag("list")
        await until_all(nodes, "b", 6)


async def test_invalidating_looks_at_no_item_however_many_have_the_tag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with caches(1) as (cache,):
        for number in range(5_000):
            cache.set(f"k{number}", number, tags=["all"])
        store = cache._engine.node.store

        def looked(*_: object) -> Any:
            raise AssertionError("it goes through the items")

        with monkeypatch.context() as patch:
            for name in ("all_items", "keys_below", "items", "_keys"):
                patch.setattr(store, name, looked)
            cache.invalidate_tag("all")
        assert cache.get_many(f"k{number}" for number in range(5_000)) == {}


async def test_a_fill_with_a_tag_that_was_just_invalidated_is_held() -> None:
    async with caches(3) as nodes:

        async def fill(key: str) -> str:
            calls.append(key)
            return f"value {len(calls)}"

        calls: list[str] = []
        for turn in range(1, 6):
            found = await asyncio.gather(*(n.get_or_fill("a", fill, tags=["t"]) for n in nodes))
            assert found == [f"value {turn}"] * 3
            assert len(calls) == turn
            await until_all(nodes, "a", f"value {turn}")
            nodes[turn % 3].invalidate_tag("t")
            await until_all(nodes, "a", None)


async def test_a_tag_that_is_none_is_refused() -> None:
    async with caches(1) as (cache,):
        for tag in ("", 5, None, "\ud800", "x" * 5000):
            with pytest.raises(CacheValueError):
                cache.invalidate_tag(tag)  # type: ignore[arg-type]
            with pytest.raises(CacheValueError):
                cache.set("a", 1, tags=[tag])  # type: ignore[list-item]
            with pytest.raises(CacheValueError):
                cache.set_many({"a": 1}, tags=[tag])  # type: ignore[list-item]
            with pytest.raises((CacheValueError, TypeError)):
                await cache.get_or_fill("a", _one, tags=[tag])  # type: ignore[list-item]
        with pytest.raises(CacheValueError, match="not the one 'red'"):
            cache.set("a", 1, tags="red")
        with pytest.raises(CacheValueError, match="1025 tags"):
            await cache.get_or_fill("a", _one, tags=[f"t{number}" for number in range(1025)])
        assert cache.get("a") is None
    with pytest.raises(CacheStopped):
        cache.invalidate_tag("t")
    with pytest.raises(CacheStopped):
        await cache.get_or_fill("a", _one)


async def _one(key: str) -> int:
    return 1
