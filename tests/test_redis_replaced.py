"""A Redis whose data is replaced under the living connection: nothing is put on top of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_fake import Command, FakeRedis

from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import PositionLost, SinkError, SinkUnavailable
from lanecache.operation import Checkpoint, Clear, Delete, Set, Transaction
from lanecache.servers import Redis, Valkey
from lanecache.servers.programs import find_programs
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_chain import Chain, agrees
from lanecache.sinks.redis_commands import Piece, chain_key, pack_command, position_key
from lanecache.testing.sink_contract import SOURCE, Durable, transaction

KEY = position_key(SOURCE).encode()
SUM = chain_key(SOURCE).encode()
KEYS = ["k:0", "k:1", "k:2"]


def sink_for(url: str, **limits: Any) -> RedisSink:
    return RedisSink(SinkConfig(url=url, **limits), name="main", rng=random.Random(1))


def delivery_to(url: str, **limits: Any) -> Delivery:
    config = SinkConfig(**{"url": url, "reconnect_delay_max_s": 0.05, **limits})
    sink = RedisSink(config, name="main")
    return Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=("k:",))


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


async def applied(delivery: Delivery, *run: Transaction) -> None:
    for each in run:
        delivery.offer(each)
    await delivery.wait_durable_all()


def counting(number: int) -> Transaction:
    return transaction(number, *(Set(key, b"%d" % number) for key in KEYS))


def values(redis: FakeRedis) -> dict[bytes, bytes]:
    return {key: value for key, value in redis.strings.items() if key not in (KEY, SUM)}


# The core.


def stored_by(number: int) -> bytes:
    return Checkpoint.of(transaction(number), "me").encode()


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(0, 1000))
def test_whatever_copy_takes_its_place_is_noticed_by_the_answer_and_after_a_crash(
    copies: list[int], seed: int
) -> None:
    """Moves on one data set; at each, it is put back by so many moves, or not at all."""
    chain = Chain(SOURCE, random.Random(seed))
    data: dict[str, Any] = {"position": None, "sum": None}
    history = [dict(data)]
    for number, back in enumerate(copies, 1):
        # At times the place in the source is the same.
        place = stored_by(number // 2) if number > 2 else stored_by(number)
        replaced = 0 < back < len(history)
        if replaced:
            data = dict(history[-1 - back])
        link = chain.move(place)
        answers = [b"OK", data["position"]]
        if link.step is None:
            data["sum"] = link.total
        else:
            data["sum"] = answers[0] = (data["sum"] or 0) + link.step
        data["position"] = link.stored
        assert chain.followed(link, answers) is not replaced
        assert Checkpoint.decode(link.stored) == Checkpoint.decode(place)
        agreed = agrees(data["position"], b"%d" % data["sum"])
        assert agreed is not (replaced and link.step is not None)
        if replaced:
            break
        history.append(dict(data))


def test_a_sum_that_was_evicted_is_set_again_and_nothing_is_lost() -> None:
    chain = Chain(SOURCE, random.Random(1))
    chain.begin(None, None)
    first = chain.move(stored_by(1))
    assert first.step is None
    assert chain.followed(first, [b"OK", None])
    second = chain.move(stored_by(2))
    assert second.step is not None
    assert chain.followed(second, [second.step, first.stored])
    third = chain.move(stored_by(3))
    assert third.step is None
    assert agrees(second.stored, None)


def test_a_sum_that_was_lost_is_mended_by_what_is_missing() -> None:
    chain = Chain(SOURCE, random.Random(1))
    first = chain.move(stored_by(1))
    assert chain.mend(first, [b"OK", None]) is None
    second = chain.move(stored_by(2))
    assert second.step is not None
    assert second.total is not None
    answers = [second.step, first.stored]
    assert chain.followed(second, answers)
    missing = second.total - second.step
    assert chain.mend(second, answers) == Piece(
        pack_command(("INCRBY", chain_key(SOURCE), missing)), 1
    )
    third = chain.move(stored_by(3))
    assert third.step is not None
    answers = [second.total + third.step, second.stored]
    assert chain.followed(third, answers)
    assert chain.mend(third, answers) is None


def test_positions_of_earlier_versions_are_taken() -> None:
    stored = stored_by(1)
    assert agrees(stored, None)
    assert agrees(stored, b"17")
    chain = Chain(SOURCE, random.Random(1))
    chain.begin(stored, b"17")
    link = chain.move()
    assert link.follows == stored
    assert Checkpoint.decode(link.stored) == Checkpoint.decode(stored)
    assert chain.followed(link, [link.total, stored])
    assert agrees(link.stored, b"%d" % (link.total or 0))
    assert not agrees(link.stored, b"%d" % ((link.total or 0) + 1))


# In the middle of what is under way.


async def test_a_batch_on_older_data_is_forgotten_and_the_source_is_read_again_from_there() -> None:
    async with FakeRedis() as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            older = dict(redis.strings)
            await applied(delivery, transaction(2, Set("k:0", b"2")), transaction(3, Delete("k:1")))
            redis.strings = dict(older)
            delivery.offer(transaction(4, Set("k:2", b"4"), Set("k:3", b"4")))
            with pytest.raises(SinkRewound) as caught:
                await task
        assert caught.value.checkpoint is not None
        assert caught.value.checkpoint.position == counting(1).position
        # Nothing that is newer than the position, which is what it was.
        assert values(redis) == {b"k:0": b"1", b"k:1": b"1"}
        async with running(delivery):
            assert delivery.position == counting(1).position
            await applied(
                delivery,
                transaction(2, Set("k:0", b"2")),
                transaction(3, Delete("k:1")),
                transaction(4, Set("k:2", b"4"), Set("k:3", b"4")),
            )
        assert values(redis) == {b"k:0": b"2", b"k:2": b"4", b"k:3": b"4"}


async def test_nothing_is_executed_behind_a_batch_on_other_data() -> None:
    async with FakeRedis() as redis:
        durable = Durable()
        sink = sink_for(redis.url, batch_bytes_max=1)
        await sink.open(SOURCE, "me", durable)
        await sink.apply([counting(1)])
        await durable.wait(1)
        older = dict(redis.strings)
        await sink.apply([counting(2)])
        await durable.wait(2)
        redis.strings = dict(older)
        before = redis.names().count("EXEC")
        await asyncio.gather(
            sink.apply([counting(n) for n in range(3, 40)]), return_exceptions=True
        )
        with pytest.raises(SinkUnavailable, match="was replaced under the connection"):
            await sink.watch()
        assert redis.names().count("EXEC") == before + 1
        assert durable.count == 2
        await sink.close()


@pytest.mark.parametrize("on_lost", ["stop", "clear"])
@pytest.mark.parametrize("how", ["everything", "the position"])
async def test_a_position_that_was_deleted_is_lost(how: str, on_lost: str) -> None:
    async with FakeRedis(scanning := Scanning()) as redis:
        scanning.redis = redis
        delivery = delivery_to(redis.url, on_lost=on_lost)
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            if how == "everything":
                redis.strings.clear()
            else:
                del redis.strings[KEY]
            delivery.offer(transaction(2, Set("k:1", b"2")))
            if on_lost == "stop":
                with pytest.raises(PositionLost):
                    await task
                assert KEY not in redis.strings
                assert b"k:1" not in redis.strings
                return
            await delivery.wait_durable_all()
        assert values(redis) == {b"k:1": b"2"}


class Scanning:
    """Answers ``SCAN`` with all keys at once, after ``meanwhile`` was called."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.redis: FakeRedis
        self.meanwhile = meanwhile

    def __call__(self, command: Command) -> bytes | None:
        if command[0] != b"SCAN":
            return None
        keys = [b"$%d\r\n%b\r\n" % (len(key), key) for key in self.redis.strings]
        self.meanwhile()
        self.meanwhile = lambda: None
        return b"*2\r\n$1\r\n0\r\n*%d\r\n%b" % (len(keys), b"".join(keys))


@pytest.mark.parametrize("moment", ["before the walk", "after it"])
async def test_a_copy_from_before_a_clear_is_known_though_its_position_is_the_same(
    moment: str,
) -> None:
    async with FakeRedis(scanning := Scanning()) as redis:
        scanning.redis = redis
        delivery = delivery_to(redis.url)
        async with running(delivery):
            await applied(delivery, counting(1))
            copy = dict(redis.strings)

            def replace() -> None:
                redis.strings = dict(copy)

            if moment == "before the walk":
                scanning.meanwhile = replace
            else:
                # The last EXEC comes when everything was unlinked.
                unlinked = redis.names().count("UNLINK")

                def answer(command: Command) -> bytes | None:
                    if command[0] == b"MULTI" and redis.names().count("UNLINK") == unlinked + 1:
                        replace()
                        redis.answer = scanning
                    return scanning(command)

                redis.answer = answer
            await applied(delivery, transaction(2, Clear("k:"), Set("k:9", b"2")))
            assert delivery.position == transaction(2).position
        assert values(redis) == {b"k:9": b"2"}


async def test_a_copy_from_before_a_spilled_transaction_is_known() -> None:
    """Also one whose position is the same: what was deleted ahead would be there again."""
    async with FakeRedis() as redis:
        delivery = delivery_to(redis.url, batch_bytes_max=2000)
        async with running(delivery):
            await applied(delivery, counting(1))
            copy = dict(redis.strings)
            unlinked = False

            def answer(command: Command) -> bytes | None:
                nonlocal unlinked
                if command[0] == b"UNLINK" and not unlinked:
                    unlinked = True
                elif command[0] == b"MULTI" and unlinked:
                    redis.strings = dict(copy)
                    redis.answer = lambda command: None
                return None

            redis.answer = answer
            writes = [Delete("k:0"), *(Set(f"s:{n}", b"x" * 500) for n in range(10))]
            await applied(delivery, transaction(2, *writes, spilled=True))
            assert delivery.position == transaction(2).position
        assert b"k:0" not in redis.strings
        assert len([key for key in redis.strings if key.startswith(b"s:")]) == 10


async def test_parts_of_a_spilled_transaction_on_older_data_are_forgotten() -> None:
    async with FakeRedis() as redis:
        delivery = delivery_to(redis.url, batch_bytes_max=2000)
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            older = dict(redis.strings)
            await applied(delivery, transaction(2, Set("s:3", b"2")))

            def answer(command: Command) -> bytes | None:
                if command[0] == b"MSET" and b"s:3" in command:
                    redis.strings = dict(older)
                    redis.answer = lambda command: None
                return None

            redis.answer = answer
            writes = [Set(f"s:{n}", b"x" * 500) for n in range(10)]
            delivery.offer(transaction(3, *writes, spilled=True))
            with pytest.raises(SinkRewound):
                await task
        assert Checkpoint.decode(redis.strings[KEY]).position == counting(1).position
        assert values(redis) == {key.encode(): b"1" for key in KEYS}


async def test_a_crash_between_the_exec_on_other_data_and_its_answer_loses_the_position() -> None:
    async with FakeRedis() as redis:
        durable = Durable()
        sink = sink_for(redis.url)
        await sink.open(SOURCE, "me", durable)
        await sink.apply([counting(1)])
        await durable.wait(1)
        older = dict(redis.strings)
        await sink.apply([counting(2)])
        await durable.wait(2)
        redis.strings = dict(older)
        connection = sink._connection
        assert connection is not None
        connection.protocol.data_received = lambda data: None  # type: ignore[method-assign]
        before = redis.names().count("EXEC")
        await sink.apply([transaction(3, Set("k:0", b"3"))])
        await redis.wait_for("EXEC", before + 1)
        connection.close()
        assert Checkpoint.decode(redis.strings[KEY]).position == transaction(3).position
        successor = sink_for(redis.url)
        assert await successor.open(SOURCE, "next", Durable()) is None
        await successor.close()
        assert KEY not in redis.strings


@pytest.mark.parametrize("before", [0, 1, 5])
async def test_a_sum_that_was_evicted_alone_costs_no_position(before: int) -> None:
    """However many transactions follow at once, and though nothing comes after them."""
    async with FakeRedis() as redis:
        durable = Durable()
        sink = sink_for(redis.url, batch_bytes_max=1)
        redis.strings[KEY] = stored_by(1)
        await sink.open(SOURCE, "me", durable)
        await sink.apply([counting(2)])
        await durable.wait(1)
        del redis.strings[SUM]
        if before:
            await sink.apply([counting(2 + n) for n in range(1, before + 1)])
            await durable.wait(1 + before)
        await sink.close()
        assert agrees(redis.strings[KEY], redis.strings.get(SUM))
        last = counting(2 + before)
        successor = sink_for(redis.url)
        found = await successor.open(SOURCE, "next", Durable())
        assert found is not None
        assert found.position == last.position
        await successor.close()
        assert set(values(redis).values()) == {b"%d" % (2 + before)}


async def test_a_sum_that_is_evicted_while_its_position_is_claimed_costs_no_position() -> None:
    def answer(command: Command) -> bytes | None:
        if command[0] == b"MULTI":
            redis.strings.pop(SUM, None)
        return None

    async with FakeRedis() as redis:
        redis.strings[KEY] = stored_by(1)
        first = sink_for(redis.url)
        await first.open(SOURCE, "me", Durable())
        await first.close()
        redis.answer = answer
        second = sink_for(redis.url)
        assert await second.open(SOURCE, "next", Durable()) is not None
        await second.close()
        assert agrees(redis.strings[KEY], redis.strings[SUM])


async def test_a_sum_whose_position_was_evicted_is_gone_on_from() -> None:
    async with FakeRedis() as redis:
        redis.strings[SUM] = b"17"
        durable = Durable()
        sink = sink_for(redis.url)
        assert await sink.open(SOURCE, "me", durable) is None
        await sink.apply([counting(1)])
        await durable.wait(1)
        await sink.close()
        assert agrees(redis.strings[KEY], redis.strings[SUM])


async def test_flushed_data_and_a_crash_at_once_are_not_taken_for_an_evicted_sum() -> None:
    async with FakeRedis() as redis:
        durable = Durable()
        sink = sink_for(redis.url)
        await sink.open(SOURCE, "me", durable)
        await sink.apply([counting(1)])
        await durable.wait(1)
        redis.strings.clear()
        connection = sink._connection
        assert connection is not None
        connection.protocol.data_received = lambda data: None  # type: ignore[method-assign]
        before = redis.names().count("EXEC")
        await sink.apply([transaction(2, Set("k:0", b"2"))])
        await redis.wait_for("EXEC", before + 1)
        connection.close()
        successor = sink_for(redis.url)
        assert await successor.open(SOURCE, "next", Durable()) is None
        await successor.close()


async def test_replaced_data_is_noticed_while_nothing_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lanecache.sinks.redis._LOOK_S", 0.01)
    async with FakeRedis() as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            older = dict(redis.strings)
            await applied(delivery, counting(2))
            redis.strings = dict(older)
            with pytest.raises(SinkRewound):
                await task


async def test_what_is_put_back_while_redis_is_full_waits_for_room_and_is_forgotten_at_once() -> (
    None
):
    full = False

    def answer(command: Command) -> bytes | None:
        if full and command[0] in (b"SET", b"MSET", b"INCRBY"):
            return b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
        if full and command[0] == b"EXEC":
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        return None

    async with FakeRedis(answer) as redis:
        delivery = delivery_to(redis.url)
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            older = dict(redis.strings)
            await applied(delivery, counting(2))
            redis.strings = dict(older)

            def then_full(command: Command) -> bytes | None:
                nonlocal full
                if command[0] == b"CLIENT":
                    full, redis.answer = True, answer
                return None

            redis.answer = then_full
            delivery.offer(transaction(3, Set("k:0", b"3")))
            with pytest.raises(SinkRewound):
                await task
            assert values(redis) == {b"k:1": b"1", b"k:2": b"1"}
        full = False
        async with running(delivery):
            assert delivery.position == counting(1).position
            await applied(delivery, counting(2), transaction(3, Set("k:0", b"3")))
        assert values(redis) == {b"k:0": b"3", b"k:1": b"2", b"k:2": b"2"}


async def test_without_incrby_other_data_is_noticed_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(command: Command) -> bytes | None:
        if command[0] == b"INCRBY":
            return b"-NOPERM User lane has no permissions to run the 'incrby' command\r\n"
        if command[0] == b"EXEC" and redis.commands[-3][0] == b"INCRBY":
            return b"-EXECABORT Transaction discarded because of previous errors.\r\n"
        return None

    async with FakeRedis(answer) as redis:
        redis.strings |= {KEY: stored_by(1), SUM: b"5"}
        delivery = delivery_to(redis.url)
        async with running(delivery) as task:
            await applied(delivery, counting(2))
            older = dict(redis.strings)
            await applied(delivery, counting(3))
            redis.strings = dict(older)
            delivery.offer(counting(4))
            with pytest.raises(SinkRewound):
                await task
    assert caplog.text.count("does not let lanecache use INCRBY") == 1


# Real servers.


class SwitchedProxy:
    """Forwards TCP connections, and may go on with another backend while they stay open."""

    def __init__(self, host: str, port: int) -> None:
        self._backend = (host, port)
        self._backs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.host, self.port = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await self._server.wait_closed()

    async def switch(self, host: str, port: int) -> None:
        """Go on with another backend; nothing may be under way."""
        self._backend = (host, port)
        for client in self._backs:
            await self._connect(client)

    async def _connect(self, client: asyncio.StreamWriter) -> None:
        reader, self._backs[client] = await asyncio.open_connection(*self._backend)
        self._writers.append(self._backs[client])
        self._spawn(self._pump(reader, lambda: client))

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._writers.append(client)
        await self._connect(client)
        self._spawn(self._serve(reader, client))

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            await self._pump(reader, lambda: self._backs[client])
        finally:
            self._backs.pop(client).close()
            client.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: Callable[[], asyncio.StreamWriter]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer().write(data)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


FOUND = [
    (kind, program.series) for kind in (Redis, Valkey) for program in find_programs(kind.product)
]


@pytest.fixture(params=FOUND, ids=lambda found: f"{found[0].product.name}-{found[1]}")
async def server(request: pytest.FixtureRequest, new_server: Any) -> Any:
    kind, series = request.param
    options = {"enable-debug-command": "yes", "repl-diskless-sync-delay": "0"}

    async def start() -> Redis:
        made: Redis = await new_server(kind, series, options=options)
        return made

    return start


async def copied(source: Redis, target: Redis) -> None:
    """Have a server take over another one's data, and be its own again."""
    await target.execute("REPLICAOF", source.host, source.port)
    async with asyncio.timeout(20):
        while (await target.execute("INFO", "replication"))["master_link_status"] != "up":
            await asyncio.sleep(0.02)
    await target.execute("REPLICAOF", "NO", "ONE")


@pytest.mark.servers
@pytest.mark.parametrize("how", ["replica", "reload", "proxy"])
async def test_a_real_one_with_an_older_copy_ends_exact(server: Any, how: str) -> None:
    redis = await server()
    other = redis if how == "reload" else await server()
    async with SwitchedProxy(redis.host, redis.port) as proxy:
        delivery = delivery_to(f"redis://{proxy.host}:{proxy.port}")
        async with running(delivery) as task:
            await applied(delivery, counting(1))
            if how == "reload":
                await redis.execute("SAVE")
            else:
                await copied(redis, other)
            await applied(delivery, transaction(2, Set("k:0", b"2"), Delete("k:1")), counting(3))
            if how == "reload":
                await redis.execute("DEBUG", "RELOAD", "NOSAVE")
            elif how == "replica":
                await copied(other, redis)
            else:
                await proxy.switch(other.host, other.port)
            delivery.offer(transaction(4, Set("k:2", b"4")))
            with pytest.raises(SinkRewound) as caught:
                await task
        assert caught.value.checkpoint is not None
        assert caught.value.checkpoint.position == counting(1).position
        now = other if how == "proxy" else redis
        assert set(await now.execute("MGET", *KEYS)) <= {b"1", None}
        async with running(delivery):
            await applied(
                delivery,
                transaction(2, Set("k:0", b"2"), Delete("k:1")),
                counting(3),
                transaction(4, Set("k:2", b"4")),
            )
        assert await now.execute("MGET", *KEYS) == [b"3", b"3", b"4"]
