from __future__ import annotations

import asyncio
import datetime
import ipaddress
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import hiredis
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis_fake import Command, FakeRedis

from lanecache.config import SinkConfig
from lanecache.errors import ConfigError, SinkConflict, SinkError, SinkUnavailable
from lanecache.operation import Checkpoint, Clear, Delete, Position, Set, Transaction, Version
from lanecache.servers import Redis
from lanecache.sinks.redis import RedisSink
from lanecache.sinks.redis_commands import (
    TTL_MS_MAX,
    Piece,
    chain_key,
    encode_forget,
    encode_writes,
    escape_glob,
    pack_command,
    position_key,
    writer_name,
)
from lanecache.sinks.redis_protocol import RedisProtocol
from lanecache.sinks.redis_replies import COMMANDS_NEEDED, error_of_reply
from lanecache.testing.proxy import Direction, FaultProxy
from lanecache.testing.sink_contract import SOURCE, Durable, SinkContract, Value, transaction

POSITION_KEY = position_key(SOURCE)


def sink_for(url: str, **limits: Any) -> RedisSink:
    return RedisSink(SinkConfig(url=url, **limits), name="main")


async def opened(url: str, durable: Durable | None = None, **limits: Any) -> RedisSink:
    sink = sink_for(url, **limits)
    await sink.open(SOURCE, "writer", durable or Durable())
    return sink


async def end_of(sink: RedisSink, *run: Transaction) -> SinkError:
    """Apply a run whose end is an error, now or while it is watched, and give the error."""
    try:
        async with asyncio.timeout(20):
            await sink.apply(run)
            await sink.watch()
    except SinkError as error:
        return error
    raise AssertionError("watching came back")


async def stored_position(server: Redis) -> Position:
    return Checkpoint.decode(await server.execute("GET", POSITION_KEY)).position


# The contract.


@pytest.mark.servers
class TestRedisSink(SinkContract):
    @pytest.fixture(autouse=True)
    async def _server(self, redis_server: Redis) -> AsyncIterator[None]:
        self.server = redis_server
        async with redis_server.client() as self.client:
            yield

    def make(self) -> RedisSink:
        # Small limits, so that runs are cut, windows fill and batches wait for each other.
        return sink_for(self.server.url(), window_bytes_max=65536, batch_bytes_max=16384)

    async def read(self, key: str) -> Value:
        kind = await self.client.type(key)
        if kind == b"hash":
            fields = await self.client.hgetall(key)
            return {field.decode(): value for field, value in fields.items()}
        return await self.client.get(key)  # type: ignore[no-any-return]


@pytest.mark.servers
class TestRedisSinkByUnixSocket(SinkContract):
    @pytest.fixture(autouse=True)
    async def _server(self, redis_server: Redis) -> AsyncIterator[None]:
        self.server = redis_server
        async with redis_server.client(db=3) as self.client:
            yield

    def make(self) -> RedisSink:
        return sink_for(f"unix://{self.server.socket}?db=3")

    read = TestRedisSink.read


# Packing.


def commands_of(pieces: Any) -> list[Command]:
    reader = hiredis.Reader()
    commands: list[Command] = []
    for piece in pieces:
        reader.feed(piece.data)
        before = len(commands)
        while (command := reader.gets()) is not False:
            commands.append(command)
        assert len(commands) - before == piece.commands
    return commands


def no_oversized(key: str) -> None:
    raise AssertionError(key)


def test_plain_writes_share_a_command() -> None:
    writes = [Set("a", b"1"), Delete("b"), Set("ü", b"2"), Delete("c")]
    pieces = encode_writes(
        writes, checkpoint=Piece(pack_command(("SET", "p", "{}")), 1), oversized=no_oversized
    )
    assert commands_of(pieces) == [
        [b"MSET", b"a", b"1", "ü".encode(), b"2"],
        [b"UNLINK", b"b", b"c"],
        [b"SET", b"p", b"{}"],
    ]


@pytest.mark.parametrize(
    ("ttl_s", "ttl_ms"), [(1.5, 1500), (0.0001, 1), (0, 1), (-5, 1), (1e300, TTL_MS_MAX)]
)
def test_a_ttl_is_always_one_that_redis_accepts(ttl_s: float, ttl_ms: int) -> None:
    writes = [Set("a", b"1", ttl_s), Set("h", {"f": b"1"}, ttl_s)]
    assert commands_of(encode_writes(writes, oversized=no_oversized)) == [
        [b"SET", b"a", b"1", b"PX", b"%d" % ttl_ms],
        [b"UNLINK", b"h"],
        [b"HSET", b"h", b"f", b"1"],
        [b"PEXPIRE", b"h", b"%d" % ttl_ms],
    ]


def test_large_sets_of_writes_are_cut_into_pieces_that_hold_every_write_once() -> None:
    writes = [Set(f"k{n}", b"x" * 1000) for n in range(3000)]
    pieces = list(
        encode_writes(
            writes, checkpoint=Piece(pack_command(("SET", "p", "{}")), 1), oversized=no_oversized
        )
    )
    assert len(pieces) > 5
    assert max(len(piece.data) for piece in pieces) < 300_000
    commands = commands_of(pieces)
    assert commands[-1][0] == b"SET"
    assert [key for each in commands[:-1] for key in each[1::2]] == [w.key.encode() for w in writes]
    forgotten = commands_of(encode_forget(f"k{n}" for n in range(5000)))
    assert [key for each in forgotten for key in each[1:]] == [b"k%d" % n for n in range(5000)]


def test_no_writes_are_no_pieces() -> None:
    assert list(encode_writes([], oversized=no_oversized)) == []
    assert list(encode_forget([])) == []


def test_a_value_that_redis_would_refuse_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lanecache.sinks.redis_commands.VALUE_BYTES_MAX", 10)
    told: list[str] = []
    big = b"x" * 11
    writes = [Set("a", big), Set("b", big, 5.0), Set("c", {"f": big}), Set("d", b"x" * 10)]
    assert commands_of(encode_writes(writes, oversized=told.append)) == [
        [b"UNLINK", b"b"],
        [b"UNLINK", b"c"],
        [b"MSET", b"d", b"x" * 10],
        [b"UNLINK", b"a"],
    ]
    assert told == ["a", "b", "c"]


def test_names_are_fit_for_redis() -> None:
    assert writer_name("db.example:3306") == "lanecache:db.example:3306"
    name = writer_name("my shop\n%é\"'")
    assert name == "lanecache:my%20shop%0A%25%C3%A9%22'"
    assert escape_glob("a*b?[c]\\") == "a\\*b\\?\\[c]\\\\*"


# Batches.


@pytest.mark.servers
async def test_a_run_becomes_one_exec_with_the_position_inside(redis_server: Redis) -> None:
    durable = Durable()
    sink = await opened(redis_server.url(), durable)
    async with redis_server.client() as client, client.monitor() as monitor:
        run = [transaction(n, Set("a", b"%d" % n), Set(f"b:{n}", b"1")) for n in range(1, 4)]
        await sink.apply(run)
        await durable.wait(3)
        await redis_server.execute("PING")
        seen = []
        async for entry in monitor.listen():
            seen.append(entry["command"].split(" ")[:2])
            if seen[-1][0] == "PING":
                break
    await sink.close()
    names = [name for name, *_ in seen]
    assert names[: names.index("EXEC") + 1] == ["MULTI", "MSET", "SET", "SET", "EXEC"]
    assert "MULTI" not in names[1:]
    assert [each[1] for each in seen[2:4]] == [chain_key(SOURCE), POSITION_KEY]
    assert await redis_server.execute("MGET", "a", "b:1", "b:3") == [b"3", b"1", b"1"]
    assert await stored_position(redis_server) == run[-1].position


async def test_batches_hold_whole_transactions_up_to_their_limit() -> None:
    async with FakeRedis() as server:
        durable = Durable()
        sink = await opened(server.url, durable, batch_bytes_max=3000)
        run = [transaction(n, Set(f"a{n}", b"x" * 500), Set(f"b{n}", b"y")) for n in range(1, 11)]
        run.insert(4, transaction(100, *(Set(f"c{n}", b"z" * 400) for n in range(10))))
        await sink.apply(run)
        await durable.wait(len(run))
        await sink.close()
    sets = [command for command in server.commands if command[0] == b"MSET"]
    assert [[key.decode() for key in each[1::2]] for each in sets] == [
        ["a1", "b1", "a2", "b2", "a3", "b3"],
        ["a4", "b4"],
        [f"c{n}" for n in range(10)],
        ["a5", "b5", "a6", "b6", "a7", "b7"],
        ["a8", "b8", "a9", "b9", "a10", "b10"],
    ]
    assert server.names().count("EXEC") == 5


async def test_an_exec_waits_for_the_answer_to_the_one_before() -> None:
    async with FakeRedis() as server:
        server.hold_exec = True
        durable = Durable()
        sink = await opened(server.url, durable)
        await sink.apply([transaction(1, Set("a", b"1"))])
        async with asyncio.TaskGroup() as group:
            group.create_task(sink.apply([transaction(2, Set("a", b"2"))]))
            # The second one's commands travel while the first one is executed …
            await server.wait_for("MULTI", 2)
            await server.wait_for("MSET", 2)
            # … but nothing of it can take effect, whatever becomes of the first.
            assert server.names().count("EXEC") == 1
            assert durable.count == 0
            key = POSITION_KEY.encode()
            server.strings[key] = next(c[2] for c in server.commands if c[:2] == [b"SET", key])
            server.release(b"*3\r\n+OK\r\n+OK\r\n$-1\r\n")
        await durable.wait(2)
        await sink.close()
        assert server.names().count("EXEC") == 2


@pytest.mark.parametrize(
    "refusal",
    [
        b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        b"-EXECABORT Transaction discarded because of previous errors.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots.\r\n",
        b"*-1\r\n",
    ],
)
async def test_nothing_is_executed_behind_a_refused_exec(refusal: bytes) -> None:
    async with FakeRedis() as server:
        server.hold_exec = True
        durable = Durable()
        sink = await opened(server.url, durable)
        await sink.apply([transaction(1, Set("a", b"1"))])
        ending = asyncio.create_task(end_of(sink, transaction(2, Set("a", b"2"))))
        await server.wait_for("MSET", 2)
        server.release(refusal)  # a second EXEC would be executed
        assert isinstance(await ending, SinkUnavailable)
        await sink.close()
        assert server.names().count("EXEC") == 1
        assert durable.count == 0
        assert b"a" not in server.strings


class OutstandingSpy:
    """Stands before a protocol's transport and sees how much is under way after each write."""

    def __init__(self, protocol: RedisProtocol) -> None:
        self.most_bytes = 0
        self._protocol = protocol
        self._transport = protocol._transport
        protocol._transport = self  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        self.most_bytes = max(self.most_bytes, self._protocol.outstanding_bytes)
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()


@pytest.mark.parametrize("run_length", [1, 40])
async def test_what_is_sent_and_not_answered_stays_below_the_window(run_length: int) -> None:
    window = 16_000  # a little more than one batch
    async with FakeRedis() as server:
        durable = Durable()
        sink = await opened(server.url, durable, window_bytes_max=window, batch_bytes_max=15_000)
        protocol = sink._protocol()
        spy = OutstandingSpy(protocol)
        run = [transaction(n, Set(f"{n}", b"x" * 1500)) for n in range(400)]
        for first in range(0, len(run), run_length):
            await sink.apply(run[first : first + run_length])
        await durable.wait(len(run))
        await sink.close()
        assert 0 < spy.most_bytes <= window
        assert protocol.outstanding_bytes == 0


async def test_a_transaction_larger_than_the_window_is_sent_alone_and_in_pieces() -> None:
    async with FakeRedis() as server:
        durable = Durable()
        sink = await opened(server.url, durable, window_bytes_max=10_000)
        large = transaction(2, *(Set(f"k{n}", b"x" * 10_000) for n in range(300)))
        await sink.apply([transaction(1, Set("a", b"1")), large, transaction(3, Set("a", b"3"))])
        await durable.wait(3)
        await sink.close()
        assert server.strings[b"k299"] == b"x" * 10_000
        assert server.names().count("EXEC") == 3
        assert server.names().count("MSET") > 10


# Clears and spilled transactions.


@pytest.mark.servers
async def test_a_clear_waits_for_what_came_before_and_leaves_other_positions(
    redis_server: Redis,
) -> None:
    await redis_server.execute("MSET", position_key("other"), "x", "lanecache:x", "y")
    durable = Durable()
    sink = await opened(redis_server.url(), durable)
    many = [transaction(n, Set(f"lanecache:k:{n}", b"1")) for n in range(1, 6001)]
    last = transaction(6001, Clear("lanecache:"), Set("lanecache:k:1", b"2"))
    await sink.apply([*many, last])
    await durable.wait(6001)
    await sink.close()
    keys = set(await redis_server.execute("KEYS", "*"))
    left = [position_key("other"), POSITION_KEY, chain_key(SOURCE), "lanecache:k:1"]
    assert keys == {key.encode() for key in left}
    assert await redis_server.execute("GET", "lanecache:k:1") == b"2"


async def test_a_spilled_transaction_forgets_all_before_it_sets_any() -> None:
    async with FakeRedis() as server:
        durable = Durable()
        sink = await opened(server.url, durable, batch_bytes_max=30_000, window_bytes_max=60_000)
        writes = [Set(f"k{n}", b"x" * 1000) for n in range(1000)] + [Delete("gone")]
        await sink.apply([transaction(1, Set("a", b"1")), transaction(2, *writes, spilled=True)])
        await durable.wait(2)
        await sink.close()
    names = server.names()
    first_phase = [key for each in server.commands if each[0] == b"UNLINK" for key in each[1:]]
    assert sorted(first_phase) == sorted(write.key.encode() for write in writes)
    later = names[names.index("EXEC") + 1 :]  # after the transaction before it
    assert later.index("MSET") > max(n for n, name in enumerate(later) if name == "UNLINK")
    assert later.count("MSET") > 20
    positions = [
        Checkpoint.decode(each[2]).position
        for each in server.commands
        if each[:2] == [b"SET", POSITION_KEY.encode()]
    ]
    assert positions[-1] == transaction(2).position
    assert set(positions[:-1]) == {transaction(1).position}, "it moves once, at the end"
    assert later[-4:] == ["MSET", "INCRBY", "SET", "EXEC"]


async def test_no_value_is_set_behind_a_key_that_could_not_be_forgotten() -> None:
    refused = 0

    def answer(command: Command) -> bytes | None:
        nonlocal refused
        if command[0] == b"UNLINK" and not refused:
            refused += 1
            return b"-MISCONF Redis is configured to save RDB snapshots.\r\n"
        return None

    async with FakeRedis(answer) as server:
        sink = await opened(server.url, batch_bytes_max=30_000)
        writes = [Set(f"k{n}", b"x" * 1000) for n in range(100)]
        error = await end_of(sink, transaction(1, *writes, spilled=True))
        assert isinstance(error, SinkUnavailable)
        assert "cannot save to disk" in str(error)
        await sink.close()
        assert refused == 1
        assert "MSET" not in server.names()


@pytest.mark.servers
@pytest.mark.parametrize("cut_after_bytes", [2_000, 200_000, 700_000, 1_000_000])
async def test_a_spilled_transaction_that_is_cut_off_shows_no_mix_and_leaves_the_position(
    redis_server: Redis, cut_after_bytes: int
) -> None:
    keys = [f"k{n}" for n in range(1000)]
    old = transaction(1, *(Set(key, b"o" * 1000) for key in keys))
    new = transaction(2, *(Set(key, b"n" * 1000) for key in keys), spilled=True)
    async with FaultProxy(redis_server.host, redis_server.port) as proxy:
        durable = Durable()
        limits = {"batch_bytes_max": 30_000, "window_bytes_max": 60_000}
        sink = await opened(f"redis://{proxy.host}:{proxy.port}", durable, **limits)
        await sink.apply([old])
        await durable.wait(1)
        proxy.cut_after(cut_after_bytes, Direction.UP)
        assert isinstance(await end_of(sink, new), SinkUnavailable)
        await sink.close()
        values = {value[:1] for value in await redis_server.execute("MGET", *keys) if value}
        assert len(values) <= 1, "old values beside new ones"
        assert await stored_position(redis_server) == old.position
        assert await sink.open(SOURCE, "writer", durable) is not None
        await sink.apply([new])
        await durable.wait(2)
        await sink.close()
    assert set(await redis_server.execute("MGET", *keys)) == {b"n" * 1000}
    assert await stored_position(redis_server) == new.position


# Opening: earlier writers, positions.


@pytest.mark.servers
async def test_what_a_killed_writer_left_in_redis_is_not_applied_after_the_position_was_read(
    redis_server: Redis,
) -> None:
    sink = await opened(redis_server.url(2))
    await sink.apply([transaction(1, Set("a", b"1"))])
    await sink.close()
    zombie = socket.create_connection((redis_server.host, redis_server.port))
    try:
        zombie.sendall(
            hiredis.pack_command(("SELECT", 2))
            + hiredis.pack_command(("CLIENT", "SETNAME", writer_name(SOURCE)))
        )
        received = zombie.recv(100)
        # A bystander: the same source, but its own database.
        bystander = await opened(redis_server.url(3))
        # Writes wait in Redis as they would behind a slow command, and reads do not.
        await redis_server.execute("CLIENT", "PAUSE", 60_000, "WRITE")
        stale = Checkpoint(SOURCE, transaction(9).position, Version(9, 7), "zombie").encode()
        zombie.sendall(
            hiredis.pack_command(("MULTI",))
            + hiredis.pack_command(("SET", "a", "zombie"))
            + hiredis.pack_command(("SET", POSITION_KEY, stale))
            + hiredis.pack_command(("EXEC",))
        )
        zombie.settimeout(20)
        while received.count(b"+OK") < 3:  # MULTI is answered, and the rest in Redis waits
            received += zombie.recv(100)
        second = sink_for(redis_server.url(2))
        opening = asyncio.create_task(second.open(SOURCE, "second", Durable()))
        with anyio.fail_after(20):
            assert await asyncio.to_thread(zombie.recv, 100) == b""  # ended by the opening
        await redis_server.execute("CLIENT", "UNPAUSE")
        checkpoint = await opening
        assert checkpoint is not None
        assert checkpoint.position == transaction(1).position
        async with redis_server.client(db=2) as client:
            assert await client.get("a") == b"1"
            stored = Checkpoint.decode(await client.get(POSITION_KEY))
        assert (stored.position, stored.writer) == (transaction(1).position, "second")
        durable = Durable()
        bystander._durable = durable
        await bystander.apply([transaction(1, Set("b", b"1"))])
        await durable.wait(1)
        await bystander.close()
        await second.close()
    finally:
        await redis_server.execute("CLIENT", "UNPAUSE")
        zombie.close()


@pytest.mark.servers
async def test_a_writer_whose_source_was_taken_over_stops(redis_server: Redis) -> None:
    first, second = Durable(), Durable()
    old = sink_for(redis_server.url())
    await old.open(SOURCE, "old", first)
    await old.apply([transaction(1, Set("a", b"1"))])
    await first.wait(1)
    new = sink_for(redis_server.url())
    assert await new.open(SOURCE, "new", second) is not None
    with pytest.raises(SinkUnavailable, match="dropped the connection"):
        await old.watch()
    await old.close()
    with pytest.raises(SinkConflict, match="stop one of the two"):
        await old.open(SOURCE, "old", first)
    # The new one was not disturbed by the attempt.
    await new.apply([transaction(2, Set("a", b"2"))])
    await second.wait(1)
    await new.close()


@pytest.mark.servers
async def test_older_data_that_came_back_is_no_conflict(redis_server: Redis) -> None:
    durable = Durable()
    sink = sink_for(redis_server.url())
    await sink.open(SOURCE, "me", durable)
    await sink.apply([transaction(5, Set("a", b"5"))])
    await durable.wait(1)
    older = Checkpoint(SOURCE, transaction(3).position, transaction(3).version, "one before me")
    await redis_server.execute("SET", POSITION_KEY, older.encode())
    assert await sink.open(SOURCE, "me", durable) == older
    await sink.close()


@pytest.mark.servers
async def test_a_claim_that_was_lost_with_a_crash_of_redis_is_no_conflict(
    redis_server: Redis,
) -> None:
    before = Checkpoint(SOURCE, transaction(3).position, transaction(3).version, "one before me")
    await redis_server.execute("SET", POSITION_KEY, before.encode())
    sink = sink_for(redis_server.url())
    assert await sink.open(SOURCE, "me", Durable()) == before
    await redis_server.execute("SET", POSITION_KEY, before.encode())
    assert await sink.open(SOURCE, "me", Durable()) == before
    await sink.close()


@pytest.mark.servers
@pytest.mark.parametrize(
    "stored",
    [
        b"garbage",
        b"",
        b'{"format":2}',
        Checkpoint("else", Position(None, "f", 1), Version(1, 1), "w").encode(),
    ],
)
async def test_a_position_that_cannot_be_read_is_an_error_with_its_remedy(
    redis_server: Redis, stored: bytes
) -> None:
    await redis_server.execute("SET", POSITION_KEY, stored)
    sink = sink_for(redis_server.url())
    with pytest.raises(SinkError, match=f"{POSITION_KEY}.*delete that key") as caught:
        await sink.open(SOURCE, "writer", Durable())
    assert not caught.value.retryable
    assert await redis_server.execute("GET", POSITION_KEY) == stored


@pytest.mark.servers
@pytest.mark.parametrize("forbidden", ["client|list", "client|kill", "client|setname", "client"])
async def test_without_the_right_to_end_connections_the_position_has_to_stand_still(
    redis_server: Redis, forbidden: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = f"limited{time.time_ns()}"
    await redis_server.execute("ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", f"-{forbidden}")
    try:
        leftover = await opened(redis_server.url())  # so that there is something to be ended
        url = f"redis://{user}:pw@{redis_server.host}:{redis_server.port}"
        durable = Durable()
        sink = sink_for(url)
        moving = [transaction(n).position for n in range(1, 4)]
        done = asyncio.Event()

        async def move() -> None:
            for n, position in enumerate(moving, 1):
                stored = Checkpoint(SOURCE, position, Version(n, 7), "leftover").encode()
                await redis_server.execute("SET", POSITION_KEY, stored)
                await asyncio.sleep(0.15)
            done.set()

        mover = asyncio.create_task(move())
        checkpoint = await sink.open(SOURCE, "writer", durable)
        assert done.is_set(), "the position was read while it still moved"
        await mover
        assert checkpoint is not None
        assert checkpoint.position == moving[-1]
        await sink.apply([transaction(4, Set("a", b"4"))])
        await durable.wait(1)
        await sink.open(SOURCE, "writer", durable)
        await sink.close()
        await leftover.close()
    finally:
        await redis_server.execute("ACL", "DELUSER", user)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "+client|kill" in warnings[0].getMessage()


@pytest.mark.servers
async def test_the_rights_that_are_asked_for_are_enough(redis_server: Redis) -> None:
    user = f"exact{time.time_ns()}"
    await redis_server.execute(
        "ACL", "SETUSER", user, "on", ">pw", "~*", "-@all", *COMMANDS_NEEDED.split()
    )
    try:
        leftover = await opened(redis_server.url(1))
        durable = Durable()
        url = f"redis://{user}:pw@{redis_server.host}:{redis_server.port}/1"
        sink = await opened(url, durable, reply_timeout_s=0.2)
        with anyio.move_on_after(0.3):
            await sink.watch()  # long enough for a PING
        writes = [Set("a", b"1", 5.0), Set("b", b"1"), Set("h", {"f": b"1"}, 5.0), Delete("c")]
        await sink.apply([transaction(1, Clear("x"), *writes)])
        await durable.wait(1)
        await sink.close()
        await leftover.close()
    finally:
        await redis_server.execute("ACL", "DELUSER", user)


# Refusals of a real server.


@pytest.mark.servers
async def test_a_wrong_password_is_said_without_it(redis_server: Redis) -> None:
    sink = sink_for(f"redis://nobody:topsecret@{redis_server.host}:{redis_server.port}")
    with pytest.raises(SinkError, match=r"refused the login.*correct the user and pass") as caught:
        await sink.open(SOURCE, "writer", Durable())
    assert not caught.value.retryable
    assert "topsecret" not in str(caught.value)


@pytest.mark.servers
async def test_a_missing_password_is_said(new_server: Any) -> None:
    server = await new_server(Redis, options={"requirepass": "pw"})
    with pytest.raises(SinkError, match="refused the login") as caught:
        await opened(server.url())
    assert not caught.value.retryable
    durable = Durable()
    sink = await opened(f"redis://:pw@{server.host}:{server.port}", durable)
    await sink.apply([transaction(1, Set("a", b"1"))])
    await durable.wait(1)
    await sink.close()


@pytest.mark.servers
async def test_a_missing_right_is_said_with_its_remedy(redis_server: Redis) -> None:
    user = f"keys{time.time_ns()}"
    await redis_server.execute("ACL", "SETUSER", user, "on", ">pw", "~lanecache:*", "~p:*", "+@all")
    try:
        durable = Durable()
        url = f"redis://{user}:pw@{redis_server.host}:{redis_server.port}"
        sink = await opened(url, durable)
        await sink.apply([transaction(1, Set("p:1", b"1"))])
        await durable.wait(1)
        error = await end_of(sink, transaction(2, Set("p:1", b"2"), Set("q:1", b"2")))
        assert "ACL SETUSER" in str(error)
        assert not error.retryable
        await sink.close()
    finally:
        await redis_server.execute("ACL", "DELUSER", user)
    assert await redis_server.execute("GET", "p:1") == b"1"
    assert await stored_position(redis_server) == transaction(1).position


@pytest.mark.servers
async def test_a_database_number_that_is_not_there_is_an_error(redis_server: Redis) -> None:
    with pytest.raises(SinkError, match="no database of that number") as caught:
        await opened(redis_server.url(99))
    assert not caught.value.retryable


@pytest.mark.servers
async def test_a_full_redis_is_tried_again(new_server: Any) -> None:
    server = await new_server(Redis)
    durable = Durable()
    sink = await opened(server.url(), durable)
    await sink.apply([transaction(1, Set("a", b"1"))])
    await durable.wait(1)
    await server.execute("CONFIG", "SET", "maxmemory", "1")
    error = await end_of(sink, transaction(2, Set("a", b"2")))
    assert isinstance(error, SinkUnavailable)
    assert "is full (maxmemory): raise maxmemory" in str(error)
    with pytest.raises(SinkUnavailable, match="is full"):
        await sink.open(SOURCE, "writer", durable)
    await server.execute("CONFIG", "SET", "maxmemory", "0")
    checkpoint = await sink.open(SOURCE, "writer", durable)
    assert checkpoint is not None
    assert checkpoint.position == transaction(1).position
    await sink.apply([transaction(2, Set("a", b"2"))])
    await durable.wait(2)
    await sink.close()


@pytest.mark.servers
async def test_a_replica_is_tried_again(new_server: Any) -> None:
    server = await new_server(Redis)
    durable = Durable()
    sink = await opened(server.url(), durable)
    await server.execute("REPLICAOF", server.host, "1")
    error = await end_of(sink, transaction(1, Set("a", b"1")))
    assert isinstance(error, SinkUnavailable)
    assert "is a read-only replica: point the URL at the primary" in str(error)
    await server.execute("REPLICAOF", "NO", "ONE")
    assert await sink.open(SOURCE, "writer", durable) is None
    await sink.apply([transaction(1, Set("a", b"1"))])
    await durable.wait(1)
    await sink.close()


@pytest.mark.servers
async def test_a_cluster_node_is_refused(new_server: Any) -> None:
    server = await new_server(Redis, options={"cluster-enabled": True})
    with pytest.raises(SinkError, match="node of a Redis Cluster") as caught:
        await opened(server.url())
    assert not caught.value.retryable


@pytest.mark.servers
async def test_a_killed_redis_is_noticed_while_idle(new_server: Any) -> None:
    server = await new_server(Redis)
    sink = await opened(server.url())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(end_of(sink))
        await server.kill()
    assert "dropped the connection" in str(watching.result())
    with pytest.raises(SinkUnavailable, match="cannot be reached"):
        await sink.open(SOURCE, "writer", Durable())
    await sink.close()


@pytest.mark.servers
async def test_a_redis_that_hangs_is_noticed_while_idle_and_while_busy(new_server: Any) -> None:
    server = await new_server(Redis)
    sink = await opened(server.url(), reply_timeout_s=0.3)
    server.pause()
    assert "has not answered for 0.3 s" in str(await end_of(sink))
    server.resume()
    await sink.open(SOURCE, "writer", Durable())
    server.pause()
    await sink.apply([transaction(1, Set("a", b"1"))])
    assert "has not answered" in str(await end_of(sink, transaction(2, Set("a", b"2"))))
    server.resume()
    await sink.close()


# Misbehaviour that takes a fake.


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (b"-LOADING Redis is loading the dataset in memory\r\n", "is loading its data set"),
        (b"-MASTERDOWN Link with MASTER is down.\r\n", "lost its primary"),
        (b"-BUSY Redis is busy running a script.\r\n", "busy with a script"),
        (b"-ERR max number of clients reached\r\n", "max number of clients"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not answer as Redis does"),
        (b"$99999999999999999999\r\n", "does not answer as Redis does"),
        (b":12\r\n:12\r\n:12\r\n", "does not answer as Redis does"),
    ],
)
async def test_a_server_that_is_not_ready_is_tried_again(reply: bytes, says: str) -> None:
    def answer(command: Command) -> bytes | None:
        return reply if command[0] in (b"INFO", b"GET") else None

    async with FakeRedis(answer) as server:
        with pytest.raises(SinkUnavailable, match=says):
            await opened(server.url)


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"+OK\r\n", b":1\r\n", b"-LOADING x\r\n", b"\x16\x03\x01"],
)
async def test_garbage_on_an_idle_connection_ends_it(garbage: bytes) -> None:
    async with FakeRedis() as server:
        sink = await opened(server.url)
        server.say(garbage)
        assert (await end_of(sink)).retryable
        with pytest.raises(SinkUnavailable):
            await sink.apply([transaction(1, Set("a", b"1"))])
        await sink.close()


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        (b"MULTI", b"+QUEUED\r\n"),
        (b"MSET", b"+OK\r\n"),
        (b"MSET", b":1\r\n"),
        (b"EXEC", b"+OK\r\n"),
        (b"EXEC", b"*1\r\n+OK\r\n"),
        (b"EXEC", b"*2\r\n+OK\r\n!"),
    ],
)
async def test_an_answer_out_of_place_ends_the_connection(name: bytes, reply: bytes) -> None:
    def answer(command: Command) -> bytes | None:
        return reply if command[0] == name else None

    async with FakeRedis(answer) as server:
        sink = await opened(server.url)
        error = await end_of(sink, transaction(1, Set("a", b"1")))
        assert isinstance(error, SinkUnavailable)
        assert "does not answer as Redis does" in str(error)
        await sink.close()


async def test_an_old_redis_is_refused() -> None:
    async with FakeRedis(version="6.0.16") as server:
        with pytest.raises(SinkError, match=r"version 6\.0\.16; 6\.2 or newer") as caught:
            await opened(server.url)
        assert not caught.value.retryable


async def test_keys_whose_command_failed_inside_an_exec_are_forgotten_before_going_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(command: Command) -> bytes | None:
        # The data is refused and the position moves: what must never be passed over.
        if command[0] == b"EXEC" and not server.strings.get(b"refused"):
            server.strings[b"refused"] = b"yes"
            key = POSITION_KEY.encode()
            server.strings[key] = next(c[2] for c in server.commands if c[:2] == [b"SET", key])
            return b"*3\r\n-ERR something\r\n+OK\r\n$-1\r\n"
        return None

    async with FakeRedis(answer) as server:
        server.strings |= {b"a": b"old", b"b": b"old"}
        durable = Durable()
        sink = await opened(server.url, durable)
        error = await end_of(sink, transaction(1, Set("a", b"1"), Set("b", b"1")))
        assert "ERR something" in str(error)
        assert durable.count == 0
        checkpoint = await sink.open(SOURCE, "writer", durable)
        assert checkpoint is not None
        assert checkpoint.position == transaction(1).position
        assert b"a" not in server.strings
        assert b"b" not in server.strings
        await sink.close()
    assert "its keys are forgotten" in caplog.text


async def test_a_cancelled_apply_leaves_no_half_transaction() -> None:
    async with FakeRedis() as server:
        sink = await opened(server.url)
        protocol = sink._protocol()
        protocol.pause_writing()  # as when Redis does not read
        large = transaction(1, *(Set(f"k{n}", b"x" * 1000) for n in range(1000)))
        applying = asyncio.create_task(sink.apply([large]))
        await server.wait_for("MULTI")
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        with anyio.fail_after(5):
            await sink.close()
        assert "EXEC" not in server.names()


async def test_closing_waits_for_what_is_under_way() -> None:
    async with FakeRedis() as server:
        durable = Durable()
        sink = await opened(server.url, durable)
        await sink.apply([transaction(1, Set("a", b"1"))])
        await sink.apply([transaction(2, Set("a", b"2"))])
        await sink.close()
        assert durable.count == 2
        with pytest.raises(SinkUnavailable, match="not connected"):
            await sink.apply([transaction(3, Set("a", b"3"))])


# URLs and TLS.


@pytest.mark.parametrize(
    "url",
    [
        "unix://",
        "redis://host:notaport",
        "redis://host/notanumber",
        "redis://:topsecret@host/0?unknown_option=1",
        "redis://host?ssl_min_version=abc",
        "rediss://host?ssl_cert_reqs=sometimes",
    ],
)
def test_a_wrong_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sink_for(url)
    assert caught.value.path == "sinks.main.url"
    assert str(caught.value).startswith("sinks.main.url ")
    assert "topsecret" not in str(caught.value)
    assert "__init__" not in str(caught.value)


def test_the_address_that_is_shown_has_no_password() -> None:
    assert sink_for("redis://user:pw@cache:6380/2?db=2").address == "cache:6380/2"
    assert sink_for("redis://[::1]").address == "[::1]:6379"
    assert sink_for("unix://user:pw@/run/redis.sock?db=1").address == "/run/redis.sock"


@pytest.mark.parametrize("text", ["FOO bar", "ERR Protocol error: x", "UNKILLABLE x", "x"])
def test_an_error_that_is_not_known_is_tried_again_and_named(text: str) -> None:
    error = error_of_reply(text, "host:1")
    assert isinstance(error, SinkUnavailable)
    assert text in str(error)


def write_certificates(folder: Path) -> None:
    """Write an authority's certificate (ca.pem) and a server's (cert.pem, key.pem)."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lanecache tests")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    ca = (
        builder(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    certificate = (
        builder(name, key.public_key())
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.mark.servers
async def test_tls_with_an_acl_user(new_server: Any, tmp_path: Path, unused_tcp_port: int) -> None:
    write_certificates(tmp_path)
    server = await new_server(
        Redis,
        options={
            "tls-port": unused_tcp_port,
            "tls-cert-file": str(tmp_path / "cert.pem"),
            "tls-key-file": str(tmp_path / "key.pem"),
            "tls-ca-cert-file": str(tmp_path / "ca.pem"),
            "tls-auth-clients": "no",
        },
    )
    await server.execute("ACL", "SETUSER", "lane", "on", ">p w/1", "~*", "+@all")
    base = f"rediss://lane:p%20w%2F1@{server.host}:{unused_tcp_port}/1"
    with pytest.raises(SinkError, match=r"certificate .* was not accepted.*ssl_ca_certs") as caught:
        await opened(base)
    assert not caught.value.retryable
    # A Redis that does not speak TLS waits for more of what it takes for a command.
    with pytest.raises(SinkUnavailable, match="does it speak TLS on this port"):
        await opened(f"rediss://{server.host}:{server.port}", connect_timeout_s=0.5)

    durable = Durable()
    sink = await opened(f"{base}?ssl_ca_certs={tmp_path / 'ca.pem'}", durable)
    run = [transaction(n, Set(f"k{n}", b"x" * 10_000)) for n in range(1, 501)]
    await sink.apply(run)
    await durable.wait(500)
    await sink.close()
    async with server.client(db=1) as client:
        assert await client.get("k500") == b"x" * 10_000
        assert await client.dbsize() == 502
