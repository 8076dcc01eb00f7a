"""``@cache.cached``: keys from arguments, results from the cache."""

from __future__ import annotations

import asyncio
import datetime
import inspect
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Awaitable, Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from cluster_fillers import Shell, Shells, shells
from hypothesis import given
from hypothesis import strategies as st
from virtual_loop import run_virtual

from lanecache.cluster.fill.argument_keys import ArgumentKey
from lanecache.cluster.fill.cached import cached
from lanecache.cluster.store.absent import ABSENT, Absent
from lanecache.lanes.key import KeyTemplate


def on(
    cache: Any, key: str, ttl_s: float | None = None, ignore: Any = (), **options: Any
) -> Callable[[Any], Any]:
    return cached(cache, key, ttl_s, ignore=ignore, **options)


def virtual(test: Callable[[Shells], Awaitable[None]]) -> Callable[[], None]:
    async def main() -> None:
        async with shells(3) as group:
            await test(group)

    def run() -> None:
        run_virtual(main())

    run.__name__ = test.__name__
    return run


class NoCache:
    """Stands for a cache where only the decoration matters."""

    get_or_fill = None


# Calls.


@virtual
async def test_a_function_is_called_once_for_the_same_arguments(group: Shells) -> None:
    calls = []

    @on(group[0], "user:{user_id}:{lang}", ttl_s=60)
    async def user(user_id: int, lang: str = "en") -> dict[str, Any]:
        calls.append((user_id, lang))
        await asyncio.sleep(0.1)
        return {"id": user_id, "lang": lang}

    assert await user(1) == {"id": 1, "lang": "en"}
    assert await user(user_id=1, lang="en") == {"id": 1, "lang": "en"}
    assert await user(1, "de") == {"id": 1, "lang": "de"}
    assert calls == [(1, "en"), (1, "de")]
    assert group[0].get("user:1:en") == {"id": 1, "lang": "en"}
    assert user.key(1) == user.key(lang="en", user_id=1) == "user:1:en"


@virtual
async def test_all_nodes_share_one_call(group: Shells) -> None:
    calls = []

    def on_node(node: Shell) -> Any:
        @on(node, "user:{user_id}")
        async def user(user_id: int) -> int:
            calls.append(user_id)
            await asyncio.sleep(0.1)
            return user_id * 10

        return user

    functions = [on_node(node) for node in group.nodes]
    found = await asyncio.gather(*(function(7) for function in functions for _ in range(10)))
    assert found == [70] * 30
    assert calls == [7]


@virtual
async def test_invalidating_forgets_the_result_on_every_node(group: Shells) -> None:
    calls = []

    @on(group[0], "user:{user_id}")
    async def user(user_id: int) -> int:
        calls.append(user_id)
        return user_id

    await user(1)
    await user(2)
    user.invalidate(user_id=1)
    await asyncio.sleep(0.1)
    assert [node.get("user:1") for node in group.nodes] == [None] * 3
    assert [node.get("user:2") for node in group.nodes] == [2] * 3
    await user(1)
    user.invalidate(1)
    await user(1)
    assert calls == [1, 2, 1, 1]


@virtual
async def test_tags_are_templates_too(group: Shells) -> None:
    calls = []

    @on(group[0], "orders:{user_id}:{page}", tags=("user:{user_id}", "orders"))
    async def orders(user_id: int, page: int = 0) -> list[int]:
        calls.append((user_id, page))
        return [page]

    await orders(1)
    await orders(1, 1)
    await orders(2)
    await asyncio.sleep(0.1)
    group[1].invalidate_tag("user:1")
    await asyncio.sleep(0.1)
    assert [await orders(1), await orders(1, 1), await orders(2)] == [[0], [1], [0]]
    assert len(calls) == 5
    await asyncio.sleep(0.1)
    group[2].invalidate_tag("orders")
    await asyncio.sleep(0.1)
    await orders(2)
    assert len(calls) == 6


@virtual
async def test_what_a_function_raises_comes_through(group: Shells) -> None:
    @on(group[0], "user:{user_id}")
    async def user(user_id: int) -> int:
        raise LookupError(f"no user {user_id}")

    with pytest.raises(LookupError, match="no user 4"):
        await user(4)
    with pytest.raises(TypeError, match="missing a required argument: 'user_id'"):
        await user()
    with pytest.raises(TypeError, match="unexpected keyword argument 'id'"):
        await user(1, id=4)
    with pytest.raises(TypeError, match="multiple values for argument 'user_id'"):
        await user(1, user_id=4)
    with pytest.raises(TypeError, match="too many positional arguments"):
        await user(1, 2)


@virtual
async def test_none_and_absent_come_back_as_they_were(group: Shells) -> None:
    calls = []

    @on(group[0], "user:{user_id}", absent_ttl_s=5)
    async def user(user_id: int) -> str | Absent | None:
        calls.append(user_id)
        return None if user_id else ABSENT

    assert await user(1) is None
    assert await user(1) is None
    assert await user(0) is ABSENT
    assert await user(0) is ABSENT
    assert calls == [1, 0]


@virtual
async def test_a_cache_that_comes_later_is_asked_for_with_each_call(group: Shells) -> None:
    place: list[Shell] = []

    @on(lambda: place[0], "user:{user_id}")
    async def user(user_id: int) -> int:
        return user_id

    with pytest.raises(IndexError):
        await user(1)
    place.append(group[0])
    assert await user(1) == 1
    assert group[0].get("user:1") == 1


# Methods.


@virtual
async def test_a_method_may_leave_self_out_of_the_key(group: Shells) -> None:
    class Shop:
        def __init__(self) -> None:
            self.calls: list[int] = []

        @on(group[0], "user:{user_id}", ignore=("self",))
        async def user(self, user_id: int) -> int:
            self.calls.append(user_id)
            return user_id

    one, other = Shop(), Shop()
    assert await one.user(1) == await other.user(1) == 1
    assert (one.calls, other.calls) == ([1], [])
    assert one.user.key(1) == Shop.user.key(user_id=1) == "user:1"
    one.user.invalidate(1)
    assert await other.user(1) == 1
    assert other.calls == [1]


def test_a_method_that_would_share_its_results_over_instances_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Shop\.user is a method.*pass ignore=\(\"self\",\)"):

        class Shop:
            @on(NoCache(), "user:{user_id}")
            async def user(self, user_id: int) -> int:
                return user_id


@virtual
async def test_ignored_arguments_do_not_change_the_key(group: Shells) -> None:
    sessions = []

    @on(group[0], "user:{user_id}", ignore=("session", "more"))
    async def user(session: object, user_id: int, **more: object) -> int:
        sessions.append(session)
        return user_id

    assert await user("one", 1, trace=5) == await user("other", 1) == 1
    assert sessions == ["one"]
    assert user.key(user_id=1) == "user:1"
    user.invalidate(user_id=1)
    with pytest.raises(TypeError, match=r"missing the argument user_id of the key"):
        user.invalidate()


# What is wrong is an error at decoration.


async def plain(user_id: int, lang: str = "en") -> int:
    return user_id


async def variadic(user_id: int, *others: int) -> int:
    return user_id


@pytest.mark.parametrize(
    ("function", "key", "options", "error", "says"),
    [
        (plain, "user:{user_id}", {}, ValueError, r"does not have \{lang\} in it.*would share"),
        (plain, "user", {}, ValueError, r"does not have \{user_id\}"),
        (plain, "user:{id}:{lang}", {}, ValueError, r"has \{id\}, which is no parameter"),
        (plain, "u:{user_di}:{lang}", {}, ValueError, r"did you mean \{user_id\}\?"),
        (plain, "u:{user_id.x}:{lang}", {}, ValueError, "is no parameter"),
        (plain, "u:{user_id!r}:{lang}", {}, ValueError, "is no parameter"),
        (plain, "u:{}:{lang}", {}, ValueError, "is no parameter"),
        (plain, "u:{user_id", {}, ValueError, 'single "{"'),
        (plain, "{user_id}:{lang}", {}, ValueError, "has to begin with a text of its own"),
        (plain, "u:{user_id}{lang}", {}, ValueError, "so that two calls could share a key"),
        (plain, "u:{user_id}x{lang}", {}, ValueError, "so that two calls could share a key"),
        (plain, "u %:{user_id}:{lang}", {}, ValueError, "has a % in its text"),
        (plain, "u x:{user_id}:{lang}", {}, ValueError, "whitespace"),
        (variadic, "u:{user_id}", {}, ValueError, r"takes \*others, which has no place"),
        (plain, "u:{user_id}", {"ignore": ("language",)}, ValueError, "ignore has language"),
        (plain, "u:{user_id}", {"ignore": "lang"}, TypeError, r'such as \("lang",\)'),
        (plain, "u:{user_id}:{lang}", {"ignore": ("lang",)}, ValueError, "is no parameter"),
        (plain, "u:{user_id}:{lang}", {"tags": ("{lang}",)}, ValueError, "the tag"),
        (plain, "u:{user_id}:{lang}", {"tags": ("t:{x}",)}, ValueError, "the tag"),
        (plain, "u:{user_id}:{lang}", {"ttl_s": -1}, ValueError, "ttl_s must be"),
        (plain, "u:{user_id}:{lang}", {"ttl": 1}, TypeError, "ttl is no keyword"),
        (lambda user_id: 1, "u:{user_id}", {}, TypeError, "must be an async function"),
        (5, "u:{user_id}", {}, TypeError, "must be an async function"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_at_decoration(
    function: Any, key: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        on(NoCache(), key, **options)(function)


def test_a_function_without_arguments_has_one_key() -> None:
    @on(NoCache(), "settings")
    async def load() -> int:
        return 1

    assert load.key() == "settings"


def test_it_still_looks_like_the_function() -> None:
    wrapped = on(NoCache(), "u:{user_id}:{lang}")(plain)
    assert wrapped.__name__ == "plain"
    assert inspect.signature(wrapped) == inspect.signature(plain)
    assert inspect.iscoroutinefunction(wrapped)
    assert wrapped.__wrapped__ is plain


# Keys.


class Color(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (-5, "-5"),
        ("ann", "ann"),
        ("a:b c%", "a%3Ab%20c%25"),
        ("1", "%31"),
        ("-5", "%2D5"),
        ("", ""),
        (None, "%NULL"),
        (True, "%true"),
        (False, "%false"),
        (1.0, "%r1.0"),
        (b"\x00\xff", "%x00FF"),
        (uuid.UUID(int=5), "%u00000000-0000-0000-0000-000000000005"),
        (datetime.date(2026, 1, 2), "%d2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3), "%t2026-01-02T03%3A00%3A00"),
    ],
)
def test_each_type_has_its_text(value: object, text: str) -> None:
    assert ArgumentKey("k:{a}", ["a"], "the key").render({"a": value}) == f"k:{text}"


@pytest.mark.parametrize("value", [[1], {}, (1,), Color.RED, object(), 1j])
def test_what_has_no_place_in_a_key_is_refused_with_the_argument_s_name(value: object) -> None:
    with pytest.raises(TypeError, match=r'the argument a in "k:\{a\}" is'):
        ArgumentKey("k:{a}", ["a"], "the key").render({"a": value})


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(str),
    st.text(),
    st.text(alphabet="0123456789-%:_/NULLtruefalserxud"),
    st.floats(allow_nan=False),
    st.binary(max_size=4),
    st.binary(max_size=4).map(lambda data: "%x" + data.hex().upper()),
    st.uuids(),
    st.uuids().map(str),
    st.dates(),
    st.datetimes(),
    st.datetimes().map(datetime.datetime.isoformat),
)


TEMPLATES = st.sampled_from(["k:{a}:{b}", "k:{a}-{b}", "k:{a}/x/{b}.", "{{k}}{a}_{b}"])


@given(TEMPLATES, VALUES, VALUES, VALUES, VALUES)
def test_distinct_arguments_give_distinct_keys(
    text: str, a: object, b: object, c: object, d: object
) -> None:
    template = ArgumentKey(text, ["a", "b"], "the key")
    first, second = template.render({"a": a, "b": b}), template.render({"a": c, "b": d})
    same = (type(a), repr(a), type(b), repr(b)) == (type(c), repr(c), type(d), repr(d))
    assert (first == second) is same


@given(st.integers(-(2**63), 2**63), st.text().filter(lambda t: not t.lstrip("-").isdecimal()))
def test_a_lane_and_a_function_have_the_same_key_for_the_same_id(number: int, name: str) -> None:
    lane = KeyTemplate("user:{id}:{name}")
    function = ArgumentKey("user:{id}:{name}", ["id", "name"], "the key")
    made = lane.render("shop", "user", [str(number), name])
    assert function.render({"id": number, "name": name}) == made


# Types.


def test_mypy_sees_the_wrapped_signature(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        from lanecache.cluster.fill.cached import Cached, cached
        from lanecache.cluster.cache import Cache

        def use(cache: Cache) -> None:
            @cache.cached(key="user:{user_id}:{lang}", ttl_s=60, tags=("user:{user_id}",))
            async def user(user_id: int, lang: str = "en") -> dict[str, int]:
                return {}

            class Shop:
                @cache.cached(key="shop:{number}", ignore=("self",))
                async def total(self, number: int) -> float:
                    return 1.0

            async def calls() -> None:
                reveal_type(await user(1))
                reveal_type(await Shop().total(1))
                user.invalidate(user_id=1)
                reveal_type(user.key(1))
                Shop().total.invalidate(1)
                await user("1")  # wrong
                await user()  # wrong
                await Shop().total(number="x")  # wrong
                reveal_type(await cache.get_or_fill("k", lambda key: user(1), 5))

        service: list[Cache] = []

        @cached(lambda: service[0], key="user:{user_id}", early_refresh=1.0, ttl_s=5)
        async def later(user_id: int) -> str:
            return ""

        async def call() -> None:
            reveal_type(await later(user_id=1))

        def wrong(cache: Cache) -> None:
            cache.cached(key="user:{user_id}", ttl=5)  # wrong
        """
    )
    file = tmp_path / "uses_cached.py"
    file.write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    revealed = [line for line in done.stdout.splitlines() if "Revealed" in line]
    errors = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wrong = {n for n, line in enumerate(code.splitlines(), 1) if "# wrong" in line}
    assert errors == wrong, done.stdout
    assert [line.split("type is ")[1] for line in revealed] == [
        '"dict[str, int]"', '"float"', '"str"', '"Any"', '"str"',
    ], done.stdout  # fmt: skip
