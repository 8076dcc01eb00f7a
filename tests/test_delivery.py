from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import pytest

from lanecache.backlog import SPILLED_MAX
from lanecache.backoff import Backoff
from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import PositionLost, SinkError, SinkUnavailable
from lanecache.operation import Checkpoint, DurableCallback, Set, Sink, Transaction, Version
from lanecache.servers import Redis
from lanecache.sinks.memory import MemorySink
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_commands import chain_key, position_key
from lanecache.statistics import LinkState
from lanecache.testing.proxy import Direction, FaultProxy
from lanecache.testing.sink_contract import SOURCE, transaction

QUICK = SinkConfig(url="memory:", reconnect_delay_max_s=0.001)


class ScriptedSink(MemorySink):
    """A memory sink that fails as told, and whose durability can be held back."""

    def __init__(self) -> None:
        super().__init__()
        self.open_errors: list[SinkError] = []
        self.apply_errors: list[SinkError] = []
        self.holding = False  # takes transactions, and neither applies nor reports them
        self.silent = False  # applies them, and does not report them
        self.runs: list[list[int]] = []
        self.opens = 0
        self.closes = 0
        self.is_open = False
        self.held: list[Transaction] = []
        self._report: DurableCallback | None = None
        self._failure: asyncio.Future[SinkError] | None = None

    async def open(self, source: str, writer: str, durable: DurableCallback) -> Checkpoint | None:
        assert not self.is_open
        self.opens += 1
        if self.open_errors:
            raise self.open_errors.pop(0)
        self.is_open = True
        self._report = durable
        self._failure = asyncio.get_running_loop().create_future()
        return await super().open(source, writer, self._applied)

    async def apply(self, run: Sequence[Transaction]) -> None:
        assert self.is_open
        assert self._failure is not None
        if self._failure.done():
            raise self._failure.result()
        self.runs.append([each.version.clock for each in run])
        if self.apply_errors:
            raise self.apply_errors.pop(0)
        if self.holding:
            self.held += run
        else:
            await super().apply(run)

    async def watch(self) -> None:
        assert self._failure is not None
        raise await self._failure

    async def close(self) -> None:
        self.closes += 1
        self.is_open = False
        self.held.clear()
        await super().close()

    def fail(self, error: SinkError) -> None:
        assert self._failure is not None
        self._failure.set_result(error)

    async def release(self, count: int) -> None:
        """Apply the first of what was held."""
        released = self.held[:count]
        del self.held[:count]
        await super().apply(released)

    def _applied(self, count: int, /) -> None:
        if not self.silent:
            assert self._report is not None
            self._report(count)


def delivery_to(
    sink: Sink, config: SinkConfig = QUICK, prefixes: tuple[str, ...] = ("p:", "q:")
) -> Delivery:
    return Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=prefixes)


@contextlib.asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[asyncio.Task[None]]:
    """Run a delivery that ends by being cancelled, or whose end the test awaits."""
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


async def until(condition: Any) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


async def test_what_was_offered_becomes_durable_in_order() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery):
        for number in range(1, 101):
            delivery.offer(transaction(number, Set("a", b"%d" % number), Set("b", b"1")))
        await delivery.wait_durable_all()
        assert delivery.position == transaction(100).position
        statistics = delivery.statistics()
        assert sink.is_open
    assert [number for run in sink.runs for number in run] == list(range(1, 101))
    assert sink.get("a") == b"100"
    assert (statistics.transactions, statistics.operations) == (100, 200)
    assert statistics.bytes >= 100 * 2 * 200
    assert (statistics.queue_bytes, statistics.waiting_s) == (0, 0.0)
    assert statistics.state is LinkState.CONNECTED
    assert statistics.position == "binlog.000001:10000"
    assert statistics.durable_at is not None
    assert not sink.is_open
    assert delivery.statistics().state is LinkState.STOPPED


async def test_what_comes_while_the_sink_is_busy_is_given_as_one_run() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    for number in range(1, 51):
        delivery.offer(transaction(number, Set("a", b"1")))
    await delivery.open_first()  # begins anew: what was offered before is void
    for number in range(51, 61):
        delivery.offer(transaction(number, Set("a", b"1")))
    task = asyncio.create_task(delivery.run())
    await delivery.wait_durable_all()
    task.cancel()
    await asyncio.wait([task])
    assert sink.runs == [list(range(51, 61))]


async def test_the_queue_is_full_until_enough_is_durable() -> None:
    sink = ScriptedSink()
    sink.holding = True
    one = transaction(1, Set("a", b"x" * 1000))
    config = SinkConfig(url="memory:", queue_bytes_max=5 * one.operations.size_bytes)
    delivery = delivery_to(sink, config)
    async with running(delivery):
        offered = 0
        while not delivery.full:
            offered += 1
            delivery.offer(transaction(offered, Set("a", b"x" * 1000)))
        assert 3 <= offered <= 5
        await until(lambda: len(sink.held) == offered)
        assert delivery.full, "given to the sink is not durable"
        assert delivery.statistics().queue_bytes >= config.queue_bytes_max
        waiting = asyncio.create_task(delivery.wait_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert delivery.statistics().waiting_s > 0
        await sink.release(1)
        await waiting
        assert not delivery.full
        await sink.release(offered)
        await delivery.wait_durable_all()
        assert delivery.statistics().queue_bytes == 0


async def test_few_spilled_transactions_fill_the_queue_whatever_their_size() -> None:
    sink = ScriptedSink()
    sink.holding = True
    delivery = delivery_to(sink)
    async with running(delivery):
        for number in range(1, SPILLED_MAX + 1):
            assert not delivery.full
            delivery.offer(transaction(number, Set("a", b"x" * 40_000_000), spilled=True))
        assert delivery.full
        assert delivery.statistics().queue_bytes < 1_000_000
        await until(lambda: len(sink.held) == SPILLED_MAX)
        await sink.release(1)
        await delivery.wait_room()


async def test_a_target_that_is_down_at_the_start_is_waited_for_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    sink = ScriptedSink()
    sink.open_errors = [SinkUnavailable("it is down") for _ in range(5)]
    delivery = delivery_to(sink)
    assert await delivery.open_first() is None
    assert sink.opens == 6
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0] == "sink main: it is down; trying again"
    assert messages[1].startswith("sink main: back after 0.")
    assert delivery.statistics().last_error == "it is down"
    assert delivery.statistics().state is LinkState.CONNECTED


async def test_a_permanent_error_at_the_start_is_raised() -> None:
    sink = ScriptedSink()
    sink.open_errors = [SinkUnavailable("down"), SinkError("wrong password")]
    with pytest.raises(SinkError, match="wrong password"):
        await delivery_to(sink).open_first()


async def test_the_stored_checkpoint_is_given_at_the_start() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery):
        delivery.offer(transaction(3, Set("a", b"3")))
        await delivery.wait_durable_all()
    again = delivery_to(sink)
    checkpoint = await again.open_first()
    assert checkpoint == Checkpoint(SOURCE, transaction(3).position, Version(3, 7), "me")
    assert again.position == transaction(3).position


@pytest.mark.parametrize("how", ["apply", "watch", "watch while applying"])
async def test_after_a_loss_what_is_not_durable_is_sent_again(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery):
        delivery.offer(transaction(1, Set("a", b"1")))
        await delivery.wait_durable_all()
        caplog.clear()
        sink.runs.clear()
        sink.open_errors = [SinkUnavailable("lost"), SinkUnavailable("lost")]
        if how == "apply":
            sink.apply_errors = [SinkUnavailable("lost")]
            delivery.offer(transaction(2, Set("a", b"2")))
        else:
            sink.holding = how == "watch while applying"
            if sink.holding:
                delivery.offer(transaction(2, Set("a", b"2")))
                await until(lambda: sink.held)
                sink.holding = False
            sink.fail(SinkUnavailable("lost"))
            if how == "watch":
                await until(lambda: delivery.statistics().state is LinkState.WAITING)
                delivery.offer(transaction(2, Set("a", b"2")))
        delivery.offer(transaction(3, Set("a", b"3")))
        await delivery.wait_durable_all()
        assert delivery.statistics().transactions == 3
    assert sink.runs[-1] == [2, 3], sink.runs
    assert sink.opens == 4
    assert sink.get("a") == b"3"
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split("after")[0] for message in messages] == [
        "sink main: lost; trying again",
        "sink main: back ",
    ]


async def test_a_new_reason_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    sink = ScriptedSink()
    sink.open_errors = [SinkUnavailable(each) for each in ["refused", "refused", "full", "full"]]
    await delivery_to(sink).open_first()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["sink main: refused; trying again", "sink main: full; trying again"]


async def test_what_was_applied_without_an_answer_is_not_sent_again() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery):
        delivery.offer(transaction(1, Set("a", b"1")))
        await delivery.wait_durable_all()
        sink.holding = True
        for number in (2, 3, 4):
            delivery.offer(transaction(number, Set("a", b"%d" % number)))
        await until(lambda: len(sink.held) == 3)
        sink.silent = True
        await sink.release(2)
        sink.runs.clear()
        sink.holding = sink.silent = False
        sink.fail(SinkUnavailable("lost"))
        await delivery.wait_durable_all()
        assert sink.runs == [[4]]
        assert delivery.statistics().transactions == 4
        assert delivery.position == transaction(4).position


async def test_a_lost_position_stops_the_delivery_when_the_config_says_so() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery) as task:
        delivery.offer(transaction(1, Set("a", b"1")))
        await delivery.wait_durable_all()
        sink.checkpoint = None
        sink.fail(SinkUnavailable("lost"))
        with pytest.raises(PositionLost, match=r'no longer holds.*on_lost = "clear"'):
            await task
    assert not sink.is_open
    assert "no longer holds" in delivery.statistics().last_error
    assert delivery.statistics().state is LinkState.STOPPED


async def test_a_lost_position_clears_the_lanes_when_the_config_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = ScriptedSink()
    config = SinkConfig(url="memory:", on_lost="clear", reconnect_delay_max_s=0.001)
    delivery = delivery_to(sink, config)
    async with running(delivery):
        delivery.offer(transaction(1, Set("p:1", b"1"), Set("q:1", b"1"), Set("other", b"1")))
        await delivery.wait_durable_all()
        sink.holding = True
        delivery.offer(transaction(2, Set("p:2", b"2")))
        await until(lambda: sink.held)
        sink.holding = False
        sink.checkpoint = None
        # Lost once more before the clearing is through, and the position is still not there.
        sink.apply_errors = [SinkUnavailable("lost again")]
        sink.fail(SinkUnavailable("lost"))
        await delivery.wait_durable_all()
        assert delivery.position == transaction(2).position
        assert delivery.statistics().queue_bytes == 0
    assert sink.snapshot() == {"p:2": b"2", "other": b"1"}
    assert sink.runs[-1] == [1, 2]
    assert "clearing every lane's keys" in caplog.text


async def test_nothing_is_lost_while_nothing_was_stored_yet() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery):
        sink.holding = True
        delivery.offer(transaction(1, Set("a", b"1")))
        await until(lambda: sink.held)
        sink.holding = False
        sink.fail(SinkUnavailable("lost"))
        await delivery.wait_durable_all()
    assert sink.get("a") == b"1"


async def test_a_target_that_came_back_with_older_data_asks_for_a_replay() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery) as task:
        for number in (1, 2, 3):
            delivery.offer(transaction(number, Set("a", b"%d" % number)))
        await delivery.wait_durable_all()
        older = Checkpoint(SOURCE, transaction(1).position, Version(1, 7), "me")
        sink.checkpoint = older
        delivery.offer(transaction(4, Set("a", b"4")))
        sink.holding = True
        sink.fail(SinkUnavailable("lost"))
        with pytest.raises(SinkRewound) as caught:
            await task
        assert caught.value.checkpoint == older
    sink.holding = False
    # The same delivery goes on from there.
    async with running(delivery):
        assert delivery.position == older.position
        assert delivery.statistics().queue_bytes == 0
        for number in (2, 3, 4):
            delivery.offer(transaction(number, Set("a", b"%d" % number)))
        await delivery.wait_durable_all()
    assert sink.get("a") == b"4"


@pytest.mark.parametrize("how", ["apply", "watch", "open"])
async def test_a_permanent_error_ends_the_delivery_as_itself(how: str) -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery) as task:
        error = SinkError("no right to write")
        if how == "apply":
            sink.apply_errors = [error]
            delivery.offer(transaction(1, Set("a", b"1")))
        elif how == "watch":
            await asyncio.sleep(0)
            sink.fail(error)
        else:
            sink.open_errors = [SinkUnavailable("down"), error]
            sink.fail(SinkUnavailable("lost"))
        with pytest.raises(SinkError, match="no right to write"):
            await task
    assert not sink.is_open


async def test_cancelling_closes_the_sink() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    async with running(delivery) as task:
        await asyncio.sleep(0)
        assert sink.is_open
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert not sink.is_open


async def test_a_sink_that_reports_too_much_is_found_out() -> None:
    sink = ScriptedSink()
    delivery = delivery_to(sink)
    await delivery.open_first()
    with pytest.raises(RuntimeError, match="reported 1 of 0"):
        delivery._durable(1)


# With a real Redis.


def redis_delivery(url: str, **limits: Any) -> Delivery:
    config = SinkConfig(
        **{"url": url, "reconnect_delay_max_s": 0.05, "batch_bytes_max": 8192, **limits}
    )
    return Delivery(
        "main",
        RedisSink(config, name="main"),
        config,
        source=SOURCE,
        writer="me",
        prefixes=("k:",),
        backoff=Backoff(max_s=config.reconnect_delay_max_s, rng=random.Random(1)),
    )


KEYS = [f"k:{n}" for n in range(10)]


def counting(number: int) -> Transaction:
    return transaction(number, *(Set(key, b"%d" % number) for key in KEYS))


@pytest.mark.servers
async def test_every_cut_of_the_connection_ends_with_everything_applied_in_order(
    redis_server: Redis,
) -> None:
    stop = asyncio.Event()
    reads = 0

    async def watch_values() -> None:
        nonlocal reads
        highest = 0
        async with redis_server.client() as client:
            while not stop.is_set():
                values = set(await client.mget(KEYS))
                assert len(values) == 1, f"a mix: {values}"
                seen = int(values.pop() or 0)
                assert seen >= highest, f"{seen} after {highest}"
                highest = seen
                reads += 1

    rng = random.Random(7)
    async with FaultProxy(redis_server.host, redis_server.port) as proxy:
        delivery = redis_delivery(f"redis://{proxy.host}:{proxy.port}")
        async with running(delivery):
            watching = asyncio.create_task(watch_values())
            number = 0
            for cut in range(20):
                direction = Direction.UP if cut % 2 else Direction.DOWN
                proxy.cut_after(rng.randrange(1, 60_000 if cut % 2 else 4_000), direction)
                while proxy.cuts_total <= cut:
                    number += 1
                    delivery.offer(counting(number))
                    await asyncio.sleep(0.0005)
            await delivery.wait_durable_all()
            assert delivery.statistics().transactions == number
            stop.set()
            await watching
    assert reads > 20
    assert set(await redis_server.execute("MGET", *KEYS)) == {b"%d" % number}


@pytest.mark.servers
async def test_a_killed_redis_that_kept_its_data_gets_the_rest(new_server: Any) -> None:
    server = await new_server(Redis, durable=True)
    delivery = redis_delivery(server.url())
    async with running(delivery):
        number = 0
        for _ in range(3):
            for _ in range(200):
                number += 1
                delivery.offer(counting(number))
                await asyncio.sleep(0)
            killing = asyncio.create_task(server.kill())
            while not killing.done():
                number += 1
                delivery.offer(counting(number))
                await asyncio.sleep(0.001)
            await killing
            await server.start()
        await delivery.wait_durable_all()
        assert delivery.position == counting(number).position
    assert set(await server.execute("MGET", *KEYS)) == {b"%d" % number}


@pytest.mark.servers
async def test_a_killed_redis_that_came_back_empty_stops_the_delivery(new_server: Any) -> None:
    server = await new_server(Redis)
    delivery = redis_delivery(server.url())
    async with running(delivery) as task:
        delivery.offer(counting(1))
        await delivery.wait_durable_all()
        await server.kill()
        delivery.offer(counting(2))
        await server.start()
        with pytest.raises(PositionLost):
            await task
    assert await server.execute("DBSIZE") == 0


@pytest.mark.servers
async def test_a_killed_redis_that_came_back_empty_is_gone_on_with(new_server: Any) -> None:
    server = await new_server(Redis)
    async with FaultProxy(server.host, server.port) as proxy:
        delivery = redis_delivery(f"redis://{proxy.host}:{proxy.port}", on_lost="clear")
        async with running(delivery):
            delivery.offer(counting(1))
            await delivery.wait_durable_all()
            proxy.refuse()
            await server.kill()
            await server.start()
            await server.execute("MSET", "k:old", "stale", "other", "kept")
            proxy.refuse(False)
            delivery.offer(transaction(2, Set("k:1", b"2")))
            await delivery.wait_durable_all()
    keys = set(await server.execute("KEYS", "*"))
    assert keys == {b"k:1", position_key(SOURCE).encode(), chain_key(SOURCE).encode(), b"other"}


@pytest.mark.servers
async def test_a_redis_restored_from_an_old_snapshot_asks_for_a_replay(new_server: Any) -> None:
    server = await new_server(Redis, options={"save": "3600 1000000"})
    delivery = redis_delivery(server.url())
    async with running(delivery) as task:
        delivery.offer(counting(1))
        await delivery.wait_durable_all()
        await server.execute("SAVE")
        delivery.offer(counting(2))
        await delivery.wait_durable_all()
        await server.kill()
        await server.start()
        with pytest.raises(SinkRewound) as caught:
            await task
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.position == counting(1).position


@pytest.mark.servers
async def test_a_full_redis_holds_the_queue_and_goes_on_when_it_has_room(
    new_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await new_server(Redis)
    delivery = redis_delivery(server.url(), queue_bytes_max=100_000)
    async with running(delivery):
        delivery.offer(counting(1))
        await delivery.wait_durable_all()
        await server.execute("CONFIG", "SET", "maxmemory", "1")
        number = 1
        while not delivery.full:
            number += 1
            delivery.offer(counting(number))
        await until_state(delivery, LinkState.WAITING)
        assert "is full" in delivery.statistics().last_error
        assert delivery.full
        async with asyncio.timeout(10):
            while set(await server.execute("MGET", *KEYS)) != {None}:
                assert delivery.position == counting(1).position
        assert "the keys of what waits are forgotten" in delivery.statistics().last_error
        await server.execute("CONFIG", "SET", "maxmemory", "0")
        await delivery.wait_durable_all()
    assert set(await server.execute("MGET", *KEYS)) == {b"%d" % number}
    assert caplog.text.count("is full") <= 2


async def until_state(delivery: Delivery, state: LinkState) -> None:
    async with asyncio.timeout(10):
        while delivery.statistics().state is not state:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("on_lost", ["stop", "clear"])
async def test_a_position_that_is_gone_when_the_sink_is_opened_again_is_not_a_first_start(
    on_lost: str,
) -> None:
    sink = MemorySink()
    config = SinkConfig(url="memory:", on_lost=on_lost)  # type: ignore[arg-type]
    delivery = Delivery("main", sink, config, source=SOURCE, writer="me", prefixes=("k:",))
    await delivery.open_first()
    async with anyio.create_task_group() as group:
        group.start_soon(delivery.run)
        delivery.offer(transaction(1, Set("k:old", b"1")))
        await delivery.wait_durable_all()
        group.cancel_scope.cancel()
    sink.checkpoint = None
    if on_lost == "stop":
        with pytest.raises(PositionLost):
            await delivery.open_first()
        return
    checkpoint = await delivery.open_first()
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    async with anyio.create_task_group() as group:
        group.start_soon(delivery.run)
        await delivery.wait_durable_all()
        group.cancel_scope.cancel()
    assert sink.get("k:old") is None
