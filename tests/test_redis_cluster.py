"""The Redis Cluster sink, on real clusters of three primaries and three replicas."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from exactness import (
    KEYS,
    CounterReader,
    CounterWriter,
    Runner,
    counter_config,
    create_counters,
)
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.exceptions import RedisError

from lanecache.config import SinkConfig
from lanecache.delivery import Delivery, SinkRewound
from lanecache.errors import ConfigError, PositionLost, SinkConflict, SinkError, SinkUnavailable
from lanecache.finding import Severity
from lanecache.operation import Checkpoint, Clear, Delete, Set, Transaction
from lanecache.servers import DatabaseServer, Redis, Valkey
from lanecache.servers.programs import find_programs
from lanecache.servers.redis_groups import RedisCluster
from lanecache.sinks import redis_cluster
from lanecache.sinks.make import check_sink, make_sink
from lanecache.sinks.redis_address import parse_target
from lanecache.sinks.redis_cluster import RedisClusterSink
from lanecache.sinks.redis_cluster_writes import SlotWrites
from lanecache.sinks.redis_nodes import Request
from lanecache.sinks.redis_records import Record, Standing, slot_command, stand
from lanecache.sinks.redis_replies import CLUSTER_COMMANDS_NEEDED
from lanecache.sinks.redis_slots import (
    SLOTS,
    parse_redirect,
    parse_slots,
    record_key,
    slot_of,
    witnesses_of,
)
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction

pytestmark = pytest.mark.servers

KINDS: list[type[Redis]] = [kind for kind in (Valkey, Redis) if find_programs(kind.product)] or [
    Redis
]


def in_thread(function: Callable[..., Any], *args: Any) -> None:
    """Run an asynchronous function to its end in a thread, away from the tests' event loop."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(function, *args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def newest_series(kind: type[Redis]) -> str | None:
    programs = find_programs(kind.product)
    return max((program.series for program in programs), default=None, key=_number)


def _number(series: str) -> list[int]:
    return [int(part) for part in series.split(".")]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    kind = KINDS[0]
    found = RedisCluster(kind, newest_series(kind))
    in_thread(found.__aenter__)
    yield found
    in_thread(found.__aexit__)


@pytest.fixture
async def empty_cluster(cluster: RedisCluster) -> RedisCluster:
    await cluster.wait_agreed()
    for node in cluster.nodes:
        if (await node.execute("ROLE"))[0] in (b"master", "master"):
            await node.empty()
    return cluster


@asynccontextmanager
async def client_of(cluster: RedisCluster) -> AsyncIterator[ClusterClient]:
    node = next(node for node in cluster.nodes if node.running)
    client = ClusterClient(host=node.host, port=node.port)
    try:
        yield client
    finally:
        await client.aclose()


def sink_for(cluster: RedisCluster, **limits: Any) -> RedisClusterSink:
    return RedisClusterSink(SinkConfig(url=cluster.url(), **limits), name="main")


async def opened(cluster: RedisCluster, durable: Durable, **limits: Any) -> RedisClusterSink:
    sink = sink_for(cluster, **limits)
    await sink.open(SOURCE, "writer", durable)
    return sink


class TestRedisClusterSink(SinkContract):
    @pytest.fixture(autouse=True)
    async def _client(self, empty_cluster: RedisCluster) -> AsyncIterator[None]:
        self.cluster = empty_cluster
        async with client_of(empty_cluster) as self.client:
            yield

    def make(self) -> RedisClusterSink:
        return sink_for(self.cluster, window_bytes_max=65536, batch_bytes_max=16384)

    async def read(self, key: str) -> Value:
        kind = await self.client.type(key)
        if kind == b"hash":
            fields = await self.client.hgetall(key)
            return {field.decode(): value for field, value in fields.items()}
        return await self.client.get(key)  # type: ignore[no-any-return]


# The cores.


def test_a_slot_is_that_of_the_cluster_specification() -> None:
    assert slot_of("123456789") == 12739
    assert slot_of("foo{hash_tag}") == slot_of(b"hash_tag") == slot_of("{hash_tag}bar{x}")
    assert slot_of("foo{}{bar}") != slot_of("bar")
    assert slot_of("{a") != slot_of("a")


def test_every_slot_has_a_record_of_its_own() -> None:
    assert [slot_of(record_key(slot, "my{shop}")) for slot in range(SLOTS)] == list(range(SLOTS))


def test_what_nodes_say_of_slots_is_read() -> None:
    here, there = ("10.0.0.1", 6379), ("10.0.0.2", 7000)
    answer = [[0, 1, [b"", 6379, b"id"]], [3, 16383, [b"10.0.0.2", 7000, b"id"], [b"r", 1, b"i"]]]
    owners = parse_slots(answer, here)
    assert owners[:4] == [here, here, None, there]
    assert len(owners) == SLOTS
    assert parse_redirect("MOVED 3 10.0.0.2:7000", here) == ("MOVED", there)
    assert parse_redirect("ASK 3 :7001", here) == ("ASK", ("10.0.0.1", 7001))
    assert parse_redirect("MOVED 3 ::1:7001", here) == ("MOVED", ("::1", 7001))
    owned = [here, here, there, here, there]
    assert witnesses_of(owned) == (0, 2, 3, 4)


def checkpoint(number: int, writer: str = "writer") -> Checkpoint:
    return Checkpoint.of(transaction(number), writer)


def test_the_least_node_says_where_a_cluster_stands() -> None:
    nodes = (1, 5, 9)
    records = {
        1: Record(checkpoint(7), checkpoint(7), nodes, None),
        5: Record(checkpoint(4), checkpoint(4), nodes, None),
        9: Record(None, checkpoint(7), nodes, None),
        3: Record(checkpoint(2), None, (), None),
        6: Record(checkpoint(9), None, (), None),
        8: Record(None, checkpoint(1), (8,), None),
    }
    standing = stand(records)
    ahead = {1: checkpoint(7).position, 6: checkpoint(9).position}
    assert standing == Standing(checkpoint(4), ahead, checkpoint(9), (8,))
    lost = {slot: record for slot, record in records.items() if slot != 5}
    assert stand(lost).checkpoint is None
    assert stand({}).checkpoint is None
    begun = records | {9: Record(None, checkpoint(7), nodes, checkpoint(12))}
    assert stand(begun).horizon == checkpoint(12)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://host:notaport",
        "redis+cluster://host:1,",
        "redis+cluster://host:99999",
        "redis+cluster://:topsecret@host:1?unknown_option=1",
        "redis+cluster://:topsecret@host:1?sentinel_password=x",
        "redis+sentinel://:topsecret@host:1",
        "redis+sentinel://:topsecret@host:1/name/x",
        "redis+sentinel://:topsecret@host:1/name/0?sentinel_ssl=maybe",
    ],
)
def test_a_wrong_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sink("main", SinkConfig(url=url))
    assert caught.value.path == "sinks.main.url"
    assert "topsecret" not in str(caught.value)


def test_the_servers_of_a_group_get_its_login_and_options() -> None:
    target = parse_target("rediss+cluster://u:p%40@a:1,[::1],b/?ssl_ca_certs=%2Fca", "main")
    assert target.shown == "a:1,[::1]:6379,b:6379"
    assert target.url_of(("::1", 7)) == "rediss://u:p%40@[::1]:7/?ssl_ca_certs=%2Fca"
    watched = parse_target("redis+sentinel://:p@a,b:2/name/3?sentinel_password=s", "main")
    assert watched.addresses == (("a", 26379), ("b", 2))
    assert (watched.primary_name, watched.sentinel_password) == ("name", "s")
    assert watched.url_of(("c", 1)) == "redis://:p@c:1/3"


# On a real one.

# Keys of three slots, on three nodes.
A, B, C = "a", "b", "c"
MOVED = "{c}"


def both(number: int) -> Transaction:
    value = b"%d" % number
    return transaction(number, Set(A, value), Set(B, value), Set(C, value))


async def values(cluster: RedisCluster, *keys: str) -> list[bytes | None]:
    async with client_of(cluster) as client:
        return [await client.get(key) for key in keys]


async def apply_all(sink: RedisClusterSink, durable: Durable, *run: Transaction) -> None:
    before = durable.count
    await sink.apply(run)
    assert durable.count == before + len(run)


async def test_a_crash_between_slots_is_replayed_without_values_from_between(
    empty_cluster: RedisCluster,
) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable)
    await apply_all(sink, durable, both(1), both(2))
    # As after a crash in the second phase of a step up to 5: one slot has it, the others miss.
    nodes = sink._connected()
    at_5 = Checkpoint.of(both(5), "writer")
    done = sink._writes.transaction([Set(A, b"5")], slot_command(slot_of(A), at_5))
    await nodes.each([Request(slot_of(A), done)])
    await sink._writes.forget([B, C])
    await sink.close()

    sink = sink_for(empty_cluster)
    found = await sink.open(SOURCE, "next", durable)
    assert found is not None
    assert found.position == both(2).position
    await sink.apply([both(3)])
    await sink.apply([both(4)])
    assert await values(empty_cluster, A, B, C) == [b"5", None, None]
    assert durable.count == 2
    await sink.apply([both(5)])
    assert await values(empty_cluster, A, B, C) == [b"5", b"5", b"5"]
    assert durable.count == 5
    await apply_all(sink, durable, both(6))
    assert await values(empty_cluster, A, B, C) == [b"6"] * 3
    await sink.close()


async def test_a_spilled_transaction_that_was_cut_short_is_written_again(
    empty_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable, batch_bytes_max=1000)
    await apply_all(sink, durable, both(1), both(2))
    spilled = transaction(3, *(Set(f"s:{n}", b"3") for n in range(50)), Delete(A), spilled=True)
    parts = 0
    set_part = SlotWrites._set

    async def set_some(self: SlotWrites, *args: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > 3:
            raise SinkUnavailable("cut short")
        await set_part(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SlotWrites, "_set", set_some)
        with pytest.raises(SinkUnavailable, match="cut short"):
            await sink.apply([spilled])
    keys = [f"s:{n}" for n in range(50)]
    assert 0 < (await values(empty_cluster, *keys)).count(b"3") < 50
    found = await sink.open(SOURCE, "writer", durable)
    assert found is not None
    assert found.position == both(2).position
    assert sink._replay is not None
    assert sink._replay.horizon == spilled.position
    await sink.apply([spilled, transaction(4, Set("s:0", b"4"))])
    assert durable.count == 4
    assert await values(empty_cluster, A, B, *keys) == [None, b"2", b"4", *[b"3"] * 49]
    await sink.close()


async def test_a_user_of_few_rights_writes_under_its_name(empty_cluster: RedisCluster) -> None:
    user, rights = "lane", CLUSTER_COMMANDS_NEEDED.split()
    primaries = [await empty_cluster.owner(slot_of(key)) for key in (A, B, C)]
    for node in primaries:
        await node.execute("ACL", "SETUSER", user, "on", ">p@", "~*", *rights)
    url = empty_cluster.url().replace("://", f"://{user}:p%40@")
    durable, sink = Durable(), RedisClusterSink(SinkConfig(url=url), name="main")
    # The replicas do not know the user; they are asked for nothing once a primary has answered.
    order = [*primaries, *empty_cluster.nodes]
    sink._seeds = [(node.host, node.port) for node in order]
    await sink.open(SOURCE, "writer", durable)
    await sink.apply([both(1), transaction(2, Clear("none"), Set(A, {"f": b"2"}, 9.0))])
    assert durable.count == 2
    for node in primaries:
        assert b"name=lanecache:shop" in await raw(node, "CLIENT", "LIST")
    await sink.close()
    await sink.open(SOURCE, "writer", durable)
    await sink.close()
    for node in primaries:
        await node.execute("ACL", "DELUSER", user)


async def raw(node: Redis, *command: str) -> bytes:
    async with node.client() as client:
        connection = await client.connection_pool.get_connection()
        await connection.send_command(*command)
        answer: bytes = await connection.read_response()
        await client.connection_pool.release(connection)
    return answer


async def test_a_replayed_clear_spares_what_came_after_it(empty_cluster: RedisCluster) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable)
    await apply_all(sink, durable, both(1))
    nodes = sink._connected()
    at_3 = Checkpoint.of(both(3), "writer")
    done = sink._writes.transaction([Set(A, b"3")], slot_command(slot_of(A), at_3))
    await nodes.each([Request(slot_of(A), done)])
    await sink.close()
    sink = sink_for(empty_cluster)
    await sink.open(SOURCE, "next", durable)
    await sink.apply([transaction(2, Clear(""))])
    assert await values(empty_cluster, A, B) == [b"3", b"1"]
    await sink.apply([transaction(3, Set(A, b"3"))])
    assert await values(empty_cluster, A, B, C) == [b"3", None, None]
    assert durable.count == 3
    await sink.close()


async def test_a_replay_too_large_to_hold_forgets_and_goes_on(
    empty_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable)
    await apply_all(sink, durable, both(1))
    at_99 = Checkpoint.of(both(99), "writer")
    done = sink._writes.transaction([Set(A, b"99")], slot_command(slot_of(A), at_99))
    await sink._connected().each([Request(slot_of(A), done)])
    await sink.close()
    sink = sink_for(empty_cluster, window_bytes_max=2000)
    await sink.open(SOURCE, "next", durable)
    await sink.apply([both(number) for number in range(2, 50)])
    assert durable.count > 40  # or the queue would fill up before the horizon is reached
    assert await values(empty_cluster, A, B, C) == [b"99", None, None]
    await sink.apply([both(number) for number in range(50, 100)])
    assert durable.count == 99
    assert await values(empty_cluster, A, B, C) == [b"99"] * 3
    assert sink.invalidated > 0
    assert "keys which changed in between are forgotten" in caplog.text
    await sink.close()


async def test_keys_of_one_tag_are_whole_in_one_step_without_a_miss(
    empty_cluster: RedisCluster,
) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable)
    keys = ["{t}:1", "{t}:2"]
    async with client_of(empty_cluster) as client:
        await apply_all(sink, durable, transaction(1, *(Set(key, b"1") for key in keys)))
        writing = True

        async def read() -> int:
            seen = 0
            while writing:
                one, two = await client.mget(keys)
                assert one is not None
                assert one == two
                assert int(one) >= seen
                seen = int(one)
            return seen

        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read())
            for number in range(2, 100):
                value = b"%d" % number
                await sink.apply([transaction(number, *(Set(key, value) for key in keys))])
            writing = False
        assert reading.result() > 2
    await sink.close()


async def test_a_slot_that_moves_is_followed(empty_cluster: RedisCluster) -> None:
    cluster, durable = empty_cluster, Durable()
    slot = slot_of(MOVED)
    source = await cluster.owner(slot)
    target = await cluster.owner(slot_of(B))
    assert target is not source
    keys = [f"{MOVED}:{number}" for number in range(40)]
    sink = await opened(cluster, durable)
    await apply_all(sink, durable, transaction(1, *(Set(key, b"1") for key in keys)))
    later = [
        transaction(2, *(Set(key, b"2") for key in keys), Set(A, b"2")),
        transaction(3, Clear(f"{MOVED}:1"), Set(f"{MOVED}:new", b"3")),
    ]
    async with asyncio.TaskGroup() as group:

        async def write_half_way() -> None:
            group.create_task(sink.apply(later))
            await asyncio.sleep(0.1)  # long enough for a TRYAGAIN; nothing depends on it

        await cluster.move_slot(slot, target, pause=write_half_way)
    await durable.wait(3)
    expected = [None if key.startswith(f"{MOVED}:1") else b"2" for key in keys]
    assert await values(cluster, *keys) == expected
    assert await cluster.owner(slot) is target
    await apply_all(sink, durable, transaction(4, Set(keys[0], b"4")))
    assert await values(cluster, keys[0], A, f"{MOVED}:new") == [b"4", b"2", b"3"]
    await sink.close()


async def test_an_orderly_fail_over_is_noticed_and_nothing_is_lost(
    empty_cluster: RedisCluster,
) -> None:
    cluster, durable = empty_cluster, Durable()
    sink = await opened(cluster, durable)
    await apply_all(sink, durable, both(1))
    await cluster.fail_over(await cluster.owner(slot_of(A)))
    with pytest.raises(SinkUnavailable):
        await sink.apply([both(2)])
    found = await sink.open(SOURCE, "writer", durable)
    assert found is not None
    assert found.position == both(1).position
    await apply_all(sink, durable, both(2))
    assert await values(cluster, A, B, C) == [b"2"] * 3
    await sink.close()
    await cluster.wait_replicated()


async def test_another_process_that_took_over_is_not_disturbed(
    empty_cluster: RedisCluster,
) -> None:
    durable = Durable()
    first = await opened(empty_cluster, durable)
    await apply_all(first, durable, both(1))
    second = sink_for(empty_cluster)
    await second.open(SOURCE, "second", durable)
    with pytest.raises(SinkUnavailable):
        await first.apply([both(2)])
    with pytest.raises(SinkConflict, match="another lanecache process"):
        await first.open(SOURCE, "writer", durable)
    await apply_all(second, durable, both(2))
    await second.close()
    await first.close()


async def test_a_value_that_is_too_long_is_an_invalidation(
    empty_cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    durable = Durable()
    sink = await opened(empty_cluster, durable, value_bytes_max=10)
    await apply_all(sink, durable, transaction(1, Set(A, b"1"), Set(B, b"1")))
    await apply_all(sink, durable, transaction(2, Set(A, b"x" * 11), Set(B, {"f": b"x" * 11})))
    assert await values(empty_cluster, A, B) == [None, None]
    assert sink.invalidated == 2
    assert "the value of a is longer than 10 bytes" in caplog.text
    await sink.close()


async def test_the_check_says_what_is_there(empty_cluster: RedisCluster) -> None:
    config = SinkConfig(url=empty_cluster.url())
    findings, position = await check_sink("main", config, SOURCE)
    assert position is None
    assert {finding.severity for finding in findings} == {Severity.OK}
    assert "connected to 3 primaries" in findings[0].what
    durable = Durable()
    sink = await opened(empty_cluster, durable)
    await apply_all(sink, durable, both(1))
    await sink.close()
    findings, position = await check_sink("main", config, SOURCE)
    assert position == both(1).position
    assert "has been applied up to" in findings[-1].what


async def test_a_single_server_is_refused(redis_server: Redis) -> None:
    sink = RedisClusterSink(SinkConfig(url=f"redis+cluster://127.0.0.1:{redis_server.port}"))
    with pytest.raises(SinkError, match="not in cluster mode: write its URL as redis://") as caught:
        await sink.open(SOURCE, "writer", Durable())
    assert not caught.value.retryable


async def test_a_single_sink_refuses_a_node(empty_cluster: RedisCluster) -> None:
    sink = make_sink("main", SinkConfig(url=empty_cluster.nodes[0].url()))
    with pytest.raises(SinkError, match=r"write its URL as redis\+cluster://"):
        await sink.open(SOURCE, "writer", Durable())


async def test_a_primary_that_dies_with_its_last_writes_is_filled_again(
    empty_cluster: RedisCluster,
) -> None:
    cluster, durable = empty_cluster, Durable()
    primary = await cluster.owner(slot_of(A))
    replica = await cluster.replica_of(primary)
    sink = await opened(cluster, durable)
    await apply_all(sink, durable, both(1))
    await primary.execute("WAIT", 1, 0)
    run = [both(2), transaction(3, Set(A, b"3"), Delete(B)), transaction(4, Set(A, b"4"))]
    # The replica never hears of these.
    await primary.execute("ACL", "SETUSER", "default", "-psync", "-sync", "-replconf")
    await primary.execute("CLIENT", "KILL", "TYPE", "replica")
    await apply_all(sink, durable, *run)
    await primary.kill()
    await cluster.wait_primary(replica)
    assert await values(cluster, A, B, C) == [b"1", None, b"2"]
    with pytest.raises(SinkUnavailable):
        await sink.apply([transaction(5, Set(A, b"5"))])
    found = await sink.open(SOURCE, "writer", durable)
    assert found is not None
    assert found.position == both(1).position
    # A delivery says so to the engine, which reads the source again from there.
    delivery = delivery_to(cluster)
    delivery._checkpoint = Checkpoint.of(run[-1], "writer")
    with pytest.raises(SinkRewound):
        delivery._reconcile(found)
    await sink.apply([run[0]])
    await sink.apply([run[1]])
    assert await values(cluster, A, B, C) == [b"1", None, b"2"]
    await sink.apply([run[2]])
    assert await values(cluster, A, B, C) == [b"4", None, b"2"]
    await sink.close()
    await primary.start()
    await cluster.wait_agreed()
    await cluster.wait_replicated()


def delivery_to(cluster: RedisCluster) -> Delivery:
    config = SinkConfig(url=cluster.url(), reconnect_delay_max_s=0.05)
    sink = sink_for(cluster)
    return Delivery("main", sink, config, source=SOURCE, writer="writer", prefixes=("",))


@asynccontextmanager
async def running(delivery: Delivery) -> AsyncIterator[asyncio.Task[None]]:
    await delivery.open_first()
    task = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(30):
            yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await delivery.close()


async def delivered(delivery: Delivery, *run: Transaction) -> None:
    for each in run:
        delivery.offer(each)
    await delivery.wait_durable_all()


async def test_a_primary_that_comes_back_empty_has_lost_the_position(
    empty_cluster: RedisCluster,
) -> None:
    cluster, durable = empty_cluster, Durable()
    sink = await opened(cluster, durable)
    await apply_all(sink, durable, both(1))
    primary = await cluster.owner(slot_of(A))
    replica = await cluster.replica_of(primary)
    await replica.kill()  # or it would take over
    await primary.kill()
    await primary.start()
    await replica.start()
    await cluster.wait_agreed()
    with pytest.raises(SinkUnavailable):
        await sink.apply([both(2)])
    findings, position = await check_sink("main", SinkConfig(url=cluster.url()), SOURCE)
    assert position is None
    assert findings[-1].severity is Severity.FAULT
    assert await sink.open(SOURCE, "writer", durable) is None
    delivery = delivery_to(cluster)
    delivery._checkpoint = Checkpoint.of(both(1), "writer")
    with pytest.raises(PositionLost):
        delivery._reconcile(None)
    await apply_all(sink, durable, transaction(1, Clear("")), both(2))
    assert await values(cluster, A, B, C) == [b"2"] * 3
    await sink.close()
    await cluster.wait_replicated()


# A node whose data is replaced, or that is full, under a living connection.


async def dumped(node: Redis) -> dict[bytes, bytes]:
    keys = await node.execute("KEYS", "*")
    return {key: await node.execute("DUMP", key) for key in keys}


async def restored(node: Redis, copy: dict[bytes, bytes]) -> None:
    async with node.client() as client, client.pipeline(transaction=False) as pipe:
        pipe.flushall()
        for key, value in copy.items():
            pipe.restore(key, 0, value)
        await pipe.execute()


@pytest.mark.parametrize("touched", [True, False])
async def test_a_node_with_an_older_copy_ends_exact(
    empty_cluster: RedisCluster, touched: bool
) -> None:
    """Whether what comes next is written to that node, or only its position moves there."""
    cluster = empty_cluster
    node = await cluster.owner(slot_of(A))
    assert await cluster.owner(slot_of(B)) is not node
    run = [both(2), transaction(3, Set(A, b"3"), Delete(B))]
    last = transaction(4, Set(A if touched else B, b"4"))
    delivery = delivery_to(cluster)
    async with running(delivery) as task:
        await delivered(delivery, both(1))
        copy = await dumped(node)
        await delivered(delivery, *run)
        await restored(node, copy)
        delivery.offer(last)
        with pytest.raises(SinkRewound) as caught:
            await task
    assert caught.value.checkpoint is not None
    assert caught.value.checkpoint.position == both(1).position
    assert (await values(cluster, A))[0] in (b"1", None)
    async with running(delivery):
        await delivered(delivery, *run, last)
    expected = [b"4", None, b"2"] if touched else [b"3", b"4", b"2"]
    assert await values(cluster, A, B, C) == expected


async def test_a_node_with_a_copy_from_before_a_clear_is_known(
    empty_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = empty_cluster
    node = await cluster.owner(slot_of(A))
    delivery = delivery_to(cluster)
    async with running(delivery):
        await delivered(delivery, both(1))
        copy = await dumped(node)
        walk = redis_cluster.clear_cluster
        walks = 0

        async def walk_and_lose(*args: Any) -> None:
            nonlocal walks
            walks += 1
            await walk(*args)
            if walks == 1:
                await restored(node, copy)

        monkeypatch.setattr(redis_cluster, "clear_cluster", walk_and_lose)
        await delivered(delivery, transaction(2, Clear("")))
    assert walks == 2
    assert await values(cluster, A, B, C) == [None] * 3


async def test_a_crash_before_it_was_noticed_loses_the_position(
    empty_cluster: RedisCluster,
) -> None:
    cluster, durable = empty_cluster, Durable()
    node = await cluster.owner(slot_of(A))
    sink = await opened(cluster, durable)
    await apply_all(sink, durable, both(1))
    copy = await dumped(node)
    await apply_all(sink, durable, both(2))
    await restored(node, copy)
    # As far as the slot's EXEC, and no further.
    at_3 = Checkpoint.of(transaction(3), "writer")
    piece = sink._sums.around(slot_of(A), slot_command(slot_of(A), at_3))
    done = sink._writes.transaction([Set(A, b"3")], piece)
    await sink._connected().each([Request(slot_of(A), done)])
    await sink.close()
    successor = sink_for(cluster)
    assert await successor.open(SOURCE, "next", Durable()) is None
    await successor.close()


async def test_a_full_node_forgets_what_waits_and_the_others_what_they_lack(
    empty_cluster: RedisCluster,
) -> None:
    cluster = empty_cluster
    node = await cluster.owner(slot_of(A))
    delivery = delivery_to(cluster)
    async with running(delivery):
        await delivered(delivery, both(1))
        await node.execute("CONFIG", "SET", "maxmemory", "1")
        try:
            for each in (both(2), transaction(3, Set(A, b"3")), transaction(4, Delete(C))):
                delivery.offer(each)
            async with asyncio.timeout(20):
                # The other nodes have what came first; of what comes behind it they know too.
                while await values(cluster, A, B, C) != [None, b"2", None]:
                    await asyncio.sleep(0.01)
            assert delivery.position == both(1).position
            delivery.offer(transaction(5, Set(B, b"5")))
        finally:
            await node.execute("CONFIG", "SET", "maxmemory", "0")
        await delivery.wait_durable_all()
    assert await values(cluster, A, B, C) == [b"3", b"5", None]


# Ten equal keys in several slots, under SIGKILL.

# Every now and then the slots get theirs one by one, so that kills fall between them.
SLOW = """
import asyncio, random
from lanecache.sinks.redis_nodes import RedisNodes
each_at_once = RedisNodes.each

async def each(self, requests):
    requests = list(requests)
    if not 1 < len(requests) < 100 or random.random() > 0.1:
        return await each_at_once(self, requests)
    answers = {}
    for request in requests:
        answers |= await each_at_once(self, [request])
        await asyncio.sleep(0.01)
    return answers

RedisNodes.each = each
"""

# Sets without unlinking first, which is what law 2 forbids where keys are in several slots.
ONE_PHASE = """
from lanecache.sinks.redis_cluster_writes import SlotWrites

async def forget_first(self, groups):
    pass

SlotWrites.forget_first = forget_first
"""


class SnapshotReader(CounterReader):
    """Reads keys of several slots until two reads are equal: that is a snapshot.

    Misses are within law 2; a mix is not, and neither is a key that goes back.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        super().__init__(self._read_snapshot)
        self._read_once = read
        self._last_of: dict[int, int] = {}
        self.misses = 0

    async def _read_snapshot(self) -> list[bytes | None]:
        before: list[bytes | None] | None = None
        while True:
            try:
                after = list(await self._read_once())
            except (RedisError, OSError):
                before = None  # on the way from one primary to the next
                await asyncio.sleep(0.01)
                continue
            self._note_each(after)
            if after == before:
                return after
            before = after

    def _note_each(self, found: list[bytes | None]) -> None:
        for key, value in enumerate(found):
            if value is not None:
                number = json.loads(value)["n"]
                if number < self._last_of.get(key, -1):
                    self.violations.append(f"key {key} goes back to {number}")
                self._last_of[key] = number

    def look(self, values: Any) -> None:
        self.reads += 1
        numbers = {json.loads(value)["n"] for value in values if value is not None}
        self.misses += any(value is None for value in values)
        if len(numbers) > 1:
            self.violations.append(f"a mix: {sorted(numbers)}")
        if numbers and None not in values:
            self.last = max(self.last, *numbers)


async def cluster_torture(
    database: DatabaseServer,
    schema: str,
    runner: Runner,
    cluster: RedisCluster,
    *,
    kills: int,
    disturb: Callable[[int], Any] | None = None,
) -> SnapshotReader:
    dice = random.Random(20)
    await create_counters(database, schema)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        client = await stack.enter_async_context(client_of(cluster))

        async def read() -> Any:
            return await client.mget_nonatomic(KEYS)

        writer, reader = CounterWriter(database, schema), SnapshotReader(read)
        runner.start()
        stack.callback(runner.kill)
        await runner.wait_streaming()
        writing = group.create_task(writer.run())
        reading = group.create_task(reader.run())
        for number in range(kills):
            await reader.wait_beyond(reader.last)
            if disturb is not None:
                await disturb(number)
            await asyncio.sleep(dice.uniform(0.0, 0.4))
            runner.kill()
            runner.start()
        await runner.wait_streaming()
        await reader.wait_beyond(reader.last)
        writer.stop()
        await writing
        committed = await database.scalar(f"SELECT MAX(n) FROM {schema}.counter")
        await reader.wait_beyond(committed - 1)
        reader.stop()
        await reading
        assert await runner.end() == 0, runner.log
        rows = await database.query(f"SELECT id, n FROM {schema}.counter ORDER BY id")
        assert [json.loads(value or b"null") for value in await read()] == [
            {"id": key, "n": number} for key, number in rows
        ]
    return reader


async def test_ten_equal_keys_in_several_slots_through_kills_a_reshard_and_a_fail_over(
    mariadb: DatabaseServer, tmp_path: Path
) -> None:
    kind = KINDS[-1]
    await mariadb.execute("CREATE DATABASE IF NOT EXISTS cluster_torture")
    async with RedisCluster(kind, newest_series(kind)) as cluster:
        config = tmp_path / "torture.toml"
        sink = f'url = "{cluster.url()}"\nreconnect_delay_max_s = 0.2'
        config.write_text(counter_config(mariadb, "cluster_torture", sink))
        owners = {(await cluster.owner(slot_of(key))).port for key in KEYS}
        assert len(owners) == 3

        async def disturb(number: int) -> None:
            slot = slot_of(KEYS[number % len(KEYS)])
            if number in (2, 5):
                await cluster.fail_over(await cluster.owner(slot))
            else:
                owner = await cluster.owner(slot)
                others = [await cluster.owner(each) for each in map(slot_of, KEYS)]
                target = next(node for node in others if node is not owner)
                await cluster.move_slot(slot, target)

        runner = Runner(config, prelude=SLOW)
        reader = await cluster_torture(
            mariadb, "cluster_torture", runner, cluster, kills=8, disturb=disturb
        )
    assert reader.violations == []
    assert reader.reads > 300
    assert reader.misses > 0


async def test_the_torture_finds_a_second_phase_without_a_first(
    mariadb: DatabaseServer, empty_cluster: RedisCluster, tmp_path: Path
) -> None:
    await mariadb.execute("CREATE DATABASE IF NOT EXISTS cluster_planted")
    config = tmp_path / "planted.toml"
    config.write_text(counter_config(mariadb, "cluster_planted", f'url = "{empty_cluster.url()}"'))
    runner = Runner(config, prelude=SLOW + ONE_PHASE)
    reader = await cluster_torture(mariadb, "cluster_planted", runner, empty_cluster, kills=4)
    assert any(violation.startswith("a mix") for violation in reader.violations)
