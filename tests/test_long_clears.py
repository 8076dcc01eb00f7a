"""While a sink clears for long, what waits behind it is forgotten ahead, and then set in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
from held_clears import Scans
from redis_fake import FakeRedis
from test_delivery import running, until

import lanecache.backlog
import lanecache.sinks.redis_cluster_clear
from lanecache.config import SinkConfig
from lanecache.delivery import Delivery
from lanecache.operation import Checkpoint, Clear, Delete, ForesightedSink, Set
from lanecache.servers import Memcached, Redis
from lanecache.servers.redis_groups import RedisCluster
from lanecache.sinks.make import make_sink
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_cluster import RedisClusterSink
from lanecache.sinks.redis_commands import chain_key, position_key
from lanecache.sinks.redis_records import SLOT
from lanecache.sinks.redis_slots import record_key, slot_of
from lanecache.testing.sink_contract import SOURCE, transaction


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanecache.backlog, "PATIENCE_S", 0.0)


def delivery_to(url: str, **limits: Any) -> tuple[Delivery, Any]:
    config = SinkConfig(url=url, reconnect_delay_max_s=0.01, **limits)
    sink: Any = make_sink("main", config)
    assert isinstance(sink, ForesightedSink)
    return Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=("p:",)), sink


# A Redis whose pages never end until it is told.

OWN_KEYS = {position_key(SOURCE).encode(), chain_key(SOURCE).encode()}


class SlowWalk:
    """Answers ``SCAN`` with empty pages, and never with the last one while ``held``."""

    def __init__(self) -> None:
        self.held = True

    def __call__(self, command: list[bytes]) -> bytes | None:
        if command[0] != b"SCAN":
            return None
        cursor = b"7" if self.held else b"0"
        return b"*2\r\n$1\r\n%b\r\n*0\r\n" % cursor


async def test_keys_that_wait_are_unlinked_while_the_clear_lasts_and_set_in_their_place() -> None:
    walk = SlowWalk()
    async with FakeRedis(walk) as redis:
        delivery, _ = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(transaction(1, *(Set(f"k:{n}", b"old") for n in range(4))))
            await delivery.wait_durable_all()
            first = len(redis.commands)
            delivery.offer(transaction(2, Clear("p:"), Set("k:0", b"2")))
            await redis.wait_for("SCAN", 3)
            # The position, once more: data from before the clear is known by it.
            names = [name for name in redis.names()[first:] if name not in ("SCAN", "UNLINK")]
            assert names == ["MULTI", "INCRBY", "SET", "EXEC"]
            delivery.offer(transaction(3, Set("k:1", b"3"), Delete("k:2"), Set("k:9", b"3")))
            await until(lambda: b"k:1" not in redis.strings)
            delivery.offer(transaction(4, Clear("q:"), Set("k:1", b"4")))
            scans = redis.names().count("SCAN")
            await redis.wait_for("SCAN", scans + 3)
            assert redis.strings.keys() - OWN_KEYS == {b"k:3"}
            assert delivery.position == transaction(1).position
            sent = [each for each in redis.commands[first + len(names) :] if each[0] != b"SCAN"]
            # Each once, in their order, and nothing else.
            assert sent == [
                [b"UNLINK", b"k:0"], [b"UNLINK", b"k:1", b"k:2", b"k:9"], [b"UNLINK", b"k:1"],
            ]  # fmt: skip
            walk.held = False
            await delivery.wait_durable_all()
        assert delivery.position == transaction(4).position
        for key in OWN_KEYS:
            del redis.strings[key]
        assert redis.strings == {b"k:0": b"2", b"k:1": b"4", b"k:3": b"old", b"k:9": b"3"}


async def test_what_comes_faster_than_it_is_forgotten_does_not_stop_the_walk() -> None:
    """Pages and pieces take turns, whatever waits."""
    walk = SlowWalk()
    walk.held = False
    async with FakeRedis(walk) as redis:
        delivery, _ = delivery_to(redis.url)
        delivery.offer(transaction(1, Set("a", b"1")))
        async with running(delivery):
            spilled = [Set(f"k:{n}", b"1") for n in range(20_000)]
            walk.held = True
            delivery.offer(transaction(2, Clear("p:")))
            await redis.wait_for("SCAN")
            delivery.offer(transaction(3, *spilled, spilled=True))
            first = len(redis.commands)
            await redis.wait_for("SCAN", 12 + redis.names().count("SCAN"))
            sent = [command for command in redis.commands[first:] if command[0] != b"ECHO"]
            between, runs = 0, []
            for command in sent:
                if command[0] == b"SCAN":
                    runs.append(between)
                    between = 0
                else:
                    between += len(command) - 1
            assert sum(runs) == 20_000
            assert max(runs) <= 4096
            walk.held = False
            await delivery.wait_durable_all()
        assert redis.strings[b"k:19999"] == b"1"


async def test_a_full_queue_goes_on_being_read_as_invalidations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    walk = SlowWalk()
    async with FakeRedis(walk) as redis:
        delivery, _ = delivery_to(redis.url, queue_bytes_max=200_000)
        async with running(delivery):
            delivery.offer(transaction(1, *(Set(f"k:{n}", b"old") for n in range(310))))
            await delivery.wait_durable_all()
            delivery.offer(transaction(2, Clear("p:")))
            number = 2
            while number < 2000:  # some 2.4 MB
                number += 1
                delivery.offer(transaction(number, Set(f"k:{number % 300}", b"x" * 1000)))
                await delivery.wait_room()
                assert delivery.statistics().queue_bytes <= 210_000
            await until(lambda: not any(b"k:%d" % n in redis.strings for n in range(300)))
            assert delivery.position == transaction(1).position
            walk.held = False
            await delivery.wait_durable_all()
            assert delivery.position == transaction(2000).position
            statistics = delivery.statistics()
            assert statistics.transactions == 2000
            # The last few came when there was room again, and have their values.
            kept = sum(redis.strings.get(b"k:%d" % n, b"")[:1] == b"x" for n in range(300))
            assert 1800 <= statistics.invalidated < 1998
            assert statistics.queue_bytes == 0
            delivery.offer(transaction(2001, *(Set(f"k:{n}", b"new") for n in range(300))))
            await delivery.wait_durable_all()
        assert 0 < kept < 300
        assert {redis.strings[b"k:%d" % n] for n in range(300)} == {b"new"}
        assert {redis.strings[b"k:%d" % n] for n in range(300, 310)} == {b"old"}
    assert caplog.text.count("its queue was full while keys were being cleared") == 1


@pytest.mark.parametrize("folding", [False, True])
async def test_a_connection_lost_in_the_middle_of_a_clear_ends_equal(folding: bool) -> None:
    walk = SlowWalk()
    async with FakeRedis(walk) as redis:
        delivery, _ = delivery_to(redis.url, queue_bytes_max=20_000)
        async with running(delivery):
            delivery.offer(transaction(1, *(Set(f"k:{n}", b"old") for n in range(4))))
            await delivery.wait_durable_all()
            delivery.offer(transaction(2, Clear("p:"), Set("k:0", b"2")))
            last = 40 if folding else 5
            for number in range(3, last + 1):
                key = "k:1" if number == 3 else f"k:{2 + number % 2}"
                delivery.offer(transaction(number, Set(key, b"3" * 1000)))
                await delivery.wait_room()
            await until(lambda: not any(b"k:%d" % n in redis.strings for n in range(4)))
            for writer in redis._writers:
                writer.transport.abort()
            await until(lambda: redis.connections_total == 2)
            scans = redis.names().count("SCAN")
            await redis.wait_for("SCAN", scans + 3)
            assert not any(b"k:%d" % n in redis.strings for n in range(4))
            assert delivery.position == transaction(1).position
            walk.held = False
            await delivery.wait_durable_all()
            assert delivery.position == transaction(last).position
            assert delivery.statistics().transactions == last
        values = {n: redis.strings.get(b"k:%d" % n) for n in range(4)}
        assert values == {
            0: b"2", 1: None if folding else b"3" * 1000, 2: b"3" * 1000, 3: b"3" * 1000,
        }  # fmt: skip


async def test_a_refused_unlink_gives_the_connection_up_and_nothing_is_lost() -> None:
    walk = SlowWalk()
    refusing = False

    def answer(command: list[bytes]) -> bytes | None:
        if refusing and command[0] == b"UNLINK":
            return b"-MISCONF cannot save\r\n"
        return walk(command)

    async with FakeRedis(answer) as redis:
        delivery, _ = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(transaction(1, Clear("p:")))
            await redis.wait_for("SCAN", 2)
            refusing = True
            delivery.offer(transaction(2, Set("a", b"2")))
            await until(lambda: "MISCONF" in delivery.statistics().last_error)
            refusing = walk.held = False
            await delivery.wait_durable_all()
        assert redis.strings[b"a"] == b"2"


async def test_a_lane_that_writes_what_looks_like_a_position_does_not_take_it_away() -> None:
    walk = SlowWalk()
    key = position_key(SOURCE)
    async with FakeRedis(walk) as redis:
        delivery, _ = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(transaction(1, Set("a", b"1")))
            await delivery.wait_durable_all()
            delivery.offer(transaction(2, Clear("p:"), Delete(key), Set("a", b"2")))
            await until(lambda: b"a" not in redis.strings)
            assert key.encode() in redis.strings
            walk.held = False
            await delivery.wait_durable_all()


# Real servers.


class Target(Protocol):
    """A server or several, as these tests look at them."""

    url: str

    async def read(self, keys: Sequence[str]) -> dict[str, bytes | None]: ...

    async def fill(self, values: Mapping[str, bytes]) -> None: ...

    def protocols(self, sink: Any) -> list[Any]: ...


class OneRedis:
    def __init__(self, server: Redis) -> None:
        self.server = server
        self.url = server.url()

    async def read(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        return dict(zip(keys, await self.server.execute("MGET", *keys), strict=True))

    async def fill(self, values: Mapping[str, bytes]) -> None:
        pairs = [part for item in values.items() for part in item]
        for first in range(0, len(pairs), 20_000):
            await self.server.execute("MSET", *pairs[first : first + 20_000])

    def protocols(self, sink: RedisSink) -> list[Any]:
        return [sink._protocol()]


class ThreePrimaries:
    def __init__(self, cluster: RedisCluster) -> None:
        self.cluster = cluster
        self.url = cluster.url()

    async def _by_node(self, keys: Sequence[str]) -> dict[Redis, dict[str, list[str]]]:
        """Group keys by their node, then by slot."""
        answer = await self.cluster.nodes[0].execute("CLUSTER", "SLOTS")
        ranges = [(first, last, int(primary[1])) for first, last, primary, *_ in answer]
        nodes = {node.port: node for node in self.cluster.nodes}
        found: dict[Redis, dict[str, list[str]]] = {}
        for key in keys:
            slot = slot_of(key)
            port = next(port for first, last, port in ranges if first <= slot <= last)
            found.setdefault(nodes[port], {}).setdefault(str(slot), []).append(key)
        return found

    async def read(self, keys: Sequence[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}
        for node, slots in (await self._by_node(keys)).items():
            async with node.client() as client:
                for each in slots.values():
                    found |= dict(zip(each, await client.mget(each), strict=True))
        return found

    async def fill(self, values: Mapping[str, bytes]) -> None:
        for node, slots in (await self._by_node(list(values))).items():
            async with node.client() as client:
                pipeline = client.pipeline(transaction=False)
                for keys in slots.values():
                    pipeline.mset({key: values[key] for key in keys})
                await pipeline.execute()

    def protocols(self, sink: RedisClusterSink) -> list[Any]:
        return list(sink._connected().protocols.values())


@pytest.fixture(params=["redis", "cluster"])
async def target(request: pytest.FixtureRequest, new_server: Any) -> AsyncIterator[Target]:
    async with AsyncExitStack() as stack:
        if request.param == "redis":
            yield OneRedis(await new_server(Redis))
        else:
            yield ThreePrimaries(await stack.enter_async_context(RedisCluster(replicas=False)))


KEYS = [f"k:{n}" for n in range(10)]


@pytest.mark.servers
async def test_the_values_of_what_waits_are_not_seen_before_the_clear_is_done(
    target: Target,
) -> None:
    delivery, sink = delivery_to(target.url)
    async with running(delivery):
        delivery.offer(transaction(1, *(Set(key, b"1") for key in [*KEYS, "p:1", "p:2"])))
        await delivery.wait_durable_all()
        scans = Scans(target.protocols(sink), held=True)
        delivery.offer(transaction(2, Clear("p:"), Set("p:3", b"2")))
        await scans.wait_pages(1)
        delivery.offer(transaction(3, *(Set(key, b"3") for key in KEYS[:4])))
        delivery.offer(transaction(4, Delete(KEYS[3]), Set(KEYS[4], b"4")))
        for _ in range(5):
            await scans.wait_pages(6)
            values = await target.read([*KEYS, "p:1", "p:3"])
            assert values == {
                **dict.fromkeys([*KEYS[:5], "p:3"]), **dict.fromkeys([*KEYS[5:], "p:1"], b"1"),
            }  # fmt: skip
            assert delivery.position == transaction(1).position
        scans.held = False
        await delivery.wait_durable_all()
        assert delivery.position == transaction(4).position
        assert await target.read([*KEYS, "p:1", "p:2", "p:3"]) == {
            **dict.fromkeys(KEYS[:3], b"3"), KEYS[3]: None, KEYS[4]: b"4",
            **dict.fromkeys(KEYS[5:], b"1"), "p:1": None, "p:2": None, "p:3": b"2",
        }  # fmt: skip


@pytest.mark.servers
async def test_a_process_killed_in_the_middle_of_a_clear_is_replayed_to_the_same_end(
    target: Target,
) -> None:
    delivery, sink = delivery_to(target.url)
    later = [
        transaction(2, Clear("p:"), Set("p:3", b"2")),
        transaction(3, *(Set(key, b"3") for key in KEYS[:4])),
        transaction(4, Delete(KEYS[3]), Set(KEYS[4], b"4")),
    ]
    async with running(delivery):
        delivery.offer(transaction(1, *(Set(key, b"1") for key in [*KEYS, "p:1"])))
        await delivery.wait_durable_all()
        scans = Scans(target.protocols(sink), held=True)
        for each in later:
            delivery.offer(each)
        await scans.wait_pages(10)
        assert (await target.read(KEYS[:1])) == {KEYS[0]: None}
        for protocol in target.protocols(sink):
            protocol._transport.abort()
    successor, _ = delivery_to(target.url)
    async with running(successor):
        assert successor.position == transaction(1).position
        for each in later:
            successor.offer(each)
        await successor.wait_durable_all()
        assert await target.read([*KEYS, "p:1", "p:3"]) == {
            **dict.fromkeys(KEYS[:3], b"3"), KEYS[3]: None, KEYS[4]: b"4",
            **dict.fromkeys(KEYS[5:], b"1"), "p:1": None, "p:3": b"2",
        }  # fmt: skip


@pytest.mark.servers
async def test_among_many_keys_what_changed_is_never_old_two_pages_later(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound itself, counted in pages: it does not depend on how many keys there are."""
    count = 200_000 if isinstance(target, OneRedis) else 100_000
    if isinstance(target, ThreePrimaries):
        # Each has a third of the keys, and reading here takes longer than a page.
        monkeypatch.setattr(lanecache.sinks.redis_cluster_clear, "SCAN_COUNT", 200)
    await target.fill({f"p:{n}": b"x" for n in range(count)})
    delivery, sink = delivery_to(target.url)
    racing = [f"k:{n}" for n in range(1000)]
    async with running(delivery):
        delivery.offer(transaction(1, *(Set(key, b"old") for key in racing)))
        await delivery.wait_durable_all()
        scans = Scans(target.protocols(sink))
        walkers = len(target.protocols(sink))
        delivery.offer(transaction(2, Clear("p:")))
        await scans.wait_pages(1)
        before_the_end = 0
        for number, key in enumerate(racing, 3):
            delivery.offer(transaction(number, Set(key, b"new")))
            # The page under way, then the one that is asked for behind the forgotten keys.
            waits = [
                asyncio.ensure_future(scans.wait_pages(2 * walkers)),
                asyncio.ensure_future(delivery.wait_durable()),
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if delivery.position != transaction(1).position:
                break
            found = (await target.read([key]))[key]
            if delivery.position == transaction(1).position:
                assert found is None, f"{found!r} after {scans.pages} pages"
                before_the_end += 1
        assert before_the_end >= 5, f"the walk took only {scans.pages} pages"
        await delivery.wait_durable_all()
        changed = racing[: number - 2]
        assert set((await target.read(changed)).values()) == {b"new"}
        assert set((await target.read([f"p:{n}" for n in range(0, count, 97)])).values()) == {None}


@pytest.mark.servers
async def test_what_a_slot_has_already_is_not_forgotten_in_a_replay() -> None:
    """It would not be set again: that slot skips it."""
    a, other, b = "{a}:1", "{a}:2", "{b}:1"
    first = transaction(1, Set(a, b"1"), Set(other, b"1"), Set(b, b"1"))
    run = [
        transaction(2, Clear("p:")),
        transaction(3, Set(a, b"3"), Set(b, b"3")),
        transaction(4, Set(other, b"4"), Clear("q:")),
    ]
    async with RedisCluster(replicas=False) as cluster:
        target = ThreePrimaries(cluster)
        delivery, _ = delivery_to(target.url)
        async with running(delivery):
            delivery.offer(first)
            await delivery.wait_durable_all()
        # As if it had been killed in the middle of transaction 3.
        owner = await cluster.owner(slot_of(a))
        record = Checkpoint.of(run[1], "me").encode()
        await owner.execute("SET", a, "3")
        await owner.execute("HSET", record_key(slot_of(a), SOURCE), SLOT, record)
        delivery, sink = delivery_to(target.url)
        async with running(delivery):
            assert delivery.position == first.position
            scans = Scans(target.protocols(sink), held=True)
            for each in run:
                delivery.offer(each)
            await scans.wait_pages(12)
            assert await target.read([a, other, b]) == {a: b"3", other: None, b: None}
            assert delivery.position == first.position
            scans.held = False
            await delivery.wait_durable_all()
            assert await target.read([a, other, b]) == {a: b"3", other: b"4", b: b"3"}


@pytest.mark.servers
async def test_memcached_forgets_what_waits_while_its_keys_are_listed(new_server: Any) -> None:
    servers = [await new_server(Memcached) for _ in range(2)]
    url = "memcached://" + ",".join(f"{each.host}:{each.port}" for each in servers)
    delivery, sink = delivery_to(url)
    keys = [*KEYS, "long " * 60]
    seen: list[dict[str, bytes | None]] = []

    async def read(key: str) -> bytes | None:
        index, name, _ = next(iter(sink._place([Delete(key)])))
        lines = await sink._links[index].connection.protocol.call(b"mg %b v\r\n" % name)
        return lines[1] if len(lines) == 2 else None

    async with running(delivery):
        old = [Set(f"p:{n}", b"1") for n in range(20_000)]
        delivery.offer(transaction(1, *(Set(key, b"old") for key in keys), *old))
        await delivery.wait_durable_all()
        forget = sink._forget_ahead

        async def between(forgotten: Sequence[str]) -> None:
            """See what is there between two parts of the listing."""
            await forget(forgotten)
            if len(seen) == 1:
                delivery.offer(transaction(3, *(Set(key, b"new") for key in keys[:4])))
                delivery.offer(transaction(4, Delete(keys[-1]), Clear("q:")))
            if len(seen) < 3:
                assert delivery.position == transaction(1).position
            seen.append({key: await read(key) for key in keys})

        sink._forget_ahead = between
        delivery.offer(transaction(2, Clear("p:"), Set(keys[5], b"2")))
        await delivery.wait_durable_all()
        assert len(seen) > 4
        waiting = [*keys[:4], keys[5], keys[-1]]
        assert seen[0] == {key: None if key == keys[5] else b"old" for key in keys}
        assert seen[2] == {key: None if key in waiting else b"old" for key in keys}
        assert {key: await read(key) for key in keys} == {
            **dict.fromkeys(keys[:4], b"new"), keys[4]: b"old", keys[5]: b"2",
            **dict.fromkeys(keys[6:-1], b"old"), keys[-1]: None,
        }  # fmt: skip
        assert await read("p:1") is None
