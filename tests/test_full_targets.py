"""Targets that have no room: what waits is forgotten there, and comes when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from redis_fake import Command, FakeRedis

from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import SinkError, SinkFull
from lanecache.operation import Checkpoint, Clear, Delete, DurableCallback, Set, Transaction
from lanecache.pipeline import _Outlet
from lanecache.servers import Redis
from lanecache.sinks.memory import MemorySink
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_commands import POSITION_PREFIX
from lanecache.statistics import LinkState
from lanecache.testing.sink_contract import SOURCE, transaction

OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"


class Full:
    """Refuses, while it is told to, what a full Redis refuses, and lists all keys for ``SCAN``."""

    def __init__(self, refused: Callable[[Command], bool] = lambda command: True) -> None:
        self.full = False
        self.redis: FakeRedis
        self._refused = refused
        self._aborted = False

    def __call__(self, command: Command) -> bytes | None:
        if command[0] == b"SCAN":
            keys = [b"$%d\r\n%b\r\n" % (len(key), key) for key in self.redis.strings]
            return b"*2\r\n$1\r\n0\r\n*%d\r\n%b" % (len(keys), b"".join(keys))
        if command[0] in (b"SET", b"MSET", b"INCRBY") and self.full and self._refused(command):
            self._aborted = True
            return OOM
        if command[0] == b"EXEC" and self._aborted:
            self._aborted = False
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        return None

    def values(self) -> dict[str, bytes]:
        strings = {key.decode(): value for key, value in self.redis.strings.items()}
        return {key: value for key, value in strings.items() if not key.startswith(POSITION_PREFIX)}


@contextlib.asynccontextmanager
async def fake(full: Full) -> AsyncIterator[FakeRedis]:
    async with FakeRedis(full) as redis:
        full.redis = redis
        yield redis


def delivery_to(url: str, **limits: Any) -> Delivery:
    config = SinkConfig(**{"url": url, "reconnect_delay_max_s": 0.05, **limits})
    sink = RedisSink(config, name="main")
    return Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=("k:", "p:"))


@contextlib.asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[asyncio.Task[None]]:
    await delivery.open_first()
    task = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(30):
            yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, SinkError, SinkRewound):
            await task
        await delivery.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


OLD = transaction(1, *(Set(f"k:{n}", b"old") for n in range(6)), Set("p:1", b"old"))


async def test_what_waits_and_what_comes_is_forgotten_and_is_exact_when_there_is_room() -> None:
    async with fake(full := Full()) as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(OLD)
            await delivery.wait_durable_all()
            full.full = True
            delivery.offer(transaction(2, Set("k:0", b"2"), Delete("k:1")))
            await until(lambda: not full.values().keys() & {"k:0", "k:1"})
            delivery.offer(transaction(3, Set("k:2", b"3"), spilled=True))
            await until(lambda: "k:2" not in full.values())
            delivery.offer(transaction(4, Clear("p:"), Set("k:3", b"4")))
            await until(lambda: full.values() == {"k:4": b"old", "k:5": b"old"})
            assert delivery.position == OLD.position
            statistics = delivery.statistics()
            assert statistics.state is LinkState.WAITING
            assert statistics.last_error.startswith("Redis at ")
            assert "is full" in statistics.last_error
            assert "until then the keys of what waits are forgotten" in statistics.last_error
            full.full = False
            await delivery.wait_durable_all()
            assert delivery.statistics().state is LinkState.CONNECTED
        assert full.values() == {
            "k:0": b"2", "k:2": b"3", "k:3": b"4", "k:4": b"old", "k:5": b"old"
        }  # fmt: skip
        assert delivery.statistics().invalidated == 0


async def test_one_that_is_full_at_the_start_is_gone_on_with() -> None:
    async with fake(full := Full()) as redis:
        async with running(first := delivery_to(redis.url)):
            first.offer(OLD)
            await first.wait_durable_all()
        full.full = True
        second = delivery_to(redis.url)
        async with running(second):
            assert second.position == OLD.position
            second.offer(transaction(2, Set("k:0", b"2")))
            await until(lambda: "k:0" not in full.values())
            assert len(full.values()) == 6
            full.full = False
            await second.wait_durable_all()
        assert full.values()["k:0"] == b"2"


async def test_one_that_takes_a_position_and_not_what_comes_behind_it_forgets_too() -> None:
    async with fake(full := Full(lambda command: command[0] == b"MSET")) as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(OLD)
            await delivery.wait_durable_all()
            full.full = True
            delivery.offer(transaction(2, Set("k:0", b"2")))
            await until(lambda: "k:0" not in full.values())
            delivery.offer(transaction(3, Set("k:1", b"3")))
            await until(lambda: "k:1" not in full.values())
            full.full = False
            await delivery.wait_durable_all()
        assert full.values() == {f"k:{n}": b"old" for n in range(2, 6)} | {
            "k:0": b"2", "k:1": b"3", "p:1": b"old"
        }  # fmt: skip


async def test_what_was_executed_without_an_answer_is_not_forgotten() -> None:
    """The connection is lost, and there is no room when it is opened again."""
    async with fake(full := Full()) as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery):
            delivery.offer(OLD)
            await delivery.wait_durable_all()

            def executed_unanswered(command: Command) -> bytes | None:
                if command[0] != b"EXEC":
                    return None
                strings = redis.strings
                for each in redis.commands[-4:-1]:
                    if each[0] in (b"MSET", b"SET"):
                        strings[each[1]] = each[2]
                    elif each[0] == b"INCRBY":
                        strings[each[1]] = b"%d" % (int(strings[each[1]]) + int(each[2]))
                full.full, redis.answer = True, full
                return b"-LOADING as good as lost\r\n"

            redis.answer = executed_unanswered
            delivery.offer(transaction(2, Set("k:0", b"2")))
            await until(lambda: full.full)
            delivery.offer(transaction(3, Set("k:1", b"3")))
            await until(lambda: "k:1" not in full.values())
            assert full.values()["k:0"] == b"2"
            assert delivery.position == transaction(2).position
            full.full = False
            await delivery.wait_durable_all()
        assert (full.values()["k:0"], full.values()["k:1"]) == (b"2", b"3")


async def test_a_full_queue_is_not_detached_and_the_source_goes_on() -> None:
    async with fake(full := Full()) as redis:
        delivery = delivery_to(redis.url, queue_bytes_max=20_000)
        other = delivery_to(redis.url)
        other._state = LinkState.CONNECTED
        outlet = _Outlet(delivery, [other])
        async with running(delivery):
            delivery.offer(OLD)
            await delivery.wait_durable_all()
            full.full = True
            outlet.offer(transaction(2, Set("k:0", b"2")))
            await until(lambda: delivery.forgets)
            for number in range(3, 300):
                outlet.offer(transaction(number, Set(f"k:{number}", b"x" * 200)))
                if outlet.full:
                    await outlet.wait_room()
            outlet.offer(transaction(300, Set("k:5", b"300")))
            await until(lambda: "k:5" not in full.values())
            full.full = False
            await delivery.wait_durable_all()
            assert delivery.position == transaction(300).position
        # Whatever was dropped is a miss, and nothing is old.
        assert all(value != b"old" for key, value in full.values().items() if key in ("k:0", "k:5"))
        assert delivery.statistics().invalidated > 0


class OwnSink(MemorySink):
    """A user's sink that has no room for now; it can forget, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        found = await super().open(source, writer, durable)
        if self.full:
            raise SinkFull("no room", sink="own", checkpoint=found)
        return found

    async def apply(self, run: Sequence[Transaction]) -> None:
        if self.full:
            raise SinkFull("no room", sink="own")
        await super().apply(run)


class OwnForgettingSink(OwnSink):
    async def forget(self, run: Sequence[Transaction]) -> None:
        for each in run:
            for key in each.operations.keys():  # noqa: SIM118  no mapping
                self._values.pop(key, None)


@pytest.mark.parametrize("kind", [OwnSink, OwnForgettingSink])
async def test_a_sink_of_ones_own_is_told_when_it_has_a_way_to_forget(kind: type[OwnSink]) -> None:
    sink = kind()
    config = SinkConfig(url="memory:", reconnect_delay_max_s=0.01)
    delivery = Delivery("own", sink, config, source=SOURCE, writer="me", prefixes=("k:",))
    async with running(delivery):
        delivery.offer(OLD)
        await delivery.wait_durable_all()
        sink.full = True
        delivery.offer(transaction(2, Set("k:0", b"2")))
        if kind is OwnForgettingSink:
            await until(lambda: sink.get("k:0") is None)
        else:
            await until(lambda: delivery.state is LinkState.WAITING)
            assert sink.get("k:0") == b"old"
        assert "no room" in delivery.statistics().last_error
        assert ("forgotten" in delivery.statistics().last_error) is (kind is OwnForgettingSink)
        sink.full = False
        await delivery.wait_durable_all()
    assert sink.get("k:0") == b"2"


@pytest.mark.servers
async def test_a_real_one_forgets_by_unlink_and_takes_everything_again(new_server: Any) -> None:
    server = await new_server(Redis)
    delivery = delivery_to(server.url())
    async with running(delivery):
        delivery.offer(OLD)
        await delivery.wait_durable_all()
        await server.execute("CONFIG", "SET", "maxmemory", "1")
        delivery.offer(transaction(2, Set("k:0", b"2"), Delete("k:1")))
        delivery.offer(transaction(3, Clear("p:"), Set("k:2", b"3")))
        async with asyncio.timeout(20):
            while await server.execute("EXISTS", "k:0", "k:1", "k:2", "p:1"):
                await asyncio.sleep(0.01)
        assert await server.execute("EXISTS", "k:3", "k:4", "k:5") == 3
        await server.execute("CONFIG", "SET", "maxmemory", "0")
        await delivery.wait_durable_all()
    found = await server.execute("MGET", "k:0", "k:1", "k:2", "k:3", "p:1")
    assert found == [b"2", None, b"3", b"old", None]
